//! The thread that closes idle databases, after a time or for the memory that they have. It waits detached, and ends with
//! its manager.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

use crate::LOGGER;
use crate::sync::fork_gate;

const SHORTEST_ROUND: Duration = Duration::from_millis(10);
const LONGEST_ROUND: Duration = Duration::from_secs(15);

/// How often the budget for memory is compared, and how long a database must be unused to be closed for it.
pub const MEMORY_ROUND: Duration = Duration::from_secs(2);

/// Returns how long a round is: four of them in the time after which an unused database is closed, and no longer than
/// the budget for memory allows. `None` if there is neither.
pub fn round(idle: Option<Duration>, has_budget: bool) -> Option<Duration> {
    let of_idle = idle.map(|idle| (idle / 4).clamp(SHORTEST_ROUND, LONGEST_ROUND));
    of_idle.into_iter().chain(has_budget.then_some(MEMORY_ROUND)).min()
}

/// A handle to the thread. Dropping it ends the thread.
pub struct IdleThread {
    generation: u64,
    _alive: Sender<()>,
}

impl IdleThread {
    /// Starts a thread that calls `close_idle` once in each round, until that returns `false`. Returns `None` if the
    /// system cannot start a thread; the next opening then tries again.
    pub fn start(round: Duration, close_idle: impl Fn(Python<'_>) -> bool + Send + 'static) -> Option<Self> {
        let (alive, is_alive) = mpsc::channel();
        let rounds = move || {
            while is_alive.recv_timeout(round) == Err(RecvTimeoutError::Timeout) {
                if Python::try_attach(&close_idle) != Some(true) {
                    return;
                }
            }
        };
        match thread::Builder::new().name("chroma-idle".into()).spawn(rounds) {
            Ok(_) => Some(Self { generation: fork_gate::generation(), _alive: alive }),
            Err(error) => {
                log::warn!(target: LOGGER, "cannot start the thread that closes idle databases: {error}");
                None
            }
        }
    }

    /// Returns whether this process has started the thread, which a forked child does not inherit.
    pub fn belongs_to_this_process(&self) -> bool {
        self.generation == fork_gate::generation()
    }
}
