//! Who is at the other end of a socket, as Linux tells it.

use std::os::fd::BorrowedFd;

use rustix::process::geteuid;

/// Whether it is a process of this user.
pub fn is_same_user(socket: BorrowedFd<'_>) -> bool {
    rustix::net::sockopt::socket_peercred(socket).is_ok_and(|peer| peer.uid == geteuid())
}

/// Its process id.
pub fn pid(socket: BorrowedFd<'_>) -> Option<u32> {
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
}
