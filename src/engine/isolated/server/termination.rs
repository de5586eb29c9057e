//! Signals that tell an engine process to end: SIGTERM, as systemd and Kubernetes send it to all processes of a service, and
//! SIGHUP of a terminal that is closed.
//!
//! The calls in flight are answered, others are refused (an app makes them again, in the next engine process), the database
//! is closed with a checkpoint, as always. Where all that takes too long the process ends in the middle of it, and the next
//! one recovers.

use super::stderr::say;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use signal_hook::iterator::Signals;

/// How long it may take. Kubernetes kills what has not ended after 30 seconds, systemd after 90.
const END_WITHIN: Duration = Duration::from_secs(20);

/// What is to be done when one comes. It may come before it is known.
pub struct ToldToEnd(Option<Sender<Box<dyn FnOnce() + Send>>>);

impl ToldToEnd {
    /// By one of these signals, which this thread has blocked so far.
    pub fn by(py: Python<'_>, signals: Vec<i32>) -> PyResult<Self> {
        let (then, what) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
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
                if let Ok(end) = what.recv_timeout(END_WITHIN) {
                    end();
                }
                thread::sleep(give_up.saturating_duration_since(Instant::now()));
                end_as_it_is(signal);
            }
        };
        // Where there is no thread to be had, a signal ends the process as it ends any other.
        let started = thread::Builder::new().name("signals".into()).spawn(watch);
        if started.is_ok() {
            py.detach(move || is_ready.recv()).map_err(|error| PyRuntimeError::new_err(error.to_string()))??;
        }
        let signal = py.import("signal")?;
        signal.call_method1("pthread_sigmask", (signal.getattr("SIG_UNBLOCK")?, signals))?;
        Ok(Self(started.is_ok().then_some(then)))
    }

    /// Does this when one comes, or at once if one has come.
    pub fn then(self, end: impl FnOnce() + Send + 'static) {
        if let Some(then) = self.0 {
            let _ = then.send(Box::new(end));
        }
    }
}

fn end_as_it_is(signal: i32) {
    say(format_args!(
        "told to end (signal {signal}), and not ready after {END_WITHIN:?}: this engine process ends as it is"
    ));
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}
