//! The thread that closes what nobody uses. It waits detached, and ends with its manager.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

use crate::LOGGER;
use crate::calls;
use crate::supervisor::WeakSupervisor;

const SHORTEST_ROUND: Duration = Duration::from_millis(10);
const LONGEST_ROUND: Duration = Duration::from_secs(15);

/// Dropping it ends the thread.
pub struct IdleThread {
    generation: u64,
    _alive: Sender<()>,
}

impl IdleThread {
    /// Starts it; `None` where the system has no thread to give. Then the next opening tries again.
    pub fn start(supervisor: WeakSupervisor, idle: Duration) -> Option<Self> {
        let (alive, is_alive) = mpsc::channel();
        let round = (idle / 4).clamp(SHORTEST_ROUND, LONGEST_ROUND);
        let rounds = move || {
            while is_alive.recv_timeout(round) == Err(RecvTimeoutError::Timeout) {
                let Some(supervisor) = supervisor.upgrade() else { return };
                let attached = Python::try_attach(|py| {
                    if let Err(error) = supervisor.close_idle(py, idle) {
                        log::warn!(target: LOGGER, "closing idle databases: {error}");
                    }
                    drop(supervisor);
                });
                if attached.is_none() {
                    return;
                }
            }
        };
        match thread::Builder::new().name("chroma-idle".into()).spawn(rounds) {
            Ok(_) => Some(Self { generation: calls::generation(), _alive: alive }),
            Err(error) => {
                log::warn!(target: LOGGER, "no thread to close idle databases: {error}");
                None
            }
        }
    }

    /// A thread does not come along into a forked child.
    pub fn is_of_this_process(&self) -> bool {
        self.generation == calls::generation()
    }
}
