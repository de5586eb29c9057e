//! The limit on open databases. Plain Rust.

use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::SeqCst;
use crate::sync::fork_gate;

/// The lowest bit of the generation of the process that has taken the permits. The bits below count the permits. Those
/// that a forked child inherits have another generation, and do not count there.
const GENERATION: u32 = 32;

/// The permits: one for each database that is open or being opened. Atomics only: a fork cannot catch a thread holding
/// a lock.
#[derive(Debug)]
pub struct Permits {
    limit: Option<usize>,
    taken: AtomicU64,
}

impl Permits {
    /// Creates `limit` permits, or unlimited ones.
    pub fn new(limit: Option<usize>) -> Self {
        Self { limit, taken: AtomicU64::new(0) }
    }

    /// Takes a permit, and returns whether one was free.
    pub fn take(&self) -> bool {
        self.change(|count| self.limit.is_none_or(|limit| count < limit as u64).then_some(count + 1))
    }

    /// Releases a permit.
    pub fn release(&self) {
        self.change(|count| Some(count.saturating_sub(1)));
    }

    fn change(&self, change: impl Fn(u64) -> Option<u64>) -> bool {
        let of_this_process = fork_gate::generation() << GENERATION;
        let count =
            |taken: u64| if taken >> GENERATION << GENERATION == of_this_process { taken - of_this_process } else { 0 };
        self.taken.fetch_update(SeqCst, SeqCst, |taken| Some(of_this_process + change(count(taken))?)).is_ok()
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_permits_as_the_limit_says_and_a_released_one_can_be_taken_again() {
        let permits = Permits::new(Some(2));
        assert_eq!([permits.take(), permits.take(), permits.take()], [true, true, false]);
        permits.release();
        assert_eq!([permits.take(), permits.take()], [true, false]);
        let unlimited = Permits::new(None);
        assert!((0..100).all(|_| unlimited.take()));
    }
}
