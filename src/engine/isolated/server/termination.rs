//! The signals that terminate an engine process: SIGTERM, which systemd and Kubernetes send to all processes of a service,
//! and SIGHUP of a terminal that is closed.
//!
//! The calls in flight are answered, others are refused (an app retries them in the next engine process), and the database
//! is closed with a checkpoint, as always. If that takes too long, the process ends in the middle of it, and the next one
//! recovers.

use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use signal_hook::iterator::Signals;

use super::stderr::log_line;

/// How long it may take. Kubernetes kills what has not ended after 30 seconds, systemd after 90.
const END_WITHIN: Duration = Duration::from_secs(20);

/// Waits for such a signal. It may come before it is known what must be done then.
pub struct Termination(Option<Sender<Box<dyn FnOnce() + Send>>>);

impl Termination {
    /// By one of these signals, which this thread has blocked so far.
    pub fn by(py: Python<'_>, signals: Vec<i32>) -> PyResult<Self> {
        let (then, action) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, is_ready) = mpsc::channel();
        let watched = signals.clone();
        let watch = move || {
            let mut signals = match Signals::new(watched) {
                Ok(signals) => signals,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            if let Some(signal) = signals.forever().next() {
                let give_up = Instant::now() + END_WITHIN;
                if let Ok(act) = action.recv_timeout(END_WITHIN) {
                    act();
                }
                thread::sleep(give_up.saturating_duration_since(Instant::now()));
                end_unclosed(signal);
            }
        };
        // Where the system has no thread left, a signal ends this process as it ends any other.
        let started = thread::Builder::new().name("signals".into()).spawn(watch);
        if started.is_ok() {
            py.detach(move || is_ready.recv()).map_err(|error| PyRuntimeError::new_err(error.to_string()))??;
        }
        let signal = py.import("signal")?;
        signal.call_method1("pthread_sigmask", (signal.getattr("SIG_UNBLOCK")?, signals))?;
        Ok(Self(started.is_ok().then_some(then)))
    }

    /// Does this when a signal comes, or at once if one has come.
    pub fn then(self, act: impl FnOnce() + Send + 'static) {
        if let Some(then) = self.0 {
            let _ = then.send(Box::new(act));
        }
    }
}

fn end_unclosed(signal: i32) {
    log_line(format_args!(
        "terminated by signal {signal}, but not closed within {END_WITHIN:?}: this engine process ends without closing its \
         database"
    ));
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}
