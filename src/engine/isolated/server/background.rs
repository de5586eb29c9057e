//! A checkpoint in the background: calls go on while it is taken. Writes wait only while the index files are copied, and
//! while rows of the log are purged.
//!
//! What is done then is in the Python half (`worker/background_checkpoint.py`).

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

use super::engine::Engine;
use super::scheduler::{Covered, NotTaken};

/// Takes one in a thread of its own. Detached only.
pub fn checkpoint_in_background(engine: &Arc<Engine>) {
    let taking = Arc::clone(engine);
    let taken = move || {
        let began = Instant::now();
        let taken = take(&taking);
        taking.scheduler.end_in_background(began.elapsed(), taken);
    };
    if thread::Builder::new().name("checkpoint".into()).spawn(taken).is_err() {
        engine.scheduler.end_in_background(Duration::ZERO, Err(NotTaken::Failed));
    }
}

/// Returns what the checkpoint has.
fn take(engine: &Arc<Engine>) -> Result<Covered, NotTaken> {
    // Without a write-ahead log, Chroma could not write while another process reads.
    if !engine.binding.has_write_ahead_log() {
        return Err(NotTaken::Failed);
    }
    let kept = engine
        .ask_host("begin_in_background", None)
        .and_then(|()| without_writes(engine, "copy_in_background"))
        .and_then(|covered| engine.ask_host("keep_in_background", None).map(|()| covered));
    let is_purged = kept.is_ok() && without_writes(engine, "purge_in_background").is_ok();
    let _ = engine.ask_host("end_in_background", None);
    kept.map(|covered| Covered { is_purged, ..covered })
}

/// Has the Python half do something while nobody writes. Returns what a checkpoint has that is taken now.
fn without_writes(engine: &Arc<Engine>, method: &str) -> Result<Covered, NotTaken> {
    let kept_open = engine.scheduler.keep_open().ok_or(NotTaken::Interrupted)?;
    let _slot = engine.take_slot().ok_or(NotTaken::Interrupted)?;
    // Like a call: where another program has written to the database, its index files are not to be trusted. And what is
    // purged now, no other program has purged.
    let _inside = engine.binding.enter().ok_or(NotTaken::Failed)?;
    let coverable = kept_open.coverable();
    let is_awaited = Python::attach(|py| is_awaited(py, engine)).ok_or(NotTaken::Failed)?;
    engine.ask_host(method, Some(is_awaited)).map(|()| coverable)
}

/// A function of Python's that tells whether somebody waits for the database to be closed.
fn is_awaited(py: Python<'_>, engine: &Arc<Engine>) -> Option<Py<PyCFunction>> {
    let engine = Arc::clone(engine);
    let asked = move |arguments: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| {
        arguments.py().detach(|| engine.scheduler.is_awaited())
    };
    PyCFunction::new_closure(py, None, None, asked).ok().map(Bound::unbind)
}

impl Engine {
    /// Has the Python half do something, and tells whether it has. It waits detached, and gives up where that is awaited.
    fn ask_host(&self, method: &str, is_awaited: Option<Py<PyCFunction>>) -> Result<(), NotTaken> {
        Python::attach(|py| {
            let host = self.binding.host(py);
            let done = match is_awaited {
                Some(is_awaited) => host.call_method1(method, (is_awaited,)),
                None => host.call_method0(method),
            };
            let done = done.and_then(|done| done.is_truthy());
            let is_interrupted = || host.getattr("is_background_interrupted")?.is_truthy();
            let found = done.and_then(|done| Ok((done, is_interrupted()?)));
            match found {
                Ok((true, _)) => Ok(()),
                Ok((false, true)) => Err(NotTaken::Interrupted),
                Ok((false, false)) => Err(NotTaken::Failed),
                Err(error) => {
                    error.print(py);
                    Err(NotTaken::Failed)
                }
            }
        })
    }
}
