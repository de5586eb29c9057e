//! The engine `isolated`: opens a database by connecting to its engine process, has that do exclusive maintenance, and has
//! databases deleted.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::client::child::{self, Program};
use super::client::connections;
use super::client::launcher::Launcher;
use super::client::patience::{Patience, Problem, is_of_owner};
use super::client::request::{END_WITHIN, RequestError, exchange, greet, is_final, leave};
use super::client::search::START_WITHIN;
use super::database::Opened;
use super::protocol::address::Address;
use super::protocol::frame::{Frame, Kind};
use super::protocol::values::{Decoder, Encoder, Matrices, decode_exception};
use crate::engine::{Database, Engine, Instance, Opening, Task};
use crate::failure::{Backoff, FIRST_PAUSE, Failure};
use crate::python::call::call_python;
use crate::python::error::Error;
use crate::python::gil::{self, Lock};
use crate::storage::directory::{self, Removal};
use crate::sync::fork_gate::Work;

/// What keeps exclusive maintenance from being done.
const ENDS_BEFORE_IT_IS_DONE: &str = "its engine processes end before they have done what they are asked";

/// An engine process for each instance.
#[derive(Debug)]
pub struct Isolated {
    source: Py<PyAny>,
    python: Option<PathBuf>,
    call_timeout: Option<Duration>,
}

impl Isolated {
    /// With what `chroma_manager.engine.isolated.prepare` takes: a `chroma_manager.options.Source`, for one; and the path of an
    /// interpreter, where it is named.
    pub fn new(source: Py<PyAny>, python: Option<PathBuf>, call_timeout: Option<Duration>) -> Self {
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
        // An engine that could not open the database can be told to restore it.
        let (line, _) = engine.launcher().find_or_start(py, instance, opening)?;
        let answer = exchange(py, line.stream(), Kind::Manage, &body, None);
        if answer.is_ok() && !instance.state.take(py).is_open() {
            // A database that this process has not open is nobody's when this returns.
            leave(py, &line, &engine.launcher().socket(py), Instant::now() + END_WITHIN)?;
        }
        match answer {
            Ok(Frame { kind: Kind::Returned, body }) => {
                Ok(Decoder::new(py, &body, Matrices::Numpy).last_value().map_err(Error::from)?)
            }
            Ok(Frame { kind: Kind::Raised, body }) => {
                Err(Error::while_managing(py, instance, decode_exception(py, &body, &[])?).into())
            }
            Ok(Frame { kind: Kind::Stale | Kind::Closing, .. }) | Err(RequestError::NotSent(_)) => {
                Err(Failure::Retry(ENDS_BEFORE_IT_IS_DONE))
            }
            Ok(frame) => {
                Err(Error::malformed(instance, task.name(), format!("a frame of the kind {:?}", frame.kind)).into())
            }
            Err(failed) => Err(engine.why_not(py, instance, task.name(), body.len(), failed, None).into()),
        }
    }

    fn delete(&self, py: Python<'_>, instance: &Arc<Instance>, deadline: Instant) -> Result<bool, Error> {
        let mut existed = false;
        let mut patience = Patience::default();
        let mut retries = Backoff::new();
        let give_up = deadline.max(Instant::now() + START_WITHIN);
        loop {
            match py.detach(|| directory::remove(instance.path(), existed)) {
                Ok(Removal::Removed(existed_yet)) => return Ok(existed || existed_yet),
                Ok(Removal::Kept) => return Ok(existed),
                Ok(Removal::Held(owner)) if owner.is_momentary() => {
                    if Instant::now() >= give_up {
                        let reason = "it is about to start an engine process, or to remove the database";
                        return Err(Error::unreachable(instance, owner, reason.into()));
                    }
                }
                Ok(Removal::Held(owner)) => match Address::of(instance.path(), owner.clone()) {
                    Some(address) => match delete_at(py, instance, &address)? {
                        Ok(existed_yet) => existed |= existed_yet,
                        Err(problem) => {
                            if let Some(error) = py.detach(|| patience.ends(instance, &address, &problem, deadline)) {
                                return Err(error);
                            }
                        }
                    },
                    None if Instant::now() >= deadline => return Err(Error::locked(instance, owner)),
                    // Another's deadline is longer than ours, perhaps.
                    None => {
                        gil::wait(py, || thread::sleep(FIRST_PAUSE))?;
                        continue;
                    }
                },
                Err(error) => return Err(PyErr::from(error).into()),
            }
            retries.pause(py, instance, "its engine process, or whoever starts one, does not let it be removed")?;
        }
    }
}

impl Isolated {
    fn prepare(&self, py: Python<'_>, instance: &Arc<Instance>) -> Result<Opened, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (system, arguments, is_in_memory, (command, environment)) =
            call_python(py, "chroma_manager.engine.isolated", "prepare", (&self.source, instance.path(), &self.python))
                .and_then(|prepared| prepared.extract())
                .map_err(|error| Error::while_opening(py, instance, error))?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let program = Program { command, environment };
        let launcher = Launcher::new(id, instance.path(), program, arguments);
        Ok(Opened::new(launcher, instance, system, is_in_memory))
    }
}

/// Has the engine at that socket remove its database and end; tells whether it has removed one, or why it cannot be told to.
fn delete_at(py: Python<'_>, instance: &Instance, socket: &Address) -> Result<Result<bool, Problem>, Error> {
    let asked = greet(py, socket, Instant::now() + START_WITHIN).and_then(|(line, _)| {
        let answer = exchange(py, line.stream(), Kind::Delete, &[], None)?;
        // Its lock ends with it.
        leave(py, &line, socket, Instant::now() + END_WITHIN)?;
        Ok(answer)
    });
    py.detach(|| child::reap_at(socket));
    match asked {
        Ok(Frame { kind: Kind::Returned, .. }) => Ok(Ok(true)),
        Ok(Frame { kind: Kind::Raised, body }) => Err(decode_exception(py, &body, &[])?.into()),
        Err(RequestError::Python(error)) => Err(error.into()),
        Err(RequestError::Foreign) => Ok(Err(Problem::Another)),
        Err(RequestError::Unreachable(error)) if is_of_owner(&error) => Ok(Err(Problem::Nobody(error))),
        Err(RequestError::Unreachable(error)) => Err(Error::while_opening(py, instance, error.into())),
        Err(RequestError::Broken(error)) if is_final(&error) => {
            Err(Error::malformed(instance, "delete_instance", error.to_string()))
        }
        // It is ending, or its directory is another one by now: that is looked at anew.
        Ok(_) | Err(_) => Ok(Ok(false)),
    }
}

/// In a forked child: lets go of the sockets, and leaves the engines to the parent.
pub fn forget_inherited() {
    connections::forget_inherited();
    child::forget_inherited();
}
