//! What a directory has: whether there is a database in it, and whether it is still the one that was opened.
//!
//! Plain Rust. Every function makes file system calls, so none may be called while attached to the interpreter.

use std::fs::{self, Metadata};
use std::path::Path;

use super::lock_file::{self, LockFile};

/// Chroma's database file. A directory without one has no database, whatever else it contains.
pub const DATABASE_FILE: &str = "chroma.sqlite3";

/// The directory of all other files of ours, in that of a database: `storage.paths.HOME`.
pub const HOME: &str = ".chroma_manager";

/// Returns whether `directory` has a database.
pub fn has_database(directory: &Path) -> bool {
    directory.join(DATABASE_FILE).is_file()
}

/// The identity of a directory and its database, which a replacement does not share: that of the lock file, which its
/// owner keeps open, and that of the database file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    lock: FileId,
    database: FileId,
}

impl Seen {
    /// Returns the identity of what is in `directory` now, or `None` if it has no database or no lock file.
    pub fn at(directory: &Path) -> Option<Self> {
        Some(Self {
            lock: fs::symlink_metadata(directory.join(lock_file::NAME)).ok().map(|found| id_of(&found))?,
            database: file_id(&directory.join(DATABASE_FILE))?,
        })
    }

    /// Returns the identity as numbers, by which another process compares it. None of them is 0.
    #[cfg(unix)]
    pub fn numbers(&self) -> [u64; 4] {
        [self.lock.0, self.lock.1, self.database.0, self.database.1]
    }

    /// Returns whether `lock` is the lock file of this identity.
    pub fn has(&self, lock: &LockFile) -> bool {
        lock.metadata().is_ok_and(|metadata| id_of(&metadata) == self.lock)
    }

    /// Returns whether the open file is the lock file of this identity.
    #[cfg(unix)]
    pub fn has_file(&self, lock: &fs::File) -> bool {
        lock.metadata().is_ok_and(|metadata| id_of(&metadata) == self.lock)
    }
}

/// The device and the inode of a file or a directory. They identify it for as long as it is open somewhere.
pub type FileId = (u64, u64);

/// Returns the id of the lock file in `directory`.
pub fn lock_id(directory: &Path) -> Option<FileId> {
    file_id(&directory.join(lock_file::NAME))
}

/// Returns the id of the file at a path, following links.
pub fn file_id(file: &Path) -> Option<FileId> {
    fs::metadata(file).ok().map(|metadata| id_of(&metadata))
}

/// Returns the id that is in `metadata`.
#[cfg(unix)]
pub fn id_of(metadata: &Metadata) -> FileId {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// Returns a constant: on this system an open file cannot be removed or replaced.
#[cfg(not(unix))]
pub fn id_of(_: &Metadata) -> FileId {
    (0, 0)
}

/// Returns the total size in bytes of the files in a directory and in its immediate subdirectories.
pub fn size(directory: &Path) -> u64 {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: &fs::DirEntry| entry.metadata().map_or(0, |metadata| metadata.len());
    entries(directory).map(|entry| size(&entry) + entries(&entry.path()).map(|entry| size(&entry)).sum::<u64>()).sum()
}
