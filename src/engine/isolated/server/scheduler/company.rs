//! Whether a call has company: then a long write takes small slices, so that nobody waits for long.

use std::time::Duration;

use crate::sync::Instant;

/// How long a connection counts as one that calls, after it has called. A connection that calls at least once a second
/// (somebody who clicks through an app, a program that polls) waits for a large slice once at most. A longer time would
/// slow a long write down for the sake of calls that come so seldom that they hardly meet a slice.
const RECENTLY: Duration = Duration::from_secs(1);

/// The connections that have called recently.
#[derive(Debug, Default)]
pub struct Company {
    /// The connection whose call was the last to begin or to end, and when that was.
    last: Option<(u64, Instant)>,
    /// The same of all connections but that one.
    other: Option<(u64, Instant)>,
}

impl Company {
    /// A call of this connection begins or ends.
    pub fn note(&mut self, connection: u64) {
        if self.last.is_some_and(|(last, _)| last != connection) {
            self.other = self.last;
        }
        self.last = Some((connection, Instant::now()));
    }

    /// Returns whether another connection than this one has called recently.
    pub fn is_there(&self, connection: u64) -> bool {
        let other = self.last.filter(|(last, _)| *last != connection).or(self.other);
        other.is_some_and(|(_, when)| when.elapsed() < RECENTLY)
    }

    /// As if all calls had been long ago.
    #[cfg(all(test, not(feature = "explore")))]
    pub fn age(&mut self) {
        for called in [&mut self.last, &mut self.other].into_iter().flatten() {
            called.1 = called.1.checked_sub(RECENTLY).unwrap();
        }
    }
}
