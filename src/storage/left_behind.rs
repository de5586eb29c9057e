//! What an engine process leaves outside of its database's directory when it is killed: the socket and the log that the
//! lock file names.
//!
//! A lock file may be a copy of another one, or come from anywhere. So a file that it names is removed only if only this
//! user can have created it, and it is evidently unused.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::geteuid;

use super::owner::{Owner, is_random_name};

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

/// Connects to a socket.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = new_socket()?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(socket.into())
}

/// Creates a socket that does not block, and is closed on exec.
#[cfg(target_os = "linux")]
pub fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = net::SocketFlags::CLOEXEC | net::SocketFlags::NONBLOCK;
    net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Creates a socket that does not block, and is closed on exec.
#[cfg(not(target_os = "linux"))]
pub fn new_socket() -> Result<OwnedFd, Errno> {
    let socket = net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}
