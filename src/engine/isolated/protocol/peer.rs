//! The credentials of the process at the other end of a socket, as the kernel reports them.

pub use of_this_system::{is_same_user, pid};

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod of_this_system {
    use std::os::fd::{AsRawFd, BorrowedFd};

    use rustix::process::geteuid;

    /// Returns whether the peer belongs to this user.
    pub fn is_same_user(socket: BorrowedFd<'_>) -> bool {
        credentials(socket).is_some_and(|peer| peer.uid == geteuid().as_raw())
    }

    /// Returns the process id of the peer, or `None` if it is in a pid namespace that is not visible here.
    pub fn pid(socket: BorrowedFd<'_>) -> Option<u32> {
        u32::try_from(credentials(socket)?.pid).ok().filter(|pid| *pid > 0)
    }

    /// Returns the credentials of the peer. Unlike rustix's `socket_peercred`, accepts the pid 0, which stands for a
    /// process in such a namespace.
    fn credentials(socket: BorrowedFd<'_>) -> Option<libc::ucred> {
        let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
        let mut size = libc::socklen_t::try_from(size_of_val(&peer)).ok()?;
        let buffer = (&raw mut peer).cast();
        // SAFETY: the descriptor is open, and the buffer has the given size.
        let failed =
            unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, buffer, &raw mut size) };
        (failed == 0).then_some(peer)
    }
}

#[cfg(target_os = "macos")]
#[allow(unsafe_code)]
mod of_this_system {
    use std::os::fd::{AsRawFd, BorrowedFd};

    use rustix::process::geteuid;

    /// Returns whether the peer belongs to this user.
    pub fn is_same_user(socket: BorrowedFd<'_>) -> bool {
        let (mut user, mut group) = (0, 0);
        // SAFETY: the descriptor is open, and both pointers are valid during the call.
        let failed = unsafe { libc::getpeereid(socket.as_raw_fd(), &raw mut user, &raw mut group) };
        failed == 0 && user == geteuid().as_raw()
    }

    /// Returns the process id of the peer.
    pub fn pid(socket: BorrowedFd<'_>) -> Option<u32> {
        let mut pid: libc::pid_t = 0;
        let mut size = libc::socklen_t::try_from(size_of_val(&pid)).ok()?;
        let buffer = (&raw mut pid).cast();
        // SAFETY: the descriptor is open, and the buffer has the given size.
        let failed = unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_LOCAL, libc::LOCAL_PEERPID, buffer, &raw mut size)
        };
        if failed == 0 { u32::try_from(pid).ok() } else { None }
    }
}

/// This system has no way to identify a peer, so every peer is refused.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
mod of_this_system {
    use std::os::fd::BorrowedFd;

    pub fn is_same_user(_: BorrowedFd<'_>) -> bool {
        false
    }

    pub fn pid(_: BorrowedFd<'_>) -> Option<u32> {
        None
    }
}
