//! The lock file: one owner at a time, whoever tries and whatever is in its place.

use super::*;

fn acquire(directory: &Path) -> Option<LockFile> {
    match LockFile::try_acquire(directory, None).unwrap() {
        Attempt::Acquired(lock) => Some(lock),
        Attempt::Held(_) => None,
    }
}

#[test]
fn looking_for_the_owner_acquires_and_creates_nothing() {
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
    let first = acquire(directory.path()).expect("it has no owner");
    assert!(acquire(directory.path()).is_none());
    drop(first);
    assert!(acquire(directory.path()).is_some());
}

#[test]
fn a_refused_attempt_names_the_owner() {
    let directory = tempfile::tempdir().unwrap();
    let _first = acquire(directory.path()).unwrap();
    let Attempt::Held(owner) = LockFile::try_acquire(directory.path(), None).unwrap() else { panic!("two owners") };
    assert_eq!((owner.pid, owner.socket), (Some(std::process::id()), None));
}

#[test]
fn an_owner_that_wrote_nothing_is_reported_as_unknown() {
    let directory = tempfile::tempdir().unwrap();
    let file = File::create(directory.path().join(NAME)).unwrap();
    file.try_lock().unwrap();
    let Attempt::Held(owner) = LockFile::try_acquire(directory.path(), None).unwrap() else { panic!("two owners") };
    assert_eq!(owner, Owner::default());
}

#[test]
fn a_process_that_inherits_the_lock_owns_the_directory_and_is_named_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let lock = acquire(directory.path()).unwrap();
    let inherited = lock.try_clone().unwrap();
    let successor = Owner { pid: Some(7), socket: Some("/run/socket".into()), ..lock.owner().clone() };
    lock.hand_over(&successor).unwrap();
    let Attempt::Held(owner) = LockFile::try_acquire(directory.path(), None).unwrap() else { panic!("two owners") };
    assert_eq!(owner, successor);
    drop(inherited);
    assert!(acquire(directory.path()).is_some());
}

#[test]
fn each_owner_has_a_new_secret() {
    let directory = tempfile::tempdir().unwrap();
    let secret = || acquire(directory.path()).unwrap().owner().secret.unwrap();
    assert_ne!(secret(), secret());
}

#[cfg(unix)]
#[test]
fn anything_but_a_regular_file_is_refused_at_once() {
    let base = tempfile::tempdir().unwrap();
    let another = base.path().join("another");
    fs::create_dir(&another).unwrap();
    let _lock = acquire(&another).unwrap();
    for what in ["directory", "link", "dangling", "fifo"] {
        let directory = base.path().join(what);
        fs::create_dir(&directory).unwrap();
        let path = directory.join(NAME);
        match what {
            "directory" => fs::create_dir(path).unwrap(),
            "link" => std::os::unix::fs::symlink(another.join(NAME), path).unwrap(),
            "dangling" => std::os::unix::fs::symlink("nowhere", path).unwrap(),
            _ => assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success()),
        }
        let error = LockFile::try_acquire(&directory, None).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{what}: {error}");
        assert_eq!(owner(&directory), None, "{what}");
    }
}

#[test]
fn any_content_of_a_lock_file_that_is_not_held_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    for text in [&b""[..], &[0xff; 10_000], b"7", b"-1\n\n\n", &[b'\n'; 100]] {
        fs::write(directory.path().join(NAME), text).unwrap();
        let lock = acquire(directory.path()).unwrap();
        assert_eq!(owner(directory.path()).as_ref(), Some(lock.owner()));
    }
}

#[test]
fn a_directory_that_was_created_again_can_be_owned_again() {
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("doc");
    fs::create_dir(&directory).unwrap();
    let _old = acquire(&directory).unwrap();
    fs::remove_dir_all(&directory).unwrap();
    fs::create_dir(&directory).unwrap();
    let _new = acquire(&directory).expect("the lock in the removed directory is another file");
    assert!(acquire(&directory).is_none());
}

#[test]
fn owners_that_remove_their_lock_file_still_exclude_each_other() {
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
                    crate::storage::claiming::remove_created(directory.path(), Some(lock), &[]);
                }
            });
        }
    });
}
