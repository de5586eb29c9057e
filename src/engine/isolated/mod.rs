//! The engine `isolated`: every instance is owned by a small process of its own, reached over a Unix socket.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `process.rs` | finds the engine process of an instance, or starts it |
//! | `line.rs` | the app's sockets, and what a forked child does with them |
//! | `peer.rs` | who is at the other end of a socket |
//! | `convert.rs` | Python's values as bytes, and back |
//! | `serve.rs` | the engine process's side |
//!
//! Here is the app's side: a call is converted, sent and waited for, detached, on a socket that nobody else uses
//! meanwhile. An engine that has ended is started again, and the call repeated where that is safe.

mod convert;
mod line;
mod peer;
mod process;
pub mod serve;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use self::convert::{Decoder, Encoder, Matrices, decode_exception};
use self::line::Line;
use self::process::Program;
use super::{Database, Engine, Instance};
use crate::attached::{self, Lock, SIGNAL_POLL};
use crate::calls::{self, Work};
use crate::error::{Error, describe, quote};
use crate::lock_file::{self, Attempt, LockFile};
use crate::supervisor::call_python;
use crate::wire::{Frame, Incoming, Kind, MAX_BODY, Outgoing};

/// How long an engine may take to start, or to end, before that is an error.
const START_WITHIN: Duration = Duration::from_secs(30);
const END_WITHIN: Duration = Duration::from_secs(30);

/// How many engine processes of an opening may die: then the next one would do so too.
const MAX_DEATHS: u32 = 5;

/// Which argument of `delete` says how many records at most.
const PLACE_OF_LIMIT: usize = 4;

/// How often somebody who is just starting or ending is asked again.
const RETRY: Duration = Duration::from_millis(5);

/// An engine process for each instance.
#[derive(Debug)]
pub struct Isolated {
    source: Py<PyAny>,
    call_timeout: Option<Duration>,
    program: Program,
}

impl Isolated {
    /// With what `chroma_manager.isolated.prepare` takes: `chromadb.config.Settings`, for one.
    pub fn new(py: Python<'_>, source: Py<PyAny>, call_timeout: Option<Duration>) -> PyResult<Self> {
        let python = py.import("sys")?.getattr("executable")?.extract::<Option<PathBuf>>()?.unwrap_or_default();
        let package = py.import("chroma_manager")?.getattr("__file__")?.extract::<PathBuf>()?;
        let program = Program { python, script: package.with_file_name("engine_process.py") };
        Ok(Self { source, call_timeout, program })
    }
}

impl Engine for Isolated {
    fn name(&self) -> &'static str {
        "isolated"
    }

    fn work(&self) -> Work {
        Work::Elsewhere
    }

    fn tidy(&self, py: Python<'_>) {
        py.detach(process::reap);
    }

    fn open(&self, py: Python<'_>, instance: &Arc<Instance>, deadline: Instant) -> Result<Box<dyn Database>, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let wrap = |error| Error::while_opening(py, instance, error);
        let (system, arguments, is_in_memory) =
            call_python(py, "chroma_manager.isolated", "prepare", (&self.source, instance.path()))
                .and_then(|prepared| prepared.extract())
                .map_err(wrap)?;
        let opened = Opened {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            instance: Arc::downgrade(instance),
            program: self.program.clone(),
            call_timeout: self.call_timeout,
            system,
            arguments,
            is_in_memory,
            found: Mutex::default(),
        };
        opened.find_or_start(py, instance, deadline)?.keep(opened.id);
        Ok(Box::new(opened))
    }
}

/// In a forked child: lets go of the sockets, and leaves the engines to the parent.
pub fn forget_inherited() {
    line::forget_inherited();
    process::forget_inherited();
}

struct Opened {
    id: u64,
    instance: std::sync::Weak<Instance>,
    program: Program,
    call_timeout: Option<Duration>,
    system: Py<PyAny>,
    /// What an engine process is told at its start.
    arguments: String,
    /// A database in memory is lost with its process, so no other is started.
    is_in_memory: bool,
    /// The socket of the engine that was connected to last.
    found: Mutex<PathBuf>,
}

/// Why there was no answer.
enum NoAnswer {
    /// The other end has gone.
    Broken(io::Error),
    /// It takes longer than it may.
    TooLate,
    /// Nothing was sent: it is more than a frame may have.
    TooLarge,
    /// Something of Python's happened meanwhile: Ctrl-C.
    Python(PyErr),
}

impl From<PyErr> for NoAnswer {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl Database for Opened {
    fn system<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.system.bind(py)
    }

    fn call<'py>(
        &self,
        py: Python<'py>,
        method: &Bound<'py, PyString>,
        arguments: &Bound<'py, PyTuple>,
        keywords: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut encoder = Encoder::new(py);
        encoder.name(method.to_str()?)?;
        encoder.value(arguments.as_any())?;
        match keywords {
            Some(keywords) => encoder.value(keywords.as_any())?,
            None => encoder.value(py.None().bind(py))?,
        }
        let instance = self.instance.upgrade().ok_or(Error::ManagerShutDown)?;
        let method = method.to_str()?;
        let may_repeat = !self.is_in_memory && is_safe_to_repeat(method, arguments);
        let (Frame { kind, body }, line) = self.ask(py, &instance, method, &encoder.finish(), may_repeat)?;
        let answer = match kind {
            Kind::Returned => Decoder::new(py, &body, Matrices::Numpy).last_value().map(Ok),
            Kind::Raised => decode_exception(py, &body).map(Err),
            _ => return Err(Error::no_answer(&instance, method, format!("a frame of the kind {kind:?}")).into()),
        };
        match answer {
            Ok(answer) => {
                line.keep(self.id);
                answer
            }
            Err(error) if error.is_instance_of::<PyException>(py) => {
                Err(Error::no_answer(&instance, method, describe(py, &error)).into())
            }
            Err(error) => Err(error),
        }
    }

    fn close(self: Box<Self>, py: Python<'_>) {
        let socket = self.found.take(py).clone();
        // Where no socket is left (a call was interrupted, say), the engine may still be at work: another one will do.
        let line = Line::waiting(py, self.id).or_else(|| greet(py, &socket).ok().map(|(line, _)| line));
        line::hang_up(py, self.id);
        let stream = line.as_ref().map(Line::stream);
        let has_ended = py.detach(|| stream.is_none_or(release));
        drop(line);
        if has_ended {
            py.detach(|| process::reap_at(&socket));
        }
    }
}

impl Opened {
    /// Sends a call and waits for its answer; on another engine once more, where the first has ended and that is safe.
    fn ask<'py>(
        &self,
        py: Python<'py>,
        instance: &Instance,
        method: &str,
        body: &[u8],
        mut may_repeat: bool,
    ) -> Result<(Frame, Line<'py>), Error> {
        loop {
            let line = match Line::waiting(py, self.id) {
                Some(line) => line,
                None if self.is_in_memory => self.find_again(py, instance, method)?,
                None => self.find_or_start(py, instance, Instant::now())?,
            };
            let deadline = self.call_timeout.map(|timeout| Instant::now() + timeout);
            match exchange(py, line.stream(), Kind::Call, body, deadline) {
                Ok(frame) => return Ok((frame, line)),
                Err(NoAnswer::Python(error)) => return Err(error.into()),
                Err(NoAnswer::TooLate) => {
                    return Err(Error::call_timed_out(instance, method, self.call_timeout.unwrap_or_default()));
                }
                Err(NoAnswer::TooLarge) => {
                    line.keep(self.id);
                    return Err(Error::too_large(instance, method, body.len(), MAX_BODY));
                }
                Err(NoAnswer::Broken(error)) if is_final(&error) => {
                    return Err(Error::no_answer(instance, method, error.to_string()));
                }
                Err(NoAnswer::Broken(_)) => {
                    drop(line);
                    line::hang_up(py, self.id);
                    let socket = self.found.take(py).clone();
                    let last_words = py.detach(|| process::last_words(&socket));
                    if !may_repeat {
                        return Err(Error::engine_crashed(instance, method, last_words));
                    }
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
            }
        }
    }

    /// A connection to the engine of the instance, which is started where there is none.
    fn find_or_start<'py>(&self, py: Python<'py>, instance: &Instance, deadline: Instant) -> Result<Line<'py>, Error> {
        py.detach(process::reap);
        let give_up = Instant::now() + START_WITHIN;
        let mut last_problem = String::from("nobody answered");
        let mut starts = Starts::default();
        while Instant::now() < give_up && starts.deaths < MAX_DEATHS {
            let socket = match self.own_or_find(py, instance, &mut starts)? {
                Found::Socket(socket) => socket,
                Found::Starting => {
                    attached::wait(py, || thread::sleep(RETRY))?;
                    continue;
                }
                Found::Embedded(pid) if Instant::now() >= deadline => return Err(Error::locked(instance, pid)),
                Found::Embedded(_) => {
                    attached::wait(py, || thread::sleep(SIGNAL_POLL))?;
                    continue;
                }
            };
            match greet(py, &socket) {
                Ok((line, Frame { kind: Kind::Hello, .. })) => {
                    *self.found.take(py) = socket;
                    return Ok(line);
                }
                Ok((line, frame)) => {
                    drop(line);
                    py.detach(|| process::reap_at(&socket));
                    let error = decode_exception(py, &frame.body).unwrap_or_else(|error| error);
                    return Err(Error::while_opening(py, instance, error));
                }
                Err(NoAnswer::Python(error)) => return Err(error.into()),
                Err(NoAnswer::Broken(error)) if is_final(&error) => {
                    return Err(Error::while_opening(py, instance, error.into()));
                }
                Err(NoAnswer::TooLate | NoAnswer::TooLarge) => {
                    last_problem = format!("it did not greet within {START_WITHIN:?}");
                }
                // It has just ended, or it could not start: its lock is free, or will be.
                Err(NoAnswer::Broken(error)) => {
                    let last_words = py.detach(|| {
                        starts.deaths += u32::from(process::has_died(&socket));
                        process::last_words(&socket)
                    });
                    last_problem = if last_words.is_empty() { error.to_string() } else { last_words };
                }
            }
            if instance.is_ended() {
                return Err(Error::ended(instance));
            }
            attached::wait(py, || thread::sleep(RETRY))?;
        }
        py.detach(|| {
            process::reap();
            if let Ok(Attempt::Acquired(lock)) = LockFile::try_acquire(instance.path(), None) {
                lock_file::remove_created(instance.path(), Some(lock), &starts.created);
            }
        });
        let reason = format!("its engine process does not start ({last_problem}); engine=\"embedded\" needs none");
        Err(Error::cannot_open(instance, reason, None))
    }

    /// A connection to the engine that was connected to before.
    fn find_again<'py>(&self, py: Python<'py>, instance: &Instance, method: &str) -> Result<Line<'py>, Error> {
        let socket = self.found.take(py).clone();
        match greet(py, &socket) {
            Ok((line, Frame { kind: Kind::Hello, .. })) => Ok(line),
            Err(NoAnswer::Python(error)) => Err(error.into()),
            _ => {
                let last_words = py.detach(|| process::last_words(&socket));
                py.detach(|| process::reap_at(&socket));
                Err(Error::engine_crashed(instance, method, last_words))
            }
        }
    }

    fn own_or_find(&self, py: Python<'_>, instance: &Instance, starts: &mut Starts) -> Result<Found, Error> {
        let wrap = |error: PyErr| Error::while_opening(py, instance, error);
        let path = instance.path();
        let attempt = py.detach(|| {
            let created = lock_file::create_directories(path)?;
            LockFile::try_acquire(path, Some(Path::new(process::STARTING)))
                .inspect_err(|_| lock_file::remove_created(path, None, &created))
                .map(|attempt| (attempt, created))
        });
        let (lock, created) = match attempt {
            Ok((Attempt::Acquired(lock), created)) => (lock, created),
            Ok((Attempt::Held(owner), _)) => {
                return Ok(match owner.socket {
                    Some(socket) if socket.as_os_str() == process::STARTING => Found::Starting,
                    Some(socket) => Found::Socket(socket),
                    None => Found::Embedded(owner.pid),
                });
            }
            Err(error) => return Err(wrap(error.into())),
        };
        starts.created.extend(created);
        let created = &starts.created;
        if let Err(error) = call_python(py, "chroma_manager.database", "refuse_newer", (path,)) {
            py.detach(|| lock_file::remove_created(path, Some(lock), created));
            return Err(wrap(error));
        }
        let started = py.detach(|| {
            // A child forked in the middle would have descriptors that nobody closes there, the lock's among them.
            let _pass = calls::here();
            if let Some(socket) = &lock.previous().socket {
                process::forget_address(socket);
            }
            match process::start(&self.program, &self.arguments, &lock) {
                Ok((pid, socket)) => lock.hand_over(pid, &socket).map(|()| Found::Socket(socket)),
                Err(error) => {
                    lock_file::remove_created(path, Some(lock), created);
                    Err(error)
                }
            }
        });
        started.map_err(|error| {
            let reason = format!("its engine process cannot be started: {error}; engine=\"embedded\" needs none");
            Error::cannot_open(instance, reason, Some(error.into()))
        })
    }
}

/// What an opening has done so far.
#[derive(Default)]
struct Starts {
    /// Engine processes that it started and that died.
    deaths: u32,
    /// Directories created.
    created: Vec<PathBuf>,
}

/// Who has the instance.
enum Found {
    /// An engine process, at this socket.
    Socket(PathBuf),
    /// Somebody who is just starting one.
    Starting,
    /// An app that has it in its own process.
    Embedded(Option<u32>),
}

/// Repeating one of these gives what doing it once does.
fn is_safe_to_repeat(method: &str, arguments: &Bound<'_, PyTuple>) -> bool {
    // Of those that a limit leaves, a second `delete` would take others.
    let has_limit = || arguments.get_item(PLACE_OF_LIMIT).is_ok_and(|limit| !limit.is_none());
    !(method == "delete" && has_limit())
        && matches!(
            method,
            "add"
                | "upsert"
                | "update"
                | "delete"
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
        )
}

fn is_final(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied)
}

/// Connects and waits for the greeting.
fn greet<'py>(py: Python<'py>, socket: &Path) -> Result<(Line<'py>, Frame), NoAnswer> {
    let line = Line::connect(py, socket).map_err(NoAnswer::Broken)?;
    let frame = receive(py, line.stream(), Some(Instant::now() + START_WITHIN))?;
    Ok((line, frame))
}

/// Sends a frame and waits for the one that answers it.
fn exchange(
    py: Python<'_>,
    mut stream: &UnixStream,
    kind: Kind,
    body: &[u8],
    deadline: Option<Instant>,
) -> Result<Frame, NoAnswer> {
    let mut outgoing = Outgoing::new(kind, body).map_err(|_| NoAnswer::TooLarge)?;
    while !py.detach(|| outgoing.write_to(&mut stream)).map_err(NoAnswer::Broken)? {
        go_on(py, deadline)?;
    }
    receive(py, stream, deadline)
}

fn receive(py: Python<'_>, mut stream: &UnixStream, deadline: Option<Instant>) -> Result<Frame, NoAnswer> {
    let mut incoming = Incoming::default();
    loop {
        if let Some(frame) = py.detach(|| incoming.read_from(&mut stream)).map_err(NoAnswer::Broken)? {
            return Ok(frame);
        }
        go_on(py, deadline)?;
    }
}

/// Whether a wait should: not after Ctrl-C, and not after its deadline.
fn go_on(py: Python<'_>, deadline: Option<Instant>) -> Result<(), NoAnswer> {
    py.check_signals()?;
    if deadline.is_some_and(|deadline| Instant::now() >= deadline) { Err(NoAnswer::TooLate) } else { Ok(()) }
}

/// Tells the engine that this process needs it no more, and waits for its end if nobody else does; tells whether it has
/// ended. Detached only.
fn release(mut stream: &UnixStream) -> bool {
    let deadline = Instant::now() + END_WITHIN;
    let mut outgoing = Outgoing::new(Kind::Release, &[]).expect("an empty body fits");
    while let Ok(false) = outgoing.write_to(&mut stream) {}
    let mut incoming = Incoming::default();
    while Instant::now() < deadline {
        match incoming.read_from(&mut stream) {
            Ok(Some(Frame { kind: Kind::Closing, .. }) | None) => {}
            Ok(Some(_)) => return false,
            // Its lock has ended with it.
            Err(_) => return true,
        }
    }
    log::warn!(target: crate::LOGGER, "an engine process does not end within {END_WITHIN:?}");
    false
}
