//! The engine `isolated`: every instance is owned by a small process of its own, reached over a Unix socket.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `finding.rs` | finds the engine process of an instance, or starts one |
//! | `address.rs` | where an engine process is reached |
//! | `proof.rs` | what its greeting proves |
//! | `patience.rs` | how long an owner is waited for that cannot be reached, and what is said of it |
//! | `process.rs` | engine processes as the system sees them: started, reaped, their last words |
//! | `line.rs` | the app's sockets, and what a forked child does with them |
//! | `exchange.rs` | what is said on a socket, and why there was no answer |
//! | `peer.rs` | who is at the other end of a socket |
//! | `convert.rs` | Python's values as bytes, and back |
//! | `inherited.rs` | what an engine process closes at its start |
//! | `stand_ins.rs` | arguments whose class is the app's |
//! | `serve.rs` | the engine process's side: what is done with what an app asks |
//! | `listener.rs` | the engine process's own address |
//! | `stack.rs` | how much stack a call needs |
//! | `slices.rs` | how a long write lets others have their turn |
//! | `checks.rs` | whether Chroma would take all of a long write |
//! | `orphans.rs` | what becomes of a long write whose caller has gone |
//! | `journal.rs` | what completes a long write that was interrupted |
//! | `told_to_end.rs` | what a signal to end has an engine process do |
//! | `witness.rs` | whether another program writes to the database |
//!
//! Here is the app's side: a call is converted, sent and waited for, detached, on a socket that nobody else uses
//! meanwhile. An engine that has ended is started again, and the call repeated where that is safe.

mod address;
mod checks;
mod convert;
mod exchange;
mod finding;
pub mod inherited;
pub mod journal;
mod line;
mod listener;
mod orphans;
mod patience;
mod peer;
mod process;
mod proof;
pub mod serve;
mod slices;
mod stack;
mod stand_ins;
mod told_to_end;
mod witness;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString, PyTuple};

use self::address::Address;
use self::convert::{Decoder, Encoder, Matrices, decode_exception};
use self::exchange::{END_WITHIN, NoAnswer, exchange, greet, is_final, release};
use self::finding::{START_WITHIN, log_notices};
use self::line::Line;
use self::patience::{Patience, Problem, is_of_owner};
use self::process::Program;
use super::{Budget, Database, Engine, Instance, Opening, Outcome, Task};
use crate::attached::{self, Lock};
use crate::calls::Work;
use crate::directory::{self, Removal, Seen};
use crate::error::{Error, describe, name_place, quote};
use crate::lock_file;
use crate::supervisor::call_python;
use crate::wire::{Frame, Kind, MAX_BODY};

/// How often a call is sent anew because the engine process has just ended.
const MAX_UNSENT: u32 = 5;

/// Which argument of `delete` says how many records at most, and which of `create_collection` that one that exists will do.
const PLACE_OF_LIMIT: usize = 4;
const PLACE_OF_GET_OR_CREATE: usize = 4;

/// How often somebody who is just starting or ending is asked again.
const RETRY: Duration = Duration::from_millis(5);

/// For how long it is, at most, and how long a call is made again that others' failures keep from being made; the pause
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
        py.detach(process::reap);
    }

    fn open(&self, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<Box<dyn Database>, Error> {
        let opened = self.prepare(py, instance)?;
        opened.connect(py, instance, opening)?.keep(opened.id);
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
            let (line, _) = engine.find_or_start(py, instance, opening)?;
            let stream = line.stream();
            let answer = exchange(py, stream, Kind::Manage, &body, None);
            if answer.is_ok() && !instance.state.take(py).is_open() {
                // A database that this process has not open is nobody's when this returns.
                leave(py, &line, &engine.socket(py), Instant::now() + END_WITHIN)?;
            }
            match answer {
                Ok(Frame { kind: Kind::Returned, body }) => {
                    return Ok(Decoder::new(py, &body, Matrices::Numpy).last_value()?);
                }
                Ok(Frame { kind: Kind::Raised, body }) => {
                    return Err(Error::while_managing(py, instance, decode_exception(py, &body, &[])?));
                }
                Ok(Frame { kind: Kind::Gone | Kind::Closing, .. }) | Err(NoAnswer::NotSent(_)) => {
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
                        attached::wait(py, || thread::sleep(RETRY))?;
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
        Ok(Opened {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            path: instance.path().to_path_buf(),
            instance: Arc::downgrade(instance),
            program: Program { command, environment },
            system,
            arguments,
            is_in_memory,
            engine: Mutex::default(),
        })
    }
}

/// Writes a sentence into the log of this engine process, which may be on a disk that is full.
fn say(sentence: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{sentence}");
}

/// In a forked child: lets go of the sockets, and leaves the engines to the parent.
pub fn forget_inherited() {
    line::forget_inherited();
    process::forget_inherited();
}

struct Opened {
    id: u64,
    path: PathBuf,
    instance: std::sync::Weak<Instance>,
    program: Program,
    system: Py<PyAny>,
    /// What an engine process is told at its start.
    arguments: String,
    /// A database in memory is lost with its process, so no other is started.
    is_in_memory: bool,
    engine: Mutex<EngineProcess>,
}

/// The engine process that was connected to last.
#[derive(Clone, Debug, Default)]
struct EngineProcess {
    socket: Address,
    /// Its directory, as it was then.
    seen: Option<Seen>,
}

impl Database for Opened {
    fn system<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.system.bind(py)
    }

    fn is_in_place(&self) -> bool {
        // What was not there when it was opened never was the one that is there.
        self.is_in_memory || Seen::at(&self.path).is_some_and(|now| self.engine.lock().seen == Some(now))
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
        let may_repeat = !self.is_in_memory && is_safe_to_repeat(method, arguments);
        let asked = self.ask(py, &instance, method, &call, may_repeat, budget);
        let (Frame { kind, body }, line) = match asked {
            Ok((Frame { kind: Kind::Gone | Kind::Closing, .. }, line)) if !self.is_in_memory => {
                // Its end is where the closing sees that the process has ended.
                line.keep(self.id);
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
                line.keep(self.id);
                answer.map(Outcome::Returned)
            }
            Err(error) if error.is_instance_of::<PyException>(py) => {
                Err(Error::no_answer(&instance, method, describe(py, &error)).into())
            }
            Err(error) => Err(error),
        }
    }

    fn close(self: Box<Self>, py: Python<'_>, until: Option<Instant>) -> PyResult<()> {
        let socket = self.newest_address(py);
        let deadline = Instant::now() + END_WITHIN;
        let deadline = until.map_or(deadline, |until| deadline.min(until));
        // Where no socket is left (a call was interrupted, say), the engine may still be at work: another one will do.
        let waiting = Line::waiting(py, self.id);
        line::hang_up(py, self.id);
        let line = waiting.map_or_else(|| reach(py, &socket, deadline), |line| Ok(Some(line)))?;
        match line {
            Some(line) if !leave(py, &line, &socket, deadline)? => return Ok(()),
            Some(_) => {}
            None => py.detach(|| process::reap_at(&socket)),
        }
        // Where it had died, a piece of work may have started another one.
        let owner = if self.is_in_memory { None } else { py.detach(|| lock_file::owner(&self.path)) };
        if let Some(socket) =
            owner.filter(|owner| !owner.is_momentary()).and_then(|owner| Address::of(&self.path, owner))
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
            let line = match Line::waiting(py, self.id) {
                Some(line) => line,
                None if self.is_in_memory => self.find_again(py, instance, method, budget)?,
                None => self.connect(py, instance, opening).map_err(|error| error.in_call(method))?,
            };
            match exchange(py, line.stream(), Kind::Call, body, deadline) {
                // As often as others fail before it; there the call waits until the database was opened anew.
                Ok(Frame { kind: Kind::Again, body: notice }) => {
                    line.keep(self.id);
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
                    line::hang_up(py, self.id);
                    unsent += 1;
                }
                Err(NoAnswer::Broken(error)) if may_repeat && !is_final(&error) => {
                    drop(line);
                    line::hang_up(py, self.id);
                    let socket = self.socket(py);
                    let last_words = py.detach(|| process::last_words(&socket));
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
                    line.keep(self.id);
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
                line::hang_up(py, self.id);
                let socket = self.socket(py);
                Error::engine_crashed(instance, method, py.detach(|| process::last_words(&socket)))
            }
        }
    }

    fn socket(&self, py: Python<'_>) -> Address {
        self.engine.take(py).socket.clone()
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
        Ok(attached::wait(py, || thread::sleep(pause))?)
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
        py.detach(|| process::reap_at(socket));
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
    py.detach(|| process::reap_at(socket));
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
