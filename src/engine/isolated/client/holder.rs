//! Who holds the lock of a database's directory: a process that is there, or an engine process that is started here.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use pyo3::prelude::*;

use super::child::{self, StartInProgress};
use super::program::{Environment, Program};
use crate::engine::Instance;
use crate::engine::isolated::protocol::address::Address;
use crate::python::error::Error;
use crate::storage::claiming;
use crate::storage::directory::{FileId, id_of};
use crate::storage::lock_file::{Attempt, LockFile};
use crate::storage::owner::{MOMENTARY, Owner};
use crate::sync::fork_gate;

/// The parameters of a new engine process.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// The id under which the connections to it are kept.
    pub id: u64,
    /// The program.
    pub program: &'a Program,
    /// The arguments, which tell it about its database.
    pub arguments: &'a str,
}

/// The process that holds the lock of the directory.
pub enum Holder {
    /// An engine process that was started just now, the lock file that it holds, and its start, which ends with its
    /// greeting.
    Started(Address, Option<FileId>, StartInProgress),
    /// An engine process that was already running.
    Engine(Address),
    /// A process that is about to start one, or to remove the directory; `None` if it has just done so.
    Momentary(Option<Owner>),
    /// An app that has opened the database in its own process.
    Embedded(Owner),
    /// Nobody: the system does not let this process start another one at the moment.
    NoProcess(io::Error),
}

impl Holder {
    /// Acquires the lock and starts an engine process, or finds the process that holds the lock. Adds the directories
    /// that it creates to `created`.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no database and none may be created, or if the engine process cannot be started.
    pub fn find_or_start(
        py: Python<'_>,
        instance: &Instance,
        start: Start<'_>,
        may_create: bool,
        created: &mut Vec<PathBuf>,
    ) -> Result<Self, Error> {
        let path = instance.path();
        let lock = match py.detach(|| claiming::claim(path, may_create, Some(Path::new(MOMENTARY)))) {
            Ok(Some((Attempt::Acquired(lock), new))) => {
                created.extend(new);
                lock
            }
            Ok(Some((Attempt::Held(owner), _))) => return Ok(Self::of(path, owner)),
            Ok(None) => return Err(Error::not_found(instance)),
            Err(error) => return Err(Error::while_opening(py, instance, error.into())),
        };
        let environment = start.program.environment();
        let started = py.detach(|| {
            let in_progress = StartInProgress::new();
            #[cfg(target_os = "linux")]
            in_progress.wait_for_host(start.program, &environment);
            Self::start(in_progress, path, start, &environment, lock, created)
        });
        started.or_else(|error| {
            if error.kind() == ErrorKind::WouldBlock {
                return Ok(Self::NoProcess(error));
            }
            let reason = format!("its engine process cannot be started: {error}; engine=\"embedded\" needs none");
            Err(Error::cannot_open(instance, reason, Some(error.into())))
        })
    }

    /// The owner that the lock file names.
    fn of(directory: &Path, owner: Owner) -> Self {
        if owner.is_momentary() {
            return Self::Momentary(Some(owner));
        }
        let address = Address::of(directory, owner.clone());
        address.map_or(Self::Embedded(owner), Self::Engine)
    }

    /// Starts an engine process, which inherits the lock.
    fn start(
        in_progress: StartInProgress,
        directory: &Path,
        start: Start<'_>,
        environment: &Environment,
        lock: LockFile,
        created: &mut Vec<PathBuf>,
    ) -> io::Result<Self> {
        // A child forked in the middle would inherit descriptors that it never closes, including the lock's.
        let _pass = fork_gate::here();
        match child::start(start.program, environment, start.arguments, directory, &lock) {
            Ok(address) => {
                let id = lock.metadata().ok().map(|metadata| id_of(&metadata));
                lock.hand_over(&address.owner).map(|()| Self::Started(address, id, in_progress))
            }
            // The directory was removed just now.
            Err(_) if !directory.is_dir() => Ok(Self::Momentary(None)),
            Err(error) => {
                claiming::remove_created(directory, Some(lock), created);
                created.clear();
                Err(error)
            }
        }
    }
}
