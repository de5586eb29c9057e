//! The launcher of an open database: connects to its engine process, finds or starts another one, and remembers its
//! address.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::child;
use super::connections::Channel;
use super::holder::Start;
use super::patience::{Patience, Problem, is_caused_by_owner};
use super::program::Program;
use super::request::{RequestError, greet};
use super::search::{Found, NO_THREAD, START_WITHIN, Search};
use crate::engine::isolated::protocol::address::Address;
use crate::engine::isolated::protocol::frame::{Frame, Kind};
use crate::engine::isolated::protocol::page::Page;
use crate::engine::{Instance, Opening};
use crate::failure::{Budget, FIRST_PAUSE};
use crate::python::error::Error;
use crate::python::gil::{self, Lock};
use crate::storage::directory::Seen;
use crate::storage::lock_file;

/// Connects to the engine processes of an instance.
pub struct Launcher {
    /// The id under which its connections are kept.
    pub id: u64,
    /// The directory.
    pub path: PathBuf,
    program: Program,
    /// The arguments of a new engine process.
    arguments: String,
    engine: Mutex<EngineProcess>,
}

/// The engine process that was connected to last.
#[derive(Clone, Debug, Default)]
struct EngineProcess {
    socket: Address,
    /// The identity of its directory at that time.
    seen: Option<Seen>,
    /// The page that it shares, which all of its connections have in common here.
    page: Option<Arc<Page>>,
}

impl Launcher {
    /// Creates a launcher that has not connected yet.
    pub fn new(id: u64, path: &Path, program: Program, arguments: String) -> Self {
        Self { id, path: path.to_path_buf(), program, arguments, engine: Mutex::default() }
    }

    /// Returns whether the directory is still that of the engine process that was connected to last. Must not be called
    /// while attached to the interpreter.
    pub fn is_in_place(&self) -> bool {
        Seen::at(&self.path).is_some_and(|now| self.engine.lock().seen == Some(now))
    }

    /// Returns the page of the engine process that was connected to last.
    pub fn page(&self, py: Python<'_>) -> Option<Arc<Page>> {
        self.engine.take(py).page.clone()
    }

    /// Returns the address of the engine process that was connected to last.
    pub fn socket(&self, py: Python<'_>) -> Address {
        self.engine.take(py).socket.clone()
    }

    /// Connects to the engine process of the instance, which is started if there is none.
    ///
    /// # Errors
    ///
    /// Returns an error if the engine process cannot be reached, or could not open the database.
    pub fn connect<'py>(&self, py: Python<'py>, instance: &Instance, opening: Opening) -> Result<Channel<'py>, Error> {
        match self.find_or_start(py, instance, opening)? {
            (channel, None) => Ok(channel),
            (channel, Some(failure)) => {
                drop(channel);
                let socket = self.socket(py);
                py.detach(|| child::reap_at(&socket));
                Err(Error::while_opening(py, instance, failure))
            }
        }
    }

    /// Connects to the engine process of the instance, which is started if there is none. Also returns the exception of
    /// an engine process that could not open the database.
    pub fn find_or_start<'py>(
        &self,
        py: Python<'py>,
        instance: &Instance,
        opening: Opening,
    ) -> Result<(Channel<'py>, Option<PyErr>), Error> {
        let start = Start { id: self.id, program: &self.program, arguments: &self.arguments };
        let Found { mut channel, socket, failure } = Search::new(py, instance, opening, start).run()?;
        if let Some(socket) = socket {
            let seen = py.detach(|| Seen::at(&self.path));
            let mut engine = self.engine.take(py);
            let is_known = engine.page.is_some() && engine.socket.is_of_same_owner(&socket);
            let page = if is_known { engine.page.clone() } else { channel.page.clone() };
            channel.page.clone_from(&page);
            *engine = EngineProcess { socket, seen, page };
        }
        Ok((channel, failure))
    }

    /// Connects to the same engine process as last time.
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
                Ok((channel, Frame { kind: Kind::Hello, .. })) => return Ok(channel),
                Err(RequestError::Python(error)) => return Err(error.into()),
                Ok((_, Frame { kind: Kind::Busy, .. })) => {
                    return Err(Error::cannot_open(instance, NO_THREAD.into(), None));
                }
                Err(RequestError::TooLate) if budget.is_some_and(|budget| budget.until < give_up) => {
                    return Err(budget.expect("the budget set the deadline").timed_out(instance, method));
                }
                // It is running, and may be about to bind its socket again.
                Err(RequestError::Unreachable(error))
                    if is_caused_by_owner(&error) && py.detach(|| self.has_owner(&socket)) =>
                {
                    budget.map_or(Ok(()), |budget| budget.check(instance, method))?;
                    let problem = Problem::NoAnswer(error);
                    if let Some(error) = py.detach(|| patience.check(instance, &socket, &problem, Instant::now())) {
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

    /// Returns the present address of the engine process that was connected to last, which may have bound a new socket.
    pub fn newest_address(&self, py: Python<'_>) -> Address {
        let known = self.socket(py);
        let found = py.detach(|| lock_file::owner(&self.path)).and_then(|owner| Address::of(&self.path, owner));
        found.filter(|found| found.is_of_same_owner(&known)).unwrap_or(known)
    }

    fn has_owner(&self, address: &Address) -> bool {
        lock_file::owner(&self.path).is_some_and(|owner| owner.secret == address.owner.secret)
    }
}
