//! Owners that cannot be reached: how long to wait for one, and the error after that.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, geteuid, test_kill_process};

use crate::engine::Instance;
use crate::engine::isolated::protocol::address::Address;
use crate::python::error::Error;

/// How long an owner may take to bind a removed socket again. It checks its socket every second.
const BOUND_WITHIN: Duration = Duration::from_secs(4);

/// How long to look at the lock file again where the owner will not bind its socket again: the lock may be about to
/// change hands.
const SETTLED_WITHIN: Duration = Duration::from_millis(300);

/// The reason why an owner cannot be reached.
pub enum Problem {
    /// No process answers at its address.
    NoAnswer(io::Error),
    /// The engine process of another database answers.
    OtherDatabase,
}

/// The owner that was last out of reach, and since when.
#[derive(Default)]
pub struct Patience(Option<(Address, Instant)>);

impl Patience {
    /// Returns an error when the wait for this owner is over: the caller's `deadline` has passed, and the owner had the
    /// time to become reachable. Must not be called while attached to the interpreter.
    pub fn check(
        &mut self,
        instance: &Instance,
        address: &Address,
        problem: &Problem,
        deadline: Instant,
    ) -> Option<Error> {
        let now = Instant::now();
        let since = match &self.0 {
            Some((known, since)) if known.owner == address.owner => *since,
            _ => {
                self.0 = Some((address.clone(), now));
                now
            }
        };
        let (limit, reason) = judge(address, problem);
        (now >= deadline.max(since + limit)).then(|| Error::unreachable(instance, address.owner.clone(), reason))
    }
}

/// Returns whether the owner is the cause of a failed connection, rather than this process.
pub fn is_caused_by_owner(error: &io::Error) -> bool {
    let kinds = [
        ErrorKind::NotFound,
        ErrorKind::NotADirectory,
        ErrorKind::ConnectionRefused,
        ErrorKind::ConnectionReset,
        ErrorKind::PermissionDenied,
        ErrorKind::InvalidInput,
    ];
    // The path is too long, or the socket has another type.
    let errors = [Errno::NAMETOOLONG, Errno::PROTOTYPE];
    kinds.contains(&error.kind()) || Errno::from_io_error(error).is_some_and(|error| errors.contains(&error))
}

/// Returns how long the owner may take to become reachable, and the reason for the error after that.
fn judge(address: &Address, problem: &Problem) -> (Duration, String) {
    let socket = address.path();
    let socket = socket.display();
    let error = match problem {
        Problem::NoAnswer(error) if error.kind() == ErrorKind::PermissionDenied => {
            let theirs = user_of(address).map_or_else(String::new, |user| format!(" (user id {user})"));
            let ours = geteuid().as_raw();
            let reason = format!(
                "it is another user's{theirs}, and serves that user alone at its socket {socket}, not this process's \
                 (user id {ours}): {error}; run both as the same user, and open databases after changing the user"
            );
            return (SETTLED_WITHIN, reason);
        }
        Problem::NoAnswer(error) => error.to_string(),
        Problem::OtherDatabase => format!("the engine process of another database is at its socket {socket}"),
    };
    if !address.is_in_directory() && !address.owner.sees_our_files() {
        let reason = format!(
            "its socket {socket} is in another mount namespace (another container, or a service with a private /tmp), and \
             the database's own directory cannot hold a socket; share the directory of the socket (XDG_RUNTIME_DIR)"
        );
        return (SETTLED_WITHIN, reason);
    }
    if matches!(problem, Problem::OtherDatabase) {
        return (SETTLED_WITHIN, error);
    }
    if has_ended(address) {
        return (
            SETTLED_WITHIN,
            "it has ended, and a process that it had started holds its lock; end that process".into(),
        );
    }
    (BOUND_WITHIN, format!("nobody answers at its socket {socket} ({error})"))
}

/// Returns the user of an engine process, or of its socket, where the system tells it.
fn user_of(address: &Address) -> Option<u32> {
    let process = address.owner.pid.filter(|_| address.owner.sees_our_processes());
    let of_process = process.and_then(|pid| fs::metadata(format!("/proc/{pid}")).ok());
    of_process.or_else(|| fs::symlink_metadata(address.path()).ok()).map(|found| found.uid())
}

/// Returns whether the process that the lock file names is known not to exist.
fn has_ended(address: &Address) -> bool {
    let pid = address.owner.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    address.owner.sees_our_processes() && pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}
