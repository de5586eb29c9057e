//! Who is at the other end of a socket, as the system tells it.

pub use of_this_system::{is_same_user, pid};

#[cfg(target_os = "linux")]
mod of_this_system {
    use std::os::fd::BorrowedFd;

    use rustix::net::sockopt::socket_peercred;
    use rustix::process::geteuid;

    /// Whether it is a process of this user.
    pub fn is_same_user(socket: BorrowedFd<'_>) -> bool {
        socket_peercred(socket).is_ok_and(|peer| peer.uid == geteuid())
    }

    /// Its process id.
    pub fn pid(socket: BorrowedFd<'_>) -> Option<u32> {
        u32::try_from(socket_peercred(socket).ok()?.pid.as_raw_nonzero().get()).ok()
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
