//! An owner that cannot be reached: how long it is waited for, and what is said of it then.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, geteuid, test_kill_process};

use crate::engine::Instance;
use crate::engine::isolated::protocol::address::Address;
use crate::python::error::Error;

/// How long an owner may take to bind a socket anew that has gone: it looks after it every second, and once more.
const BOUND_WITHIN: Duration = Duration::from_secs(4);

/// How long the lock file is looked at anew where nothing speaks for that: it may be about to change hands.
const SETTLED_WITHIN: Duration = Duration::from_millis(300);

/// Why an owner cannot be reached.
pub enum Problem {
    /// There is nobody at its address.
    Nobody(io::Error),
    /// There is the engine process of another database.
    Another,
}

/// With the owner that was last found to be out of reach.
#[derive(Default)]
pub struct Patience(Option<(Address, Instant)>);

impl Patience {
    /// The error, once this owner was waited for long enough: until the deadline of who waits, and for as long as it may
    /// yet be reached. Detached only.
    pub fn ends(
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

/// Whether a failed connection says that there is nobody; else it says something of this process.
pub fn is_of_owner(error: &io::Error) -> bool {
    let kinds = [
        ErrorKind::NotFound,
        ErrorKind::NotADirectory,
        ErrorKind::ConnectionRefused,
        ErrorKind::ConnectionReset,
        ErrorKind::PermissionDenied,
        ErrorKind::InvalidInput,
    ];
    // A name that is too long, a socket of another type.
    let errors = [Errno::NAMETOOLONG, Errno::PROTOTYPE];
    kinds.contains(&error.kind()) || Errno::from_io_error(error).is_some_and(|error| errors.contains(&error))
}

fn judge(address: &Address, problem: &Problem) -> (Duration, String) {
    let socket = address.path();
    let socket = socket.display();
    let error = match problem {
        Problem::Nobody(error) if error.kind() == ErrorKind::PermissionDenied => {
            let theirs = user_of(address).map_or_else(String::new, |user| format!(" (user id {user})"));
            let ours = geteuid().as_raw();
            let reason = format!(
                "it is another user's{theirs}, and serves that user alone at its socket {socket}, not this process's \
                 (user id {ours}): {error}; run both as one user, and open databases after a change of the user"
            );
            return (SETTLED_WITHIN, reason);
        }
        Problem::Nobody(error) => error.to_string(),
        Problem::Another => format!("the engine process of another database is at its socket {socket}"),
    };
    if !address.is_in_directory() && !address.owner.sees_our_files() {
        let reason = format!(
            "its socket {socket} is in another mount namespace (another container, or a service with a private /tmp), and \
             the database's own directory can hold none; share the directory of the socket (XDG_RUNTIME_DIR)"
        );
        return (SETTLED_WITHIN, reason);
    }
    if matches!(problem, Problem::Another) {
        return (SETTLED_WITHIN, error);
    }
    if has_ended(address) {
        return (SETTLED_WITHIN, "it has ended, and a process that it had started holds its lock; end that".into());
    }
    (BOUND_WITHIN, format!("nobody answers at its socket {socket} ({error})"))
}

/// Whose an engine process is, as far as the system tells.
fn user_of(address: &Address) -> Option<u32> {
    let process = address.owner.pid.filter(|_| address.owner.sees_our_processes());
    let of_process = process.and_then(|pid| fs::metadata(format!("/proc/{pid}")).ok());
    of_process.or_else(|| fs::symlink_metadata(address.path()).ok()).map(|found| found.uid())
}

/// Whether the process that the lock file names is known not to exist.
fn has_ended(address: &Address) -> bool {
    let pid = address.owner.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    address.owner.sees_our_processes() && pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}
