//! Every call into an engine of this process passes here, so that a fork and the end of the process can wait for them.
//!
//! An engine has threads, locks and half-written files of its own. A child forked in the middle of a call inherits all of
//! that as it stands and hangs on the first lock whose holder it does not have; so a fork stops new calls and waits for
//! those under way, and so does the end of the process. Plain Rust, atomics only: there is no lock here that a fork could
//! catch somebody holding.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const OPEN: u8 = 0;
const PAUSED: u8 = 1;
const ENDED: u8 = 2;

const POLL: Duration = Duration::from_millis(1);

static GATE: AtomicU8 = AtomicU8::new(OPEN);
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static GENERATION: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// The thread that ends the process is not stopped by the end that it announces.
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

/// A call under way. Dropping it ends the call.
#[derive(Debug)]
pub struct Pass(());

impl Pass {
    /// A pass, unless calls are stopped just now: then wait (detached) with [`wait_for_gate`] and try again.
    pub fn try_new() -> Option<Self> {
        // A call within a call (a signal handler, a finalizer) must not wait for what waits for the outer one.
        let nested = DEPTH.get() > 0 || EXEMPT.get();
        UNDER_WAY.fetch_add(1, SeqCst);
        if !nested && GATE.load(SeqCst) != OPEN {
            UNDER_WAY.fetch_sub(1, SeqCst);
            return None;
        }
        DEPTH.set(DEPTH.get() + 1);
        Some(Self(()))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        UNDER_WAY.fetch_sub(1, SeqCst);
    }
}

/// Whether this thread is inside a call already: then waiting for calls to end would be waiting for itself.
pub fn inside_call() -> bool {
    DEPTH.get() > 0
}

/// Waits, at most for `limit`, until calls may begin again. After [`end`] it does not return: the process is about to be
/// gone, and a thread that went on would only fail in its last moments.
pub fn wait_for_gate(limit: Duration) {
    let deadline = Instant::now() + limit;
    while GATE.load(SeqCst) == ENDED || (GATE.load(SeqCst) == PAUSED && Instant::now() < deadline) {
        std::thread::sleep(POLL);
    }
}

/// Stops new calls and waits for those of other threads; tells whether they ended in time.
pub fn pause(limit: Duration) -> bool {
    let _ = GATE.compare_exchange(OPEN, PAUSED, SeqCst, SeqCst);
    wait_for_others(limit)
}

/// Lets calls begin again.
pub fn resume() {
    let _ = GATE.compare_exchange(PAUSED, OPEN, SeqCst, SeqCst);
}

/// Stops the calls of all other threads for good and waits for those under way; tells whether they ended in time.
pub fn end(limit: Duration) -> bool {
    EXEMPT.set(true);
    GATE.store(ENDED, SeqCst);
    wait_for_others(limit)
}

/// In a forked child: the threads that were inside a call do not exist here.
pub fn reset_in_child() {
    UNDER_WAY.store(DEPTH.get(), SeqCst);
    GENERATION.fetch_add(1, SeqCst);
    GATE.store(OPEN, SeqCst);
}

/// How many forks lie between this process and the one that first loaded this library.
pub fn generation() -> u64 {
    GENERATION.load(SeqCst)
}

fn wait_for_others(limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while UNDER_WAY.load(SeqCst) > DEPTH.get() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    /// One test, because there is one gate: it walks through all that the gate promises.
    #[test]
    fn a_pause_waits_for_calls_and_holds_new_ones_back() {
        let (inside, is_inside) = mpsc::channel();
        let (leave, may_leave) = mpsc::channel::<()>();
        let caller = thread::spawn(move || {
            let pass = Pass::try_new().expect("the gate is open");
            inside.send(()).unwrap();
            may_leave.recv().unwrap();
            assert!(Pass::try_new().is_some(), "a call within a call was stopped");
            drop(pass);
        });
        is_inside.recv().unwrap();
        assert!(!pause(Duration::from_millis(5)), "a call was under way");
        assert!(Pass::try_new().is_none(), "a call began during a pause");
        leave.send(()).unwrap();
        assert!(pause(Duration::from_secs(10)), "the call had ended");
        caller.join().unwrap();

        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            wait_for_gate(Duration::from_secs(10));
            done.send(()).unwrap();
        });
        assert!(is_done.recv_timeout(Duration::from_millis(20)).is_err(), "a waiter went on during a pause");
        resume();
        is_done.recv_timeout(Duration::from_secs(10)).expect("a waiter goes on after a pause");

        let own = Pass::try_new().unwrap();
        assert!(inside_call());
        assert!(pause(Duration::from_secs(10)), "a pause waited for its own thread");
        resume();
        drop(own);
        assert!(!inside_call());

        let before = generation();
        reset_in_child();
        assert_eq!(generation(), before + 1);
        assert!(Pass::try_new().is_some());
    }
}
