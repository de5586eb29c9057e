//! An engine process's own address: the socket at which it listens, what its greetings prove, and that it can be found.
//!
//! Others may remove the socket (a program that tidies up, the end of a login session), or overwrite the lock file. So the
//! owner checks both from time to time: it binds another socket where its own is missing, and names it in the lock file.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::stderr::log_line;
use crate::engine::isolated::protocol::address::{Address, listen};
use crate::engine::isolated::protocol::greeting;
use crate::storage::directory::{FileId, file_id, has_database};
use crate::storage::lock_file::{self, is_at, read_owner, write_owner};
use crate::storage::owner::{Namespaces, Owner, Secret};

/// How often the owner checks its address. Apps that cannot reach it wait for longer.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// A missing socket is replaced if it is still missing so much later: a directory that is being removed loses its files one
/// by one, and a new file in the middle of that would keep it from being removed.
const CHECK_AGAIN: Duration = Duration::from_millis(500);

/// The address of this process, which works in its database's directory.
pub struct Listener {
    socket: UnixListener,
    secret: Secret,
    log: Option<PathBuf>,
    /// `None` at the end.
    bound: Mutex<Option<Bound>>,
}

struct Bound {
    /// As the lock file names it.
    name: PathBuf,
    id: Option<FileId>,
    had_database: bool,
}

impl Listener {
    /// The address of a process that has inherited the lock of its directory, a socket that is bound to that name, and a log.
    pub fn inherited(lock: &mut File, socket: UnixListener, name: PathBuf, log: Option<PathBuf>) -> io::Result<Self> {
        let secret = read_owner(lock).and_then(|owner| owner.secret);
        let secret = secret.ok_or_else(|| io::Error::other("there is no secret in the lock file"))?;
        let bound = Bound { id: file_id(&name), name, had_database: false };
        Ok(Self { socket, secret, log, bound: Mutex::new(Some(bound)) })
    }

    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// A greeting: the proof of which database this is, and a body.
    pub fn greeting(&self, body: &[u8]) -> io::Result<Vec<u8>> {
        let mut greeting = greeting::prove(&self.secret)?.to_vec();
        greeting.extend_from_slice(body);
        Ok(greeting)
    }

    /// Keeps the address until the end.
    pub fn keep(&self, lock: &mut File) {
        let mut has_complained = false;
        loop {
            thread::sleep(CHECK_EVERY);
            if !self.is_there() {
                thread::sleep(CHECK_AGAIN);
            }
            let mut bound = self.bound();
            let Some(bound) = bound.as_mut() else { return };
            // Not for a directory that is being removed, or has another owner by now.
            if !is_at(lock, Path::new(lock_file::NAME)).unwrap_or(false) || (bound.had_database && !has_database_here())
            {
                continue;
            }
            bound.had_database = has_database_here();
            if !bound.is_there()
                && let Err(error) = self.rebind(bound)
            {
                if !has_complained {
                    log_line(format_args!(
                        "the socket {} is missing, and cannot be bound again: {error}",
                        bound.name.display()
                    ));
                }
                has_complained = true;
                continue;
            }
            has_complained = false;
            let found = read_owner(lock);
            if !found
                .is_some_and(|found| found.secret == Some(self.secret) && found.socket.as_ref() == Some(&bound.name))
            {
                // Where it cannot be written now, it may be the next time.
                let _ = write_owner(lock, &self.owner(bound));
            }
        }
    }

    /// Removes the socket: no connection is accepted any more.
    pub fn end(&self) {
        if let Some(bound) = self.bound().take() {
            let owner = Owner { log: None, ..self.owner(&bound) };
            Address { directory: PathBuf::new(), owner }.forget();
        }
    }

    fn rebind(&self, bound: &mut Bound) -> io::Result<()> {
        let (socket, name) = listen(Path::new("."))?;
        let old = self.socket.try_clone()?;
        #[allow(unsafe_code)]
        // SAFETY: the descriptor is open, for `self.socket` has it.
        let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(self.socket.as_raw_fd()) });
        rustix::io::dup2(&socket, &mut place)?;
        rustix::io::fcntl_setfd(&*place, rustix::io::FdFlags::CLOEXEC)?;
        *bound = Bound { id: file_id(&name), name, had_database: bound.had_database };
        // Wakes the thread that accepts connections at the old socket; from now on it accepts them at the new one.
        Ok(rustix::net::shutdown(old.as_fd(), rustix::net::Shutdown::Both)?)
    }

    fn owner(&self, bound: &Bound) -> Owner {
        Owner {
            pid: Some(std::process::id()),
            socket: Some(bound.name.clone()),
            secret: Some(self.secret),
            namespaces: Namespaces::here(),
            log: self.log.clone(),
        }
    }

    fn is_there(&self) -> bool {
        self.bound().as_ref().is_none_or(Bound::is_there)
    }

    fn bound(&self) -> MutexGuard<'_, Option<Bound>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bound {
    fn is_there(&self) -> bool {
        self.id.is_some() && file_id(&self.name) == self.id
    }
}

fn has_database_here() -> bool {
    has_database(Path::new("."))
}
