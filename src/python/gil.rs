//! Locking and waiting for a thread that is attached to the interpreter.
//!
//! The order of the locks, for all of the crate: an instance's state, then nothing; the registry's table, then a thread's
//! slot, then nothing. None of them is held while Python runs, while anything is waited for, or while an object of Python
//! is given up. A lock that is not free at once is waited for detached, and is never in hand while the interpreter is.

use std::sync::{PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

/// How long a wait goes on before it looks for signals.
pub const SIGNAL_POLL: Duration = Duration::from_millis(50);

/// How often a lock is tried that another thread has before it is waited for, and how long it is then each time.
const YIELDS: u32 = 100;
const LOCK_POLL: Duration = Duration::from_micros(100);

/// A lock that an attached thread may take.
pub trait Lock {
    type Guard<'a>
    where
        Self: 'a;

    fn try_take(&self) -> Option<Self::Guard<'_>>;

    /// Takes the lock; another thread that has it is waited for detached.
    fn take(&self, py: Python<'_>) -> Self::Guard<'_> {
        let mut tries = 0;
        loop {
            if let Some(guard) = self.try_take() {
                return guard;
            }
            // It is held for a few instructions: whoever holds it for longer waits for a processor, which this would keep.
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

/// Runs `wait` detached, then lets Python's signal handlers run: a wait in a loop of these ends with Ctrl-C.
pub fn wait(py: Python<'_>, wait: impl FnOnce() + Send) -> PyResult<()> {
    py.detach(wait);
    py.check_signals()
}
