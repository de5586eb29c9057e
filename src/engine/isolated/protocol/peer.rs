//! Who is at the other end of a socket, as the system tells it.

pub use of_this_system::{is_same_user, pid};

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod of_this_system {
    use std::os::fd::{AsRawFd, BorrowedFd};

    use rustix::process::geteuid;

    /// Whether it is a process of this user.
    pub fn is_same_user(socket: BorrowedFd<'_>) -> bool {
        credentials(socket).is_some_and(|peer| peer.uid == geteuid().as_raw())
    }

    /// Its process id; `None` where it is in a pid namespace that cannot be seen from here.
    pub fn pid(socket: BorrowedFd<'_>) -> Option<u32> {
        u32::try_from(credentials(socket)?.pid).ok().filter(|pid| *pid > 0)
    }

    /// Not rustix's `socket_peercred`: to that a pid of 0, which is that of a process in such a namespace, is an invalid
    /// value, and it takes the whole answer for an error.
    fn credentials(socket: BorrowedFd<'_>) -> Option<libc::ucred> {
        let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
        let mut size = libc::socklen_t::try_from(size_of_val(&peer)).ok()?;
        let place = (&raw mut peer).cast();
        // SAFETY: the descriptor is open, and the place has the size that is said.
        let failed =
            unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut size) };
        (failed == 0).then_some(peer)
    }
}

#[cfg(target_os = "macos")]
#[allow(unsafe_code)]
mod of_this_system {
    use std::os::fd::{AsRawFd, BorrowedFd};

    use rustix::process::geteuid;

    /// Whether it is a process of this user.
    pub fn is_same_user(socket: BorrowedFd<'_>) -> bool {
        let (mut user, mut group) = (0, 0);
        // SAFETY: the descriptor is open, and both places are there for the call.
        let failed = unsafe { libc::getpeereid(socket.as_raw_fd(), &raw mut user, &raw mut group) };
        failed == 0 && user == geteuid().as_raw()
    }

    /// Its process id.
    pub fn pid(socket: BorrowedFd<'_>) -> Option<u32> {
        let mut pid: libc::pid_t = 0;
        let mut size = libc::socklen_t::try_from(size_of_val(&pid)).ok()?;
        let place = (&raw mut pid).cast();
        // SAFETY: the descriptor is open, and the place has the size that is said.
        let failed =
            unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_LOCAL, libc::LOCAL_PEERPID, place, &raw mut size) };
        if failed == 0 { u32::try_from(pid).ok() } else { None }
    }
}

/// Nobody is known, so nobody is let in.
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
