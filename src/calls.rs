//! Every call into an engine passes here, so that a fork and the end of the process can wait for them.
//!
//! An engine in this process has threads, locks and half-written files of its own. A child forked in the middle of that
//! inherits it as it stands and hangs on the first lock whose holder it does not have; so a fork stops such work and waits
//! for what is under way. A call whose work is done elsewhere is only waited for, and a fork need not; the end of the
//! process waits for both. Plain Rust, atomics only: there is no lock here that a fork could catch somebody holding.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const OPEN: u8 = 0;
const PAUSED: u8 = 1;
const ENDED: u8 = 2;

const POLL: Duration = Duration::from_millis(1);

static GATE: AtomicU8 = AtomicU8::new(OPEN);
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static UNDER_WAY_HERE: AtomicUsize = AtomicUsize::new(0);
static GENERATION: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static DEPTH_HERE: Cell<usize> = const { Cell::new(0) };
    /// The thread that forks, or ends the process, is not stopped by what it announces.
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

/// Where the work of a call is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// In this process: a fork waits for it.
    Here,
    /// In another process, whose answer is waited for: a fork does not wait.
    Elsewhere,
}

/// A call under way. Dropping it ends the call.
#[derive(Debug)]
pub struct Pass(Work);

impl Pass {
    /// A pass, unless calls are stopped just now: then wait (detached) with [`wait_for_gate`] and try again.
    pub fn try_new(work: Work) -> Option<Self> {
        UNDER_WAY.fetch_add(1, SeqCst);
        if work == Work::Here {
            UNDER_WAY_HERE.fetch_add(1, SeqCst);
        }
        // A call within a call (a signal handler, a finalizer) must not wait for what waits for the outer one.
        let stopped = match GATE.load(SeqCst) {
            PAUSED => work == Work::Here && DEPTH_HERE.get() == 0,
            ENDED => DEPTH.get() == 0,
            _ => false,
        };
        DEPTH.set(DEPTH.get() + 1);
        if work == Work::Here {
            DEPTH_HERE.set(DEPTH_HERE.get() + 1);
        }
        let pass = Self(work);
        (!stopped || EXEMPT.get()).then_some(pass)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.0 == Work::Here {
            DEPTH_HERE.set(DEPTH_HERE.get() - 1);
            UNDER_WAY_HERE.fetch_sub(1, SeqCst);
        }
        DEPTH.set(DEPTH.get() - 1);
        UNDER_WAY.fetch_sub(1, SeqCst);
    }
}

/// A pass for work in this process, waited for: never while attached to the interpreter.
pub fn here() -> Pass {
    loop {
        if let Some(pass) = Pass::try_new(Work::Here) {
            return pass;
        }
        wait_for_gate(POLL);
    }
}

/// Whether this thread is inside a call already: then waiting for calls to end would be waiting for itself.
pub fn inside_call() -> bool {
    DEPTH.get() > 0
}

/// Whether the call that this thread has just begun is within another one of its own.
pub fn nested() -> bool {
    DEPTH.get() > 1
}

/// Waits, at most for `limit`, until calls may begin again. After [`end`] it does not return: the process is about to be
/// gone, and a thread that went on would only fail in its last moments.
pub fn wait_for_gate(limit: Duration) {
    let deadline = Instant::now() + limit;
    while GATE.load(SeqCst) == ENDED || (GATE.load(SeqCst) == PAUSED && Instant::now() < deadline) {
        std::thread::sleep(POLL);
    }
}

/// Stops new work here and waits for that of other threads; tells whether it ended in time.
pub fn pause(limit: Duration) -> bool {
    EXEMPT.set(true);
    let _ = GATE.compare_exchange(OPEN, PAUSED, SeqCst, SeqCst);
    wait_while(limit, || UNDER_WAY_HERE.load(SeqCst) > DEPTH_HERE.get())
}

/// Lets it begin again.
pub fn resume() {
    EXEMPT.set(GATE.compare_exchange(PAUSED, OPEN, SeqCst, SeqCst) == Err(ENDED));
}

/// Stops the calls of all other threads for good and waits for those under way; tells whether they ended in time.
pub fn end(limit: Duration) -> bool {
    EXEMPT.set(true);
    GATE.store(ENDED, SeqCst);
    wait_while(limit, || UNDER_WAY.load(SeqCst) > DEPTH.get())
}

/// In a forked child: the threads that were inside a call do not exist here.
pub fn reset_in_child() {
    UNDER_WAY.store(DEPTH.get(), SeqCst);
    UNDER_WAY_HERE.store(DEPTH_HERE.get(), SeqCst);
    GENERATION.fetch_add(1, SeqCst);
    GATE.store(OPEN, SeqCst);
    EXEMPT.set(false);
}

/// How many forks lie between this process and the one that first loaded this library.
pub fn generation() -> u64 {
    GENERATION.load(SeqCst)
}

fn wait_while(limit: Duration, goes_on: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while goes_on() {
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

    /// A call that waits for another process until it is sent an answer; then it does this, and ends.
    fn call_elsewhere(then: impl FnOnce() + Send + 'static) -> (mpsc::Sender<()>, thread::JoinHandle<()>) {
        let (answer, is_answered) = mpsc::channel();
        let (waits, is_waiting) = mpsc::channel();
        let waiter = thread::spawn(move || {
            let _pass = Pass::try_new(Work::Elsewhere).unwrap();
            waits.send(()).unwrap();
            is_answered.recv().unwrap();
            then();
        });
        is_waiting.recv().unwrap();
        (answer, waiter)
    }

    /// One test, because there is one gate: it walks through all that the gate promises.
    #[test]
    fn a_pause_waits_for_calls_and_holds_new_ones_back() {
        let (inside, is_inside) = mpsc::channel();
        let (leave, may_leave) = mpsc::channel::<()>();
        let caller = thread::spawn(move || {
            let pass = Pass::try_new(Work::Here).expect("the gate is open");
            inside.send(()).unwrap();
            may_leave.recv().unwrap();
            assert!(Pass::try_new(Work::Here).is_some(), "a call within a call was stopped");
            drop(pass);
        });
        is_inside.recv().unwrap();
        assert!(!pause(Duration::from_millis(5)), "a call was under way");
        let may_begin = |work| thread::spawn(move || Pass::try_new(work).is_some()).join().unwrap();
        assert!(!may_begin(Work::Here), "a call began during a pause");
        assert!(may_begin(Work::Elsewhere), "a pause stopped what is done elsewhere");
        assert!(Pass::try_new(Work::Here).is_some(), "a pause stopped its own thread");
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

        let (answer, waiter) = call_elsewhere(|| {
            assert!(Pass::try_new(Work::Here).is_none(), "work here began during a pause");
        });
        assert!(pause(Duration::from_millis(5)), "a pause waited for what is done elsewhere");
        answer.send(()).unwrap();
        waiter.join().unwrap();
        resume();

        let own = Pass::try_new(Work::Here).unwrap();
        assert!(inside_call());
        assert!(pause(Duration::from_secs(10)), "a pause waited for its own thread");
        resume();
        drop(own);
        assert!(!inside_call());

        let (answer, waiter) = call_elsewhere(|| {});
        assert!(!end(Duration::from_millis(5)), "the end did not wait for what is done elsewhere");
        assert!(!may_begin(Work::Elsewhere), "a call began at the end");
        answer.send(()).unwrap();
        waiter.join().unwrap();
        assert!(end(Duration::from_secs(10)), "the call had ended");

        let before = generation();
        let own = Pass::try_new(Work::Here).unwrap();
        reset_in_child();
        assert_eq!(generation(), before + 1);
        assert!(may_begin(Work::Here));
        let pauses = || thread::spawn(|| pause(Duration::from_millis(5))).join().unwrap();
        assert!(!pauses(), "a child's call, under way since before the fork, is not counted");
        drop(own);
        assert!(Pass::try_new(Work::Here).is_none(), "the thread that forked is exempt in the child");
        assert!(pauses(), "the call had ended");
        resume();
        assert!(may_begin(Work::Here));
    }
}
