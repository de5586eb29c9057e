//! What a failure means, and how often something is attempted that has failed: it is decided here and nowhere else.
//!
//! | failure | executed? | what follows |
//! | --- | --- | --- |
//! | [`Failure::Stale`] | no | the database is reopened, as long as a directory may be replaced (`Opening::restart`) |
//! | [`Failure::Retry`] | no | another attempt after a pause that grows to 50 ms, for a minute at the most |
//! | [`Failure::Unsent`] | no | another attempt at once, five times |
//! | [`Failure::Lost`] | perhaps | one more attempt, on a new engine process, where repeating it is safe |
//! | [`Failure::Read`] | yes | another attempt at once, ten times |
//! | [`Failure::Final`] | perhaps | passed on |
//!
//! All attempts of a call are within its one [`Budget`].

use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::instance::Instance;
use crate::python::error::Error;
use crate::python::gil;

/// The first pause between two attempts, and the longest.
pub const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// For how long something is attempted that others keep from being executed.
const RETRIED_FOR: Duration = Duration::from_secs(60);

/// How often a call is sent again because the engine process has just ended.
const MAX_UNSENT: u32 = 5;

/// How often a read is repeated that has failed of what other calls did meanwhile. It may be of a damaged index, too.
const MAX_FAILED_READS: u32 = 10;

/// Why an attempt has not succeeded.
#[derive(Debug)]
pub enum Failure {
    /// What is in the directory is not the database that was opened, or its engine process has begun to end.
    Stale,
    /// Others keep it from being executed; the reason is for who is told so after a minute.
    Retry(&'static str),
    /// The engine process had ended before it was sent.
    Unsent(Error),
    /// The engine process ended in the middle of it.
    Lost {
        /// What is raised where it is not repeated.
        error: Error,
        /// Whether repeating it gives what executing it once does.
        is_safe_to_repeat: bool,
    },
    /// A read failed of what other calls did meanwhile.
    Read(PyErr),
    /// Any other error: one of Chroma's, say, or Ctrl-C.
    Final(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

/// What follows a failure.
#[derive(Debug)]
pub enum Next {
    /// Another attempt.
    Attempt,
    /// The database is reopened, then another attempt.
    Reopen,
    /// It is raised.
    PassOn(Error),
}

/// The attempts of one call, or of one piece of exclusive maintenance.
#[derive(Debug)]
pub struct Attempts {
    backoff: Backoff,
    unsent: u32,
    failed_reads: u32,
    was_lost: bool,
}

impl Attempts {
    /// Before the first.
    pub fn new() -> Self {
        Self { backoff: Backoff::new(), unsent: 0, failed_reads: 0, was_lost: false }
    }

    /// What follows a failure; where that is another attempt after a pause, the pause is over then.
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
                // After a fork in the middle of the call, by its own signal handler, the answer is the parent's.
                if instance.is_of_this_process() {
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

/// Pauses that grow, for a bounded time.
#[derive(Debug)]
pub struct Backoff {
    give_up: Instant,
    pause: Duration,
}

impl Backoff {
    /// It begins now.
    pub fn new() -> Self {
        Self { give_up: Instant::now() + RETRIED_FOR, pause: FIRST_PAUSE }
    }

    /// Waits before the next attempt; an error where it was tried for long enough, and where a signal handler raises.
    pub fn pause<D>(&mut self, py: Python<'_>, instance: &Instance<D>, reason: &str) -> Result<(), Error> {
        if Instant::now() >= self.give_up {
            return Err(Error::cannot_open(instance, format!("{reason} (tried for {RETRIED_FOR:?})"), None));
        }
        let pause = self.pause;
        self.pause = LONGEST_PAUSE.min(pause * 2);
        Ok(gil::wait(py, || thread::sleep(pause))?)
    }
}

/// The time that a call may take, with all that it waits for: an opening, another owner, an answer, being retried.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// When it is spent.
    pub until: Instant,
    timeout: Duration,
}

impl Budget {
    /// It begins now.
    pub fn new(timeout: Duration) -> Self {
        Self { until: Instant::now() + timeout, timeout }
    }

    /// An error where it is spent.
    pub fn go_on<D>(&self, instance: &Instance<D>, method: &str) -> Result<(), Error> {
        if Instant::now() < self.until { Ok(()) } else { Err(self.spent(instance, method)) }
    }

    /// That error.
    pub fn spent<D>(&self, instance: &Instance<D>, method: &str) -> Error {
        Error::call_timed_out(instance, method, self.timeout)
    }
}
