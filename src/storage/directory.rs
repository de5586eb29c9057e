//! An instance's directory on the disk: creating, claiming and removing it, detecting whether it has a database and
//! whether it is still the one that was opened.
//!
//! Plain Rust. Every function makes file system calls, so none may be called while attached to the interpreter.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::lock_file::{self, Attempt, LockFile};
use super::owner::{MOMENTARY, Owner, is_socket_name};

/// Chroma's database file. A directory without one has no database, whatever else it contains.
pub const DATABASE_FILE: &str = "chroma.sqlite3";

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
}

impl Seen {
    /// Returns whether `lock` is the lock file of this identity.
    pub fn has(&self, lock: &LockFile) -> bool {
        lock.metadata().is_ok_and(|metadata| id_of(&metadata) == self.lock)
    }

    /// Returns whether the open file is the lock file of this identity.
    #[cfg(unix)]
    pub fn has_file(&self, lock: &File) -> bool {
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

/// The number of attempts to create and lock a directory that another process keeps removing.
const REMOVAL_RACES: u32 = 100;
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
    let mut races = 0;
    loop {
        if !may_create && !has_database(directory) {
            return Ok(None);
        }
        let claimed = claim_once(directory, may_create, socket);
        match claimed {
            // Another process has removed the directory between two steps.
            Err(error) if error.kind() == ErrorKind::NotFound && races < REMOVAL_RACES => {
                races += 1;
                thread::sleep(AFTER_RACE);
            }
            claimed => return claimed.map_err(|error| with_path(directory, error)),
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
fn sync_entry(path: &Path) {
    if let Some(parent) = path.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let _ = File::open(parent).and_then(|parent| parent.sync_all());
    }
}

/// Returns the total size in bytes of the files in a directory and in its immediate subdirectories.
pub fn size(directory: &Path) -> u64 {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: &fs::DirEntry| entry.metadata().map_or(0, |metadata| metadata.len());
    entries(directory).map(|entry| size(&entry) + entries(&entry.path()).map(|entry| size(&entry)).sum::<u64>()).sum()
}

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
        ignore_missing(if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())
        } else {
            fs::remove_file(entry.path())
        })?;
    }
    Ok(())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_database(base: &Path) -> PathBuf {
        let directory = base.join("azure");
        fs::create_dir_all(directory.join("index")).unwrap();
        for name in [DATABASE_FILE, lock_file::NAME, "index/data.bin"] {
            fs::write(directory.join(name), "x").unwrap();
        }
        directory
    }

    fn acquire(directory: &Path) -> Option<LockFile> {
        match LockFile::try_acquire(directory, None).unwrap() {
            Attempt::Acquired(lock) => Some(lock),
            Attempt::Held(_) => None,
        }
    }

    #[test]
    fn creating_a_directory_that_is_being_removed_fails_with_not_found() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("doc").join("azure");
        let until = std::time::Instant::now() + Duration::from_millis(500);
        thread::scope(|threads| {
            threads.spawn(|| {
                while std::time::Instant::now() < until {
                    let _ = fs::remove_dir_all(base.path().join("doc"));
                }
            });
            while std::time::Instant::now() < until {
                if let Err(error) = create_directories(&directory) {
                    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                }
            }
        });
        fs::create_dir_all(base.path()).unwrap();
        fs::write(base.path().join("file"), "x").unwrap();
        assert_eq!(create_directories(&base.path().join("file")).unwrap_err().kind(), ErrorKind::NotADirectory);
    }

    #[test]
    fn a_directory_keeps_its_identity_until_it_or_its_database_is_replaced() {
        let base = tempfile::tempdir().unwrap();
        let directory = with_database(base.path());
        let seen = Seen::at(&directory);
        assert!(seen.is_some());
        fs::write(directory.join(DATABASE_FILE), "changed").unwrap();
        assert_eq!(Seen::at(&directory), seen);

        fs::write(directory.join("new"), "x").unwrap();
        fs::rename(directory.join("new"), directory.join(DATABASE_FILE)).unwrap();
        assert_ne!(Seen::at(&directory), seen);

        let replaced = Seen::at(&directory);
        fs::rename(&directory, base.path().join("moved")).unwrap();
        assert_eq!(Seen::at(&directory), None);
        with_database(base.path());
        assert_ne!(Seen::at(&directory), replaced);
        assert_eq!(Seen::at(&base.path().join("moved")), replaced);
    }

    #[test]
    fn the_content_is_removed_and_the_lock_file_stays() {
        let base = tempfile::tempdir().unwrap();
        let directory = with_database(base.path());
        fs::write(directory.join("index/more.bin"), [0; 1000]).unwrap();
        assert!((1003..1003 + 2 * 65_536).contains(&size(&directory)));
        remove_content(&directory).unwrap();
        assert!(!has_database(&directory));
        let left: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [lock_file::NAME]);
        remove_content(&directory).unwrap();
        assert!(remove_content(&base.path().join("missing")).is_err());
    }

    #[test]
    fn a_failed_opening_removes_only_what_it_created() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("doc").join("azure");
        let created = create_directories(&directory).unwrap();
        assert_eq!(created.len(), 2);
        remove_created(&directory, acquire(&directory), &created);
        assert!(!base.path().join("doc").exists());

        let created = create_directories(&directory).unwrap();
        fs::write(base.path().join("doc").join("mine"), "x").unwrap();
        remove_created(&directory, acquire(&directory), &created);
        assert!(!directory.exists());
        assert!(base.path().join("doc").join("mine").exists());
    }

    #[test]
    fn removing_a_directory_removes_its_parent_if_that_is_empty() {
        let base = tempfile::tempdir().unwrap();
        let directory = with_database(&base.path().join("doc"));
        fs::create_dir(base.path().join("doc").join("other")).unwrap();
        assert_eq!(remove(&directory, false).unwrap(), Removal::Removed(true));
        assert!(!directory.exists());
        assert!(base.path().join("doc").exists(), "it is not empty");
        fs::remove_dir(base.path().join("doc").join("other")).unwrap();
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join(lock_file::NAME), "").unwrap();
        assert_eq!(remove(&directory, true).unwrap(), Removal::Removed(false));
        assert!(!base.path().join("doc").exists());
        fs::create_dir_all(directory.join("not ours")).unwrap();
        assert_eq!(remove(&directory, false).unwrap(), Removal::Removed(false));
        assert!(directory.join("not ours").exists());
    }

    #[test]
    fn a_directory_with_an_owner_or_a_new_database_is_not_removed() {
        let base = tempfile::tempdir().unwrap();
        let directory = with_database(base.path());
        assert_eq!(remove(&directory, true).unwrap(), Removal::Kept);
        let lock = acquire(&directory);
        assert!(matches!(remove(&directory, false).unwrap(), Removal::Held(_)));
        assert!(has_database(&directory));
        drop(lock);
        assert_eq!(remove(&directory, false).unwrap(), Removal::Removed(true));
    }

    #[test]
    fn a_missing_directory_is_created_only_where_that_is_allowed() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("doc").join("azure");
        assert!(claim(&directory, false, None).unwrap().is_none());
        assert!(!base.path().join("doc").exists());
        let (attempt, created) = claim(&directory, true, None).unwrap().unwrap();
        assert!(matches!(attempt, Attempt::Acquired(_)));
        assert_eq!(created.len(), 2);
        drop(attempt);
        assert!(claim(&directory, false, None).unwrap().is_none());
        fs::write(directory.join(DATABASE_FILE), "x").unwrap();
        assert!(
            matches!(claim(&directory, false, None).unwrap(), Some((Attempt::Acquired(_), created)) if created.is_empty())
        );
    }

    #[test]
    fn a_new_owner_removes_the_sockets_of_previous_owners_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let directory = with_database(base.path());
        let (socket, other) = (".chroma_manager.0123456789abcdef.sock", ".chroma_manager.mine.sock");
        for name in [socket, other] {
            fs::write(directory.join(name), "").unwrap();
        }
        let lock = acquire(&directory);
        assert!(matches!(claim(&directory, true, None).unwrap(), Some((Attempt::Held(_), _))));
        assert!(directory.join(socket).exists(), "it may belong to the owner");
        drop(lock);
        assert!(matches!(claim(&directory, true, None).unwrap(), Some((Attempt::Acquired(_), _))));
        assert!(!directory.join(socket).exists());
        assert!(directory.join(other).exists());
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("doc"), "a file").unwrap();
        assert!(create_directories(&base.path().join("doc").join("azure")).is_err());
        assert!(create_directories(&base.path().join("doc")).is_err());
    }
}
