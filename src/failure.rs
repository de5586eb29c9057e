//! What a failure means, and how often a failed attempt is repeated. Nothing else in the crate decides this.
//!
//! | failure | executed? | what follows |
//! | --- | --- | --- |
//! | [`Failure::Stale`] | no | the database is reopened, within the limit of `Opening::restart` |
//! | [`Failure::Retry`] | no | another attempt after a pause that grows to 50 ms, for at most a minute |
//! | [`Failure::Unsent`] | no | another attempt at once, up to five times |
//! | [`Failure::Lost`] | perhaps | one more attempt, on a new engine process, where repeating the call is safe |
//! | [`Failure::Read`] | yes | another attempt at once, up to ten times |
//! | [`Failure::Final`] | perhaps | the error is raised |
//!
//! All attempts of a call share one [`Budget`]. Called by `connection.rs`, `pool/` and the engines.

use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::instance::Instance;
use crate::python::error::Error;
use crate::python::gil;

/// The first and the longest pause between two attempts.
pub const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How long a call is attempted that other calls keep from being executed.
const RETRIED_FOR: Duration = Duration::from_secs(60);

/// How often a call is sent again because the engine process has just ended.
const MAX_UNSENT: u32 = 5;

/// How often a read is repeated that failed because of concurrent calls. A damaged index may be the reason, too.
const MAX_FAILED_READS: u32 = 10;

/// The reason why an attempt has failed.
#[derive(Debug)]
pub enum Failure {
    /// The directory no longer has the database that was opened, or its engine process has begun to end.
    Stale,
    /// Other calls keep this one from being executed. The error after a minute quotes the reason.
    Retry(&'static str),
    /// The engine process had ended before the call was sent.
    Unsent(Error),
    /// The engine process ended in the middle of the call.
    Lost {
        /// The error to raise if the call is not repeated.
        error: Error,
        /// Whether executing the call twice has the same effect as once.
        is_safe_to_repeat: bool,
    },
    /// A read failed because of concurrent calls.
    Read(PyErr),
    /// Any other error: one of Chroma's, for example, or Ctrl-C.
    Final(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

/// The consequence of a failure.
#[derive(Debug)]
pub enum Next {
    /// Make another attempt.
    Attempt,
    /// Reopen the database, then make another attempt.
    Reopen,
    /// Raise this error.
    PassOn(Error),
}

/// The attempts at one call, or at one task of exclusive maintenance.
#[derive(Debug)]
pub struct Attempts {
    backoff: Backoff,
    unsent: u32,
    failed_reads: u32,
    was_lost: bool,
}

impl Attempts {
    /// Returns the state before the first attempt.
    pub fn new() -> Self {
        Self { backoff: Backoff::new(), unsent: 0, failed_reads: 0, was_lost: false }
    }

    /// Records a failure and returns what follows. Where a pause precedes the next attempt, waits for it.
    pub fn after<D>(&mut self, py: Python<'_>, instance: &Instance<D>, failure: Failure) -> Next {
        match failure {
            Failure::Stale => Next::Reopen,
            Failure::Retry(reason) => {
                self.backoff.pause(py, instance, reason).map_or_else(Next::PassOn, |()| Next::Attempt)
            }
            Failure::Unsent(_) if self.unsent < MAX_UNSENT => {
                self.unsent += 1;
                Next::Attempt
            }
            Failure::Lost { error, is_safe_to_repeat: true } if !self.was_lost => {
                self.was_lost = true;
                // In a child that a signal handler has forked in the middle of the call, the engine process has not
                // ended: its response goes to the parent.
                if instance.belongs_to_this_process() {
                    log::warn!(target: crate::LOGGER, "{error}; the call is repeated");
                }
                Next::Attempt
            }
            Failure::Read(_) if self.failed_reads < MAX_FAILED_READS => {
                self.failed_reads += 1;
                Next::Attempt
            }
            Failure::Read(error) => Next::PassOn(error.into()),
            Failure::Unsent(error) | Failure::Lost { error, .. } | Failure::Final(error) => Next::PassOn(error),
        }
    }
}

/// Growing pauses, for a bounded time.
#[derive(Debug)]
pub struct Backoff {
    deadline: Instant,
    pause: Duration,
}

impl Backoff {
    /// Starts now.
    pub fn new() -> Self {
        Self { deadline: Instant::now() + RETRIED_FOR, pause: FIRST_PAUSE }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    ///
    /// Returns an error with `reason` after a minute of attempts, and the exception of a signal handler.
    pub fn pause<D>(&mut self, py: Python<'_>, instance: &Instance<D>, reason: &str) -> Result<(), Error> {
        if Instant::now() >= self.deadline {
            return Err(Error::cannot_open(instance, format!("{reason} (tried for {RETRIED_FOR:?})"), None));
        }
        let pause = self.pause;
        self.pause = LONGEST_PAUSE.min(pause * 2);
        Ok(gil::wait(py, || thread::sleep(pause))?)
    }
}

/// The time that a call may take, including all its waits: for an opening, another owner, a response, a retry.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// The moment at which the time is up.
    pub until: Instant,
    timeout: Duration,
}

impl Budget {
    /// Starts now.
    pub fn new(timeout: Duration) -> Self {
        Self { until: Instant::now() + timeout, timeout }
    }

    /// Returns the error of [`Budget::timed_out`] if the time is up.
    pub fn check<D>(&self, instance: &Instance<D>, method: &str) -> Result<(), Error> {
        if Instant::now() < self.until { Ok(()) } else { Err(self.timed_out(instance, method)) }
    }

    /// Returns the error of a call of `method` that has run out of time.
    pub fn timed_out<D>(&self, instance: &Instance<D>, method: &str) -> Error {
        Error::call_timed_out(instance, method, self.timeout)
    }
}
