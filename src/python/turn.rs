//! How a thread that works for long while attached shares the interpreter with others.

use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// How long the thread works before it lets others have the interpreter, and for how long it then stays detached.
const TURN: Duration = Duration::from_millis(2);
const PAUSE: Duration = Duration::from_micros(50);

/// The turn of an attached thread that works without running Python code.
///
/// It is not enough to detach and attach again: the thread has the interpreter back before another one has woken up. And
/// the other one demands the interpreter only once it has waited for 5 ms without its being released, so a thread that
/// releases it more often would keep it for as long as it works (`take_gil` in `CPython`).
pub struct Turn(Instant);

impl Turn {
    /// Begins now.
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Lets other threads have the interpreter, if this one has worked long enough.
    pub fn share(&mut self, py: Python<'_>) {
        if self.0.elapsed() >= TURN {
            py.detach(|| thread::sleep(PAUSE));
            self.0 = Instant::now();
        }
    }
}
