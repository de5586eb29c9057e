//! The thread that closes idle databases. It waits detached, and ends with its manager.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

use crate::LOGGER;
use crate::sync::fork_gate;

const SHORTEST_ROUND: Duration = Duration::from_millis(10);
const LONGEST_ROUND: Duration = Duration::from_secs(15);

/// Returns how long a round is, so that there are four in the time after which a database counts as idle, and that other
/// work is done as often as it says. `None` if there is no work.
pub fn round(idle: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    let idle = idle.map(|idle| (idle / 4).clamp(SHORTEST_ROUND, LONGEST_ROUND));
    idle.into_iter().chain(other).min()
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
