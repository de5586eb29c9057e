//! Calls that have failed in Chroma's binding, and whether others hang in it since.

use std::time::Duration;

use crate::sync::Instant;

/// How long calls may go on in a binding that has failed before one of them ends: a failed call may leave behind a lock
/// that others wait for very long.
const FAILED_CALLS_END_WITHIN: Duration = Duration::from_secs(10);

/// What is known of the failures of the binding since it was opened.
#[derive(Debug, Default)]
pub struct Failures {
    /// The binding must be reopened; and since when none of the calls in it has ended.
    failed: Option<Instant>,
    /// How many calls have failed while it is not known yet whether the binding must be reopened. Finding out needs the
    /// interpreter, which a call that hangs may hold.
    suspects: usize,
    /// Since when none of them has failed or ended.
    suspected: Option<Instant>,
}

impl Failures {
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// A call has failed; `is_new` where it was not known of it.
    pub fn suspect(&mut self, is_new: bool) {
        self.suspects += usize::from(is_new);
        self.suspected = Some(Instant::now());
    }

    /// A call has ended; if it was a suspect, it is not one any more.
    pub fn end_call(&mut self, has_failed: bool, was_suspect: bool) {
        if has_failed || self.failed.is_some() {
            self.failed = Some(Instant::now());
        }
        self.suspects -= usize::from(was_suspect);
        self.suspected = self.suspected.filter(|_| self.suspects > 0);
    }

    /// The binding was reopened.
    pub fn reopened(&mut self) {
        self.failed = None;
    }

    /// How much longer calls in the binding may take until they are taken for hanging; `None` where nothing has failed.
    pub fn hang_in(&self) -> Option<Duration> {
        let since = self.failed.or(self.suspected)?;
        Some(FAILED_CALLS_END_WITHIN.saturating_sub(since.elapsed()))
    }

    /// As if the last failure had been long ago.
    #[cfg(all(test, not(feature = "explore")))]
    pub fn age(&mut self) {
        self.suspected = self.suspected.and_then(|since| since.checked_sub(FAILED_CALLS_END_WITHIN));
    }
}
