//! One owner for an instance: `flock` on a file in its directory, held for as long as the database is open.
//!
//! Plain Rust. The open files are kept in one table of the process and not in the locks themselves, so that a forked
//! child can close what it inherited; a fork waits while one is in nobody's table yet, or no more. So nothing here is to
//! be called while attached to the interpreter.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::calls;

/// The lock's name in the instance's directory.
pub const NAME: &str = ".chroma_manager.lock";

/// What stands in the place of a socket where the owner is one for a moment: until its engine process has a socket, or
/// until the directory is removed. It is waited for.
pub const MOMENTARY: &str = "momentary";

/// How often, and how long each time, an owner without a signature is waited for.
const SIGNATURE_TRIES: u32 = 20;
const SIGNATURE_WAIT: Duration = Duration::from_millis(1);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static HELD: Mutex<Option<HashMap<u64, File>>> = Mutex::new(None);

/// What came of trying to own a directory.
#[derive(Debug)]
pub enum Attempt {
    /// The directory is ours until the lock is dropped.
    Acquired(LockFile),
    /// Somebody else owns it.
    Held(Owner),
}

/// What a lock file says of the process that holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its process id, where it could be read.
    pub pid: Option<u32>,
    /// Where it can be reached: an engine process can, an app that has the database in its own process cannot.
    pub socket: Option<PathBuf>,
}

impl Owner {
    /// Whether it will be another one, or nobody, in a moment.
    pub fn is_momentary(&self) -> bool {
        self.socket.as_deref() == Some(Path::new(MOMENTARY))
    }
}

/// A directory that this process owns. Dropping it gives the directory up.
#[derive(Debug)]
pub struct LockFile {
    id: u64,
    previous: Owner,
}

impl LockFile {
    /// Tries once, without waiting for the owner, to own `directory`; `socket` is where others are to find the owner.
    pub fn try_acquire(directory: &Path, socket: Option<&Path>) -> io::Result<Attempt> {
        let _pass = calls::here();
        let path = directory.join(NAME);
        let mut tries = 0;
        loop {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => match parse_owner(&mut file) {
                    Some(owner) => return Ok(Attempt::Held(owner)),
                    None if tries == SIGNATURE_TRIES => return Ok(Attempt::Held(Owner::default())),
                    // It has just been locked, or is just being given up.
                    None => {
                        tries += 1;
                        std::thread::sleep(SIGNATURE_WAIT);
                        continue;
                    }
                },
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The file that was locked may have been removed meanwhile: a lock on it would keep nobody out.
            if same_file(&file, &path)? {
                let previous = parse_owner(&mut file);
                sign(&mut file, std::process::id(), socket).inspect_err(|_| {
                    // On a full disk, say. One that names nobody is worth nothing, and may be what was just created.
                    if previous.is_none() {
                        let _ = fs::remove_file(&path);
                    }
                })?;
                let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
                HELD.lock().get_or_insert_default().insert(id, file);
                return Ok(Attempt::Acquired(Self { id, previous: previous.unwrap_or_default() }));
            }
        }
    }
}

/// Who owns a directory, if anybody does. Nothing is created.
pub fn owner(directory: &Path) -> Option<Owner> {
    let _pass = calls::here();
    let mut file = File::open(directory.join(NAME)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => parse_owner(&mut file),
        _ => None,
    }
}

impl LockFile {
    /// The owner before, if it did not live to take its signature back.
    pub fn previous(&self) -> &Owner {
        &self.previous
    }

    /// What the system says of the locked file.
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        let _pass = calls::here();
        HELD.lock().as_ref().and_then(|held| held.get(&self.id)).ok_or(io::ErrorKind::NotFound)?.metadata()
    }

    /// Whether the locked file is the one in that directory: it may have been removed, or moved away.
    pub fn is_in(&self, directory: &Path) -> bool {
        let _pass = calls::here();
        let held = HELD.lock();
        let file = held.as_ref().and_then(|held| held.get(&self.id));
        file.is_some_and(|file| is_lock_of(file, directory))
    }

    /// Another descriptor of the locked file, for a process that is to inherit it.
    pub fn try_clone(&self) -> io::Result<File> {
        let _pass = calls::here();
        HELD.lock().as_ref().and_then(|held| held.get(&self.id)).ok_or(io::ErrorKind::NotFound)?.try_clone()
    }

    /// Leaves the directory to the process that has inherited the lock, and says where it can be reached.
    pub fn hand_over(self, pid: u32, socket: &Path) -> io::Result<()> {
        let _pass = calls::here();
        let file = HELD.lock().as_mut().and_then(|held| held.remove(&self.id));
        sign(&mut file.ok_or(io::ErrorKind::NotFound)?, pid, Some(socket))
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        let _pass = calls::here();
        let file = HELD.lock().as_mut().and_then(|held| held.remove(&self.id));
        if let Some(mut file) = file {
            // Neither can be handled here, and the lock ends with the descriptor in any case. Unlocking by name frees the
            // directory also where a child that did not run our fork hook has the descriptor still open.
            let _ = file.set_len(0).and_then(|()| file.flush());
            let _ = file.unlock();
        }
    }
}

/// In a forked child: closes the inherited descriptors. The parent's locks stay the parent's.
pub fn forget_inherited() {
    // A thread that held the table at the fork does not exist here, and will never give it back.
    if let Some(mut held) = HELD.try_lock() {
        held.take();
    }
}

/// Writes who owns the directory: a line with the process id, and one with the socket, if it can be reached.
fn sign(file: &mut File, pid: u32, socket: Option<&Path>) -> io::Result<()> {
    let mut text = format!("{pid}\n");
    if let Some(socket) = socket {
        text.push_str(&socket.to_string_lossy());
        text.push('\n');
    }
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

fn parse_owner(file: &mut File) -> Option<Owner> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    let mut lines = text.lines();
    let pid = lines.next()?.parse().ok()?;
    Some(Owner { pid: Some(pid), socket: lines.next().map(PathBuf::from) })
}

/// Whether an open file is the lock of that directory.
pub fn is_lock_of(file: &File, directory: &Path) -> bool {
    same_file(file, &directory.join(NAME)).unwrap_or(false)
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok(ours.dev() == there.dev() && ours.ino() == there.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Elsewhere an open file cannot be removed.
#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps)] // as the one above
fn same_file(_: &File, _: &Path) -> io::Result<bool> {
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquire(directory: &Path) -> Option<LockFile> {
        match LockFile::try_acquire(directory, None).unwrap() {
            Attempt::Acquired(lock) => Some(lock),
            Attempt::Held(_) => None,
        }
    }

    #[test]
    fn who_looks_for_the_owner_owns_and_creates_nothing() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(owner(directory.path()), None);
        assert!(!directory.path().join(NAME).exists());
        let socket = Some(Path::new("/run/socket"));
        let Attempt::Acquired(lock) = LockFile::try_acquire(directory.path(), socket).unwrap() else { panic!() };
        let found = owner(directory.path()).unwrap();
        assert_eq!((found.pid, found.socket.as_deref()), (Some(std::process::id()), socket));
        drop(lock);
        assert_eq!(owner(directory.path()), None);
        assert!(acquire(directory.path()).is_some());
    }

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = acquire(directory.path()).expect("nobody owns it");
        assert!(acquire(directory.path()).is_none());
        drop(first);
        assert!(acquire(directory.path()).is_some());
    }

    #[test]
    fn whoever_is_refused_learns_the_owner() {
        let directory = tempfile::tempdir().unwrap();
        let _first = acquire(directory.path()).unwrap();
        let Attempt::Held(owner) = LockFile::try_acquire(directory.path(), None).unwrap() else { panic!("two owners") };
        assert_eq!(owner, Owner { pid: Some(std::process::id()), socket: None });
    }

    #[test]
    fn an_owner_that_did_not_sign_is_unknown_not_invented() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join(NAME)).unwrap();
        file.try_lock().unwrap();
        let Attempt::Held(owner) = LockFile::try_acquire(directory.path(), None).unwrap() else { panic!("two owners") };
        assert_eq!(owner, Owner::default());
    }

    #[test]
    fn a_process_that_inherits_the_lock_owns_the_directory_and_says_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let lock = acquire(directory.path()).unwrap();
        let inherited = lock.try_clone().unwrap();
        lock.hand_over(7, Path::new("/run/socket")).unwrap();
        let Attempt::Held(owner) = LockFile::try_acquire(directory.path(), None).unwrap() else { panic!("two owners") };
        assert_eq!(owner, Owner { pid: Some(7), socket: Some("/run/socket".into()) });
        drop(inherited);
        assert!(acquire(directory.path()).is_some());
    }

    #[test]
    fn a_directory_that_came_back_can_be_owned_anew() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("doc");
        fs::create_dir(&directory).unwrap();
        let _old = acquire(&directory).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        let _new = acquire(&directory).expect("the lock in the removed directory is not this one's");
        assert!(acquire(&directory).is_none());
    }

    #[test]
    fn owners_that_remove_their_lock_file_still_keep_each_other_out() {
        let directory = tempfile::tempdir().unwrap();
        let owners = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let Some(lock) = acquire(directory.path()) else { continue };
                        assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0, "two owners");
                        std::thread::yield_now();
                        owners.fetch_sub(1, Ordering::SeqCst);
                        crate::directory::remove_created(directory.path(), Some(lock), &[]);
                    }
                });
            }
        });
    }
}
