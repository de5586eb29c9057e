//! The life of one instance: closed, opening, open, closing; and, after an explicit cleanup, ended.
//!
//! Plain Rust, generic over what an open database is: no Python and no engine here. `registry.rs` keeps the instances,
//! `connection.rs` calls through them.
//!
//! The state has a lock of the standard library, because threads wait on it and its waiting keeps nothing global that a
//! fork could tear. It is held for a few instructions, never while anything is opened, called or closed. Code that is
//! attached to the interpreter takes it with `attached::lock`; waiting is always detached.

pub mod key;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::instance::key::Key;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::fork_gate;
use crate::sync::thread::ThreadId;
use crate::sync::{Condvar, Mutex, MutexGuard, thread};

/// One instance as this process sees it.
#[derive(Debug)]
pub struct Instance<D> {
    key: Key,
    path: PathBuf,
    generation: u64,
    ended: AtomicBool,
    last_used: AtomicU64,
    /// How many wait for nobody to be inside, so that they can work on the closed database.
    wanted: AtomicUsize,
    /// How often its directory was replaced under somebody.
    replaced: AtomicUsize,
    pub(crate) state: Mutex<State<D>>,
    changed: Condvar,
}

/// What the lock of an instance protects.
#[derive(Debug)]
pub struct State<D> {
    phase: Phase<D>,
    under_way: usize,
    opened_at: Option<SystemTime>,
}

#[derive(Debug)]
enum Phase<D> {
    Closed,
    Opening(ThreadId),
    Open(Arc<D>),
    Closing(ThreadId),
}

/// What a caller who wants the open database has to do next.
#[derive(Debug)]
pub enum Enter<D> {
    /// Use it, then [`Instance::leave`].
    Ready(Arc<D>),
    /// Open it, then [`Instance::opened`] or [`Instance::failed`].
    MustOpen,
    /// Another thread is opening or closing it: [`Instance::wait_until_settled`], then ask again.
    Wait,
    /// This very thread is opening or closing it, further down its stack.
    Busy,
    /// It was cleaned up.
    CleanedUp,
}

impl<D> Instance<D> {
    /// A closed instance.
    pub fn new(key: Key, base_path: &Path) -> Self {
        let path = key.path(base_path);
        Self {
            key,
            path,
            generation: fork_gate::generation(),
            ended: AtomicBool::new(false),
            last_used: AtomicU64::new(now_millis()),
            wanted: AtomicUsize::new(0),
            replaced: AtomicUsize::new(0),
            state: Mutex::new(State { phase: Phase::Closed, under_way: 0, opened_at: None }),
            changed: Condvar::new(),
        }
    }

    /// Its key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Its directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was made by this process, and not by one that this one was forked from.
    pub fn is_of_this_process(&self) -> bool {
        self.generation == fork_gate::generation()
    }

    /// Whether it was cleaned up.
    pub fn is_cleaned_up(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// From now on nobody enters. What is under way goes on.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Its directory was replaced under somebody.
    pub fn replaced(&self) {
        self.replaced.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was so.
    pub fn times_replaced(&self) -> usize {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Notes that it is in use.
    pub fn touch(&self) {
        self.last_used.store(now_millis(), Ordering::Relaxed);
    }

    /// When it was last used, in seconds since 1970.
    pub fn last_used(&self) -> f64 {
        Duration::from_millis(self.last_used.load(Ordering::Relaxed)).as_secs_f64()
    }

    /// Whether it was not used for `idle`.
    pub fn is_idle_for(&self, idle: Duration) -> bool {
        let unused = now_millis().saturating_sub(self.last_used.load(Ordering::Relaxed));
        u128::from(unused) >= idle.as_millis()
    }

    /// Asks for the open database; `Ready` counts the caller in.
    pub fn enter(&self, mut state: MutexGuard<'_, State<D>>) -> Enter<D> {
        if self.is_cleaned_up() {
            return Enter::CleanedUp;
        }
        match &state.phase {
            // Somebody waits for the others to leave; but a call within a call is what they wait for.
            Phase::Open(_) if self.wanted.load(Ordering::SeqCst) > 0 && !fork_gate::nested() => Enter::Wait,
            Phase::Open(database) => {
                let database = Arc::clone(database);
                state.under_way += 1;
                Enter::Ready(database)
            }
            Phase::Closed => {
                state.phase = Phase::Opening(thread::current().id());
                Enter::MustOpen
            }
            Phase::Opening(by) | Phase::Closing(by) if *by == thread::current().id() => Enter::Busy,
            Phase::Opening(_) | Phase::Closing(_) => Enter::Wait,
        }
    }

    /// Counts a caller out, whose share of the database must be gone by then.
    pub fn leave(&self, mut state: MutexGuard<'_, State<D>>) {
        state.under_way -= 1;
        if state.under_way == 0 {
            self.changed.notify_all();
        }
    }

    /// The opening that `MustOpen` asked for has succeeded.
    pub fn opened(&self, mut state: MutexGuard<'_, State<D>>, database: D) {
        state.phase = Phase::Open(Arc::new(database));
        state.opened_at = Some(SystemTime::now());
        self.changed.notify_all();
    }

    /// The opening that `MustOpen` asked for has failed; the next one may try again.
    pub fn failed(&self, mut state: MutexGuard<'_, State<D>>) {
        state.phase = Phase::Closed;
        self.changed.notify_all();
    }

    /// The database, to be closed, if it is open and nobody is inside; then [`Instance::closed`].
    ///
    /// # Panics
    ///
    /// If a caller has kept its share of the database beyond [`Instance::leave`].
    pub fn begin_closing(&self, mut state: MutexGuard<'_, State<D>>) -> Option<D> {
        if state.under_way > 0 || !matches!(state.phase, Phase::Open(_)) {
            return None;
        }
        let Phase::Open(database) = std::mem::replace(&mut state.phase, Phase::Closing(thread::current().id())) else {
            unreachable!("the phase was open")
        };
        state.opened_at = None;
        Some(Arc::into_inner(database).expect("callers give up their share before they are counted out"))
    }

    /// The same, if it is still this database that is open.
    pub fn begin_closing_of(&self, state: MutexGuard<'_, State<D>>, database: &Weak<D>) -> Option<D> {
        if state.is_open_with(database) { self.begin_closing(state) } else { None }
    }

    /// As long as what is returned lives, nobody new enters.
    pub fn want_maintenance(&self) -> Wanted<'_, D> {
        self.wanted.fetch_add(1, Ordering::SeqCst);
        Wanted(self)
    }

    /// Lets nobody in for some work on the closed database, if nobody is inside; then [`Instance::closed`]. Where it was
    /// open, the database is returned, to be closed first.
    pub fn begin_maintenance(&self, mut state: MutexGuard<'_, State<D>>) -> Option<Option<D>> {
        if state.is_closed() {
            state.phase = Phase::Closing(thread::current().id());
            return Some(None);
        }
        self.begin_closing(state).map(Some)
    }

    /// The closing is done.
    pub fn closed(&self, mut state: MutexGuard<'_, State<D>>) {
        state.phase = Phase::Closed;
        self.changed.notify_all();
    }

    /// Waits, at most for `limit`, for whoever is opening or closing it. Never while attached to the interpreter.
    pub fn wait_until_settled(&self, limit: Duration) {
        self.wait(limit, |state| state.is_closed() || (state.is_open() && self.wanted.load(Ordering::SeqCst) == 0));
    }

    /// Waits, at most for `limit`, for that and for the calls under way. Never while attached to the interpreter.
    pub fn wait_until_quiesced(&self, limit: Duration) {
        self.wait(limit, |state| state.is_settled() && state.under_way == 0);
    }

    fn wait(&self, limit: Duration, is_over: impl Fn(&State<D>) -> bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(state, limit, |state| !is_over(state)));
    }
}

/// Somebody wants to work on the closed database.
#[derive(Debug)]
pub struct Wanted<'a, D>(&'a Instance<D>);

impl<D> Drop for Wanted<'_, D> {
    fn drop(&mut self) {
        self.0.wanted.fetch_sub(1, Ordering::SeqCst);
        // Whoever misses it looks again in a moment: no wait is longer than that.
        self.0.changed.notify_all();
    }
}

impl<D> State<D> {
    /// Whether the database is open.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Whether this database is the one that is open.
    pub fn is_open_with(&self, database: &Weak<D>) -> bool {
        matches!(&self.phase, Phase::Open(open) if Weak::as_ptr(database) == Arc::as_ptr(open))
    }

    /// Whether the database is closed, and nobody is opening it.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// When it was opened, in seconds since 1970.
    pub fn opened_at(&self) -> Option<f64> {
        self.opened_at.map(|at| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
    }

    /// Whether this thread is opening or closing it, further down its stack.
    pub fn is_in_hands_of_this_thread(&self) -> bool {
        matches!(&self.phase, Phase::Opening(by) | Phase::Closing(by) if *by == thread::current().id())
    }

    fn is_settled(&self) -> bool {
        self.is_open() || self.is_closed()
    }
}

/// Wall-clock milliseconds that never step back while the process lives.
fn now_millis() -> u64 {
    static START: std::sync::OnceLock<(u64, Instant)> = std::sync::OnceLock::new();
    let (epoch, start) = START.get_or_init(|| {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (millis(since_1970), Instant::now())
    });
    epoch + millis(start.elapsed())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    const LONG: Duration = Duration::from_secs(10);

    fn instance() -> Arc<Instance<&'static str>> {
        Arc::new(Instance::new(Key::new("doc", "azure").unwrap(), Path::new("/base")))
    }

    fn state<D>(instance: &Instance<D>) -> MutexGuard<'_, State<D>> {
        instance.state.lock().unwrap()
    }

    fn enter<D>(instance: &Instance<D>) -> Enter<D> {
        instance.enter(state(instance))
    }

    #[test]
    fn the_first_caller_opens_and_the_others_wait_for_it() {
        let instance = instance();
        assert!(matches!(enter(&instance), Enter::MustOpen));
        let other = Arc::clone(&instance);
        assert!(matches!(thread::spawn(move || enter(&other)).join().unwrap(), Enter::Wait));
        instance.opened(state(&instance), "open");
        assert!(matches!(enter(&instance), Enter::Ready(_)));
    }

    #[test]
    fn a_thread_that_is_opening_is_told_so_instead_of_waiting_for_itself() {
        let instance = instance();
        assert!(matches!(enter(&instance), Enter::MustOpen));
        assert!(matches!(enter(&instance), Enter::Busy));
    }

    #[test]
    fn after_a_failed_opening_the_next_caller_tries_again() {
        let instance = instance();
        assert!(matches!(enter(&instance), Enter::MustOpen));
        instance.failed(state(&instance));
        assert!(matches!(enter(&instance), Enter::MustOpen));
    }

    #[test]
    fn a_database_is_not_closed_under_a_call() {
        let instance = instance();
        enter(&instance);
        instance.opened(state(&instance), "open");
        let Enter::Ready(database) = enter(&instance) else { panic!("it is open") };
        assert!(instance.begin_closing(state(&instance)).is_none());
        drop(database);
        instance.leave(state(&instance));
        assert_eq!(instance.begin_closing(state(&instance)), Some("open"));
        assert!(!state(&instance).is_closed(), "closing takes until it is done");
        instance.closed(state(&instance));
        assert!(matches!(enter(&instance), Enter::MustOpen), "an idle close is not an end");
    }

    #[test]
    fn an_ended_instance_lets_nobody_in_and_can_still_be_closed() {
        let instance = instance();
        enter(&instance);
        instance.opened(state(&instance), "open");
        instance.end();
        assert!(matches!(enter(&instance), Enter::CleanedUp));
        assert!(instance.begin_closing(state(&instance)).is_some());
    }

    #[test]
    fn waiting_ends_with_the_change_and_does_not_begin_without_one() {
        let instance = instance();
        let start = Instant::now();
        instance.wait_until_quiesced(LONG);
        enter(&instance);
        let waiter = Arc::clone(&instance);
        let thread = thread::spawn(move || waiter.wait_until_settled(LONG));
        thread::sleep(Duration::from_millis(20));
        instance.opened(state(&instance), "open");
        thread.join().unwrap();
        assert!(start.elapsed() < LONG / 2);
    }

    #[test]
    fn a_call_under_way_is_waited_for_only_by_who_asks_for_quiet() {
        let instance = instance();
        enter(&instance);
        instance.opened(state(&instance), "open");
        let Enter::Ready(database) = enter(&instance) else { panic!("it is open") };
        let start = Instant::now();
        instance.wait_until_settled(LONG);
        assert!(start.elapsed() < LONG / 2);
        let waiter = Arc::clone(&instance);
        let thread = thread::spawn(move || waiter.wait_until_quiesced(LONG));
        thread::sleep(Duration::from_millis(20));
        assert!(!thread.is_finished());
        drop(database);
        instance.leave(state(&instance));
        thread.join().unwrap();
        assert!(start.elapsed() < LONG / 2);
    }

    #[test]
    fn a_database_is_closed_for_what_was_found_about_it_and_not_for_what_was_found_about_one_before() {
        let instance = instance();
        enter(&instance);
        instance.opened(state(&instance), "first");
        let Enter::Ready(database) = enter(&instance) else { panic!("it is open") };
        let first = Arc::downgrade(&database);
        assert!(instance.begin_closing_of(state(&instance), &first).is_none(), "somebody is inside");
        drop(database);
        instance.leave(state(&instance));
        assert_eq!(instance.begin_closing_of(state(&instance), &first), Some("first"));
        instance.closed(state(&instance));
        enter(&instance);
        instance.opened(state(&instance), "second");
        assert!(instance.begin_closing_of(state(&instance), &first).is_none());
        assert!(state(&instance).is_open());
    }

    #[test]
    fn work_on_a_closed_database_lets_nobody_in() {
        let instance = instance();
        enter(&instance);
        instance.opened(state(&instance), "open");
        let Enter::Ready(database) = enter(&instance) else { panic!("it is open") };
        assert!(instance.begin_maintenance(state(&instance)).is_none(), "somebody is inside");
        drop(database);
        instance.leave(state(&instance));
        assert_eq!(instance.begin_maintenance(state(&instance)), Some(Some("open")));
        let other = Arc::clone(&instance);
        assert!(matches!(thread::spawn(move || enter(&other)).join().unwrap(), Enter::Wait));
        instance.closed(state(&instance));
        assert_eq!(instance.begin_maintenance(state(&instance)), Some(None));
        instance.closed(state(&instance));
        assert!(matches!(enter(&instance), Enter::MustOpen));
    }

    #[test]
    fn who_wants_to_work_on_it_is_not_kept_waiting_by_newcomers() {
        let instance = instance();
        enter(&instance);
        instance.opened(state(&instance), "open");
        let Enter::Ready(database) = enter(&instance) else { panic!("it is open") };
        let wanted = instance.want_maintenance();
        assert!(matches!(enter(&instance), Enter::Wait));
        let waiter = Arc::clone(&instance);
        let thread = thread::spawn(move || waiter.wait_until_settled(Duration::from_millis(50)));
        thread.join().unwrap();
        drop(database);
        instance.leave(state(&instance));
        assert!(instance.begin_maintenance(state(&instance)).is_some());
        drop(wanted);
        instance.closed(state(&instance));
        assert!(matches!(enter(&instance), Enter::MustOpen));
    }

    #[test]
    fn idle_time_begins_anew_with_every_use() {
        let instance = instance();
        thread::sleep(Duration::from_millis(30));
        assert!(instance.is_idle_for(Duration::from_millis(20)));
        instance.touch();
        assert!(!instance.is_idle_for(Duration::from_millis(20)));
    }

    #[test]
    fn threads_that_race_open_it_once_and_close_it_once() {
        let (instance, openings, closings) = (instance(), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        match enter(&instance) {
                            Enter::Ready(database) => {
                                drop(database);
                                instance.leave(state(&instance));
                                if instance.begin_closing(state(&instance)).is_some() {
                                    closings.fetch_add(1, Ordering::Relaxed);
                                    instance.closed(state(&instance));
                                }
                            }
                            Enter::MustOpen => {
                                openings.fetch_add(1, Ordering::Relaxed);
                                instance.opened(state(&instance), "open");
                            }
                            Enter::Wait => instance.wait_until_settled(LONG),
                            Enter::Busy | Enter::CleanedUp => panic!("nobody is nested, nothing has ended"),
                        }
                    }
                });
            }
        });
        let left_open = usize::from(instance.begin_closing(state(&instance)).is_some());
        assert_eq!(openings.into_inner(), closings.into_inner() + left_open);
    }
}
