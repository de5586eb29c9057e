//! Where a missing database is put together: in a staging directory beside the final one.
//!
//! The files are moved when they are complete, so that no call opens a partial download, and a kill in the middle leaves
//! nothing that looks like a database. Plain Rust; every function makes file system calls, so none may be called while
//! attached to the interpreter.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::storage::claiming;
use crate::storage::directory::{self, DATABASE_FILE};
use crate::storage::lock_file::{self, Attempt};
use crate::storage::owner::{MOMENTARY, is_socket_name, random_name};
use crate::storage::removing;

/// A new, empty directory beside that of a database. Dropping it removes it.
pub struct Staging {
    path: PathBuf,
    created: Vec<PathBuf>,
    /// The locked descriptor of the directory. One that is not locked was left by a process that was killed.
    _lock: File,
}

/// What an attempt to move a database into its directory has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// It was moved.
    Moved,
    /// The directory has a database, or an owner that is about to create one.
    Exists,
    /// Neither the directory nor the staging directory has one.
    Nothing,
}

/// The prefix and the suffix of the name of a staging directory.
const PREFIX: &str = ".chroma_manager.";
const SUFFIX: &str = ".incoming";

impl Staging {
    /// Creates one, and removes those that killed processes have left.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let parent = directory.parent().unwrap_or(directory);
        remove_abandoned(parent);
        // Another process may take it for abandoned, and remove it, before it is locked. It may also remove the parent
        // that it had created itself.
        claiming::retry_after_removal(|| Self::create_in(parent))
    }

    fn create_in(parent: &Path) -> io::Result<Self> {
        let created = claiming::create_directories(parent)?;
        let path = parent.join(format!("{PREFIX}{}{SUFFIX}", random_name()?));
        let locked = fs::create_dir(&path).and_then(|()| File::open(&path)).and_then(|opened| {
            opened.lock()?;
            fs::metadata(&path)?;
            Ok(opened)
        });
        match locked {
            Ok(lock) => Ok(Self { path, created, _lock: lock }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                claiming::remove_created(&path, None, &created);
                Err(error)
            }
        }
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the content into `directory`, if the staging directory has a database and `directory` has none.
    pub fn install(&self, directory: &Path) -> io::Result<Installed> {
        if directory::has_database(directory) {
            return Ok(Installed::Exists);
        }
        if !directory::has_database(&self.path) {
            return Ok(Installed::Nothing);
        }
        sync_all_in(&self.path)?;
        match claiming::claim(directory, true, Some(Path::new(MOMENTARY)))? {
            Some((Attempt::Acquired(lock), created)) if !directory::has_database(directory) => {
                self.move_into(directory).inspect_err(|_| claiming::remove_created(directory, Some(lock), &created))?;
                Ok(Installed::Moved)
            }
            // Another owner has created or provided one, or is opening it.
            _ => Ok(Installed::Exists),
        }
    }

    /// Moves the content into `directory`. The database file comes last, so that an interruption leaves nothing that
    /// looks like a database.
    fn move_into(&self, directory: &Path) -> io::Result<()> {
        removing::remove_remains(directory)?;
        let entries = fs::read_dir(&self.path)?.collect::<io::Result<Vec<_>>>()?;
        let names = entries.iter().map(fs::DirEntry::file_name);
        for name in names.filter(|name| !belongs_to_owner(Path::new(name)) && name != DATABASE_FILE) {
            fs::rename(self.path.join(&name), directory.join(&name))?;
        }
        File::open(directory)?.sync_all()?;
        fs::rename(self.path.join(DATABASE_FILE), directory.join(DATABASE_FILE))?;
        File::open(directory)?.sync_all()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        claiming::remove_created(&self.path, None, &self.created);
    }
}

/// The turn of one thread, among all threads and processes, to restore a database of a file.
///
/// Of two that restore the same database, the second finds it. A lock file with a name of its own for each embedding
/// type could have a name that is too long.
pub struct Turn {
    path: PathBuf,
    lock: File,
}

/// The name of the lock file, in the directory of the file's databases.
const TURN: &str = ".chroma_manager.restoring";

impl Turn {
    /// Takes the turn, unless another thread or process has it.
    pub fn try_new(staging: &Staging) -> io::Result<Option<Self>> {
        let path = staging.path.with_file_name(TURN);
        loop {
            let lock = File::options().create(true).truncate(false).write(true).open(&path)?;
            match lock.try_lock() {
                Ok(()) if is_at(&lock, &path) => return Ok(Some(Self { path, lock })),
                // The process that had the turn has removed the file in the meantime.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // A process that was forked in the meantime has the descriptor as well.
        let _ = self.lock.unlock();
    }
}

/// Returns whether an open file is the one of that name.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let named = fs::symlink_metadata(path).map(identity);
        named.is_ok_and(|named| file.metadata().map(identity).is_ok_and(|opened| opened == named))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        let lock = File::open(entry.path()).ok().filter(|_| is_ours);
        if lock.as_ref().is_some_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Returns whether a file of this name belongs to the owner of a directory, and has no meaning in another one.
fn belongs_to_owner(name: &Path) -> bool {
    name == lock_file::NAME || is_socket_name(name)
}

fn sync_all_in(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_all_in(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;

    #[test]
    fn threads_that_create_and_remove_them_at_once_do_not_disturb_each_other() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("file/azure");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let staging = Staging::new(&directory).unwrap();
                        fs::write(staging.path().join("part"), "x").unwrap();
                    }
                });
            }
        });
        // Whoever created the parent may have ended before the others. It stays then, without anything of theirs.
        let remains = fs::read_dir(base.path().join("file")).into_iter().flatten().count();
        assert_eq!(remains, 0);
    }
}
