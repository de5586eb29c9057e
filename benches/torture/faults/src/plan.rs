//! The plan: a file that the driver has written and that all engine processes of a run map. `plan.py` has the same layout.

use std::ffi::CStr;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

pub const MAGIC: u64 = 0x3145_5255_5452_4f54; // "TORTURE1"
const RULES: usize = 4;
pub const ENTRIES: usize = 16_384;
pub const LONGEST_NAME: usize = 104;
const LONGEST_ROOT: usize = 256;

/// What happens to operations of one of the `kinds`: to those from `from` on, as long as some are `left` to it.
#[repr(C)]
pub struct Rule {
    from: u64,
    left: AtomicU64,
    /// `KILL`, `TEAR`, or the number of an error.
    action: u32,
    kinds: u32,
}

/// One counted operation.
#[repr(C)]
pub struct Entry {
    pub process: u32,
    pub act: u32,
    pub number: u32,
    pub kinds: u32,
    /// What a rule did, or 0.
    pub action: u32,
    pub length: u32,
    pub name: [u8; LONGEST_NAME],
}

/// The file.
#[repr(C)]
pub struct Plan {
    magic: u64,
    /// Operations so far. It goes on over all processes of the run.
    pub counted: AtomicU64,
    /// Operations that a rule had its way with.
    pub fired: AtomicU64,
    /// Whether operations are counted.
    pub is_active: AtomicU32,
    /// Which act of the life is on; it goes into the trace.
    pub act: AtomicU32,
    rules: [Rule; RULES],
    root_length: u64,
    root: [u8; LONGEST_ROOT],
    pub trace: [Entry; ENTRIES],
}

pub const KILL: u32 = 1 << 16;
/// Half of a write, then the kill.
pub const TEAR: u32 = 2 << 16;

static PLAN: AtomicPtr<Plan> = AtomicPtr::new(ptr::null_mut());

/// Maps the plan at a path.
pub fn map(path: &CStr) -> io::Result<()> {
    // SAFETY: plain system calls; the mapping stays for the life of the process.
    let mapped = unsafe {
        let file = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let mapped = libc::mmap(ptr::null_mut(), size_of::<Plan>(), protection, libc::MAP_SHARED, file, 0);
        libc::close(file);
        mapped
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let plan = mapped.cast::<Plan>();
    // SAFETY: it was just mapped; every bit pattern is a `Plan`.
    if unsafe { (*plan).magic } != MAGIC {
        return Err(io::Error::other("it is not a plan of this version"));
    }
    PLAN.store(plan, Ordering::Release);
    Ok(())
}

/// The plan of this process, while operations are counted.
pub fn active() -> Option<&'static Plan> {
    // SAFETY: null, or mapped for the life of the process; what others change meanwhile is atomic, or the trace's.
    unsafe { PLAN.load(Ordering::Acquire).as_ref() }.filter(|plan| plan.is_active.load(Ordering::Acquire) != 0)
}

impl Rule {
    fn applies(&self, n: u64, kinds: u32) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        n >= self.from
            && kinds & self.kinds != 0
            && self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok()
    }
}

impl Plan {
    /// What comes after the root in a path that is below it.
    pub fn below_root<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let root = self.root.get(..self.root_length as usize)?;
        path.strip_prefix(root)?.strip_prefix(b"/")
    }

    /// Counts an operation, writes it down, and returns what is to happen to it: 0 where it is performed.
    pub fn count(&self, number: i64, kinds: u32, name: &[u8], process: u32) -> u32 {
        let n = self.counted.fetch_add(1, Ordering::AcqRel) + 1;
        let action = self.rules.iter().find(|rule| rule.applies(n, kinds)).map_or(0, |rule| rule.action);
        if action != 0 {
            self.fired.fetch_add(1, Ordering::AcqRel);
        }
        if let Some(entry) = self.trace.get(n as usize - 1) {
            let tail = &name[name.len().saturating_sub(LONGEST_NAME)..];
            let entry = ptr::from_ref(entry).cast_mut();
            // SAFETY: the entry is this operation's alone, in memory that is shared and writable.
            unsafe {
                (*entry).process = process;
                (*entry).act = self.act.load(Ordering::Acquire);
                (*entry).number = number as u32;
                (*entry).kinds = kinds;
                (*entry).action = action;
                (&raw mut (*entry).name).cast::<u8>().copy_from_nonoverlapping(tail.as_ptr(), tail.len());
                (*entry).length = tail.len() as u32;
            }
        }
        action
    }
}
