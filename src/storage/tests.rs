//! Directories: recognized, claimed and removed, whatever is in them and whoever else does the same.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::claiming::{claim, create_directories, remove_created};
use super::directory::{DATABASE_FILE, Seen, has_database, size};
use super::lock_file::{self, Attempt, LockFile};
use super::removing::{Removal, remove, remove_content};

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
    let until = Instant::now() + Duration::from_millis(500);
    thread::scope(|threads| {
        threads.spawn(|| {
            while Instant::now() < until {
                let _ = fs::remove_dir_all(base.path().join("doc"));
            }
        });
        while Instant::now() < until {
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
