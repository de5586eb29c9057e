//! A checkpoint in the background: calls go on while it is taken. Writes wait only while the index files are copied, and
//! while rows of the log are purged.
//!
//! What is done then is in the Python half (`worker/background_checkpoint.py`).

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::engine::Engine;
use super::scheduler::Covered;

/// Takes one in a thread of its own. Detached only.
pub fn checkpoint_in_background(engine: &Arc<Engine>) {
    let taking = Arc::clone(engine);
    let taken = move || {
        let began = Instant::now();
        let covered = taking.take_in_background();
        taking.scheduler.end_in_background(began.elapsed(), covered);
    };
    if thread::Builder::new().name("checkpoint".into()).spawn(taken).is_err() {
        engine.scheduler.end_in_background(Duration::ZERO, None);
    }
}

impl Engine {
    /// Returns what the checkpoint has; `None` where none was taken.
    fn take_in_background(&self) -> Option<Covered> {
        // Without a write-ahead log, Chroma could not write while another process reads.
        let is_begun = self.binding.has_write_ahead_log() && self.ask_host("begin_in_background");
        let copied = if is_begun { self.without_writes("copy_in_background") } else { None };
        let kept = copied.filter(|_| self.ask_host("keep_in_background"));
        let is_purged = kept.is_some() && self.without_writes("purge_in_background").is_some();
        self.ask_host("end_in_background");
        kept.map(|covered| Covered { is_purged, ..covered })
    }

    /// Has the Python half do something while nobody writes. Returns what a checkpoint has that is taken now; `None` where it
    /// was not done.
    fn without_writes(&self, method: &str) -> Option<Covered> {
        let kept_open = self.scheduler.keep_open()?;
        let _slot = self.take_slot()?;
        // Like a call: where another program has written to the database, its index files are not to be trusted. And what
        // is purged now, no other program has purged.
        let _inside = self.binding.enter()?;
        let coverable = kept_open.coverable();
        self.ask_host(method).then_some(coverable)
    }

    /// Has the Python half do something; tells whether it has. It waits detached.
    fn ask_host(&self, method: &str) -> bool {
        Python::attach(|py| {
            let done = self.binding.host(py).call_method0(method).and_then(|done| done.is_truthy());
            done.unwrap_or_else(|error| {
                error.print(py);
                false
            })
        })
    }
}
