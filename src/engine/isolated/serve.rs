//! The engine process's side: answers calls from its socket until nobody needs it.
//!
//! Every connection has a thread. A call is read and answered detached; attached it is only while it is converted and
//! while Chroma works. A long write is made of slices, and between them others get a turn: Chroma itself would keep the
//! interpreter for all of it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::convert::{Decoder, Encoder, Matrices, encode_exception};
use super::peer;
use crate::attached::Lock;
use crate::directory::{self, Seen};
use crate::engine::open_files::OpenFiles;
use crate::wire::{Frame, Incoming, Kind, write_frame};

/// How many bytes the log may have: whatever Chroma and Python write to standard error.
const LONGEST_LOG: u64 = 256 * 1024;

/// Records that are written before the first checkpoint; later ones depend on how many there are (`checkpoint.py`).
const FIRST_CHECKPOINT_AFTER: usize = 20_000;

/// Time that Chroma spends on writes before a checkpoint is due, however few they were: about as long as a recovery has to
/// do them again. A record costs from 30 us to 10 ms.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(10);

/// How many times as long as the last checkpoint took writes are to take before the next one, so that it adds little to
/// them (`benches/checkpoints.py`: less than a tenth, with what Chroma has to read again).
const TIMES_THE_CHECKPOINT: u32 = 20;

/// A checkpoint is due earlier where there were no calls for so long.
const QUIET: Duration = Duration::from_secs(30);

/// With fewer records written since the last checkpoint Chroma has not changed its index files.
const FEWEST_RECORDS: usize = 1_000;

/// The classes of exceptions that Chroma raises where it has failed itself.
const FAILURES: [&str; 2] = ["InternalError", "PanicException"];

/// How long calls may go on without progress in a binding that has failed: a lock that a failed one left behind is waited
/// for very long.
const FAILED_CALLS_END_WITHIN: Duration = Duration::from_secs(10);

const LONG: Duration = Duration::from_secs(3600);

/// A call that is made of slices.
#[derive(Clone, Copy)]
struct Sliced {
    /// How many records the first slice has, before it is known what one takes.
    first: usize,
    /// How long a slice should take: what a reader may have to wait.
    time: Duration,
}

impl Sliced {
    fn of(method: &str) -> Option<Self> {
        match method {
            // Below some fifty records a slice, what Chroma does once for each call begins to show (1.5 times slower at
            // 50, 2.5 times at 25; measured with 1,536 dimensions, as what follows).
            "add" => Some(Self { first: 128, time: Duration::from_millis(80) }),
            // Of records that exist already one takes 6 ms, because the index is repaired, and a call 45: 1.1 times
            // slower with slices of 150 ms, 1.4 times with 80.
            "update" | "upsert" => Some(Self { first: 20, time: Duration::from_millis(150) }),
            _ => None,
        }
    }
}

/// What all connections of the process share.
struct Engine {
    /// `engine_process.Database`.
    database: Py<PyAny>,
    /// The binding; or the exception, as it crosses, that opening it raised.
    bindings: Result<Mutex<Option<Py<PyAny>>>, Vec<u8>>,
    files: OpenFiles,
    /// Absolute: where apps look for the database. The working directory stays the one that was opened.
    directory: PathBuf,
    /// What was there when the database was opened.
    seen: Mutex<Option<Seen>>,
    /// Not of a database in memory, which is gone when it is closed.
    takes_checkpoints: bool,
    largest_batch: usize,
    state: Mutex<State>,
    changed: Condvar,
    log: File,
}

#[derive(Default)]
struct State {
    connections: HashMap<u64, Connection>,
    next_connection: u64,
    /// When a connection last came or went.
    last_change: Option<Instant>,
    /// Calls under way; also of a connection whose other end has gone.
    calls: usize,
    /// Connections that are being answered.
    answering: usize,
    /// Since the last checkpoint; and after how many records there is to be one.
    written: Written,
    checkpoint_after: usize,
    /// How long the last checkpoint kept calls waiting.
    last_pause: Duration,
    /// The log that was found at the opening may not have been read yet: a checkpoint would make none of it needless. The
    /// call that reads it, whichever that is, takes time for it.
    recovers: bool,
    last_call: Option<Instant>,
    /// The binding is not to be trusted, and to be opened anew; and since when the calls in it have made no progress.
    failed: Option<Instant>,
    /// The same may be so: a call has failed, and what that means is being found out, which needs the interpreter, which
    /// a call that hangs may keep.
    suspect: Option<Instant>,
    /// New calls wait: somebody is about to work on the closed database, or does so.
    waiting_for_quiet: usize,
    working: bool,
    stage: Stage,
}

/// How far this process is on the way to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    Serving,
    /// Nobody is let in any more: whoever was is served until it leaves.
    Refusing,
    /// The end comes as soon as nobody is being answered.
    Closing,
    /// Nothing is done any more.
    Ended,
}

impl State {
    fn advance(&mut self, stage: Stage) {
        self.stage = self.stage.max(stage);
    }
}

struct Connection {
    /// The process at the other end.
    peer: Option<u32>,
    stream: UnixStream,
}

/// A connection that is being answered.
struct Answering<'a>(&'a Engine);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.answering -= 1);
    }
}

/// What a call did besides its answer.
#[derive(Default)]
struct Effect {
    /// Records that it may have written.
    written: Written,
    /// The binding is to be opened anew.
    failed: bool,
}

/// Work that a recovery would have to do again.
#[derive(Clone, Copy, Default)]
struct Written {
    records: usize,
    /// That Chroma took for them.
    time: Duration,
}

impl State {
    fn checkpoint_is_due(&self, quiet_for: Duration) -> bool {
        let Written { records, time } = self.written;
        let is_much = time >= CHECKPOINT_AFTER || (!self.recovers && records >= self.checkpoint_after);
        let is_worth_it = time >= self.last_pause * TIMES_THE_CHECKPOINT;
        let is_quiet = !self.recovers && quiet_for >= QUIET;
        records >= FEWEST_RECORDS && (is_quiet || (is_much && is_worth_it))
    }
}

/// Serves a database at the socket `listener` until there was no connection for `linger` seconds, or until its only user
/// releases it; then closes it. `database` is an `engine_process.Database`.
#[pyfunction]
pub fn serve(
    py: Python<'_>,
    listener: i32,
    directory: PathBuf,
    linger: f64,
    database: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let listener = UnixListener::from(borrowed(listener).try_clone_to_owned()?);
    let files = OpenFiles::none_in_working_directory();
    let bindings = open(database, &files);
    let largest_batch = match &bindings {
        Ok(bindings) => bindings.call_method0("get_max_batch_size")?.extract()?,
        Err(_) => 0,
    };
    let log_length: Option<usize> = database.getattr("log_length")?.extract()?;
    let state = State {
        written: Written { records: log_length.unwrap_or(0), time: Duration::ZERO },
        checkpoint_after: FIRST_CHECKPOINT_AFTER,
        recovers: log_length.is_some_and(|length| length > 0),
        ..State::default()
    };
    let engine = Arc::new(Engine {
        takes_checkpoints: log_length.is_some(),
        database: database.clone().unbind(),
        bindings: match bindings {
            Ok(bindings) => Ok(Mutex::new(Some(bindings.unbind()))),
            Err(error) => Err(encode_exception(py, &error)),
        },
        files,
        seen: Mutex::new(py.detach(|| Seen::at(&directory))),
        directory,
        largest_batch,
        state: Mutex::new(state),
        changed: Condvar::new(),
        log: File::from(io::stderr().as_fd().try_clone_to_owned()?),
    });
    let acceptor = Arc::clone(&engine);
    thread::spawn(move || accept(&acceptor, &listener));
    while py.detach(|| engine.wait_until_due(Duration::from_secs_f64(linger))) == Due::Checkpoint {
        engine.checkpoint(py);
    }
    if engine.bindings.is_ok() {
        engine.close(py);
        let closed = database.call_method0("closed");
        py.detach(|| engine.say_goodbye());
        closed?;
    }
    Ok(())
}

fn open<'py>(database: &Bound<'py, PyAny>, files: &OpenFiles) -> PyResult<Bound<'py, PyAny>> {
    loop {
        let bindings = database.call_method0("open")?;
        if !bindings.is_none() {
            return Ok(bindings);
        }
        database.py().detach(|| files.wait_until_closed());
    }
}

/// What the engine is to do next.
#[derive(PartialEq, Eq)]
enum Due {
    Checkpoint,
    End,
}

#[allow(unsafe_code)]
fn borrowed(descriptor: i32) -> BorrowedFd<'static> {
    // SAFETY: the engine process was started with this descriptor open, and closes it nowhere.
    unsafe { BorrowedFd::borrow_raw(descriptor) }
}

fn accept(engine: &Arc<Engine>, listener: &UnixListener) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) if peer::is_same_user(stream.as_fd()) => {
                // Refused without a word, it looks for the next engine.
                let Some(id) = engine.enter(&stream) else { continue };
                let engine = Arc::clone(engine);
                thread::spawn(move || {
                    // The other end has gone, or does not speak our language: either way there is nobody to tell.
                    let _ = engine.converse(&stream);
                    engine.leave(id);
                });
            }
            Ok(_) => {}
            // No descriptor left, say: others may give theirs back.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

impl Engine {
    fn enter(&self, stream: &UnixStream) -> Option<u64> {
        let connection = Connection { peer: peer::pid(stream.as_fd()), stream: stream.try_clone().ok()? };
        self.change(|state| {
            if state.stage > Stage::Serving {
                return None;
            }
            state.next_connection += 1;
            state.last_change = Some(Instant::now());
            state.connections.insert(state.next_connection, connection);
            Some(state.next_connection)
        })
    }

    fn leave(&self, id: u64) {
        self.change(|state| {
            state.last_change = Some(Instant::now());
            state.connections.remove(&id);
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.state());
        self.changed.notify_all();
        result
    }

    /// Waits until there is something to do while no call is under way; then none begins before it is done.
    fn wait_until_due(&self, linger: Duration) -> Due {
        let began = Instant::now();
        let mut state = self.state();
        let mut waits_for_quiet = false;
        loop {
            let unneeded_for = state.last_change.unwrap_or(began).elapsed();
            let lingers = linger.saturating_sub(unneeded_for);
            let is_left = state.connections.is_empty();
            // Where the database could not be opened, whoever was told so may yet want it restored.
            let ends =
                state.stage >= Stage::Closing || (is_left && (state.stage == Stage::Refusing || lingers.is_zero()));
            let quiet_for = state.last_call.map_or(Duration::ZERO, |last| last.elapsed());
            let is_due = !ends && (state.failed.is_some() || state.checkpoint_is_due(quiet_for));
            if waits_for_quiet != is_due {
                waits_for_quiet = is_due;
                if is_due { state.waiting_for_quiet += 1 } else { state.waiting_for_quiet -= 1 }
            }
            let is_quiet = state.calls == 0 && !state.working && (!ends || state.answering == 0);
            if is_quiet && (ends || is_due) {
                state.waiting_for_quiet -= usize::from(is_due);
                if ends {
                    state.advance(Stage::Ended);
                    return Due::End;
                }
                state.working = true;
                return Due::Checkpoint;
            }
            let failed_call =
                state.failed.or(state.suspect).map(|since| FAILED_CALLS_END_WITHIN.saturating_sub(since.elapsed()));
            if state.calls > 0 && failed_call.is_some_and(|left| left.is_zero()) {
                end_at_once();
            }
            // Whatever changes wakes it; what does not is the time.
            let limit = match (state.connections.is_empty(), state.written.records >= FEWEST_RECORDS) {
                _ if state.calls > 0 => failed_call.unwrap_or(LONG),
                _ if !is_quiet => LONG,
                (true, _) => lingers,
                (false, true) => QUIET.saturating_sub(quiet_for),
                (false, false) => LONG,
            };
            state = self.wait(state, limit.max(Duration::from_millis(1)));
        }
    }

    /// Closes the binding, takes a checkpoint if it is for that, opens it again.
    fn checkpoint(&self, py: Python<'_>) {
        let began = Instant::now();
        self.close(py);
        let next = self.database.bind(py).call_method0("checkpoint").and_then(|next| next.extract());
        self.open_again(py);
        let next = next.unwrap_or_else(|error| {
            // The log is all there still; it is tried again, later.
            error.print(py);
            Some(FIRST_CHECKPOINT_AFTER)
        });
        self.change(|state| {
            if let Some(next) = next {
                state.written = Written::default();
                state.checkpoint_after = next;
                state.last_pause = began.elapsed();
                state.recovers = false;
            }
            state.failed = None;
            state.working = false;
        });
    }

    /// Where it cannot be opened any more, this process ends, and the next one says why.
    fn open_again(&self, py: Python<'_>) {
        match open(self.database.bind(py), &self.files) {
            Ok(bindings) => {
                if let Ok(place) = &self.bindings {
                    *place.take(py) = Some(bindings.unbind());
                }
                *self.seen.take(py) = py.detach(|| Seen::at(&self.directory));
            }
            Err(error) => {
                error.print(py);
                self.change(|state| state.advance(Stage::Closing));
            }
        }
    }

    /// Waits until no call is under way, and lets none begin until `working` is over; not where the process is ending.
    fn begin_work(&self) -> bool {
        let mut state = self.state();
        state.waiting_for_quiet += 1;
        while state.stage < Stage::Ended && (state.calls > 0 || state.working) {
            state = self.wait(state, LONG);
        }
        state.waiting_for_quiet -= 1;
        state.working = state.stage < Stage::Ended;
        state.working
    }

    /// Some work on the closed database; then it is opened again.
    fn manage(&self, body: &[u8]) -> (Kind, Vec<u8>) {
        if !self.is_in_place() || !self.begin_work() {
            return (Kind::Gone, Vec::new());
        }
        let result = Python::attach(|py| {
            let finish = self.work(py, body);
            if self.bindings.is_ok() {
                self.open_again(py);
            }
            self.change(|state| state.working = false);
            // What is left to be done does not need the database, and calls go on meanwhile.
            let answer = finish.and_then(|finish| {
                let mut encoder = Encoder::new(py);
                encoder.value(&finish.call0(py)?.into_bound(py))?;
                Ok(encoder.finish())
            });
            answer.map_err(|error| encode_exception(py, &error))
        });
        match result {
            Ok(answer) => (Kind::Returned, answer),
            Err(error) => (Kind::Raised, error),
        }
    }

    fn work(&self, py: Python<'_>, body: &[u8]) -> PyResult<Py<PyAny>> {
        let mut decoder = Decoder::new(py, body, Matrices::Rows);
        let method = decoder.text()?.to_owned();
        let arguments = decoder.last_value()?;
        self.close(py);
        Ok(self.database.bind(py).call_method1("manage", (method, arguments))?.unbind())
    }

    /// Removes the database while it is ours, so that nobody opens it in between. Then this process ends.
    fn delete(&self) -> (Kind, Vec<u8>) {
        if !self.is_in_place() || !self.begin_work() {
            return (Kind::Gone, Vec::new());
        }
        Python::attach(|py| self.close(py));
        let removed = directory::remove_content(Path::new("."));
        self.change(|state| {
            state.advance(Stage::Closing);
            state.working = false;
        });
        match removed {
            Ok(()) => (Kind::Returned, Vec::new()),
            Err(error) => (Kind::Raised, Python::attach(|py| encode_exception(py, &error.into()))),
        }
    }

    /// Whether what is in the directory is still what was opened; where not, this process ends, and the next one opens
    /// what is there.
    fn is_in_place(&self) -> bool {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let in_place = Seen::at(&self.directory) == seen;
        if !in_place {
            self.change(|state| state.advance(Stage::Closing));
        }
        in_place
    }

    /// Nobody is inside: the last reference is here, and this is where Chroma closes.
    fn close(&self, py: Python<'_>) {
        drop(self.bindings.as_ref().ok().and_then(|bindings| bindings.take(py).take()));
        py.detach(|| self.files.wait_until_closed());
    }

    fn begin_call(&self) {
        let mut state = self.state();
        while state.waiting_for_quiet > 0 || state.working || state.failed.is_some() {
            state = self.wait(state, LONG);
        }
        state.calls += 1;
    }

    fn end_call(&self, effect: &Effect) {
        self.change(|state| {
            state.calls -= 1;
            let Effect { written, failed } = effect;
            if self.takes_checkpoints && (written.records > 0 || state.recovers) {
                state.written.records += written.records;
                state.written.time += written.time;
                state.recovers &= written.records == 0;
            }
            if *failed || state.failed.is_some() {
                state.failed = Some(Instant::now());
            }
            state.suspect = None;
            state.last_call = Some(Instant::now());
        });
    }

    fn converse(&self, mut stream: &UnixStream) -> io::Result<()> {
        match &self.bindings {
            Ok(_) => write_frame(&mut stream, Kind::Hello, &std::process::id().to_le_bytes())?,
            Err(error) => {
                write_frame(&mut stream, Kind::Failed, error)?;
                // Whoever comes next is to try anew.
                self.change(|state| state.advance(Stage::Refusing));
            }
        }
        let mut incoming = Incoming::default();
        loop {
            let Some(Frame { kind, body }) = incoming.read_from(&mut stream)? else { continue };
            let Some(_answering) = self.begin_answer() else {
                return write_frame(&mut stream, Kind::Closing, &[]);
            };
            let (kind, answer) = match kind {
                Kind::Call => {
                    self.begin_call();
                    let (kind, answer, effect) = self.answer(body);
                    self.end_call(&effect);
                    self.bound_log();
                    (kind, answer)
                }
                Kind::Manage => self.manage(&body),
                Kind::Delete => self.delete(),
                Kind::Release => (self.release(stream), Vec::new()),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            write_frame(&mut stream, kind, &answer)?;
        }
    }

    /// Until what is returned is dropped, this process does not end. `None` where it is ending already: what was asked is
    /// not done, and whoever asked is told so.
    fn begin_answer(&self) -> Option<Answering<'_>> {
        let begins = self.change(|state| {
            let begins = state.stage < Stage::Ended;
            state.answering += usize::from(begins);
            begins
        });
        begins.then(|| Answering(self))
    }

    /// Tells all connections that what they have asked and was not answered was not done.
    fn say_goodbye(&self) {
        for connection in self.state().connections.values() {
            // Who has gone needs not be told; who does not read has no call under way.
            let _ = connection.stream.set_nonblocking(true);
            let _ = write_frame(&mut &connection.stream, Kind::Closing, &[]);
        }
    }

    /// Begins the log anew where it has become too long. Nothing else can be done about an error in it.
    fn bound_log(&self) {
        if self.log.metadata().is_ok_and(|log| log.len() > LONGEST_LOG) {
            let _ = self.log.set_len(0);
        }
    }

    /// Whether this was its last user tells the connections: those of the process that asks do not count.
    fn release(&self, stream: &UnixStream) -> Kind {
        let asking = peer::pid(stream.as_fd());
        self.change(|state| {
            let shared = state.connections.values().any(|connection| connection.peer != asking);
            if shared {
                return Kind::Shared;
            }
            state.advance(Stage::Closing);
            Kind::Closing
        })
    }

    /// The answer to a call, and what else it did.
    fn answer(&self, body: Vec<u8>) -> (Kind, Vec<u8>, Effect) {
        let mut effect = Effect::default();
        if !self.is_in_place() {
            return (Kind::Gone, Vec::new(), effect);
        }
        let answer = Python::attach(|py| {
            let answer = self.call(py, body, &mut effect.written);
            answer.map_err(|error| {
                if error.get_type(py).name().is_ok_and(|name| FAILURES.iter().any(|failure| name == *failure)) {
                    self.change(|state| state.suspect = Some(Instant::now()));
                }
                let (error, failed) = self.judge(py, error);
                effect.failed = failed;
                encode_exception(py, &error)
            })
        });
        match answer {
            Ok(Some(answer)) => (Kind::Returned, answer, effect),
            // What is raised in a directory that was removed in the middle of the call helps nobody.
            Err(error) if self.is_in_place() => (Kind::Raised, error, effect),
            _ => (Kind::Gone, Vec::new(), effect),
        }
    }

    /// What a call is to raise that raised `error`, and whether the binding is to be opened anew before the next one.
    fn judge(&self, py: Python<'_>, error: PyErr) -> (PyErr, bool) {
        let judged = self.database.bind(py).call_method1("failed", (error.value(py),));
        let judged = judged.and_then(|judged| judged.extract::<(Bound<'_, PyAny>, bool)>());
        judged.map_or((error, self.takes_checkpoints), |(exception, failed)| (PyErr::from_value(exception), failed))
    }

    /// `None` where the database is not there to be called.
    fn call(&self, py: Python<'_>, body: Vec<u8>, written: &mut Written) -> PyResult<Option<Vec<u8>>> {
        let mut decoder = Decoder::new(py, &body, Matrices::Rows);
        let method = decoder.text()?.to_owned();
        let arguments = decoder.value()?.cast_into::<PyTuple>()?;
        let keywords = decoder.last_value()?;
        drop(body);
        if method.starts_with('_') {
            return Err(PyAttributeError::new_err(format!("'Bindings' object has no attribute '{method}'")));
        }
        let bindings =
            self.bindings.as_ref().ok().and_then(|bindings| bindings.take(py).as_ref().map(|b| b.clone_ref(py)));
        let Some(bindings) = bindings.map(|bindings| bindings.into_bound(py)) else { return Ok(None) };
        let function = bindings.getattr(method.as_str())?;
        let ids = ids_written(&method, &arguments);
        // As many rows of the log; of a delete without ids it is not known.
        written.records = ids.as_ref().map_or(0, |ids| ids.len().unwrap_or(1));
        let sliced = Sliced::of(&method).and_then(|sliced| Some((self.records_to_slice(ids?, sliced)?, sliced)));
        let result = if let Some((records, sliced)) = sliced {
            let goes_on = || self.goes_on();
            match call_in_slices(&function, &arguments, records, sliced, &mut written.time, goes_on)? {
                Some(result) => result,
                None => return Ok(None),
            }
        } else {
            let keywords = if keywords.is_none() { None } else { Some(keywords.cast()?) };
            let began = Instant::now();
            let result = function.call(&arguments, keywords);
            written.time = began.elapsed();
            result?
        };
        let mut encoder = Encoder::new(py);
        encoder.value(&result)?;
        Ok(Some(encoder.finish()))
    }

    /// Whether a call that has come some way is to go on.
    fn goes_on(&self) -> bool {
        {
            let mut state = self.state();
            state.failed = state.failed.map(|_| Instant::now());
        }
        self.is_in_place()
    }

    /// How many records there are, if they are so many that others should get a turn in between; not if they are so many
    /// that Chroma refuses them, which it is to do as a whole.
    fn records_to_slice(&self, ids: Bound<'_, PyAny>, sliced: Sliced) -> Option<usize> {
        let records = ids.cast_into::<PyList>().ok()?.len();
        (records > sliced.first && records <= self.largest_batch).then_some(records)
    }
}

/// Where a call hangs, perhaps attached to the interpreter, nothing can be closed any more. The next process recovers, and
/// the calls are repeated there.
fn end_at_once() {
    eprintln!("Chroma has failed, and calls in it do not return: this engine process ends");
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

/// The ids of the records that a call writes, if it writes any.
fn ids_written<'py>(method: &str, arguments: &Bound<'py, PyTuple>) -> Option<Bound<'py, PyAny>> {
    let place = match method {
        "add" => 0,
        "update" | "upsert" | "delete" => 1,
        _ => return None,
    };
    arguments.get_item(place).ok()
}

/// Calls once for each slice of the arguments that have one value for each record; `None` where it is not to go on. The
/// time is that of the slices alone, without what others do between them.
fn call_in_slices<'py>(
    function: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyTuple>,
    count: usize,
    sliced: Sliced,
    time: &mut Duration,
    goes_on: impl Fn() -> bool + Sync,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = function.py();
    let (mut at, mut size) = (0, sliced.first);
    loop {
        let end = count.min(at + size);
        let slice = arguments.iter().map(|argument| match argument.cast::<PyList>() {
            Ok(list) if list.len() == count => list.get_slice(at, end).into_any(),
            _ => argument,
        });
        let slice = PyTuple::new(py, slice.collect::<Vec<_>>())?;
        let began = Instant::now();
        let result = function.call1(slice);
        let took = began.elapsed();
        *time += took;
        let result = result?;
        at = end;
        if at == count {
            return Ok(Some(result));
        }
        size = next_size(size, took, sliced.time);
        let goes_on = py.detach(|| {
            thread::yield_now();
            goes_on()
        });
        if !goes_on {
            return Ok(None);
        }
    }
}

/// As many as fit the time that a slice should take; it grows by steps, because the first is slower than the rest.
fn next_size(size: usize, took: Duration, time: Duration) -> usize {
    let fitting = time.as_secs_f64() / took.as_secs_f64().max(1e-6);
    if fitting >= 2.0 {
        size * 2
    } else {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        // of a small number
        let fitting = (size as f64 * fitting) as usize;
        fitting.max(1)
    }
}
