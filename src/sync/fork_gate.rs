//! The gate that every call into an engine passes, so that a fork and process exit can wait for calls.
//!
//! An engine in this process has threads, locks and half-written files of its own. A child that is forked in the middle
//! of its work inherits this state and hangs on the first lock whose holder was not copied. A fork therefore stops such
//! work and waits for the calls in flight. It does not wait for calls that are executed in another process; process
//! exit waits for both kinds.
//!
//! Plain Rust, atomics only: a fork cannot catch a thread holding a lock here.

use std::cell::Cell;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::atomic::AtomicUsize;
use super::atomic::Ordering::SeqCst;
use super::{Instant, thread, thread_local};
#[cfg(feature = "explore")]
use crate::sync::CellKey;

const POLL: Duration = Duration::from_millis(1);

/// The bit of the gate's state that stops the calls of all other threads for good. The lower bits count the pending
/// forks: several threads may fork at a time, and a fork hook may itself fork.
const ENDED: usize = 1 << (usize::BITS - 1);

static GATE: Gate = Gate::new();
static GENERATION: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static DEPTH_HERE: Cell<usize> = const { Cell::new(0) };
    /// The number of pauses that belong to this thread, which they do not stop.
    static PAUSES: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread has called [`end`], which does not stop it.
    static ENDS: Cell<bool> = const { Cell::new(false) };
}

/// Where a call is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// In this process: a fork waits for the call.
    Here,
    /// In another process, while this one waits for the response: a fork does not wait.
    Elsewhere,
}

/// The gate. A process has one; tests create their own.
#[derive(Debug)]
pub struct Gate {
    state: AtomicUsize,
    in_flight: AtomicUsize,
    in_flight_here: AtomicUsize,
}

/// A call in flight. Dropping it ends the call.
#[derive(Debug)]
pub struct Pass {
    gate: &'static Gate,
    work: Work,
}

impl Pass {
    /// Returns a pass, or `None` while calls are stopped: the caller then waits with [`wait_for_gate`], detached, and
    /// tries again.
    pub fn try_new(work: Work) -> Option<Self> {
        GATE.try_pass(work)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.work == Work::Here {
            DEPTH_HERE.set(DEPTH_HERE.get() - 1);
            self.gate.in_flight_here.fetch_sub(1, SeqCst);
        }
        DEPTH.set(DEPTH.get() - 1);
        self.gate.in_flight.fetch_sub(1, SeqCst);
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    const fn new() -> Self {
        Self { state: AtomicUsize::new(0), in_flight: AtomicUsize::new(0), in_flight_here: AtomicUsize::new(0) }
    }

    /// See [`Pass::try_new`].
    pub(crate) fn try_pass(&'static self, work: Work) -> Option<Pass> {
        self.in_flight.fetch_add(1, SeqCst);
        if work == Work::Here {
            self.in_flight_here.fetch_add(1, SeqCst);
        }
        // A nested call (in a signal handler or a finalizer) must not wait for a fork that waits for the outer call.
        let stopped = match self.state.load(SeqCst) {
            0 => false,
            pauses if pauses < ENDED => work == Work::Here && DEPTH_HERE.get() == 0,
            _ => DEPTH.get() == 0,
        };
        DEPTH.set(DEPTH.get() + 1);
        if work == Work::Here {
            DEPTH_HERE.set(DEPTH_HERE.get() + 1);
        }
        let pass = Pass { gate: self, work };
        let is_exempt = PAUSES.get() > 0 || ENDS.get();
        (!stopped || is_exempt).then_some(pass)
    }

    /// See [`wait_for_gate`].
    pub(crate) fn wait(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let state = self.state.load(SeqCst);
            if state == 0 || (state < ENDED && Instant::now() >= deadline) {
                return;
            }
            thread::sleep(POLL);
        }
    }

    /// See [`pause`].
    pub(crate) fn pause(&self, limit: Duration) -> bool {
        PAUSES.set(PAUSES.get() + 1);
        self.state.fetch_add(1, SeqCst);
        wait_while(limit, || self.in_flight_here.load(SeqCst) > DEPTH_HERE.get())
    }

    /// See [`resume`].
    pub(crate) fn resume(&self) {
        // A child that was forked in a hook of another fork comes here as well, and has no pause.
        if PAUSES.get() > 0 {
            PAUSES.set(PAUSES.get() - 1);
            self.state.fetch_sub(1, SeqCst);
        }
    }

    fn end(&self, limit: Duration) -> bool {
        ENDS.set(true);
        self.state.fetch_or(ENDED, SeqCst);
        wait_while(limit, || self.in_flight.load(SeqCst) > DEPTH.get())
    }

    fn reset_in_child(&self) {
        self.in_flight.store(DEPTH.get(), SeqCst);
        self.in_flight_here.store(DEPTH_HERE.get(), SeqCst);
        self.state.store(0, SeqCst);
        PAUSES.set(0);
        ENDS.set(false);
    }
}

/// Waits for a pass for work in this process. Must not be called while attached to the interpreter.
pub fn here() -> Pass {
    loop {
        if let Some(pass) = Pass::try_new(Work::Here) {
            return pass;
        }
        wait_for_gate(POLL);
    }
}

/// Returns whether this thread is inside a call, and would wait for itself if it waited for calls to end.
pub fn inside_call() -> bool {
    DEPTH.get() > 0
}

/// Returns whether the innermost call of this thread is nested in another one.
pub fn nested() -> bool {
    DEPTH.get() > 1
}

/// Waits for at most `limit` until calls may begin again. Never returns after [`end`]: the process is about to exit,
/// and the thread could only fail in the meantime.
pub fn wait_for_gate(limit: Duration) {
    GATE.wait(limit);
}

/// Stops new work in this process and waits for at most `limit` for the work of other threads. Returns whether it has
/// ended in time. Each thread must call [`resume`] as often as it has called this function.
pub fn pause(limit: Duration) -> bool {
    GATE.pause(limit)
}

/// Ends one pause of this thread. Work may begin again after the last pause has ended.
pub fn resume() {
    GATE.resume();
}

/// Stops the calls of all other threads for good, and waits for at most `limit` for those in flight. Returns whether
/// they have ended in time.
pub fn end(limit: Duration) -> bool {
    GATE.end(limit)
}

/// Resets the gate in a forked child, where the threads that were inside a call do not exist.
pub fn reset_in_child() {
    GENERATION.fetch_add(1, SeqCst);
    GATE.reset_in_child();
}

/// Returns the number of forks between the process that first loaded this library and this one.
pub fn generation() -> u64 {
    GENERATION.load(SeqCst)
}

fn wait_while(limit: Duration, goes_on: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while goes_on() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

#[cfg(all(test, not(feature = "explore")))]
mod tests;
