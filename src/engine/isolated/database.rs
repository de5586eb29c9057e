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
use pyo3::types::{PyDict, PyString, PyTuple};

use super::client::child::Program;
use super::client::connections::Line;
use super::client::launcher::{Launcher, START_WITHIN, log_notices};
use super::client::patience::{Patience, Problem, is_of_owner};
use super::client::request::{END_WITHIN, NoAnswer, RETRY, exchange, greet, is_final, release};
use super::client::{child, connections};
use super::protocol::address::Address;
use super::protocol::frame::{Frame, Kind, MAX_BODY};
use super::protocol::values::{Decoder, Encoder, Matrices, decode_exception};
use crate::engine::{Budget, Database, Engine, Instance, Opening, Outcome, Task};
use crate::python::arguments::Arguments;
use crate::python::call::call_python;
use crate::python::exceptions::{Error, describe, name_place, quote};
use crate::python::gil::{self, Lock};
use crate::storage::directory::{self, Removal};
use crate::storage::lock_file;
use crate::sync::fork_gate::Work;

/// How often a call is sent anew because the engine process has just ended.
const MAX_UNSENT: u32 = 5;

/// For how long a call is made again that others' failures keep from being made; the pause
/// before it is grows to the longest.
const RETRIED_FOR: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

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
    ) -> Result<Bound<'py, PyAny>, Error> {
        let mut encoder = Encoder::new(py);
        encoder.name(&task.method)?;
        encoder.value(task.arguments.as_any())?;
        let body = encoder.finish();
        let engine = self.prepare(py, instance)?;
        let mut retries = Retries::new();
        loop {
            // An engine that could not open the database can be told to restore it.
            let (line, _) = engine.launcher.find_or_start(py, instance, opening)?;
            let stream = line.stream();
            let answer = exchange(py, stream, Kind::Manage, &body, None);
            if answer.is_ok() && !instance.state.take(py).is_open() {
                // A database that this process has not open is nobody's when this returns.
                leave(py, &line, &engine.launcher.socket(py), Instant::now() + END_WITHIN)?;
            }
            match answer {
                Ok(Frame { kind: Kind::Returned, body }) => {
                    return Ok(Decoder::new(py, &body, Matrices::Numpy).last_value()?);
                }
                Ok(Frame { kind: Kind::Raised, body }) => {
                    return Err(Error::while_managing(py, instance, decode_exception(py, &body, &[])?));
                }
                Ok(Frame { kind: Kind::Stale | Kind::Closing, .. }) | Err(NoAnswer::NotSent(_)) => {
                    retries.pause(
                        py,
                        instance,
                        "its engine processes end before they have done what they are asked",
                    )?;
                }
                Ok(frame) => {
                    return Err(Error::no_answer(
                        instance,
                        &task.method,
                        format!("a frame of the kind {:?}", frame.kind),
                    ));
                }
                Err(no_answer) => return Err(engine.why_not(py, instance, &task.method, body.len(), no_answer, None)),
            }
        }
    }

    fn delete(&self, py: Python<'_>, instance: &Arc<Instance>, deadline: Instant) -> Result<bool, Error> {
        let mut existed = false;
        let mut patience = Patience::default();
        let mut retries = Retries::new();
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
                        gil::wait(py, || thread::sleep(RETRY))?;
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

    fn call<'py>(
        &self,
        py: Python<'py>,
        method: &Bound<'py, PyString>,
        arguments: &Bound<'py, PyTuple>,
        keywords: Option<&Bound<'py, PyDict>>,
        budget: Option<Budget>,
    ) -> PyResult<Outcome<'py>> {
        let mut encoder = Encoder::of_call(py);
        encoder.name(method.to_str()?)?;
        encoder.value(arguments.as_any())?;
        match keywords {
            Some(keywords) => encoder.value(keywords.as_any())?,
            None => encoder.value(py.None().bind(py))?,
        }
        let (call, raised) = encoder.finish_call();
        let instance = self.instance.upgrade().ok_or(Error::ManagerShutDown)?;
        let method = method.to_str()?;
        let may_repeat = !self.is_in_memory && Arguments::of(method, arguments, keywords).are_safe_to_repeat();
        let asked = self.ask(py, &instance, method, &call, may_repeat, budget);
        let (Frame { kind, body }, line) = match asked {
            Ok((Frame { kind: Kind::Stale | Kind::Closing, .. }, line)) if !self.is_in_memory => {
                // Its end is where the closing sees that the process has ended.
                line.keep(self.launcher.id);
                return Ok(Outcome::Gone);
            }
            Err(Error::NotFound { .. }) if !self.is_in_memory => return Ok(Outcome::Gone),
            asked => asked?,
        };
        let answer = match kind {
            Kind::Returned => Decoder::new(py, &body, Matrices::Numpy).last_value().map(Ok),
            Kind::Raised => decode_exception(py, &body, &raised).map(|raised| {
                name_place(py, &instance, &raised)?;
                Err(raised)
            }),
            _ => return Err(Error::no_answer(&instance, method, format!("a frame of the kind {kind:?}")).into()),
        };
        match answer {
            Ok(answer) => {
                line.keep(self.launcher.id);
                answer.map(Outcome::Returned)
            }
            Err(error) if error.is_instance_of::<PyException>(py) => {
                Err(Error::no_answer(&instance, method, describe(py, &error)).into())
            }
            Err(error) => Err(error),
        }
    }

    fn close(self: Box<Self>, py: Python<'_>, until: Option<Instant>) -> PyResult<()> {
        let socket = self.launcher.newest_address(py);
        let deadline = Instant::now() + END_WITHIN;
        let deadline = until.map_or(deadline, |until| deadline.min(until));
        // Where no socket is left (a call was interrupted, say), the engine may still be at work: another one will do.
        let waiting = Line::waiting(py, self.launcher.id);
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
    /// Sends a call and waits for its answer; on another engine once more, where the first has ended and that is safe. All
    /// of it is within one budget.
    fn ask<'py>(
        &self,
        py: Python<'py>,
        instance: &Instance,
        method: &str,
        body: &[u8],
        mut may_repeat: bool,
        budget: Option<Budget>,
    ) -> Result<(Frame, Line<'py>), Error> {
        let opening = Opening { budget, ..Opening::new(false, Duration::ZERO) };
        let deadline = budget.map(|budget| budget.until);
        let mut unsent = 0;
        let mut retries = Retries::new();
        loop {
            let line = match Line::waiting(py, self.launcher.id) {
                Some(line) => line,
                None if self.is_in_memory => self.launcher.find_again(py, instance, method, budget)?,
                None => self.launcher.connect(py, instance, opening).map_err(|error| error.in_call(method))?,
            };
            match exchange(py, line.stream(), Kind::Call, body, deadline) {
                // As often as others fail before it; there the call waits until the database was opened anew.
                Ok(Frame { kind: Kind::Retry, body: notice }) => {
                    line.keep(self.launcher.id);
                    log_notices(instance, &notice);
                    budget.map_or(Ok(()), |budget| budget.go_on(instance, method))?;
                    retries.pause(
                        py,
                        instance,
                        "it is reopened again and again because other calls fail in it: look at their errors",
                    )?;
                }
                Ok(frame) => return Ok((frame, line)),
                Err(NoAnswer::NotSent(_)) if unsent < MAX_UNSENT => {
                    drop(line);
                    connections::hang_up(py, self.launcher.id);
                    unsent += 1;
                }
                Err(NoAnswer::Broken(error)) if may_repeat && !is_final(&error) => {
                    drop(line);
                    connections::hang_up(py, self.launcher.id);
                    let socket = self.launcher.socket(py);
                    let last_words = py.detach(|| child::last_words(&socket));
                    // After a fork in the middle of the call, by its own signal handler, the answer is the parent's.
                    if instance.is_of_this_process() {
                        log::warn!(
                            target: crate::LOGGER,
                            "the engine process of {} ended in the middle of {method}(){}; the call is repeated",
                            instance.key(),
                            quote(&last_words)
                        );
                    }
                    may_repeat = false;
                }
                Err(NoAnswer::TooLarge) => {
                    line.keep(self.launcher.id);
                    return Err(Error::too_large(instance, method, body.len(), MAX_BODY));
                }
                Err(no_answer) => {
                    drop(line);
                    return Err(self.why_not(py, instance, method, body.len(), no_answer, budget));
                }
            }
        }
    }

    /// The error of a call that had no answer and is not to be repeated.
    fn why_not(
        &self,
        py: Python<'_>,
        instance: &Instance,
        method: &str,
        size: usize,
        no_answer: NoAnswer,
        budget: Option<Budget>,
    ) -> Error {
        match (no_answer, budget) {
            (NoAnswer::Python(error), _) => error.into(),
            (NoAnswer::TooLate, Some(budget)) => budget.spent(instance, method),
            (NoAnswer::TooLarge, _) => Error::too_large(instance, method, size, MAX_BODY),
            (NoAnswer::Broken(error), _) if is_final(&error) => Error::no_answer(instance, method, error.to_string()),
            (
                NoAnswer::NotSent(_)
                | NoAnswer::Broken(_)
                | NoAnswer::Unreachable(_)
                | NoAnswer::Foreign
                | NoAnswer::TooLate,
                _,
            ) => {
                connections::hang_up(py, self.launcher.id);
                let socket = self.launcher.socket(py);
                Error::engine_crashed(instance, method, py.detach(|| child::last_words(&socket)))
            }
        }
    }
}

/// What is tried again before it is an error.
struct Retries {
    give_up: Instant,
    pause: Duration,
}

impl Retries {
    fn new() -> Self {
        Self { give_up: Instant::now() + RETRIED_FOR, pause: RETRY }
    }

    /// Waits before the next try; an error where it was tried for long enough, and where a signal handler raises.
    fn pause(&mut self, py: Python<'_>, instance: &Instance, reason: &str) -> Result<(), Error> {
        if Instant::now() >= self.give_up {
            return Err(Error::cannot_open(instance, format!("{reason} (tried for {RETRIED_FOR:?})"), None));
        }
        let pause = self.pause;
        self.pause = LONGEST_PAUSE.min(pause * 2);
        Ok(gil::wait(py, || thread::sleep(pause))?)
    }
}

/// A connection to whoever answers at a socket, if somebody does.
fn reach<'py>(py: Python<'py>, socket: &Address, deadline: Instant) -> PyResult<Option<Line<'py>>> {
    match greet(py, socket, deadline) {
        Ok((line, _)) => Ok(Some(line)),
        Err(NoAnswer::Python(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Tells the engine at that socket that this process needs it no more; tells whether it has ended.
fn leave(py: Python<'_>, line: &Line<'_>, socket: &Address, deadline: Instant) -> PyResult<bool> {
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
        Err(NoAnswer::Python(error)) => Err(error.into()),
        Err(NoAnswer::Foreign) => Ok(Err(Problem::Another)),
        Err(NoAnswer::Unreachable(error)) if is_of_owner(&error) => Ok(Err(Problem::Nobody(error))),
        Err(NoAnswer::Unreachable(error)) => Err(Error::while_opening(py, instance, error.into())),
        Err(NoAnswer::Broken(error)) if is_final(&error) => {
            Err(Error::no_answer(instance, "delete_instance", error.to_string()))
        }
        // It is ending, or its directory is another one by now: that is looked at anew.
        Ok(_) | Err(_) => Ok(Ok(false)),
    }
}
