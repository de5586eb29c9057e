//! The life of an engine process: it opens its database, serves it until nobody needs it, and closes it.
//!
//! How it is started is in `client/launcher.rs`; what it does before this, in `worker/engine_process.py`.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

use super::acceptor::accept_all;
use super::background::checkpoint_in_background;
use super::binding::{Binding, Opened};
use super::catalogue::Catalogue;
use super::engine::Engine;
use super::group::Groups;
use super::index_files::IndexFiles;
use super::listener::Listener;
use super::orphans::LongWrites;
use super::place::Place;
use super::scheduler::{Due, Scheduler, Stage};
use super::stderr::log_line;
use super::termination::Termination;

/// Serves a database until there was no connection for `linger` seconds, or until its only user releases it, or until one of
/// these signals comes; then closes it. `inherited` are the descriptors of the lock and of the socket, and the names of
/// socket and log; `database` is an `worker.database.Database`.
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
    let opened = Opened::in_working_directory()?;
    let keeper = Arc::clone(&listener);
    // Where the system has no thread left, the address lasts as long as nobody removes it.
    let _ = thread::Builder::new().spawn(move || keeper.keep(&mut lock));
    let served = open_and_serve(py, &listener, (directory, opened), linger, database, signals);
    py.detach(|| listener.end());
    served
}

fn open_and_serve(
    py: Python<'_>,
    listener: &Arc<Listener>,
    (directory, opened): (PathBuf, Opened),
    linger: f64,
    database: &Bound<'_, PyAny>,
    signals: Vec<i32>,
) -> PyResult<()> {
    let termination = Termination::by(py, signals)?;
    let binding = Binding::open(database, opened)?;
    // Standard input itself: a copy would be one more file that is open in the directory.
    let lock = inherited_lock(io::stdin().as_raw_fd());
    let engine = Arc::new(Engine {
        scheduler: Scheduler::new(Duration::from_secs_f64(linger), binding.log_length()),
        binding,
        place: py.detach(|| Place::new(directory, lock)),
        catalogue: Catalogue::new(),
        long_writes: LongWrites::default(),
        groups: Groups::default(),
        index_files: py.detach(|| IndexFiles::of(Path::new("."))),
        listener: Arc::clone(listener),
        log: File::from(io::stderr().as_fd().try_clone_to_owned()?),
    });
    if let Some(time) = engine.binding.replay_time(py)? {
        engine.scheduler.replayed(time);
    }
    engine.catalogue.opened(engine.place.seen());
    engine.binding.watch(py);
    // If the directory was removed or replaced meanwhile, the process closes before it accepts anybody.
    py.detach(|| engine.is_in_place());
    let terminated = Arc::clone(&engine);
    termination.then(move || terminated.scheduler.advance(Stage::Closing));
    let accepting = Arc::clone(&engine);
    thread::Builder::new().name("accept".into()).spawn(move || accept_all(&accepting))?;
    serve_until_end(py, &engine);
    if engine.binding.failure().is_none() {
        engine.binding.close(py);
        let closed = engine.binding.complete_batches(py).and_then(|()| database.call_method0("closed"));
        py.detach(|| engine.scheduler.send_closing_notice());
        closed?;
    }
    Ok(())
}

fn serve_until_end(py: Python<'_>, engine: &Arc<Engine>) {
    let wait = || {
        let due = engine.scheduler.wait_until_due();
        if due == Due::Abort {
            // Detached, because the calls that hang may hold the interpreter.
            abort();
        }
        due
    };
    loop {
        match py.detach(wait) {
            Due::Checkpoint => engine.checkpoint(py),
            Due::CheckpointInBackground => py.detach(|| checkpoint_in_background(engine)),
            Due::End | Due::Abort => return,
        }
    }
}

/// Where a call hangs, perhaps attached to the interpreter, nothing can be closed any more. The next process recovers, and
/// the calls are repeated there.
fn abort() {
    log_line(format_args!("Chroma has failed, and calls in it do not return: this engine process ends"));
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
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
