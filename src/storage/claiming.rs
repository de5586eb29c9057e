//! Claiming a directory for an owner: creating it, locking it, and removing what was created for an opening that failed.
//!
//! Plain Rust. Every function makes file system calls, so none may be called while attached to the interpreter.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::directory::has_database;
use super::lock_file::{self, Attempt, LockFile};
use super::owner::is_socket_name;

/// The number of attempts to create and lock a directory that another process keeps removing.
pub(super) const REMOVAL_RACES: u32 = 100;
const AFTER_RACE: Duration = Duration::from_millis(1);

/// The result of an attempt to own a directory, and the directories that were created for it.
pub type Claim = (Attempt, Vec<PathBuf>);

/// Tries once to own `directory`, without waiting for its owner. The lock file will name `socket`.
///
/// Creates the directory if it is missing and `may_create` is set. Returns `None`, and changes nothing, if there is no
/// database and it is not set.
///
/// # Errors
///
/// Returns the error of the file system. One about permissions says which directory or file denies access.
pub fn claim(directory: &Path, may_create: bool, socket: Option<&Path>) -> io::Result<Option<Claim>> {
    let claimed = retry_after_removal(|| {
        if !may_create && !has_database(directory) {
            return Ok(None);
        }
        claim_once(directory, may_create, socket)
    });
    claimed.map_err(|error| with_path(directory, error))
}

/// Repeats `attempt` while it fails because another process has removed a directory between two of its steps.
pub fn retry_after_removal<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut races = 0;
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::NotFound && races < REMOVAL_RACES => {
                races += 1;
                thread::sleep(AFTER_RACE);
            }
            result => return result,
        }
    }
}

/// Adds the path, its user and its mode to an error about permissions.
fn with_path(directory: &Path, error: io::Error) -> io::Error {
    #[cfg(unix)]
    if error.kind() == ErrorKind::PermissionDenied {
        use std::os::unix::fs::MetadataExt;
        // Where the file does not exist or cannot be seen, it is a directory above that denies access.
        let lock = directory.join(lock_file::NAME);
        let found = lock.ancestors().find_map(|path| fs::metadata(path).ok().map(|found| (path, found)));
        if let Some((path, found)) = found {
            let (path, user, mode) = (path.display(), found.uid(), found.mode() & 0o7777);
            let text = format!("{error}: {path} belongs to the user {user} and has the mode {mode:o}");
            return io::Error::new(error.kind(), text);
        }
    }
    #[cfg(not(unix))]
    let _ = directory;
    error
}

fn claim_once(directory: &Path, may_create: bool, socket: Option<&Path>) -> io::Result<Option<Claim>> {
    let created = if may_create { create_directories(directory)? } else { Vec::new() };
    let attempt =
        LockFile::try_acquire(directory, socket).inspect_err(|_| remove_created(directory, None, &created))?;
    match attempt {
        // Another process has removed the database before this one had the lock.
        Attempt::Acquired(lock) if !may_create && !has_database(directory) => {
            remove_created(directory, Some(lock), &[]);
            Ok(None)
        }
        Attempt::Acquired(lock) => {
            remove_stale_sockets(directory);
            Ok(Some((Attempt::Acquired(lock), created)))
        }
        attempt @ Attempt::Held(_) => Ok(Some((attempt, created))),
    }
}

/// Removes the sockets of owners that ended without removing them, and those that were copied along with the directory.
/// Called by the owner, before it creates its own.
fn remove_stale_sockets(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if is_socket_name(Path::new(&entry.file_name())) && entry.file_type().is_ok_and(|found| !found.is_dir()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes what a failed opening has created: the lock file, if `lock` is given, and the directories that are empty.
pub fn remove_created(directory: &Path, lock: Option<LockFile>, created: &[PathBuf]) {
    if let Some(lock) = lock {
        // Removed while it is still locked: a process that then gets the lock sees that it is gone, and creates a new
        // one.
        let _ = fs::remove_file(directory.join(lock_file::NAME));
        drop(lock);
    }
    for path in created.iter().rev() {
        // A directory that is not empty stays: its content is not ours to remove.
        let _ = fs::remove_dir(path);
    }
}

/// Creates `directory` and its missing parents, and returns those that it created, the outermost first.
pub fn create_directories(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let missing: Vec<PathBuf> =
        directory.ancestors().take_while(|path| !path.exists()).map(Path::to_path_buf).collect();
    let mut created = Vec::new();
    for path in missing.into_iter().rev() {
        match fs::create_dir(&path) {
            Ok(()) => {
                sync_entry(&path);
                created.push(path);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => {
                remove_created(directory, None, &created);
                // What was in the way has been removed in the meantime.
                return Err(if error.kind() == ErrorKind::AlreadyExists && is_nothing_at(&path) {
                    io::Error::from(ErrorKind::NotFound)
                } else {
                    error
                });
            }
        }
    }
    match fs::metadata(directory) {
        Ok(found) if found.is_dir() => Ok(created),
        // It is a file, or has been removed in the meantime.
        found => {
            remove_created(directory, None, &created);
            Err(found.err().unwrap_or_else(|| ErrorKind::NotADirectory.into()))
        }
    }
}

/// Returns whether nothing has this name. A link whose target is missing counts as something.
fn is_nothing_at(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Makes the entry of a new or removed file durable by syncing its parent directory. Some file systems cannot sync a
/// directory, and offer nothing else; errors are ignored.
pub(super) fn sync_entry(path: &Path) {
    if let Some(parent) = path.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let _ = File::open(parent).and_then(|parent| parent.sync_all());
    }
}
