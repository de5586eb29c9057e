//! What the state machines lock, count and wait with: the standard library's; or, with the feature `explore`, shuttle's,
//! which decides at each of these steps which thread goes on (`src/explored/`).
//!
//! There, a wait with a limit ends with a notification only. Time is a number that a test moves on, waking all who wait.

#[cfg(not(feature = "explore"))]
pub use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread, thread_local,
    time::Instant,
};

#[cfg(feature = "explore")]
pub use self::time::Instant;
#[cfg(feature = "explore")]
pub use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread, thread_local,
};

#[cfg(feature = "explore")]
pub mod time {
    //! The time of an explored execution. All its threads are one thread of the system.

    use std::cell::Cell;
    use std::time::Duration;

    std::thread_local! {
        static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    /// A moment of it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Instant(Duration);

    impl Instant {
        /// This one.
        pub fn now() -> Self {
            Self(NOW.get())
        }

        /// How long ago it was.
        pub fn elapsed(&self) -> Duration {
            NOW.get().saturating_sub(self.0)
        }
    }

    impl std::ops::Add<Duration> for Instant {
        type Output = Self;

        fn add(self, duration: Duration) -> Self {
            Self(self.0 + duration)
        }
    }

    /// Time begins anew.
    pub fn reset() {
        NOW.set(Duration::ZERO);
    }

    /// Time goes on.
    pub fn pass(duration: Duration) {
        NOW.set(NOW.get() + duration);
    }
}
