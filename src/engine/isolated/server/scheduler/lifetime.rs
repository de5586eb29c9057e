//! When an engine process ends: when it was told to, or when nobody has been connected for a while.

use std::time::Duration;

use crate::sync::Instant;

/// How far the process is on the way to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It serves everybody.
    #[default]
    Serving,
    /// It accepts no more connections, and serves those that it has until they are closed.
    Refusing,
    /// It refuses all requests from now on, and ends as soon as it has answered those that it has accepted.
    Closing,
    /// It does nothing any more.
    Ended,
}

/// The life of one engine process.
#[derive(Debug)]
pub struct Lifetime {
    /// How long the process stays when nobody is connected.
    linger: Duration,
    stage: Stage,
    /// When a connection was last opened or closed.
    last_change: Instant,
    /// Requests that are being answered.
    requests: usize,
}

impl Lifetime {
    pub fn new(linger: Duration) -> Self {
        Self { linger, stage: Stage::default(), last_change: Instant::now(), requests: 0 }
    }

    /// There is no way back.
    pub fn advance(&mut self, stage: Stage) {
        self.stage = self.stage.max(stage);
    }

    pub fn is_serving(&self) -> bool {
        self.stage == Stage::Serving
    }

    pub fn is_closing(&self) -> bool {
        self.stage >= Stage::Closing
    }

    /// A connection was opened or closed.
    pub fn connections_changed(&mut self) {
        self.last_change = Instant::now();
    }

    /// Accepts a request, unless the process is closing; tells whether it has.
    pub fn begin_request(&mut self) -> bool {
        let is_accepted = !self.is_closing();
        self.requests += usize::from(is_accepted);
        is_accepted
    }

    pub fn end_request(&mut self) {
        self.requests -= 1;
    }

    pub fn answers_requests(&self) -> bool {
        self.requests > 0
    }

    /// How much longer it stays if nobody connects.
    pub fn lingers_for(&self) -> Duration {
        self.linger.saturating_sub(self.last_change.elapsed())
    }

    /// Whether the process is to end. One that could not open its database stays for those who are connected: they may
    /// have it restored.
    pub fn is_over(&self, is_connected: bool) -> bool {
        self.is_closing() || (!is_connected && (self.stage == Stage::Refusing || self.lingers_for().is_zero()))
    }
}
