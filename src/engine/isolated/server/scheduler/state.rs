//! What a scheduler knows, behind its lock. Nothing here waits.

use std::time::Duration;

use super::checkpoint_policy::CheckpointPolicy;
use super::company::Company;
use super::connections::Connections;
use super::failures::Failures;
use super::lifetime::Lifetime;
use super::pace::Pace;
use crate::sync::Instant;

/// What is due within so long is not waited for more exactly.
pub const SOON: Duration = Duration::from_millis(1);

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
    /// Whether calls make way for a checkpoint that is due.
    pub makes_way: bool,
    /// How many requests wait for a change.
    pub waiting: usize,
    /// Until when the thread sleeps that waits until something is due; `None` while it is awake.
    pub expects_nothing_before: Option<Instant>,
}

/// What is due, or when to look again.
#[derive(Debug)]
pub struct Outlook {
    /// The process is to end.
    pub ends: bool,
    /// The database is to be reopened.
    pub reopens: bool,
    /// Nothing is in flight, so what is to be done can be done.
    pub is_quiesced: bool,
    /// How long until that may change by itself; `None` if it does not. Where something is in flight, how long until it
    /// is taken for hanging.
    pub limit: Option<Duration>,
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
            makes_way: false,
            waiting: 0,
            expects_nothing_before: None,
        }
    }

    /// Whether a call that comes now has to wait.
    pub fn holds_back(&self, long: bool) -> bool {
        let makes_way = self.waiting_to_quiesce > 0 && (long || self.long_calls == 0);
        makes_way || self.in_maintenance || self.failures.has_failed()
    }

    pub fn outlook(&self) -> Outlook {
        let ends = self.lifetime.is_over(!self.connections.is_empty());
        let reopens = !ends && (self.failures.has_failed() || self.checkpoints.is_due(self.quiet_for()));
        let is_quiesced = self.calls == 0 && !self.in_maintenance && (!ends || !self.lifetime.answers_requests());
        let limit = if is_quiesced { self.due_in() } else { self.hang_in() };
        Outlook { ends, reopens, is_quiesced, limit }
    }

    /// Whether a checkpoint is to be taken in the background.
    pub fn is_due_in_background(&self, outlook: &Outlook) -> bool {
        let is_open = !outlook.ends && !outlook.reopens && !self.in_maintenance && self.waiting_to_quiesce == 0;
        is_open && self.checkpoints.is_due_in_background()
    }

    /// Whether something is due earlier than the thread expects that waits for it.
    pub fn is_due_early(&self) -> bool {
        let Some(expected) = self.expects_nothing_before else { return false };
        let outlook = self.outlook();
        let is_due_in_background = self.is_due_in_background(&outlook);
        let Outlook { ends, reopens, is_quiesced, limit } = outlook;
        let is_due = reopens != self.makes_way || (is_quiesced && (ends || reopens));
        is_due || is_due_in_background || limit.is_some_and(|limit| Instant::now() + limit + SOON < expected)
    }

    pub fn reopened(&mut self) {
        self.failures.reopened();
        self.in_maintenance = false;
    }

    fn quiet_for(&self) -> Duration {
        self.last_call.map_or(Duration::ZERO, |last| last.elapsed())
    }

    /// While nothing happens: when the process may end, or a checkpoint may be due.
    fn due_in(&self) -> Option<Duration> {
        if self.connections.is_empty() {
            Some(self.lifetime.lingers_for())
        } else {
            self.checkpoints.due_in(self.quiet_for())
        }
    }

    /// How much longer the calls in flight may take.
    fn hang_in(&self) -> Option<Duration> {
        self.failures.hang_in().filter(|_| self.calls > 0)
    }
}
