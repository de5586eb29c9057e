//! Locking and waiting on a thread that is attached to the interpreter.
//!
//! Lock order of the whole crate: an instance's state is a leaf; the registry's table comes before a thread's slot,
//! which is a leaf. No lock is held while Python code runs, during a wait, or while a Python object is dropped. A lock
//! that is not free at once is waited for detached, and acquired only when attached again.

use std::sync::{PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

/// How long a wait lasts before it checks for signals.
pub const SIGNAL_POLL: Duration = Duration::from_millis(50);

/// How often the thread yields for a lock that is held before it sleeps, and how long each sleep lasts.
const YIELDS: u32 = 100;
const LOCK_POLL: Duration = Duration::from_micros(100);

/// A lock that an attached thread may acquire.
pub trait Lock {
    type Guard<'a>
    where
        Self: 'a;

    /// Acquires the lock if it is free.
    fn try_take(&self) -> Option<Self::Guard<'_>>;

    /// Acquires the lock, waiting detached while another thread holds it.
    fn take(&self, py: Python<'_>) -> Self::Guard<'_> {
        let mut tries = 0;
        loop {
            if let Some(guard) = self.try_take() {
                return guard;
            }
            // A lock is held for a few instructions. A thread that holds it for longer was preempted and needs a
            // processor.
            py.detach(|| if tries < YIELDS { thread::yield_now() } else { thread::sleep(LOCK_POLL) });
            tries += 1;
        }
    }
}

impl<T> Lock for std::sync::Mutex<T> {
    type Guard<'a>
        = std::sync::MutexGuard<'a, T>
    where
        T: 'a;

    fn try_take(&self) -> Option<Self::Guard<'_>> {
        match self.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl<T> Lock for parking_lot::Mutex<T> {
    type Guard<'a>
        = parking_lot::MutexGuard<'a, T>
    where
        T: 'a;

    fn try_take(&self) -> Option<Self::Guard<'_>> {
        self.try_lock()
    }
}

/// Runs `wait` detached, then Python's signal handlers. A loop of such waits ends with Ctrl-C.
///
/// # Errors
///
/// Returns the exception that a signal handler has raised.
pub fn wait(py: Python<'_>, wait: impl FnOnce() + Send) -> PyResult<()> {
    py.detach(wait);
    py.check_signals()
}
