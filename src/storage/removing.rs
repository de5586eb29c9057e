//! Removing a database with its directory.
//!
//! Plain Rust. Every function makes file system calls, so none may be called while attached to the interpreter.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::claiming::{REMOVAL_RACES, remove_created, sync_entry};
use super::directory::{DATABASE_FILE, HOME, has_database};
use super::lock_file::{self, Attempt, LockFile};
use super::owner::{MOMENTARY, Owner, is_socket_name};

/// How the names begin of files of ours that are kept for whoever wants to save something from them.
const KEPT: [&str; 2] = ["damaged-", "set-aside-"];

/// The result of an attempt to remove a directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Removal {
    /// The directory does not exist any more. The flag says whether it had a database.
    Removed(bool),
    /// The directory has a database, which was not to be removed.
    Kept,
    /// The directory has an owner, which alone may remove it.
    Held(Owner),
}

/// Removes a directory that has no owner, and its parent if that is empty then. With `only_remains`, a directory that
/// has a database is kept.
pub fn remove(directory: &Path, only_remains: bool) -> io::Result<Removal> {
    let mut races = 0;
    loop {
        // A directory without a database or a lock file does not belong to an instance.
        if !has_database(directory) && !directory.join(lock_file::NAME).exists() {
            return Ok(Removal::Removed(false));
        }
        let lock = match LockFile::try_acquire(directory, Some(Path::new(MOMENTARY))) {
            Ok(Attempt::Acquired(lock)) => lock,
            Ok(Attempt::Held(owner)) => return Ok(Removal::Held(owner)),
            Err(error) if error.kind() == ErrorKind::NotFound && races < REMOVAL_RACES => {
                races += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        let had_database = has_database(directory);
        if had_database && only_remains {
            return Ok(Removal::Kept);
        }
        remove_content(directory)?;
        let parent = directory.parent().map(Path::to_path_buf);
        let created: Vec<_> = parent.into_iter().chain([directory.to_path_buf()]).collect();
        remove_created(directory, Some(lock), &created);
        // Another process that waited for the lock may have created a new directory in the meantime.
        if had_database || !directory.exists() || races >= REMOVAL_RACES {
            return Ok(Removal::Removed(had_database));
        }
        races += 1;
    }
}

/// Removes everything in the directory but the lock file, which its owner removes. The database file goes first, so
/// that an interruption leaves nothing that looks like a database.
pub fn remove_content(directory: &Path) -> io::Result<()> {
    let database = directory.join(DATABASE_FILE);
    ignore_missing(fs::remove_file(&database))?;
    // Otherwise the file could reappear after a power failure.
    sync_entry(&database);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == lock_file::NAME {
            continue;
        }
        remove_entry(&entry)?;
    }
    Ok(())
}

/// Removes what an incomplete database has left in a directory: index files, and what was known of them. The rest is
/// somebody's: files of the app, and what a repair has quarantined.
pub fn remove_remains(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == HOME {
            remove_notes(&entry.path())?;
        } else if name.starts_with(DATABASE_FILE) || is_index_name(&name) || is_socket_name(Path::new(&*name)) {
            remove_entry(&entry)?;
        }
    }
    Ok(())
}

/// Removes what was known of a database, and the directory of it where nothing is kept: another one may take its place.
fn remove_notes(home: &Path) -> io::Result<()> {
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        let name = entry.file_name();
        if !KEPT.iter().any(|kept| name.to_string_lossy().starts_with(kept)) {
            remove_entry(&entry)?;
        }
    }
    let _ = fs::remove_dir(home);
    Ok(())
}

fn remove_entry(entry: &fs::DirEntry) -> io::Result<()> {
    let path = entry.path();
    ignore_missing(if entry.file_type()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) })
}

/// Returns whether a directory of this name is that of an index: its segment's UUID.
fn is_index_name(name: &str) -> bool {
    let lengths = name.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && name.chars().all(|part| part == '-' || part.is_ascii_hexdigit())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
