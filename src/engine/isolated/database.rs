//! An open database of the engine `isolated`, as the app sees it, and the engine.
//!
//! A call is converted, sent and waited for, detached, on a socket that nobody else uses meanwhile. An engine that has ended
//! is started again, and the call repeated where that is safe.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyTuple};

use super::client::child::Program;
use super::client::connections::Channel;
use super::client::launcher::{Launcher, START_WITHIN, log_notices};
use super::client::patience::{Patience, Problem, is_of_owner};
use super::client::request::{END_WITHIN, RequestError, exchange, greet, is_final, release};
use super::client::{child, connections};
use super::protocol::address::Address;
use super::protocol::frame::{Frame, Kind, MAX_BODY};
use super::protocol::values::{Decoder, Encoder, Matrices, decode_exception};
use crate::engine::{Database, Engine, Instance, Opening, Request, Task};
use crate::failure::{Backoff, Budget, FIRST_PAUSE, Failure};
use crate::python::call::call_python;
use crate::python::error::{Error, name_place};
use crate::python::exceptions::describe;
use crate::python::gil::{self, Lock};
use crate::storage::directory::{self, Removal};
use crate::storage::lock_file;
use crate::sync::fork_gate::Work;

/// Which argument of `delete` says how many records at most, and which of `create_collection` that one that exists will do.
const PLACE_OF_LIMIT: usize = 4;
const PLACE_OF_GET_OR_CREATE: usize = 4;

/// What keeps a call, or exclusive maintenance, from being executed.
const REOPENED_AGAIN_AND_AGAIN: &str =
    "it is reopened again and again because other calls fail in it: look at their errors";
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
        opened.launcher.connect(py, instance, opening)?.keep(opened.launcher.id);
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
        let (line, _) = engine.launcher.find_or_start(py, instance, opening)?;
        let answer = exchange(py, line.stream(), Kind::Manage, &body, None);
        if answer.is_ok() && !instance.state.take(py).is_open() {
            // A database that this process has not open is nobody's when this returns.
            leave(py, &line, &engine.launcher.socket(py), Instant::now() + END_WITHIN)?;
        }
        match answer {
            Ok(Frame { kind: Kind::Returned, body }) => {
                Ok(Decoder::new(py, &body, Matrices::Numpy).last_value().map_err(Error::from)?)
            }
            Ok(Frame { kind: Kind::Raised, body }) => {
                Err(Error::while_managing(py, instance, decode_exception(py, &body, &[])?).into())
            }
            Ok(Frame { kind: Kind::Gone | Kind::Closing, .. }) | Err(RequestError::NotSent(_)) => {
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
        Ok(Opened { launcher, instance: Arc::downgrade(instance), system, is_in_memory })
    }
}

/// In a forked child: lets go of the sockets, and leaves the engines to the parent.
pub fn forget_inherited() {
    connections::forget_inherited();
    child::forget_inherited();
}

struct Opened {
    launcher: Launcher,
    instance: std::sync::Weak<Instance>,
    system: Py<PyAny>,
    /// A database in memory is lost with its process, so no other is started.
    is_in_memory: bool,
}

impl Database for Opened {
    fn system<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.system.bind(py)
    }

    fn is_in_place(&self) -> bool {
        // What was not there when it was opened never was the one that is there.
        self.is_in_memory || self.launcher.is_in_place()
    }

    fn attempt<'py>(&self, py: Python<'py>, request: &Request<'_, 'py>) -> Result<Bound<'py, PyAny>, Failure> {
        let (call, raised) = request.encoded.get_or_try_init(|| encode_call(py, request))?;
        let instance = self.instance.upgrade().ok_or(Error::ManagerShutDown)?;
        let method = request.method.to_str()?;
        let (Frame { kind, body }, line) = match self.ask(py, &instance, request, call) {
            Err(Failure::Final(Error::NotFound { .. })) if !self.is_in_memory => return Err(Failure::Stale),
            asked => asked?,
        };
        let answer = match kind {
            Kind::Gone | Kind::Closing if !self.is_in_memory => {
                // Its end is where the closing sees that the process has ended.
                line.keep(self.launcher.id);
                return Err(Failure::Stale);
            }
            Kind::Again => {
                line.keep(self.launcher.id);
                log_notices(&instance, &body);
                request.budget.map_or(Ok(()), |budget| budget.go_on(&instance, method))?;
                return Err(Failure::Retry(REOPENED_AGAIN_AND_AGAIN));
            }
            Kind::Returned => Decoder::new(py, &body, Matrices::Numpy).last_value().map(Ok),
            Kind::Raised => decode_exception(py, &body, raised).and_then(|raised| {
                name_place(py, &instance, &raised)?;
                Ok(Err(raised))
            }),
            _ => return Err(Error::malformed(&instance, method, format!("a frame of the kind {kind:?}")).into()),
        };
        match answer {
            Ok(answer) => {
                line.keep(self.launcher.id);
                Ok(answer?)
            }
            Err(error) if error.is_instance_of::<PyException>(py) => {
                Err(Error::malformed(&instance, method, describe(py, &error)).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn close(self: Box<Self>, py: Python<'_>, until: Option<Instant>) -> PyResult<()> {
        let socket = self.launcher.newest_address(py);
        let deadline = Instant::now() + END_WITHIN;
        let deadline = until.map_or(deadline, |until| deadline.min(until));
        // Where no socket is left (a call was interrupted, say), the engine may still be at work: another one will do.
        let waiting = Channel::waiting(py, self.launcher.id);
        connections::hang_up(py, self.launcher.id);
        let line = waiting.map_or_else(|| reach(py, &socket, deadline), |line| Ok(Some(line)))?;
        match line {
            Some(line) if !leave(py, &line, &socket, deadline)? => return Ok(()),
            Some(_) => {}
            None => py.detach(|| child::reap_at(&socket)),
        }
        // Where it had died, a piece of work may have started another one.
        let owner = if self.is_in_memory { None } else { py.detach(|| lock_file::owner(&self.launcher.path)) };
        if let Some(socket) =
            owner.filter(|owner| !owner.is_momentary()).and_then(|owner| Address::of(&self.launcher.path, owner))
            && let Some(line) = reach(py, &socket, deadline)?
        {
            leave(py, &line, &socket, deadline)?;
        }
        Ok(())
    }
}

impl Opened {
    /// Sends a call and waits for the answer to it, within its budget.
    fn ask<'py>(
        &self,
        py: Python<'py>,
        instance: &Instance,
        request: &Request<'_, 'py>,
        body: &[u8],
    ) -> Result<(Frame, Channel<'py>), Failure> {
        let (method, budget) = (request.method.to_str()?, request.budget);
        let opening = Opening { budget, ..Opening::new(false, Duration::ZERO) };
        let line = match Channel::waiting(py, self.launcher.id) {
            Some(line) => line,
            None if self.is_in_memory => self.launcher.find_again(py, instance, method, budget)?,
            None => self.launcher.connect(py, instance, opening).map_err(|error| error.in_call(method))?,
        };
        let failed = match exchange(py, line.stream(), Kind::Call, body, budget.map(|budget| budget.until)) {
            Ok(frame) => return Ok((frame, line)),
            Err(RequestError::TooLarge) => {
                line.keep(self.launcher.id);
                return Err(Error::too_large(instance, method, body.len(), MAX_BODY).into());
            }
            Err(failed) => failed,
        };
        drop(line);
        if matches!(failed, RequestError::NotSent(_)) {
            connections::hang_up(py, self.launcher.id);
            let socket = self.launcher.socket(py);
            let stderr_tail = py.detach(|| child::log_tail(&socket));
            return Err(Failure::Unsent(Error::engine_crashed(instance, method, stderr_tail)));
        }
        let is_lost = matches!(&failed, RequestError::Broken(error) if !is_final(error));
        let error = self.why_not(py, instance, method, body.len(), failed, budget);
        if is_lost {
            let is_safe_to_repeat = !self.is_in_memory && is_safe_to_repeat(method, request.arguments);
            return Err(Failure::Lost { error, is_safe_to_repeat });
        }
        Err(error.into())
    }

    /// The error of a call that had no answer and is not to be repeated.
    fn why_not(
        &self,
        py: Python<'_>,
        instance: &Instance,
        method: &str,
        size: usize,
        failed: RequestError,
        budget: Option<Budget>,
    ) -> Error {
        match (failed, budget) {
            (RequestError::Python(error), _) => error.into(),
            (RequestError::TooLate, Some(budget)) => budget.spent(instance, method),
            (RequestError::TooLarge, _) => Error::too_large(instance, method, size, MAX_BODY),
            (RequestError::Broken(error), _) if is_final(&error) => {
                Error::malformed(instance, method, error.to_string())
            }
            (
                RequestError::NotSent(_)
                | RequestError::Broken(_)
                | RequestError::Unreachable(_)
                | RequestError::Foreign
                | RequestError::TooLate,
                _,
            ) => {
                connections::hang_up(py, self.launcher.id);
                let socket = self.launcher.socket(py);
                Error::engine_crashed(instance, method, py.detach(|| child::stderr_tail(&socket)))
            }
        }
    }
}

/// Repeating one of these gives what doing it once does.
fn is_safe_to_repeat(method: &str, arguments: &Bound<'_, PyTuple>) -> bool {
    // Of those that a limit leaves, a second `delete` would take others.
    let has_limit = || arguments.get_item(PLACE_OF_LIMIT).is_ok_and(|limit| !limit.is_none());
    let gets_or_creates =
        || arguments.get_item(PLACE_OF_GET_OR_CREATE).is_ok_and(|gets| gets.is(PyBool::new(arguments.py(), true)));
    match method {
        "delete" => !has_limit(),
        "create_collection" => gets_or_creates(),
        _ => matches!(
            method,
            "add"
                | "upsert"
                | "update"
                | "get"
                | "query"
                | "count"
                | "count_collections"
                | "list_collections"
                | "get_collection"
                | "get_collection_by_id"
                | "get_database"
                | "list_databases"
                | "get_tenant"
                | "heartbeat"
                | "get_version"
                | "get_max_batch_size"
        ),
    }
}

/// A call, as it is sent, and the exceptions that its arguments have raised.
fn encode_call(py: Python<'_>, request: &Request<'_, '_>) -> PyResult<(Vec<u8>, Vec<PyErr>)> {
    let mut encoder = Encoder::of_call(py);
    encoder.name(request.method.to_str()?)?;
    encoder.value(request.arguments.as_any())?;
    match request.keywords {
        Some(keywords) => encoder.value(keywords.as_any())?,
        None => encoder.value(py.None().bind(py))?,
    }
    Ok(encoder.finish_call())
}

/// A connection to whoever answers at a socket, if somebody does.
fn reach<'py>(py: Python<'py>, socket: &Address, deadline: Instant) -> PyResult<Option<Channel<'py>>> {
    match greet(py, socket, deadline) {
        Ok((line, _)) => Ok(Some(line)),
        Err(RequestError::Python(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Tells the engine at that socket that this process needs it no more; tells whether it has ended.
fn leave(py: Python<'_>, line: &Channel<'_>, socket: &Address, deadline: Instant) -> PyResult<bool> {
    let has_ended = release(py, line.stream(), deadline)?;
    if has_ended {
        py.detach(|| child::reap_at(socket));
    }
    Ok(has_ended)
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
