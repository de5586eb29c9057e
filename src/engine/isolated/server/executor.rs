//! The engine process's side: answers calls from its socket until nobody needs it.
//!
//! Every connection has a thread. A call is read and answered detached; attached it is only while it is converted and
//! while Chroma works. A long write is made of slices, and between them others get a turn: Chroma itself would keep the
//! interpreter for all of it.

use std::fs::File;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::batch_checks::Batch;
use super::journal::Journal;
use super::listener::Listener;
use super::orphans::{LongWrite, LongWrites, is_disconnected};
use super::scheduler::{Call, Due, Effect, Scheduler, Slot, Stage};
use super::slicing::{Slicing, call_in_slices};
use super::stack::{self, STACK};
use super::stderr::log_line;
use super::termination::Termination;
use super::witness::Witness;
use crate::chroma::{self, COLLECTION, IDS, Method, Slices};
use crate::engine::isolated::protocol::frame::{Frame, Incoming, Kind, Outgoing, frames, write_frame};
use crate::engine::isolated::protocol::peer;
use crate::engine::isolated::protocol::values::{Decoder, Encoder, Matrices, encode_exception, items_at, name_of};
use crate::python::arguments::Arguments;
use crate::python::gil::Lock;
use crate::storage::directory::{self, Seen};
use crate::storage::lock_file;
use crate::storage::open_files::OpenFiles;

/// How long a process on its way to the end waits for whoever does not read its answer.
const UNREAD_WITHIN: Duration = Duration::from_secs(5);

/// How many bytes the log may have: whatever Chroma and Python write to standard error.
const LONGEST_LOG: u64 = 256 * 1024;

/// The classes of exceptions that Chroma raises where it has failed itself.
const FAILURES: [&str; 2] = ["InternalError", "PanicException"];

/// What all connections of the process share.
struct Engine {
    /// `engine_process.Database`.
    database: Py<PyAny>,
    /// The binding; or the exception, as it crosses, that opening it raised.
    bindings: Result<Mutex<Option<Py<PyAny>>>, Vec<u8>>,
    /// What whoever connects or calls next is to be told: sentences, a line each.
    notices: Mutex<String>,
    files: OpenFiles,
    witness: Witness,
    /// Absolute: where apps look for the database. The working directory stays the one that was opened.
    directory: PathBuf,
    /// What was there when the database was opened; `None` where it was another's by then, or no database.
    seen: Mutex<Option<Seen>>,
    lock: ManuallyDrop<File>,
    /// Open all the time: where no descriptor is left, a write is synced still.
    working_directory: File,
    is_in_memory: bool,
    largest_batch: usize,
    scheduler: Scheduler,
    long_writes: LongWrites,
    log: File,
    listener: Arc<Listener>,
}

/// Serves a database until there was no connection for `linger` seconds, or until its only user releases it, or until one of
/// these signals comes; then closes it. `inherited` are the descriptors of the lock and of the socket, and the names of
/// socket and log; `database` is an `engine_process.Database`.
#[pyfunction]
pub fn serve(
    py: Python<'_>,
    inherited: (i32, i32, PathBuf, Option<PathBuf>),
    directory: PathBuf,
    linger: f64,
    database: &Bound<'_, PyAny>,
    signals: Vec<i32>,
) -> PyResult<()> {
    let (lock, socket, name, log) = inherited;
    let mut lock = inherited_lock(lock);
    let socket = UnixListener::from(borrowed(socket).try_clone_to_owned()?);
    let listener = Arc::new(Listener::inherited(&mut lock, socket, name, log)?);
    let working_directory = File::open(".")?;
    // The witness will have the database's file open under this number.
    let watched = OwnedFd::from(File::open(".")?);
    // Before there are threads, whose descriptors come and go.
    let files = OpenFiles::in_working_directory();
    let keeper = Arc::clone(&listener);
    // Where the system has no thread to give, the address is as good as nobody removes it.
    let _ = thread::Builder::new().spawn(move || keeper.keep(&mut lock));
    let served = serve_at(py, &listener, (directory, working_directory, watched, files), linger, database, signals);
    py.detach(|| listener.end());
    served
}

fn serve_at(
    py: Python<'_>,
    listener: &Arc<Listener>,
    (directory, working_directory, watched, files): (PathBuf, File, OwnedFd, OpenFiles),
    linger: f64,
    database: &Bound<'_, PyAny>,
    signals: Vec<i32>,
) -> PyResult<()> {
    let termination = Termination::by(py, signals)?;
    // Standard input itself: a copy would be one more file that is open in the directory.
    let lock = inherited_lock(io::stdin().as_raw_fd());
    let bindings = open(database, &files);
    let largest_batch = match &bindings {
        Ok(bindings) => bindings.call_method0("get_max_batch_size")?.extract()?,
        Err(_) => 0,
    };
    let log_length: Option<usize> = database.getattr("log_length")?.extract()?;
    let engine = Arc::new(Engine {
        scheduler: Scheduler::new(Duration::from_secs_f64(linger), log_length),
        long_writes: LongWrites::default(),
        database: database.clone().unbind(),
        is_in_memory: bindings.is_ok() && log_length.is_none(),
        bindings: match bindings {
            Ok(bindings) => Ok(Mutex::new(Some(bindings.unbind()))),
            Err(error) => Err(encode_exception(py, &error)),
        },
        notices: Mutex::default(),
        files,
        witness: Witness::over(watched),
        seen: Mutex::new(py.detach(|| seen(&directory, &lock))),
        lock,
        working_directory,
        directory,
        largest_batch,
        log: File::from(io::stderr().as_fd().try_clone_to_owned()?),
        listener: Arc::clone(listener),
    });
    engine.watch(py);
    // Removed or replaced while it was opened: then it ends before it lets anybody in.
    py.detach(|| engine.is_in_place());
    let told = Arc::clone(&engine);
    termination.then(move || told.scheduler.advance(Stage::Closing));
    let acceptor = Arc::clone(&engine);
    thread::Builder::new().name("accept".into()).spawn(move || accept(&acceptor, acceptor.listener.socket()))?;
    loop {
        let due = py.detach(|| {
            let due = engine.scheduler.wait_until_due();
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
        let closed = engine.complete_batches(py).and_then(|()| database.call_method0("closed"));
        py.detach(|| engine.scheduler.send_closing_notice());
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

/// Not a copy of the descriptor, which would be one more file that is open in the directory.
#[allow(unsafe_code)]
fn inherited_lock(descriptor: i32) -> ManuallyDrop<File> {
    // SAFETY: as above, and it is not closed here either.
    ManuallyDrop::new(unsafe { File::from_raw_fd(descriptor) })
}

fn accept(engine: &Arc<Engine>, listener: &UnixListener) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) if peer::is_same_user(stream.as_fd()) => {
                // Refused without a word, it looks for the next engine.
                let Some(id) =
                    stream.try_clone().ok().and_then(|copy| engine.scheduler.connect(peer::pid(copy.as_fd()), copy))
                else {
                    continue;
                };
                let connected = Connected { engine: Arc::clone(engine), id, stream: Arc::new(stream) };
                let stream = Arc::clone(&connected.stream);
                let busy = engine.listener.greeting(&[]);
                let thread = thread::Builder::new().name("connection".into()).stack_size(STACK);
                if thread.spawn(move || connected.converse()).is_err() {
                    // It is for the other end to try again, or to say so. What fits into any socket keeps nobody waiting.
                    let _ = busy.and_then(|busy| write_frame(&mut &*stream, Kind::Busy, &busy));
                }
            }
            Ok(_) => {}
            // No descriptor left, say: others may give theirs back.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A connection that was let in, until this is dropped.
struct Connected {
    engine: Arc<Engine>,
    id: u64,
    stream: Arc<UnixStream>,
}

impl Connected {
    fn converse(self) {
        // The other end has gone, or does not speak our language: either way there is nobody to tell.
        let _ = self.engine.converse(&self.stream);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.engine.scheduler.disconnect(self.id);
    }
}

/// What is in a directory, if it is the one whose lock that is.
fn seen(directory: &Path, lock: &File) -> Option<Seen> {
    Seen::at(directory).filter(|seen| seen.has_file(lock))
}

impl Engine {
    /// Closes the binding, takes a checkpoint if it is for that, opens it again.
    fn checkpoint(&self, py: Python<'_>) {
        let began = Instant::now();
        self.close(py);
        let next = self.database.bind(py).call_method0("checkpoint").and_then(|next| next.extract::<Option<usize>>());
        self.open_again(py);
        match next {
            Ok(Some(next)) => self.scheduler.end_checkpoint(began.elapsed(), Some(next)),
            Ok(None) => self.scheduler.end_reopening(),
            Err(error) => {
                // The log is all there still; it is tried again, later.
                error.print(py);
                self.scheduler.end_checkpoint(began.elapsed(), None);
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
                *self.seen.take(py) = py.detach(|| seen(&self.directory, &self.lock));
                self.watch(py);
            }
            Err(error) => {
                error.print(py);
                self.scheduler.advance(Stage::Closing);
            }
        }
    }

    /// The database was opened: looks out for other programs that write to it, and takes note of what is to be said.
    fn watch(&self, py: Python<'_>) {
        if self.bindings.is_err() || self.is_in_memory {
            return;
        }
        py.detach(|| self.witness.begin());
        self.note(py, self.database.bind(py).call_method0("take_notices").and_then(|notices| notices.extract()));
    }

    /// Has whoever connects or calls next be told of something, too: sentences, a line each.
    fn note(&self, py: Python<'_>, more: PyResult<String>) {
        match more {
            Ok(more) if more.is_empty() => {}
            Ok(more) => {
                let mut notices = self.notices.take(py);
                if !notices.is_empty() {
                    notices.push('\n');
                }
                notices.push_str(&more);
            }
            Err(error) => error.print(py),
        }
    }

    fn take_notices(&self) -> Vec<u8> {
        mem::take(&mut *self.notices.lock().unwrap_or_else(PoisonError::into_inner)).into_bytes()
    }

    /// What the index files hold is not to be believed, and the database is to be opened anew.
    fn written_elsewhere(&self, py: Python<'_>) {
        self.note(py, self.database.bind(py).call_method0("written_elsewhere").and_then(|notice| notice.extract()));
    }

    /// Some work on the closed database; then it is opened again.
    fn manage(&self, body: &[u8]) -> (Kind, Vec<u8>) {
        let Some(working) = self.scheduler.begin_maintenance().filter(|_| self.is_in_place()) else {
            return (Kind::Stale, Vec::new());
        };
        let result = Python::attach(|py| {
            let finish = self.work(py, body);
            if self.bindings.is_ok() {
                self.open_again(py);
            }
            drop(working);
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
        if method != "restore" && self.bindings.is_ok() {
            self.complete_batches(py)?;
        }
        Ok(self.database.bind(py).call_method1("manage", (method, arguments))?.unbind())
    }

    /// Removes the database while it is ours, so that nobody opens it in between. Then this process ends.
    fn delete(&self) -> (Kind, Vec<u8>) {
        let Some(working) = self.scheduler.begin_maintenance().filter(|_| self.is_in_place()) else {
            return (Kind::Stale, Vec::new());
        };
        Python::attach(|py| self.close(py));
        let removed = directory::remove_content(Path::new("."));
        self.scheduler.advance(Stage::Closing);
        drop(working);
        match removed {
            Ok(()) => (Kind::Returned, Vec::new()),
            Err(error) => (Kind::Raised, Python::attach(|py| encode_exception(py, &error.into()))),
        }
    }

    /// Whether what is in the directory is still what was opened; where not, this process ends, and the next one opens
    /// what is there.
    fn is_in_place(&self) -> bool {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // What could not be opened may be no database; but it is in its place as long as its lock is.
        let is_there = seen.is_some() || (self.bindings.is_err() && lock_file::is_lock_of(&self.lock, &self.directory));
        let in_place = self.is_in_memory || (is_there && Seen::at(&self.directory) == seen);
        if !in_place {
            self.scheduler.advance(Stage::Closing);
        }
        in_place
    }

    /// Nobody is inside: the last reference is here, and this is where Chroma closes.
    fn close(&self, py: Python<'_>) {
        let bindings = self.bindings.as_ref().ok().and_then(|bindings| bindings.take(py).take());
        if bindings.is_some() && py.detach(|| self.witness.has_changed()) {
            self.written_elsewhere(py);
        }
        drop(bindings);
        py.detach(|| self.files.wait_until_closed());
    }

    /// Opens the closed database and closes it, where a batch that was interrupted is left: so it is completed.
    fn complete_batches(&self, py: Python<'_>) -> PyResult<()> {
        if self.database.bind(py).getattr("has_interrupted_batches")?.is_truthy()? {
            drop(open(self.database.bind(py), &self.files)?);
            py.detach(|| self.files.wait_until_closed());
        }
        Ok(())
    }

    fn converse(&self, caller: &Arc<UnixStream>) -> io::Result<()> {
        let mut stream: &UnixStream = caller;
        stream.set_write_timeout(Some(UNREAD_WITHIN))?;
        let Some(greeting) = self.scheduler.begin_request() else {
            return write_frame(&mut stream, Kind::Closing, &self.listener.greeting(&[])?);
        };
        match &self.bindings {
            Ok(_) => {
                write_frame(&mut stream, Kind::Hello, &self.listener.greeting(&self.take_notices())?)?;
            }
            Err(error) => {
                write_frame(&mut stream, Kind::Failed, &self.listener.greeting(error)?)?;
                // Whoever comes next is to try anew.
                self.scheduler.advance(Stage::Refusing);
            }
        }
        drop(greeting);
        let mut incoming = Incoming::default();
        loop {
            let Some(Frame { kind, body }) = incoming.read_from(&mut stream)? else { continue };
            let Some(_answering) = self.scheduler.begin_request() else {
                // The connection stays: its end tells whoever releases the database that the process has ended.
                self.send(stream, Kind::Closing, &[])?;
                continue;
            };
            let (kind, answer) = match kind {
                Kind::Call => stack::call(body, |body| self.make_call(body, caller)),
                Kind::Manage => self.manage(&body),
                Kind::Delete => self.delete(),
                Kind::Release => (self.scheduler.release(peer::pid(stream.as_fd())), Vec::new()),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            self.send(stream, kind, &answer)?;
        }
    }

    /// Sends an answer. The end does not wait long for whoever does not read it.
    fn send(&self, mut stream: &UnixStream, kind: Kind, answer: &[u8]) -> io::Result<()> {
        for (kind, part) in frames(kind, answer) {
            let mut frame = Outgoing::new(kind, part)?;
            let mut give_up = None;
            while !frame.write_to(&mut stream)? {
                if self.scheduler.is_closing()
                    && Instant::now() >= *give_up.get_or_insert(Instant::now() + UNREAD_WITHIN)
                {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
        Ok(())
    }

    fn make_call(&self, body: Vec<u8>, caller: &Arc<UnixStream>) -> (Kind, Vec<u8>) {
        self.long_writes.wait_for_orphans();
        let is_there = self.bindings.is_ok();
        let Some(mut call) = self.scheduler.begin_call(is_long(&body)).filter(|_| is_there) else {
            return (Kind::Closing, Vec::new());
        };
        let mut turn = None;
        let (kind, answer, effect) = self.answer(body, caller, &mut call, &mut turn);
        call.end(effect);
        drop(turn);
        self.bound_log();
        (kind, answer)
    }

    /// Begins the log anew where it has become too long. Nothing else can be done about an error in it.
    fn bound_log(&self) {
        if self.log.metadata().is_ok_and(|log| log.len() > LONGEST_LOG) {
            let _ = self.log.set_len(0);
        }
    }

    /// The answer to a call, and what else it did. Where it failed, its turn has not ended.
    fn answer<'a>(
        &'a self,
        body: Vec<u8>,
        caller: &Arc<UnixStream>,
        call: &mut Call<'_>,
        turn: &mut Option<Slot<'a>>,
    ) -> (Kind, Vec<u8>, Effect) {
        let mut effect = Effect::default();
        if !self.is_in_place() {
            return (Kind::Stale, Vec::new(), effect);
        }
        let Some(_inside) = self.witness.enter() else {
            effect.failed = true;
            Python::attach(|py| self.written_elsewhere(py));
            return (Kind::Retry, self.take_notices(), effect);
        };
        let notices = self.take_notices();
        if !notices.is_empty() {
            return (Kind::Retry, notices, effect);
        }
        // Before the interpreter is asked for: so it comes after the slice of another call that has it, and not after the
        // one after that. A long call converts what it was sent first.
        if name_of(&body)
            .is_some_and(|method| !chroma::releases_interpreter(method) && chroma::slices(method).is_none())
        {
            *turn = self.take_first_turn(caller);
            if turn.is_none() {
                return self.not_made(effect);
            }
        }
        let writes = name_of(&body).is_none_or(chroma::writes);
        let mut journal = None;
        let answer = Python::attach(|py| {
            let answer = self.call(py, body, caller, &mut effect, turn, &mut journal);
            let answer = if writes { answer.and_then(|answer| self.commit(py, answer)) } else { answer };
            answer.map_err(|error| {
                if error.get_type(py).name().is_ok_and(|name| FAILURES.iter().any(|failure| name == *failure)) {
                    call.suspect();
                }
                let (error, failed) = self.judge(py, error);
                effect.failed = failed;
                encode_exception(py, &error)
            })
        });
        if answer.is_err() && !effect.failed {
            // What Chroma refuses now it would refuse again.
            end(journal);
        }
        match answer {
            Ok(Some(answer)) => (Kind::Returned, answer, effect),
            Err(error) if self.is_in_place() => (Kind::Raised, error, effect),
            // What is raised in a directory that was removed in the middle of the call helps nobody.
            Ok(None) | Err(_) => self.not_made(effect),
        }
    }

    /// Has what was written survive a power cut. `SQLite` syncs its journal and its file, but not the directory from which it
    /// has removed the journal: if that came back, it would roll the transaction back.
    fn commit<T>(&self, py: Python<'_>, answer: T) -> PyResult<T> {
        match py.detach(|| self.working_directory.sync_all()) {
            Ok(()) => Ok(answer),
            Err(error) => Err(PyErr::from_value(
                self.database.bind(py).call_method1("not_synced", (PyErr::from(error).into_value(py),))?,
            )),
        }
    }

    /// The answer to a call that was not made, or not to its end.
    fn not_made(&self, effect: Effect) -> (Kind, Vec<u8>, Effect) {
        (if self.is_in_place() { Kind::Retry } else { Kind::Stale }, Vec::new(), effect)
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
        caller: &Arc<UnixStream>,
        effect: &mut Effect,
        turn: &mut Option<Slot<'a>>,
        journal: &mut Option<Journal>,
    ) -> PyResult<Option<Vec<u8>>> {
        let mut decoder = Decoder::new(py, &body, Matrices::Rows);
        let method = decoder.text()?.to_owned();
        let arguments = decoder.value()?.cast_into::<PyTuple>()?;
        let keywords = decoder.last_value()?;
        let keywords = if keywords.is_none() { None } else { Some(keywords.cast::<PyDict>()?) };
        let is_finite = decoder.is_finite;
        if method.starts_with('_') {
            return Err(PyAttributeError::new_err(format!("'Bindings' object has no attribute '{method}'")));
        }
        let bindings =
            self.bindings.as_ref().ok().and_then(|bindings| bindings.take(py).as_ref().map(|b| b.clone_ref(py)));
        let Some(bindings) = bindings.map(|bindings| bindings.into_bound(py)) else { return Ok(None) };
        let function = bindings.getattr(method.as_str())?;
        let given = Arguments::of(&method, &arguments, keywords);
        let ids = given.ids_written();
        let database = self.database.bind(py);
        if ids.is_some() && database.getattr("has_half_a_batch")?.is_truthy()? {
            let own_turn = if turn.is_none() { Some(py.detach(|| self.take_first_turn(caller))) } else { None };
            if own_turn.as_ref().is_some_and(Option::is_none) {
                return Ok(None);
            }
            if let Err(error) = database.call_method1("complete_batches_first", (&bindings,)) {
                // As that of any call that has failed.
                *turn = turn.take().or_else(|| own_turn.flatten());
                return Err(error);
            }
        }
        let written = &mut effect.written;
        // As many rows of the log; of a delete without ids it is not known.
        written.records = ids.as_ref().map_or(0, |ids| ids.len().unwrap_or(1));
        let collection = given.get(COLLECTION);
        let by_place = ids.as_ref().and_then(|ids| self.records_to_slice(ids, &method).zip(given.by_place()));
        let sliced = by_place.as_ref().and_then(|((method, slices, count), arguments)| {
            let batch = Batch { method, function: &function, arguments, count: *count, is_finite };
            batch.looks_sound().then_some((batch, *slices, collection.clone()?))
        });
        let result = if let Some((batch, slices, collection)) = sliced {
            let collection = collection.unbind();
            let keeps_journal = database.getattr("keeps_journals")?.is_truthy()?;
            if keeps_journal {
                *journal = py.detach(|| Journal::write(&body)).map_err(no_journal).ok();
            }
            drop(body);
            let write = self.long_writes.begin(caller);
            let mut writer = LongCall { engine: self, write, collection, keeps_journal, journal };
            match call_in_slices(&batch, slices, &mut written.time, turn, &mut writer)? {
                Some(result) => result,
                None => return Ok(None),
            }
        } else {
            drop(body);
            if turn.is_none() && !chroma::releases_interpreter(&method) {
                *turn = py.detach(|| self.take_first_turn(caller));
                if turn.is_none() {
                    return Ok(None);
                }
            }
            let began = Instant::now();
            let result = function.call(&arguments, keywords);
            written.time = began.elapsed();
            let result = result?;
            if let (Some(ids), Some(collection)) = (ids, collection) {
                // A delete says how many.
                let rows = if method == "delete" { result.clone() } else { ids.len()?.into_pyobject(py)?.into_any() };
                database.call_method1("wrote", (collection, rows))?;
            }
            *turn = None;
            result
        };
        py.detach(|| end(journal.take()));
        let mut encoder = Encoder::new(py);
        encoder.value(&result)?;
        Ok(Some(encoder.finish()))
    }

    /// The next turn of a call, if it is to go on.
    fn take_turn(&self) -> Option<Slot<'_>> {
        self.scheduler.take_slot().filter(|_| self.is_in_place())
    }

    /// The first one of a call: whose caller has gone meanwhile is not made.
    fn take_first_turn(&self, caller: &UnixStream) -> Option<Slot<'_>> {
        self.take_turn().filter(|_| !is_disconnected(caller))
    }

    /// How many records there are, if they are so many that others should get a turn in between; not if they are so many
    /// that Chroma refuses them, which it is to do as a whole.
    fn records_to_slice(&self, ids: &Bound<'_, PyAny>, method: &str) -> Option<(&'static Method, Slices, usize)> {
        let method = Method::named(method)?;
        let (slices, records) = (method.slices?, ids.cast::<PyList>().ok()?.len());
        (records > slices.first && records <= self.largest_batch).then_some((method, slices, records))
    }
}

/// A journal that is not needed any more. Where it cannot be removed, the next opening finds that nothing is left to be
/// done. Detached only.
fn end(journal: Option<Journal>) {
    if let Some(Err(error)) = journal.map(Journal::end) {
        log_line(format_args!("the journal of a batch could not be removed: {error}"));
    }
}

fn no_journal(error: io::Error) {
    log_line(format_args!("a batch is not sliced, because its journal could not be written: {error}"));
}

/// A long write.
struct LongCall<'a, 'j> {
    engine: &'a Engine,
    write: LongWrite<'a>,
    collection: Py<PyAny>,
    /// Not that of a database in memory.
    keeps_journal: bool,
    journal: &'j mut Option<Journal>,
}

impl<'a> Slicing<Slot<'a>> for LongCall<'a, '_> {
    fn take_turn(&self, is_first: bool) -> Option<Slot<'a>> {
        if is_first { self.engine.take_first_turn(self.write.caller()) } else { self.engine.take_turn() }
    }

    fn is_orphan(&self) -> bool {
        self.write.is_orphan()
    }

    fn begin(&mut self, py: Python<'_>) -> bool {
        if !self.keeps_journal {
            return true;
        }
        let place = self.engine.database.bind(py).call_method1("begin_batch", (&self.collection,));
        let place = place.and_then(|place| place.extract::<Option<Vec<u8>>>());
        let (Some(journal), Ok(Some(place))) = (self.journal.as_mut(), place) else { return false };
        py.detach(|| journal.begin(&place)).map_err(no_journal).is_ok()
    }

    fn wrote(&self, py: Python<'_>, records: usize) -> PyResult<()> {
        self.engine.database.bind(py).call_method1("wrote", (&self.collection, records)).map(drop)
    }
}

/// Whether a call is made of slices: as many others then come between as there are slices.
fn is_long(body: &[u8]) -> bool {
    let Some(method) = name_of(body).and_then(Method::named) else { return false };
    let (Some(slices), Some(place)) = (method.slices, method.place_of(IDS)) else { return false };
    items_at(body, place).is_none_or(|records| records > slices.first)
}

/// Where a call hangs, perhaps attached to the interpreter, nothing can be closed any more. The next process recovers, and
/// the calls are repeated there.
fn end_at_once() {
    log_line(format_args!("Chroma has failed, and calls in it do not return: this engine process ends"));
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}
