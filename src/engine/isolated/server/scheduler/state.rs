//! What a scheduler knows, behind its lock. Nothing here waits.

use std::time::Duration;

use super::checkpoint_policy::CheckpointPolicy;
use super::company::Company;
use super::connections::Connections;
use super::failures::Failures;
use super::lifetime::Lifetime;
use super::pace::Pace;
use crate::sync::Instant;

/// The state of a scheduler.
#[derive(Debug)]
pub struct State {
    pub lifetime: Lifetime,
    pub connections: Connections,
    pub company: Company,
    pub pace: Pace,
    pub checkpoints: CheckpointPolicy,
    pub failures: Failures,
    /// Calls in flight, also of a connection that the other end has closed; and how many of them are long writes.
    pub calls: usize,
    pub long_calls: usize,
    /// How many calls have begun, and the numbers of the reads in flight among them.
    pub begun: u64,
    pub reads: Vec<u64>,
    /// When the last call ended.
    pub last_call: Option<Instant>,
    /// The ticket of the next who asks for the exclusive slot, and of the one who has it or gets it next.
    pub next_ticket: u64,
    pub admitted: u64,
    /// How many wait until the database is quiesced, and whether somebody has it closed.
    pub waiting_to_quiesce: usize,
    pub in_maintenance: bool,
}

impl State {
    pub fn new(linger: Duration, log_length: Option<usize>) -> Self {
        Self {
            lifetime: Lifetime::new(linger),
            connections: Connections::default(),
            company: Company::default(),
            pace: Pace::default(),
            checkpoints: CheckpointPolicy::new(log_length),
            failures: Failures::default(),
            calls: 0,
            long_calls: 0,
            begun: 0,
            reads: Vec::new(),
            last_call: None,
            next_ticket: 0,
            admitted: 0,
            waiting_to_quiesce: 0,
            in_maintenance: false,
        }
    }

    /// Whether a call that comes now has to wait.
    pub fn holds_back(&self, long: bool) -> bool {
        let makes_way = self.waiting_to_quiesce > 0 && (long || self.long_calls == 0);
        makes_way || self.in_maintenance || self.failures.has_failed()
    }

    pub fn is_quiesced(&self) -> bool {
        self.calls == 0 && !self.in_maintenance
    }

    pub fn must_reopen(&self) -> bool {
        self.failures.has_failed() || self.checkpoints.is_due(self.quiet_for())
    }

    pub fn reopened(&mut self) {
        self.failures.reopened();
        self.in_maintenance = false;
    }

    fn quiet_for(&self) -> Duration {
        self.last_call.map_or(Duration::ZERO, |last| last.elapsed())
    }

    /// While nothing happens: when the process may end, or a checkpoint may be due.
    pub fn due_in(&self) -> Option<Duration> {
        if self.connections.is_empty() {
            Some(self.lifetime.lingers_for())
        } else {
            self.checkpoints.due_in(self.quiet_for())
        }
    }

    /// How much longer the calls in flight may take.
    pub fn hang_in(&self) -> Option<Duration> {
        self.failures.hang_in().filter(|_| self.calls > 0)
    }
}
