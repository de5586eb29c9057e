//! Simulated time, which shuttle lacks.
//!
//! The time is a number. A thread of the execution advances it to the next deadline that another thread waits for. All
//! threads of an execution run on one thread of the operating system, so the standard library's thread-locals belong to
//! the execution as a whole.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, LockResult, PoisonError};
use std::time::Duration;

use shuttle::sync::{Condvar as Inner, MutexGuard};

/// A wait with a longer limit counts as one without a limit: it ends with a notification only.
const FOR_EVER: Duration = Duration::from_secs(3600);

std::thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static WAITING: RefCell<Vec<Waiting>> = const { RefCell::new(Vec::new()) };
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

struct Waiting {
    id: u64,
    until: Duration,
    condvar: Arc<Inner>,
}

/// A moment in the simulated time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    /// Returns the current moment.
    pub fn now() -> Self {
        Self(NOW.get())
    }

    /// Returns the time elapsed since this moment.
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

/// A condition variable with the interface of the standard library's.
#[derive(Debug, Default)]
pub struct Condvar(Arc<Inner>);

impl Condvar {
    /// See [`std::sync::Condvar::new`].
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`std::sync::Condvar::notify_all`].
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// See [`std::sync::Condvar::wait_timeout`]; does not say whether the wait timed out.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, ())> {
        let id = NEXT.replace(NEXT.get() + 1);
        if limit < FOR_EVER {
            let waiting = Waiting { id, until: NOW.get() + limit, condvar: Arc::clone(&self.0) };
            WAITING.with_borrow_mut(|all| all.push(waiting));
            time::set_alarm();
        }
        let guard = self.0.wait(guard);
        WAITING.with_borrow_mut(|all| all.retain(|waiting| waiting.id != id));
        guard.map(|guard| (guard, ())).map_err(|poisoned| PoisonError::new((poisoned.into_inner(), ())))
    }

    /// See [`std::sync::Condvar::wait_timeout_while`]; does not say whether the wait timed out.
    pub fn wait_timeout_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        limit: Duration,
        mut goes_on: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, ())> {
        let until = NOW.get() + limit;
        while goes_on(&mut guard) && NOW.get() < until {
            guard = self.wait_timeout(guard, until.saturating_sub(NOW.get()))?.0;
        }
        Ok((guard, ()))
    }
}

/// The methods that the standard library has for a thread-local [`Cell`].
pub trait CellKey<T> {
    /// Returns a copy of the value.
    fn get(&'static self) -> T;

    /// Replaces the value.
    fn set(&'static self, value: T);
}

impl<T: Copy + 'static> CellKey<T> for shuttle::thread::LocalKey<Cell<T>> {
    fn get(&'static self) -> T {
        self.with(Cell::get)
    }

    fn set(&'static self, value: T) {
        self.with(|cell| cell.set(value));
    }
}

pub mod thread {
    //! Threads, with the interface of `std::thread`.

    use std::time::Duration;

    pub use shuttle::thread::{JoinHandle, ThreadId, current, spawn, yield_now};

    /// Advances the time by `duration`, and lets other threads run.
    pub fn sleep(duration: Duration) {
        super::NOW.set(super::NOW.get() + duration);
        yield_now();
    }
}

pub mod time {
    //! The thread that advances the time.

    use std::cell::RefCell;
    use std::sync::{Arc, PoisonError};
    use std::time::Duration;

    use shuttle::sync::{Condvar, Mutex};
    use shuttle::thread::{self, JoinHandle};

    use super::{NOW, WAITING};

    std::thread_local! {
        static ALARM: RefCell<Option<Arc<Alarm>>> = const { RefCell::new(None) };
    }

    /// Wakes the clock's thread. The clock waits on a condition variable when no deadline is pending, so that a
    /// deadlock of the other threads is still detected.
    #[derive(Debug, Default)]
    struct Alarm {
        state: Mutex<State>,
        changed: Condvar,
    }

    #[derive(Debug, Default)]
    struct State {
        is_set: bool,
        is_over: bool,
    }

    impl Alarm {
        fn change(&self, change: impl FnOnce(&mut State)) {
            change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }

    /// Tells the clock that a thread waits for a deadline.
    pub(super) fn set_alarm() {
        if let Some(alarm) = ALARM.with_borrow(Clone::clone) {
            alarm.change(|state| state.is_set = true);
        }
    }

    /// The thread that advances the time.
    #[derive(Debug)]
    pub struct Clock {
        alarm: Arc<Alarm>,
        thread: JoinHandle<()>,
    }

    impl Clock {
        /// Starts the clock at zero, at the beginning of an execution.
        pub fn start() -> Self {
            let alarm = Arc::new(Alarm::default());
            ALARM.set(Some(Arc::clone(&alarm)));
            NOW.set(Duration::ZERO);
            WAITING.with_borrow_mut(Vec::clear);
            let rings = Arc::clone(&alarm);
            Self { alarm, thread: thread::spawn(move || run(&rings)) }
        }

        /// Stops the clock. No thread may be waiting for a deadline.
        pub fn stop(self) {
            self.alarm.change(|state| state.is_over = true);
            drop(self.thread.join());
        }
    }

    fn run(alarm: &Alarm) {
        loop {
            let mut state = alarm.state.lock().unwrap_or_else(PoisonError::into_inner);
            while !state.is_set && !state.is_over {
                state = alarm.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.is_over {
                return;
            }
            state.is_set = false;
            drop(state);
            // Repeated, because a thread that is only about to wait misses a notification.
            while let Some((until, condvar)) = next() {
                NOW.set(NOW.get().max(until));
                condvar.notify_all();
                thread::yield_now();
            }
        }
    }

    fn next() -> Option<(Duration, Arc<Condvar>)> {
        WAITING.with_borrow(|all| {
            let first = all.iter().min_by_key(|waiting| waiting.until)?;
            Some((first.until, Arc::clone(&first.condvar)))
        })
    }
}
