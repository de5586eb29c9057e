//! An instance's directory on the disk: how it is created, owned and removed, whether a database is in it, and whether it
//! is still the one that was opened.
//!
//! Plain Rust. Everything here asks the file system, so nothing here is to be called while attached to the interpreter.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::lock_file::{self, Attempt, LockFile};
use super::owner::{MOMENTARY, Owner, is_socket_name};

/// The file of Chroma's that is a database. A directory without one has no database, whatever else is in it.
pub const DATABASE_FILE: &str = "chroma.sqlite3";

/// Whether there is a database in the directory.
pub fn has_database(directory: &Path) -> bool {
    directory.join(DATABASE_FILE).is_file()
}

/// What tells a directory and its database from others that take their place: the lock, which its owner keeps open, and
/// the database's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    lock: FileId,
    database: FileId,
}

impl Seen {
    /// What is there now; `None` where there is no database, or nobody has owned it.
    pub fn at(directory: &Path) -> Option<Self> {
        Some(Self {
            lock: fs::symlink_metadata(directory.join(lock_file::NAME)).ok().map(|found| id_of(&found))?,
            database: file_id(&directory.join(DATABASE_FILE))?,
        })
    }
}

impl Seen {
    /// Whether this lock is the one that is in it.
    pub fn has(&self, lock: &LockFile) -> bool {
        lock.metadata().is_ok_and(|metadata| id_of(&metadata) == self.lock)
    }

    /// Whether that file is the lock that is in it.
    #[cfg(unix)]
    pub fn has_file(&self, lock: &File) -> bool {
        lock.metadata().is_ok_and(|metadata| id_of(&metadata) == self.lock)
    }
}

/// The device and the inode of a file or a directory: what tells it from others, as long as somebody has it open.
pub type FileId = (u64, u64);

/// Which file is the lock in a directory.
pub fn lock_id(directory: &Path) -> Option<FileId> {
    file_id(&directory.join(lock_file::NAME))
}

/// Those of what is there, or of what the link leads to that is there.
pub fn file_id(file: &Path) -> Option<FileId> {
    fs::metadata(file).ok().map(|metadata| id_of(&metadata))
}

/// Which file that is.
#[cfg(unix)]
pub fn id_of(metadata: &Metadata) -> FileId {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// Elsewhere an open file cannot be removed or replaced.
#[cfg(not(unix))]
pub fn id_of(_: &Metadata) -> FileId {
    (0, 0)
}

/// How often a directory is created and locked while somebody else keeps removing it.
const REMOVAL_RACES: u32 = 100;
const AFTER_RACE: Duration = Duration::from_millis(1);

/// What came of trying to own a directory, and which directories were created for it.
pub type Claim = (Attempt, Vec<PathBuf>);

/// Tries once, without waiting for the owner, to own a directory; `socket` is where others are to find the owner. Where
/// there is no database, the directory is created if it may be; else the answer is `None`, and nothing was touched.
pub fn claim(directory: &Path, may_create: bool, socket: Option<&Path>) -> io::Result<Option<Claim>> {
    let mut races = 0;
    loop {
        if !may_create && !has_database(directory) {
            return Ok(None);
        }
        let claimed = claim_once(directory, may_create, socket);
        match claimed {
            // Removed by somebody between two steps.
            Err(error) if error.kind() == ErrorKind::NotFound && races < REMOVAL_RACES => {
                races += 1;
                thread::sleep(AFTER_RACE);
            }
            claimed => return claimed.map_err(|error| with_place(directory, error)),
        }
    }
}

/// A permission that is missing says little without what it is missing for, and whose that is.
fn with_place(directory: &Path, error: io::Error) -> io::Error {
    #[cfg(unix)]
    if error.kind() == ErrorKind::PermissionDenied {
        use std::os::unix::fs::MetadataExt;
        // What does not exist, or cannot be seen, is in what does not allow it.
        let lock = directory.join(lock_file::NAME);
        let found = lock.ancestors().find_map(|place| fs::metadata(place).ok().map(|found| (place, found)));
        if let Some((place, found)) = found {
            let (place, user, mode) = (place.display(), found.uid(), found.mode() & 0o7777);
            let text = format!("{error}: {place} belongs to the user {user} and has the mode {mode:o}");
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
        // Removed by somebody while this one waited for the lock.
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

/// Removes the sockets of owners that did not live to do so, and those that came along with a copy. To be called by the
/// owner, who has none yet.
fn remove_stale_sockets(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if is_socket_name(Path::new(&entry.file_name())) && entry.file_type().is_ok_and(|found| !found.is_dir()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Takes back what a failed opening created: the lock file, if it came to that, and the directories with nothing in them.
pub fn remove_created(directory: &Path, lock: Option<LockFile>, created: &[PathBuf]) {
    if let Some(lock) = lock {
        // While it is still ours: whoever waits for it sees that it is gone, and makes a new one.
        let _ = fs::remove_file(directory.join(lock_file::NAME));
        drop(lock);
    }
    for path in created.iter().rev() {
        // One that is not empty stays: what is in it is not ours to remove.
        let _ = fs::remove_dir(path);
    }
}

/// Creates `directory` and its missing parents; tells which it created, outermost first.
pub fn create_directories(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let missing: Vec<PathBuf> =
        directory.ancestors().take_while(|path| !path.exists()).map(Path::to_path_buf).collect();
    let mut created = Vec::new();
    for path in missing.into_iter().rev() {
        match fs::create_dir(&path) {
            Ok(()) => {
                sync_name(&path);
                created.push(path);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => {
                remove_created(directory, None, &created);
                // What has been removed meanwhile was in nobody's way.
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
        // A file, or removed meanwhile.
        found => {
            remove_created(directory, None, &created);
            Err(found.err().unwrap_or_else(|| ErrorKind::NotADirectory.into()))
        }
    }
}

/// Whether a name is free; that of a link whose target is missing is not.
fn is_nothing_at(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Makes the name of a new directory durable. Where the one above cannot be synced (a file system that does not know how),
/// nothing else can be done.
fn sync_name(path: &Path) {
    if let Some(above) = path.parent() {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        let _ = File::open(above).and_then(|above| above.sync_all());
    }
}

/// How many bytes the files in a directory have, and those in the directories in it.
pub fn size(directory: &Path) -> u64 {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: &fs::DirEntry| entry.metadata().map_or(0, |metadata| metadata.len());
    entries(directory).map(|entry| size(&entry) + entries(&entry.path()).map(|entry| size(&entry)).sum::<u64>()).sum()
}

/// What came of trying to remove a directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is not there any more; there was a database in it, or not.
    Removed(bool),
    /// Somebody has put a database there which was not to be removed.
    Kept,
    /// Somebody owns it: it is the owner's to remove.
    Held(Owner),
}

/// Removes a directory that nobody owns, and the one that it is in if nothing else is in there. With `only_remains` it
/// stays where there is a database in it.
pub fn remove(directory: &Path, only_remains: bool) -> io::Result<Removal> {
    let mut races = 0;
    loop {
        // Without a database or a lock it is no instance's.
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
        let above = directory.parent().map(Path::to_path_buf);
        let created: Vec<_> = above.into_iter().chain([directory.to_path_buf()]).collect();
        remove_created(directory, Some(lock), &created);
        // Somebody who waited for the lock may have made a new one in the meantime.
        if had_database || !directory.exists() || races >= REMOVAL_RACES {
            return Ok(Removal::Removed(had_database));
        }
        races += 1;
    }
}

/// Removes the database and all else in the directory but the lock, which is its owner's to remove. The database's file
/// is the first: whatever happens in between, what is left is no database.
pub fn remove_content(directory: &Path) -> io::Result<()> {
    let database = directory.join(DATABASE_FILE);
    ignore_missing(fs::remove_file(&database))?;
    // Else it would be back after a power cut.
    sync_name(&database);
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
    fn a_directory_that_is_removed_while_it_is_created_is_missing_and_nothing_else() {
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
    fn a_directory_is_the_same_until_it_or_its_database_is_replaced() {
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
    fn what_is_removed_is_all_but_the_lock() {
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
    fn a_failed_opening_takes_back_only_what_it_created() {
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
    fn a_removed_directory_takes_the_empty_one_above_with_it() {
        let base = tempfile::tempdir().unwrap();
        let directory = with_database(&base.path().join("doc"));
        fs::create_dir(base.path().join("doc").join("other")).unwrap();
        assert_eq!(remove(&directory, false).unwrap(), Removal::Removed(true));
        assert!(!directory.exists());
        assert!(base.path().join("doc").exists(), "there is something else in it");
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
    fn what_somebody_owns_or_has_made_anew_is_not_removed() {
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
    fn a_directory_without_a_database_is_created_only_for_whom_may() {
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
    fn who_comes_to_own_a_directory_removes_the_sockets_of_who_owned_it_before_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let directory = with_database(base.path());
        let (socket, other) = (".chroma_manager.0123456789abcdef.sock", ".chroma_manager.mine.sock");
        for name in [socket, other] {
            fs::write(directory.join(name), "").unwrap();
        }
        let lock = acquire(&directory);
        assert!(matches!(claim(&directory, true, None).unwrap(), Some((Attempt::Held(_), _))));
        assert!(directory.join(socket).exists(), "it may be the owner's");
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
