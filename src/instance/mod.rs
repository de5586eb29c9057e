//! The life of one instance: closed, opening, open, closing; and cleaned up, which is final.
//!
//! Plain Rust, generic over the type of an open database; Python and the engines are elsewhere. `pool/registry.rs`
//! keeps the instances, and `connection.rs` calls through them.
//!
//! The state is protected by the standard library's mutex, because threads wait on it with a condition variable that
//! has no process-wide table for a fork to catch locked. The mutex is held for a few instructions, never while a
//! database is opened, called or closed. Code that is attached to the interpreter takes it with
//! `python::gil::Lock::take`; waits are always detached.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `state.rs` | in which state it is |
//! | `key.rs` | its key, and the path that belongs to that |

pub mod key;
mod state;
#[cfg(all(test, not(feature = "explore")))]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::key::Key;
use self::state::Phase;
pub use self::state::State;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::fork_gate;
use crate::sync::{Condvar, Mutex, MutexGuard, thread};

/// The state of one instance in this process.
#[derive(Debug)]
pub struct Instance<D> {
    key: Key,
    path: PathBuf,
    generation: u64,
    ended: AtomicBool,
    last_used: AtomicU64,
    /// The number of threads that wait for exclusive maintenance.
    maintenance_requests: AtomicUsize,
    /// How often the directory was replaced while the database was in use.
    replacements: AtomicUsize,
    pub(crate) state: Mutex<State<D>>,
    changed: Condvar,
}

/// What a caller must do next to use the database.
#[derive(Debug)]
pub enum Enter<D> {
    /// Use the database, then call [`Instance::leave`].
    Ready(Arc<D>),
    /// Open the database, then call [`Instance::opened`] or [`Instance::failed`].
    MustOpen,
    /// Call [`Instance::wait_until_settled`], then try again: another thread is opening or closing the database, or
    /// waits for exclusive maintenance.
    Wait,
    /// Give up: this thread itself is opening or closing the database, further up its call stack.
    Busy,
    /// Give up: the instance was cleaned up.
    CleanedUp,
}

impl<D> Instance<D> {
    /// Creates a closed instance.
    pub fn new(key: Key, base_path: &Path) -> Self {
        let path = key.path(base_path);
        Self {
            key,
            path,
            generation: fork_gate::generation(),
            ended: AtomicBool::new(false),
            last_used: AtomicU64::new(now_millis()),
            maintenance_requests: AtomicUsize::new(0),
            replacements: AtomicUsize::new(0),
            state: Mutex::new(State { phase: Phase::Closed, in_flight: 0, opened_at: None }),
            changed: Condvar::new(),
        }
    }

    /// Returns the key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Returns the absolute path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether this process created the instance, rather than inherited it through a fork.
    pub fn belongs_to_this_process(&self) -> bool {
        self.generation == fork_gate::generation()
    }

    /// Returns whether the instance was cleaned up.
    pub fn is_cleaned_up(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Marks the instance as cleaned up: no more calls enter. Those in flight continue.
    pub fn mark_cleaned_up(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Counts a replacement of the directory.
    pub fn count_replacement(&self) {
        self.replacements.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often the directory was replaced while the database was in use.
    pub fn times_replaced(&self) -> usize {
        self.replacements.load(Ordering::Relaxed)
    }

    /// Records that the instance is in use now.
    pub fn touch(&self) {
        self.last_used.store(now_millis(), Ordering::Relaxed);
    }

    /// Returns the time of the last use, in seconds since the Unix epoch.
    pub fn last_used(&self) -> f64 {
        Duration::from_millis(self.last_used.load(Ordering::Relaxed)).as_secs_f64()
    }

    /// Returns whether the instance has been unused for at least `idle`.
    pub fn is_idle_for(&self, idle: Duration) -> bool {
        let unused = now_millis().saturating_sub(self.last_used.load(Ordering::Relaxed));
        u128::from(unused) >= idle.as_millis()
    }

    /// Tries to enter the database. `Ready` counts the caller as in flight, `MustOpen` puts the opening in its hands.
    pub fn enter(&self, mut state: MutexGuard<'_, State<D>>) -> Enter<D> {
        if self.is_cleaned_up() {
            return Enter::CleanedUp;
        }
        match &state.phase {
            // A thread waits for the calls in flight to end. A nested call must enter: its outer call is one of them.
            Phase::Open(_) if self.maintenance_requests.load(Ordering::SeqCst) > 0 && !fork_gate::nested() => {
                Enter::Wait
            }
            Phase::Open(database) => {
                let database = Arc::clone(database);
                state.in_flight += 1;
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

    /// Ends a call. The caller must have dropped its `Arc` of the database.
    pub fn leave(&self, mut state: MutexGuard<'_, State<D>>) {
        state.in_flight -= 1;
        if state.in_flight == 0 {
            self.changed.notify_all();
        }
    }

    /// Completes the opening that `MustOpen` asked for.
    pub fn opened(&self, mut state: MutexGuard<'_, State<D>>, database: D) {
        state.phase = Phase::Open(Arc::new(database));
        state.opened_at = Some(SystemTime::now());
        self.changed.notify_all();
    }

    /// Abandons the opening that `MustOpen` asked for; the next caller may try again.
    pub fn failed(&self, mut state: MutexGuard<'_, State<D>>) {
        state.phase = Phase::Closed;
        self.changed.notify_all();
    }

    /// Takes the database out for closing, if it is open and no call is in flight. The caller closes it, then calls
    /// [`Instance::closed`].
    ///
    /// # Panics
    ///
    /// Panics if a caller has kept its `Arc` of the database beyond [`Instance::leave`].
    pub fn begin_closing(&self, mut state: MutexGuard<'_, State<D>>) -> Option<D> {
        if state.in_flight > 0 || !matches!(state.phase, Phase::Open(_)) {
            return None;
        }
        let Phase::Open(database) = std::mem::replace(&mut state.phase, Phase::Closing(thread::current().id())) else {
            unreachable!("the phase was open")
        };
        state.opened_at = None;
        Some(Arc::into_inner(database).expect("callers drop their reference before they leave"))
    }

    /// Like [`Instance::begin_closing`], but only if the open database is still this one.
    pub fn begin_closing_of(&self, state: MutexGuard<'_, State<D>>, database: &Weak<D>) -> Option<D> {
        if state.is_open_with(database) { self.begin_closing(state) } else { None }
    }

    /// Requests exclusive maintenance: no new call enters while the returned guard lives.
    pub fn request_maintenance(&self) -> MaintenanceRequest<'_, D> {
        self.maintenance_requests.fetch_add(1, Ordering::SeqCst);
        MaintenanceRequest(self)
    }

    /// Begins exclusive maintenance if no call is in flight, and returns the database if it was open: the caller closes
    /// it first. [`Instance::closed`] ends the maintenance.
    pub fn begin_maintenance(&self, mut state: MutexGuard<'_, State<D>>) -> Option<Option<D>> {
        if state.is_closed() {
            state.phase = Phase::Closing(thread::current().id());
            return Some(None);
        }
        self.begin_closing(state).map(Some)
    }

    /// Completes a closing, or exclusive maintenance.
    pub fn closed(&self, mut state: MutexGuard<'_, State<D>>) {
        state.phase = Phase::Closed;
        self.changed.notify_all();
    }

    /// Waits for at most `limit` until nothing is opening or closing the database. Must not be called while attached to
    /// the interpreter.
    pub fn wait_until_settled(&self, limit: Duration) {
        self.wait(limit, |state| {
            state.is_closed() || (state.is_open() && self.maintenance_requests.load(Ordering::SeqCst) == 0)
        });
    }

    /// Waits for at most `limit` until nothing is opening or closing the database and no call is in flight. Must not be
    /// called while attached to the interpreter.
    pub fn wait_until_quiesced(&self, limit: Duration) {
        self.wait(limit, |state| state.is_settled() && state.in_flight == 0);
    }

    fn wait(&self, limit: Duration, is_over: impl Fn(&State<D>) -> bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(state, limit, |state| !is_over(state)));
    }
}

/// A pending request for exclusive maintenance. Dropping it withdraws the request.
#[derive(Debug)]
pub struct MaintenanceRequest<'a, D>(&'a Instance<D>);

impl<D> Drop for MaintenanceRequest<'_, D> {
    fn drop(&mut self) {
        self.0.maintenance_requests.fetch_sub(1, Ordering::SeqCst);
        // A waiter that misses this notification looks again soon: every wait is short.
        self.0.changed.notify_all();
    }
}

/// Returns the milliseconds since the Unix epoch, by a clock that never steps back during the life of the process.
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
