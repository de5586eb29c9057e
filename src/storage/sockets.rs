//! Unix sockets that do not block while they connect.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketType};

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
