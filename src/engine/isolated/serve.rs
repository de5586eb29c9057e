//! The engine process's side: answers calls from its socket until nobody needs it.
//!
//! Every connection has a thread. A call is read and answered detached; attached it is only while it is converted and
//! while Chroma works. A long write is made of slices, and between them others get a turn: Chroma itself would keep the
//! interpreter for all of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::convert::{Decoder, Encoder, Matrices, encode_exception, name_of};
use super::peer;
use super::slices::{Sliced, call_in_slices, ids_written};
use crate::attached::Lock;
use crate::directory::{self, Seen};
use crate::engine::open_files::OpenFiles;
use crate::turns::{Due, Effect, Stage, Turn, Turns, Written};
use crate::wire::{Frame, Incoming, Kind, write_frame};

/// How many bytes the log may have: whatever Chroma and Python write to standard error.
const LONGEST_LOG: u64 = 256 * 1024;

/// The classes of exceptions that Chroma raises where it has failed itself.
const FAILURES: [&str; 2] = ["InternalError", "PanicException"];

/// The methods in which Chroma gives the interpreter up.
const DETACHED: [&str; 2] = ["get", "query"];

/// The methods that write nothing.
const READS: [&str; 12] = [
    "count",
    "count_collections",
    "get",
    "get_collection",
    "get_collection_by_id",
    "get_database",
    "get_max_batch_size",
    "get_tenant",
    "get_version",
    "list_collections",
    "list_databases",
    "query",
];

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
    largest_batch: usize,
    turns: Turns,
    log: File,
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
    let engine = Arc::new(Engine {
        turns: Turns::new(Duration::from_secs_f64(linger), log_length),
        database: database.clone().unbind(),
        bindings: match bindings {
            Ok(bindings) => Ok(Mutex::new(Some(bindings.unbind()))),
            Err(error) => Err(encode_exception(py, &error)),
        },
        files,
        seen: Mutex::new(py.detach(|| Seen::at(&directory))),
        directory,
        largest_batch,
        log: File::from(io::stderr().as_fd().try_clone_to_owned()?),
    });
    let acceptor = Arc::clone(&engine);
    thread::spawn(move || accept(&acceptor, &listener));
    loop {
        let due = py.detach(|| {
            let due = engine.turns.wait_until_due();
            if due == Due::Abort {
                // Here: the interpreter is what the calls that hang may keep.
                end_at_once();
            }
            due
        });
        match due {
            Due::Checkpoint => engine.checkpoint(py),
            Due::End | Due::Abort => break,
        }
    }
    if engine.bindings.is_ok() {
        engine.close(py);
        let closed = database.call_method0("closed");
        py.detach(|| engine.turns.say_goodbye());
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
                let Some(id) =
                    stream.try_clone().ok().and_then(|copy| engine.turns.enter(peer::pid(copy.as_fd()), copy))
                else {
                    continue;
                };
                let engine = Arc::clone(engine);
                thread::spawn(move || {
                    // The other end has gone, or does not speak our language: either way there is nobody to tell.
                    let _ = engine.converse(&stream);
                    engine.turns.leave(id);
                });
            }
            Ok(_) => {}
            // No descriptor left, say: others may give theirs back.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

impl Engine {
    /// Closes the binding, takes a checkpoint if it is for that, opens it again.
    fn checkpoint(&self, py: Python<'_>) {
        let began = Instant::now();
        self.close(py);
        let next = self.database.bind(py).call_method0("checkpoint").and_then(|next| next.extract::<Option<usize>>());
        self.open_again(py);
        match next {
            Ok(Some(next)) => self.turns.end_checkpoint(began.elapsed(), Some(next)),
            Ok(None) => self.turns.end_renewal(),
            Err(error) => {
                // The log is all there still; it is tried again, later.
                error.print(py);
                self.turns.end_checkpoint(began.elapsed(), None);
            }
        }
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
                self.turns.advance(Stage::Closing);
            }
        }
    }

    /// Some work on the closed database; then it is opened again.
    fn manage(&self, body: &[u8]) -> (Kind, Vec<u8>) {
        if !self.is_in_place() || !self.turns.begin_work() {
            return (Kind::Gone, Vec::new());
        }
        let result = Python::attach(|py| {
            let finish = self.work(py, body);
            if self.bindings.is_ok() {
                self.open_again(py);
            }
            self.turns.end_work();
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
        if !self.is_in_place() || !self.turns.begin_work() {
            return (Kind::Gone, Vec::new());
        }
        Python::attach(|py| self.close(py));
        let removed = directory::remove_content(Path::new("."));
        self.turns.advance(Stage::Closing);
        self.turns.end_work();
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
            self.turns.advance(Stage::Closing);
        }
        in_place
    }

    /// Nobody is inside: the last reference is here, and this is where Chroma closes.
    fn close(&self, py: Python<'_>) {
        drop(self.bindings.as_ref().ok().and_then(|bindings| bindings.take(py).take()));
        py.detach(|| self.files.wait_until_closed());
    }

    fn converse(&self, mut stream: &UnixStream) -> io::Result<()> {
        let Some(greeting) = self.turns.begin_answer() else {
            return write_frame(&mut stream, Kind::Closing, &[]);
        };
        match &self.bindings {
            Ok(_) => write_frame(&mut stream, Kind::Hello, &std::process::id().to_le_bytes())?,
            Err(error) => {
                write_frame(&mut stream, Kind::Failed, error)?;
                // Whoever comes next is to try anew.
                self.turns.advance(Stage::Refusing);
            }
        }
        drop(greeting);
        let mut incoming = Incoming::default();
        loop {
            let Some(Frame { kind, body }) = incoming.read_from(&mut stream)? else { continue };
            let Some(_answering) = self.turns.begin_answer() else {
                return write_frame(&mut stream, Kind::Closing, &[]);
            };
            let (kind, answer) = match kind {
                Kind::Call => {
                    self.turns.begin_call();
                    let mut turn = None;
                    let (kind, answer, effect) = self.answer(body, &mut turn);
                    self.turns.end_call(effect);
                    drop(turn);
                    self.bound_log();
                    (kind, answer)
                }
                Kind::Manage => self.manage(&body),
                Kind::Delete => self.delete(),
                Kind::Release => (self.turns.release(peer::pid(stream.as_fd())), Vec::new()),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            write_frame(&mut stream, kind, &answer)?;
        }
    }

    /// Begins the log anew where it has become too long. Nothing else can be done about an error in it.
    fn bound_log(&self) {
        if self.log.metadata().is_ok_and(|log| log.len() > LONGEST_LOG) {
            let _ = self.log.set_len(0);
        }
    }

    /// The answer to a call, and what else it did. Where it failed, its turn has not ended.
    fn answer<'a>(&'a self, body: Vec<u8>, turn: &mut Option<Turn<'a>>) -> (Kind, Vec<u8>, Effect) {
        let mut effect = Effect::default();
        if !self.is_in_place() {
            return (Kind::Gone, Vec::new(), effect);
        }
        // Before the interpreter is asked for: so it comes after the slice of another call that has it, and not after the
        // one after that. A long call converts what it was sent first.
        if name_of(&body).is_some_and(|method| !DETACHED.contains(&method) && Sliced::of(method).is_none()) {
            *turn = self.take_turn();
            if turn.is_none() {
                return self.not_made(effect);
            }
        }
        let writes = name_of(&body).is_none_or(|method| !READS.contains(&method));
        let answer = Python::attach(|py| {
            let answer = self.call(py, body, &mut effect.written, turn);
            let answer = if writes { answer.and_then(|answer| Self::commit(py, answer)) } else { answer };
            answer.map_err(|error| {
                if error.get_type(py).name().is_ok_and(|name| FAILURES.iter().any(|failure| name == *failure)) {
                    effect.suspect = true;
                    self.turns.suspect();
                }
                let (error, failed) = self.judge(py, error);
                effect.failed = failed;
                encode_exception(py, &error)
            })
        });
        match answer {
            Ok(Some(answer)) => (Kind::Returned, answer, effect),
            Err(error) if self.is_in_place() => (Kind::Raised, error, effect),
            // What is raised in a directory that was removed in the middle of the call helps nobody.
            Ok(None) | Err(_) => self.not_made(effect),
        }
    }

    /// Has what was written survive a power cut. SQLite syncs its journal and its file, but not the directory from which
    /// it has removed the journal: if that came back, it would roll the transaction back.
    fn commit<T>(py: Python<'_>, answer: T) -> PyResult<T> {
        py.detach(|| File::open(".").and_then(|directory| directory.sync_all()))?;
        Ok(answer)
    }

    /// The answer to a call that was not made, or not to its end.
    fn not_made(&self, effect: Effect) -> (Kind, Vec<u8>, Effect) {
        (if self.is_in_place() { Kind::Again } else { Kind::Gone }, Vec::new(), effect)
    }

    /// What a call is to raise that raised `error`, and whether the binding is to be opened anew before the next one.
    fn judge(&self, py: Python<'_>, error: PyErr) -> (PyErr, bool) {
        let judged = self.database.bind(py).call_method1("failed", (error.value(py),));
        let judged = judged.and_then(|judged| judged.extract::<(Bound<'_, PyAny>, bool)>());
        judged.map_or((error, true), |(exception, failed)| (PyErr::from_value(exception), failed))
    }

    /// `None` where it was not made, or not to its end: the database is not there to be called.
    fn call<'a>(
        &'a self,
        py: Python<'_>,
        body: Vec<u8>,
        written: &mut Written,
        turn: &mut Option<Turn<'a>>,
    ) -> PyResult<Option<Vec<u8>>> {
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
            let take_turn = || self.take_turn();
            match call_in_slices(&function, &arguments, records, sliced, &mut written.time, turn, take_turn)? {
                Some(result) => result,
                None => return Ok(None),
            }
        } else {
            let keywords = if keywords.is_none() { None } else { Some(keywords.cast()?) };
            if turn.is_none() && !DETACHED.contains(&method.as_str()) {
                *turn = py.detach(|| self.take_turn());
                if turn.is_none() {
                    return Ok(None);
                }
            }
            let began = Instant::now();
            let result = function.call(&arguments, keywords);
            written.time = began.elapsed();
            let result = result?;
            *turn = None;
            result
        };
        let mut encoder = Encoder::new(py);
        encoder.value(&result)?;
        Ok(Some(encoder.finish()))
    }

    /// The next turn of a call, if it is to go on.
    fn take_turn(&self) -> Option<Turn<'_>> {
        self.turns.take_turn().filter(|_| self.is_in_place())
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
