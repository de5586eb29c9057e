//! What shuttle does not have: time. It is a number here, and a thread of the execution moves it on, to the next moment for
//! which somebody waits. All threads of an execution are one thread of the system, so that what is kept in a thread-local
//! of the standard library is the execution's.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, LockResult, PoisonError};
use std::time::Duration;

use shuttle::sync::{Condvar as Inner, MutexGuard};

/// Who waits for longer waits for a notification: the limit is only there so that the wait has one.
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

/// A moment of the execution.
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

/// As the standard library's.
#[derive(Debug, Default)]
pub struct Condvar(Arc<Inner>);

impl Condvar {
    /// As the standard library's.
    pub fn new() -> Self {
        Self::default()
    }

    /// As the standard library's.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// As the standard library's, but for what it tells of the time.
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

    /// As the standard library's, but for what it tells of the time.
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

/// A thread-local cell, as the standard library has it.
pub trait CellKey<T> {
    /// What is in it.
    fn get(&'static self) -> T;

    /// Puts something else into it.
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
    //! As the standard library's.

    use std::time::Duration;

    pub use shuttle::thread::{JoinHandle, ThreadId, current, spawn, yield_now};

    /// As the standard library's: time goes on.
    pub fn sleep(duration: Duration) {
        super::NOW.set(super::NOW.get() + duration);
        yield_now();
    }
}

pub mod time {
    //! What moves time on.

    use std::cell::RefCell;
    use std::sync::{Arc, PoisonError};
    use std::time::Duration;

    use shuttle::sync::{Condvar, Mutex};
    use shuttle::thread::{self, JoinHandle};

    use super::{NOW, WAITING};

    std::thread_local! {
        static ALARM: RefCell<Option<Arc<Alarm>>> = const { RefCell::new(None) };
    }

    /// What the thread waits for that moves time on. It does not keep a deadlock from being one.
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

    /// Somebody waits for a moment.
    pub(super) fn set_alarm() {
        if let Some(alarm) = ALARM.with_borrow(Clone::clone) {
            alarm.change(|state| state.is_set = true);
        }
    }

    /// The thread that moves time on.
    #[derive(Debug)]
    pub struct Clock {
        alarm: Arc<Alarm>,
        thread: JoinHandle<()>,
    }

    impl Clock {
        /// Time begins, at the beginning of an execution.
        pub fn start() -> Self {
            let alarm = Arc::new(Alarm::default());
            ALARM.set(Some(Arc::clone(&alarm)));
            NOW.set(Duration::ZERO);
            WAITING.with_borrow_mut(Vec::clear);
            let rings = Arc::clone(&alarm);
            Self { alarm, thread: thread::spawn(move || run(&rings)) }
        }

        /// Nobody waits any more.
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
            // Again and again, for whoever is about to wait misses it.
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
