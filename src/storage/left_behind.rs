//! What an engine process leaves outside of its database's directory when it is killed: the socket and the log that the
//! lock file names.
//!
//! A lock file may be a copy of another one, or come from anywhere. So a file that it names is removed only if only this
//! user can have created it, and it is evidently unused.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::process::geteuid;

use super::owner::{Owner, is_random_name};
use super::sockets::connect;

/// Removes the socket and the log of an owner that has ended, unless they are in use.
pub fn remove(owner: &Owner) {
    if let Some(socket) = owner.socket.as_deref().filter(|socket| is_of_this_user(socket))
        && fs::symlink_metadata(socket).is_ok_and(|found| found.file_type().is_socket())
        && matches!(connect(socket), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
    {
        let _ = fs::remove_file(socket);
    }
    if let Some(log) = owner.log.as_deref().filter(|log| is_of_this_user(log))
        && let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(log)
        && file.try_lock().is_ok()
    {
        let _ = fs::remove_file(log);
    }
}

/// Returns whether a file has a random name, and is in a directory where only this user can create one.
pub fn is_of_this_user(file: &Path) -> bool {
    let is_random = file.file_stem().and_then(|stem| stem.to_str()).is_some_and(is_random_name);
    is_random && file.parent().is_some_and(|directory| is_private(directory, geteuid().as_raw()))
}

/// Returns whether only one user can enter a directory.
pub fn is_private(directory: &Path, user: u32) -> bool {
    fs::symlink_metadata(directory)
        .is_ok_and(|found| found.is_dir() && found.uid() == user && found.permissions().mode() & 0o077 == 0)
}
