//! How many databases may be open at once. Plain Rust.

use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::SeqCst;
use crate::sync::fork_gate;

/// Below are the permits that are taken, above is the generation of the process that has taken them: what a forked child
/// inherits does not count there.
const GENERATION: u32 = 32;

/// A permit for each database that is open, or being opened. There is no lock here that somebody could be caught holding.
#[derive(Debug)]
pub struct Permits {
    limit: Option<usize>,
    taken: AtomicU64,
}

impl Permits {
    /// So many at most.
    pub fn new(limit: Option<usize>) -> Self {
        Self { limit, taken: AtomicU64::new(0) }
    }

    /// Takes one; tells whether there was one.
    pub fn take(&self) -> bool {
        self.change(|count| self.limit.is_none_or(|limit| count < limit as u64).then_some(count + 1))
    }

    /// Gives one back.
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
    fn there_are_as_many_as_the_limit_says_and_one_that_was_given_back_is_taken_again() {
        let places = Permits::new(Some(2));
        assert_eq!([places.take(), places.take(), places.take()], [true, true, false]);
        places.release();
        assert_eq!([places.take(), places.take()], [true, false]);
        let unlimited = Permits::new(None);
        assert!((0..100).all(|_| unlimited.take()));
    }
}
