//! The lock that gives an instance one owner: `flock` on a file in its directory, held for as long as the database is
//! open.
//!
//! Plain Rust. A table of the process holds the open files, so that a forked child can close those that it inherited. A
//! fork waits while a file is open but not in the table. Nothing here may be called while attached to the interpreter.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;

#[cfg(unix)]
use super::left_behind;
use super::owner::Owner;
use crate::sync::fork_gate;

/// The name of the lock file in an instance's directory.
pub const NAME: &str = ".chroma_manager.lock";

/// The largest number of bytes read from a lock file. No owner writes as many.
const LONGEST: u64 = 4096;

/// The number of waits for an owner that has not yet written its description, and the length of each.
const SIGNATURE_TRIES: u32 = 20;
const SIGNATURE_WAIT: Duration = Duration::from_millis(1);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static HELD: Mutex<Option<HashMap<u64, File>>> = Mutex::new(None);

/// The result of an attempt to own a directory.
#[derive(Debug)]
pub enum Attempt {
    /// This process owns the directory until the lock is dropped.
    Acquired(LockFile),
    /// Another owner holds the lock.
    Held(Owner),
}

/// Ownership of a directory. Dropping it releases the directory.
#[derive(Debug)]
pub struct LockFile {
    id: u64,
    owner: Owner,
}

impl LockFile {
    /// Tries once to own `directory`, without waiting for its owner. The lock file will name `socket`.
    pub fn try_acquire(directory: &Path, socket: Option<&Path>) -> io::Result<Attempt> {
        let _pass = fork_gate::here();
        let path = directory.join(NAME);
        let owner = Owner::new(socket)?;
        let mut tries = 0;
        loop {
            let mut file = open(&path, OpenOptions::new().read(true).write(true).create(true).truncate(false))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => match read_owner(&mut file) {
                    Some(owner) if owner.secret.is_some() => return Ok(Attempt::Held(owner)),
                    found if tries == SIGNATURE_TRIES => return Ok(Attempt::Held(found.unwrap_or_default())),
                    // The owner has just locked it and is about to write it, or is about to release it.
                    _ => {
                        tries += 1;
                        std::thread::sleep(SIGNATURE_WAIT);
                        continue;
                    }
                },
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The locked file may have been removed in the meantime: a lock on it would keep no other process out.
            if is_at(&file, &path)? {
                let previous = read_owner(&mut file);
                write_owner(&mut file, &owner).inspect_err(|_| {
                    // On a full disk, for example. A file that was empty before is of no use, and may be a new one.
                    if previous.is_none() {
                        let _ = fs::remove_file(&path);
                    }
                })?;
                let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
                HELD.lock().get_or_insert_default().insert(id, file);
                // An owner that has not released the lock has not removed its socket and its log either.
                #[cfg(unix)]
                left_behind::remove(&previous.unwrap_or_default());
                return Ok(Attempt::Acquired(Self { id, owner }));
            }
        }
    }
}

/// Returns the owner of a directory, if it has one. Creates nothing.
pub fn owner(directory: &Path) -> Option<Owner> {
    let _pass = fork_gate::here();
    let mut file = open(&directory.join(NAME), OpenOptions::new().read(true)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => read_owner(&mut file),
        _ => None,
    }
}

impl LockFile {
    /// Returns the metadata of the locked file.
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        let _pass = fork_gate::here();
        HELD.lock().as_ref().and_then(|held| held.get(&self.id)).ok_or(io::ErrorKind::NotFound)?.metadata()
    }

    /// Returns whether the locked file is still the one in `directory`: it may have been removed or moved.
    pub fn is_in(&self, directory: &Path) -> bool {
        let _pass = fork_gate::here();
        let held = HELD.lock();
        let file = held.as_ref().and_then(|held| held.get(&self.id));
        file.is_some_and(|file| is_lock_of(file, directory))
    }

    /// Duplicates the descriptor of the locked file, for a process that will inherit it.
    pub fn try_clone(&self) -> io::Result<File> {
        let _pass = fork_gate::here();
        HELD.lock().as_ref().and_then(|held| held.get(&self.id)).ok_or(io::ErrorKind::NotFound)?.try_clone()
    }

    /// Returns the owner that the lock file names: this process.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Hands the directory over to the process that has inherited the lock, and writes its description.
    pub fn hand_over(self, successor: &Owner) -> io::Result<()> {
        let _pass = fork_gate::here();
        let file = HELD.lock().as_mut().and_then(|held| held.remove(&self.id));
        write_owner(&mut file.ok_or(io::ErrorKind::NotFound)?, successor)
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        let _pass = fork_gate::here();
        let file = HELD.lock().as_mut().and_then(|held| held.remove(&self.id));
        if let Some(mut file) = file {
            // Errors cannot be handled here, and closing the descriptor releases the lock in any case. The explicit
            // unlock is for a child that did not run our fork hook and still has the descriptor open.
            let _ = file.set_len(0).and_then(|()| file.flush());
            let _ = file.unlock();
        }
    }
}

/// Closes the inherited descriptors in a forked child. The locks remain the parent's.
pub fn forget_inherited() {
    // A thread that had the table locked at the fork does not exist here, and will never unlock it.
    if let Some(mut held) = HELD.try_lock() {
        held.take();
    }
}

/// Opens a lock file without following a link or waiting for the other end of a pipe: the target of a link may belong
/// to another database.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    let opened = options.open(path).and_then(|file| file.metadata().map(|found| (file, found.is_file())));
    match opened {
        Ok((file, true)) => Ok(file),
        Err(error) if fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) => Err(error),
        Err(error) if fs::symlink_metadata(path).is_err() => Err(error),
        _ => Err(io::Error::other(format!("{} is not a regular file: remove it", path.display()))),
    }
}

/// Writes the description of the owner.
pub fn write_owner(file: &mut File, owner: &Owner) -> io::Result<()> {
    let text = owner.to_text();
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

/// Reads the description of the owner, if there is a valid one.
pub fn read_owner(file: &mut File) -> Option<Owner> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.take(LONGEST).read_to_end(&mut text).ok()?;
    Owner::parse(&text)
}

/// Returns whether an open file is the lock file of `directory`.
pub fn is_lock_of(file: &File, directory: &Path) -> bool {
    is_at(file, &directory.join(NAME)).unwrap_or(false)
}

/// Returns whether an open file is the one at `path`.
#[cfg(unix)]
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok(ours.dev() == there.dev() && ours.ino() == there.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns `true`: on this system an open file cannot be removed.
#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps)] // the signature of the other version
pub fn is_at(_: &File, _: &Path) -> io::Result<bool> {
    Ok(true)
}

#[cfg(test)]
mod tests;
