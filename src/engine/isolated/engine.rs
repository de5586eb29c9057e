//! The engine `isolated` in the app: opens a database by connecting to its engine process, and has engine processes do
//! exclusive maintenance and delete databases.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::client::child;
use super::client::connections;
use super::client::launcher::Launcher;
use super::client::patience::{Patience, Problem, is_caused_by_owner};
use super::client::program::Program;
use super::client::request::{END_WITHIN, RequestError, exchange, greet, is_final, release_and_reap};
use super::client::search::START_WITHIN;
use super::database::IsolatedDatabase;
use super::protocol::address::Address;
use super::protocol::frame::{Frame, Kind};
use super::protocol::values::{Decoder, Encoder, Matrices, decode_exception};
use crate::engine::{Database, Engine, Instance, Opening, Task};
use crate::failure::{Backoff, FIRST_PAUSE, Failure};
use crate::python::call::call_python;
use crate::python::error::Error;
use crate::python::gil::{self, Lock};
use crate::storage::removing::{self, Removal};
use crate::sync::fork_gate::Work;

/// The reason of a retry of exclusive maintenance.
const ENDS_TOO_EARLY: &str = "its engine processes end before they complete the request";

/// The engine with a process for each instance.
#[derive(Debug)]
pub struct Isolated {
    source: Py<PyAny>,
    python: Option<PathBuf>,
    call_timeout: Option<Duration>,
}

impl Isolated {
    /// Creates an engine. `source` is the `chroma_manager.options.Source` that `chroma_manager.engine.isolated.prepare`
    /// takes. `python` is the interpreter of engine processes, if the app names one. Reaps engine processes that an earlier
    /// engine has given up, and that have ended since.
    pub fn new(py: Python<'_>, source: Py<PyAny>, python: Option<PathBuf>, call_timeout: Option<Duration>) -> Self {
        py.detach(child::reap);
        Self { source, python, call_timeout }
    }
}

impl Engine for Isolated {
    fn name(&self) -> &'static str {
        "isolated"
    }

    fn work(&self) -> Work {
        Work::Elsewhere
    }

    fn call_timeout(&self) -> Option<Duration> {
        self.call_timeout
    }

    fn tidy(&self, py: Python<'_>) {
        py.detach(child::reap);
    }

    fn open(&self, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<Box<dyn Database>, Error> {
        let opened = self.prepare(py, instance)?;
        opened.launcher().connect(py, instance, opening)?.keep(opened.launcher().id);
        Ok(Box::new(opened))
    }

    fn manage<'py>(
        &self,
        py: Python<'py>,
        instance: &Arc<Instance>,
        task: &Task<'py>,
        opening: Opening,
    ) -> Result<Bound<'py, PyAny>, Failure> {
        let mut encoder = Encoder::new(py);
        encoder.name(task.name())?;
        encoder.value(task.arguments(py)?.as_any())?;
        let body = encoder.finish();
        let engine = self.prepare(py, instance)?;
        // An engine process that could not open its database can still restore one.
        let (channel, _) = engine.launcher().find_or_start(py, instance, opening)?;
        let answer = exchange(py, channel.stream(), Kind::Manage, &body, None);
        if answer.is_ok() && !instance.state.take(py).is_open() {
            // A database that is not open in this process must have no owner when this method returns.
            release_and_reap(py, &channel, &engine.launcher().socket(py), Instant::now() + END_WITHIN)?;
        }
        match answer {
            Ok(Frame { kind: Kind::Returned, body }) => {
                Ok(Decoder::new(py, &body, Matrices::Numpy).last_value().map_err(Error::from)?)
            }
            Ok(Frame { kind: Kind::Raised, body }) => {
                Err(Error::while_managing(py, instance, decode_exception(py, &body, &[])?).into())
            }
            Ok(Frame { kind: Kind::Stale | Kind::Closing, .. }) | Err(RequestError::NotSent(_)) => {
                Err(Failure::Retry(ENDS_TOO_EARLY))
            }
            Ok(frame) => {
                Err(Error::malformed(instance, task.name(), format!("a frame of the kind {:?}", frame.kind)).into())
            }
            Err(failed) => Err(engine.error_of(py, instance, task.name(), body.len(), failed, None).into()),
        }
    }

    fn delete(&self, py: Python<'_>, instance: &Arc<Instance>, deadline: Instant) -> Result<bool, Error> {
        let mut existed = false;
        let mut patience = Patience::default();
        let mut retries = Backoff::new();
        let give_up = deadline.max(Instant::now() + START_WITHIN);
        loop {
            match py.detach(|| removing::remove(instance.path(), existed)) {
                Ok(Removal::Removed(existed_yet)) => return Ok(existed || existed_yet),
                Ok(Removal::Kept) => return Ok(existed),
                Ok(Removal::Held(owner)) if owner.is_momentary() => {
                    if Instant::now() >= give_up {
                        let reason = "the owner is about to start an engine process, or to remove the database";
                        return Err(Error::unreachable(instance, owner, reason.into()));
                    }
                }
                Ok(Removal::Held(owner)) => match Address::of(instance.path(), owner.clone()) {
                    Some(address) => match delete_at(py, instance, &address)? {
                        Ok(existed_yet) => existed |= existed_yet,
                        Err(problem) => {
                            if let Some(error) = py.detach(|| patience.check(instance, &address, &problem, deadline)) {
                                return Err(error);
                            }
                        }
                    },
                    None if Instant::now() >= deadline => return Err(Error::locked(instance, owner)),
                    // Waits for an app that has the database in its own process.
                    None => {
                        gil::wait(py, || thread::sleep(FIRST_PAUSE))?;
                        continue;
                    }
                },
                Err(error) => return Err(PyErr::from(error).into()),
            }
            retries.pause(
                py,
                instance,
                "its engine process, or a process that starts one, keeps it from being removed",
            )?;
        }
    }
}

impl Isolated {
    fn prepare(&self, py: Python<'_>, instance: &Arc<Instance>) -> Result<IsolatedDatabase, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (system, arguments, is_in_memory, (command, changes, host)) =
            call_python(py, "chroma_manager.engine.isolated", "prepare", (&self.source, instance.path(), &self.python))
                .and_then(|prepared| prepared.extract())
                .map_err(|error| Error::while_opening(py, instance, error))?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let program = Program { command, changes, host };
        let launcher = Launcher::new(id, instance.path(), program, arguments);
        Ok(IsolatedDatabase::new(launcher, instance, system, is_in_memory))
    }
}

/// Has an engine process remove its database and end. Returns whether it has removed one, or why it cannot be reached.
fn delete_at(py: Python<'_>, instance: &Instance, socket: &Address) -> Result<Result<bool, Problem>, Error> {
    let asked = greet(py, socket, Instant::now() + START_WITHIN).and_then(|(channel, _)| {
        let answer = exchange(py, channel.stream(), Kind::Delete, &[], None)?;
        // Its lock is released when it ends.
        release_and_reap(py, &channel, socket, Instant::now() + END_WITHIN)?;
        Ok(answer)
    });
    py.detach(|| child::reap_at(socket));
    match asked {
        Ok(Frame { kind: Kind::Returned, .. }) => Ok(Ok(true)),
        Ok(Frame { kind: Kind::Raised, body }) => Err(decode_exception(py, &body, &[])?.into()),
        Err(RequestError::Python(error)) => Err(error.into()),
        Err(RequestError::Foreign) => Ok(Err(Problem::OtherDatabase)),
        Err(RequestError::Unreachable(error)) if is_caused_by_owner(&error) => Ok(Err(Problem::NoAnswer(error))),
        Err(RequestError::Unreachable(error)) => Err(Error::while_opening(py, instance, error.into())),
        Err(RequestError::Broken(error)) if is_final(&error) => {
            Err(Error::malformed(instance, "delete_instance", error.to_string()))
        }
        // It is ending, or its directory was replaced. The caller looks at the directory again.
        Ok(_) | Err(_) => Ok(Ok(false)),
    }
}

/// Closes the inherited sockets in a forked child, and leaves the engine processes to the parent.
pub fn forget_inherited() {
    connections::forget_inherited();
    child::forget_inherited();
}
