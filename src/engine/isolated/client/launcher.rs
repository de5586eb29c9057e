//! The engine process of an instance, as an open database knows it: which it was last, and how another one is found.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::child::{self, Program};
use super::connections::Channel;
use super::patience::{Patience, Problem, is_of_owner};
use super::request::{RequestError, greet};
use super::search::{NO_THREAD, START_WITHIN, Search, Start};
use crate::engine::isolated::protocol::address::Address;
use crate::engine::isolated::protocol::frame::{Frame, Kind};
use crate::engine::{Instance, Opening};
use crate::failure::{Budget, FIRST_PAUSE};
use crate::python::error::Error;
use crate::python::gil::{self, Lock};
use crate::storage::directory::Seen;
use crate::storage::lock_file;

/// Finds and starts the engine processes of an instance.
pub struct Launcher {
    /// Under which its connections are kept.
    pub id: u64,
    /// The directory.
    pub path: PathBuf,
    program: Program,
    /// What an engine process is told at its start.
    arguments: String,
    engine: Mutex<EngineProcess>,
}

/// The engine process that was connected to last.
#[derive(Clone, Debug, Default)]
struct EngineProcess {
    socket: Address,
    /// Its directory, as it was then.
    seen: Option<Seen>,
}

impl Launcher {
    /// None is started yet.
    pub fn new(id: u64, path: &Path, program: Program, arguments: String) -> Self {
        Self { id, path: path.to_path_buf(), program, arguments, engine: Mutex::default() }
    }

    /// Whether the directory is the one of the engine process that was connected to last. Detached only.
    pub fn is_in_place(&self) -> bool {
        Seen::at(&self.path).is_some_and(|now| self.engine.lock().seen == Some(now))
    }

    /// Where the engine process is that was connected to last.
    pub fn socket(&self, py: Python<'_>) -> Address {
        self.engine.take(py).socket.clone()
    }

    /// A connection to the engine of the instance, which has the database open.
    pub fn connect<'py>(&self, py: Python<'py>, instance: &Instance, opening: Opening) -> Result<Channel<'py>, Error> {
        match self.find_or_start(py, instance, opening)? {
            (line, None) => Ok(line),
            (line, Some(failure)) => {
                drop(line);
                let socket = self.socket(py);
                py.detach(|| child::reap_at(&socket));
                Err(Error::while_opening(py, instance, failure))
            }
        }
    }

    /// A connection to the engine process of the instance, which is started where there is none; and why it could not open
    /// the database, if so.
    pub fn find_or_start<'py>(
        &self,
        py: Python<'py>,
        instance: &Instance,
        opening: Opening,
    ) -> Result<(Channel<'py>, Option<PyErr>), Error> {
        let start = Start { id: self.id, program: &self.program, arguments: &self.arguments };
        let found = Search::new(py, instance, opening, start).run()?;
        if let Some(socket) = found.socket {
            let seen = py.detach(|| Seen::at(&self.path));
            *self.engine.take(py) = EngineProcess { socket, seen };
        }
        Ok((found.channel, found.failure))
    }

    /// A connection to the engine that was connected to before.
    pub fn reconnect<'py>(
        &self,
        py: Python<'py>,
        instance: &Instance,
        method: &str,
        budget: Option<Budget>,
    ) -> Result<Channel<'py>, Error> {
        let give_up = Instant::now() + START_WITHIN;
        let mut patience = Patience::default();
        loop {
            let socket = self.newest_address(py);
            match greet(py, &socket, budget.map_or(give_up, |budget| give_up.min(budget.until))) {
                Ok((line, Frame { kind: Kind::Hello, .. })) => return Ok(line),
                Err(RequestError::Python(error)) => return Err(error.into()),
                Ok((_, Frame { kind: Kind::Busy, .. })) => {
                    return Err(Error::cannot_open(instance, NO_THREAD.into(), None));
                }
                Err(RequestError::TooLate) if budget.is_some_and(|budget| budget.until < give_up) => {
                    return Err(budget.expect("the budget set the deadline").timed_out(instance, method));
                }
                // It lives, and may be about to bind its socket anew.
                Err(RequestError::Unreachable(error))
                    if is_of_owner(&error) && py.detach(|| self.has_owner(&socket)) =>
                {
                    budget.map_or(Ok(()), |budget| budget.check(instance, method))?;
                    let problem = Problem::Nobody(error);
                    if let Some(error) = py.detach(|| patience.ends(instance, &socket, &problem, Instant::now())) {
                        return Err(error);
                    }
                    gil::wait(py, || thread::sleep(FIRST_PAUSE))?;
                }
                _ => {
                    let stderr_tail = py.detach(|| child::stderr_tail(&socket));
                    py.detach(|| child::reap_at(&socket));
                    return Err(Error::engine_crashed(instance, method, stderr_tail));
                }
            }
        }
    }

    /// Where the engine is now that was connected to last.
    pub fn newest_address(&self, py: Python<'_>) -> Address {
        let known = self.socket(py);
        let found = py.detach(|| lock_file::owner(&self.path)).and_then(|owner| Address::of(&self.path, owner));
        found.filter(|found| found.is_of_same_owner(&known)).unwrap_or(known)
    }

    fn has_owner(&self, address: &Address) -> bool {
        lock_file::owner(&self.path).is_some_and(|owner| owner.secret == address.owner.secret)
    }
}
