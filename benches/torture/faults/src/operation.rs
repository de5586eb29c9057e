//! What a system call does to which file.

use crate::stub::perform;

/// It opens a file.
pub const OPENS: u32 = 1;
/// What is on the disk is another afterwards.
pub const CHANGES: u32 = 2;
/// It may need space.
pub const GROWS: u32 = 4;
/// It makes something durable.
pub const SYNCS: u32 = 8;
/// It writes bytes, of which a part can be written.
pub const WRITES: u32 = 16;

/// A path, in a buffer of its own: nothing may be allocated in a signal handler.
pub struct PathBuffer {
    bytes: [u8; 2048],
    length: usize,
}

impl PathBuffer {
    pub fn new() -> Self {
        Self { bytes: [0; 2048], length: 0 }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn push(&mut self, more: &[u8]) {
        let end = (self.length + more.len()).min(self.bytes.len());
        self.bytes[self.length..end].copy_from_slice(&more[..end - self.length]);
        self.length = end;
    }

    fn push_number(&mut self, mut number: u64) {
        let (mut digits, mut first) = ([0; 20], 20);
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.push(&digits[first..]);
    }

    /// The path of a descriptor; empty where there is none.
    fn set_to_descriptor(&mut self, descriptor: i32) {
        let mut link = PathBuffer::new();
        if descriptor == libc::AT_FDCWD {
            link.push(b"/proc/self/cwd\0");
        } else {
            link.push(b"/proc/self/fd/");
            link.push_number(u64::from(descriptor as u32));
            link.push(b"\0");
        }
        let arguments = [
            libc::AT_FDCWD as u64,
            link.bytes.as_ptr() as u64,
            self.bytes.as_mut_ptr() as u64,
            self.bytes.len() as u64,
            0,
            0,
        ];
        // SAFETY: both buffers live, and the second is as long as it says.
        let length = unsafe { perform(libc::SYS_readlinkat, arguments) };
        self.length = usize::try_from(length).unwrap_or(0);
    }

    /// The path that a system call is told of: relative ones are relative to the descriptor of a directory.
    ///
    /// # Safety
    ///
    /// `path` is a C string, or null.
    unsafe fn set_to_path(&mut self, directory: i32, path: u64) {
        self.length = 0;
        let start = path as *const u8;
        if start.is_null() {
            return;
        }
        // SAFETY: the caller's. What is no address, the kernel would refuse too; no caller here does that.
        let length = (0..1024).find(|i| unsafe { *start.add(*i) } == 0).unwrap_or(0);
        // SAFETY: they were just read.
        let name = unsafe { core::slice::from_raw_parts(start, length) };
        if name.first() != Some(&b'/') {
            self.set_to_descriptor(directory);
            self.push(b"/");
        }
        self.push(name.strip_prefix(b"./").unwrap_or(name));
    }
}

/// Looks what a system call is about: fills in the path, and returns what it does to it.
///
/// # Safety
///
/// The arguments are those of the system call.
pub unsafe fn describe(number: i64, arguments: &[u64; 6], path: &mut PathBuffer) -> u32 {
    let [first, second, third, fourth, ..] = *arguments;
    // SAFETY: the caller's.
    let mut named = |directory: u64, name: u64| unsafe { path.set_to_path(directory as i32, name) };
    let here = libc::AT_FDCWD as u64;
    match number {
        libc::SYS_openat => {
            named(first, second);
            kinds_of_opening(third as i32)
        }
        libc::SYS_open => {
            named(here, first);
            kinds_of_opening(second as i32)
        }
        libc::SYS_creat => {
            named(here, first);
            OPENS | CHANGES | GROWS
        }
        libc::SYS_rename | libc::SYS_link | libc::SYS_symlink => {
            named(here, second);
            CHANGES | GROWS
        }
        libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_linkat => {
            named(third, fourth);
            CHANGES | GROWS
        }
        libc::SYS_symlinkat => {
            named(second, third);
            CHANGES | GROWS
        }
        libc::SYS_unlink | libc::SYS_rmdir | libc::SYS_truncate => {
            named(here, first);
            CHANGES
        }
        libc::SYS_unlinkat => {
            named(first, second);
            CHANGES
        }
        libc::SYS_mkdir => {
            named(here, first);
            CHANGES | GROWS
        }
        libc::SYS_mkdirat => {
            named(first, second);
            CHANGES | GROWS
        }
        libc::SYS_copy_file_range => {
            path.set_to_descriptor(third as i32);
            CHANGES | GROWS
        }
        _ => {
            path.set_to_descriptor(first as i32);
            match number {
                libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_sync_file_range => SYNCS,
                libc::SYS_ftruncate => CHANGES,
                libc::SYS_write | libc::SYS_pwrite64 => CHANGES | GROWS | WRITES,
                _ => CHANGES | GROWS,
            }
        }
    }
}

fn kinds_of_opening(flags: i32) -> u32 {
    let creates = flags & libc::O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE;
    let truncates = flags & libc::O_TRUNC != 0;
    OPENS | if creates { CHANGES | GROWS } else { 0 } | if truncates { CHANGES } else { 0 }
}
