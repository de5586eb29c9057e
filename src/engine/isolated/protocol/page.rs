//! The page of memory that an engine process shares with its apps, and how it is passed: with the greeting.
//!
//! It has the generation of the database's catalogue, which grows with every change (`server/catalogue.rs` says what is
//! one), and the identity of the files that are open. What an app has learned of a collection holds for as long as it finds
//! both unchanged and the engine process alive; an app that looks asks nobody.
//!
//! The page is a memfd, sealed so that no app can write to it, and that none which has mapped it can be made to fault.
//! Where the system has no such memory (any but Linux, and Linux before 5.1), nothing is passed, and apps ask every time.
//! Plain Rust.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// The identity of the files of a database; see `storage/directory.rs`.
pub type Place = [u64; 4];

#[repr(C)]
struct Words {
    generation: AtomicU64,
    place: [AtomicU64; 4],
}

const LENGTH: usize = size_of::<Words>();

/// The page, mapped. Every app of an engine process has it mapped, to read.
#[derive(Debug)]
pub struct Page(NonNull<Words>);

#[allow(unsafe_code)]
// SAFETY: it is a reference to atomics, which are mapped for as long as it lives.
unsafe impl Send for Page {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// Returns the number of changes of the catalogue.
    pub fn generation(&self) -> u64 {
        self.words().generation.load(Ordering::SeqCst)
    }

    /// Returns the identity of the files that are open. It is one only if the generation is the same after reading it.
    pub fn place(&self) -> Place {
        self.words().place.each_ref().map(|word| word.load(Ordering::SeqCst))
    }

    #[allow(unsafe_code)]
    fn words(&self) -> &Words {
        // SAFETY: `map` has mapped as many bytes, and all that both processes do with them is atomic.
        unsafe { self.0.as_ref() }
    }

    #[cfg(target_os = "linux")]
    #[allow(unsafe_code)]
    fn map(descriptor: BorrowedFd<'_>, protection: rustix::mm::ProtFlags) -> io::Result<Self> {
        use rustix::mm::{MapFlags, mmap};
        // SAFETY: a new mapping, at an address that the system chooses.
        let address = unsafe { mmap(std::ptr::null_mut(), LENGTH, protection, MapFlags::SHARED, descriptor, 0)? };
        NonNull::new(address.cast()).map(Self).ok_or_else(|| io::Error::other("mapped at the address 0"))
    }

    /// Maps a page that another process has passed. Only one that cannot be truncated: reading it must not fault.
    #[cfg(target_os = "linux")]
    fn map_passed(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        let is_sealed = rustix::fs::fcntl_get_seals(descriptor)?.contains(rustix::fs::SealFlags::SHRINK);
        let length = rustix::fs::fstat(descriptor)?.st_size;
        if !is_sealed || !usize::try_from(length).is_ok_and(|length| length >= LENGTH) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Self::map(descriptor, rustix::mm::ProtFlags::READ)
    }
}

impl Drop for Page {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), LENGTH) };
    }
}

/// The page of this engine process, which alone may write to it.
#[derive(Debug)]
pub struct OwnPage {
    page: Page,
    descriptor: OwnedFd,
}

impl OwnPage {
    /// Creates the page.
    #[cfg(target_os = "linux")]
    pub fn create() -> io::Result<Self> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
        use rustix::mm::ProtFlags;
        let descriptor = memfd_create("chroma-catalogue", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&descriptor, LENGTH as u64)?;
        let page = Page::map(descriptor.as_fd(), ProtFlags::READ | ProtFlags::WRITE)?;
        // What is mapped already stays writable.
        fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL)?;
        Ok(Self { page, descriptor })
    }

    /// There is none on this system.
    #[cfg(not(target_os = "linux"))]
    pub fn create() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Counts a change of the catalogue.
    pub fn count(&self) {
        self.page.words().generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Says which files are open now, and counts a change.
    pub fn set_place(&self, place: Place) {
        self.count();
        for (word, value) in self.page.words().place.iter().zip(place) {
            word.store(value, Ordering::SeqCst);
        }
        self.count();
    }
}

/// A socket at which the page is passed along with the first bytes that are written.
pub struct Passing<'a> {
    stream: &'a UnixStream,
    descriptor: Option<BorrowedFd<'a>>,
}

impl<'a> Passing<'a> {
    /// Passes the page, if there is one.
    pub fn new(stream: &'a UnixStream, page: Option<&'a OwnPage>) -> Self {
        Self { stream, descriptor: page.map(|page| page.descriptor.as_fd()) }
    }
}

impl Write for Passing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(descriptor) = self.descriptor else { return self.stream.write(bytes) };
        let sent = send_with(self.stream, bytes, descriptor)?;
        self.descriptor = None;
        Ok(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(target_os = "linux")]
fn send_with(stream: &UnixStream, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut passed = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    passed.push(SendAncillaryMessage::ScmRights(&descriptors));
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut passed, SendFlags::NOSIGNAL)?)
}

#[cfg(not(target_os = "linux"))]
fn send_with(mut stream: &UnixStream, bytes: &[u8], _: BorrowedFd<'_>) -> io::Result<usize> {
    stream.write_vectored(&[IoSlice::new(bytes)])
}

/// A socket from which the page is taken that is passed along with what is read.
pub struct Taking<'a> {
    stream: &'a UnixStream,
    page: Option<Page>,
}

impl<'a> Taking<'a> {
    /// Takes nothing yet.
    pub fn new(stream: &'a UnixStream) -> Self {
        Self { stream, page: None }
    }

    /// Returns the page that was passed, if there was one that is what it should be.
    pub fn into_page(self) -> Option<Page> {
        self.page
    }
}

impl Read for Taking<'_> {
    #[cfg(target_os = "linux")]
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut passed = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(self.stream, &mut [io::IoSliceMut::new(bytes)], &mut passed, RecvFlags::CMSG_CLOEXEC)?;
        // The descriptors are closed here, whatever is in them. A process that has none left gets none.
        for message in passed.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                for descriptor in descriptors {
                    self.page = Page::map_passed(descriptor.as_fd()).ok();
                }
            }
        }
        Ok(received.bytes)
    }

    #[cfg(not(target_os = "linux"))]
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.read(bytes)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn passed(own: &OwnPage) -> Option<Page> {
        let (one, other) = UnixStream::pair().unwrap();
        Passing::new(&one, Some(own)).write_all(b"greeting").unwrap();
        let mut taking = Taking::new(&other);
        taking.read_exact(&mut [0; 8]).unwrap();
        taking.into_page()
    }

    #[test]
    fn what_is_counted_is_seen_where_the_page_was_passed_to() {
        let own = OwnPage::create().unwrap();
        let (one, other) = (passed(&own).unwrap(), passed(&own).unwrap());
        assert_eq!((one.generation(), one.place()), (0, [0; 4]));
        own.count();
        assert_eq!((one.generation(), other.generation()), (1, 1));
        own.set_place([1, 2, 3, 4]);
        assert_eq!(other.place(), [1, 2, 3, 4]);
        assert!(other.generation() > 1);
    }

    #[test]
    fn it_can_be_neither_written_nor_truncated_where_it_was_passed_to() {
        let own = OwnPage::create().unwrap();
        let descriptor = own.descriptor.try_clone().unwrap();
        assert!(rustix::io::write(&descriptor, b"x").is_err());
        assert!(rustix::fs::ftruncate(&descriptor, 0).is_err());
        let writable = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        assert!(Page::map(descriptor.as_fd(), writable).is_err());
    }

    #[test]
    fn one_that_could_be_truncated_or_is_too_short_is_not_taken() {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
        for (length, seals, is_taken) in [
            (LENGTH, SealFlags::SHRINK, true),
            (LENGTH, SealFlags::GROW, false),
            (LENGTH - 1, SealFlags::SHRINK, false),
        ] {
            let descriptor = memfd_create("other", MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&descriptor, length as u64).unwrap();
            fcntl_add_seals(&descriptor, seals).unwrap();
            assert_eq!(Page::map_passed(descriptor.as_fd()).is_ok(), is_taken);
        }
    }
}
