//! Every call into an engine passes here, so that a fork and the end of the process can wait for them.
//!
//! An engine in this process has threads, locks and half-written files of its own. A child forked in the middle of that
//! inherits it as it stands and hangs on the first lock whose holder it does not have; so a fork stops such work and waits
//! for what is under way. A call whose work is done elsewhere is only waited for, and a fork need not; the end of the
//! process waits for both. Plain Rust, atomics only: there is no lock here that a fork could catch somebody holding.

use std::cell::Cell;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::atomic::AtomicUsize;
use super::atomic::Ordering::SeqCst;
use super::{Instant, thread, thread_local};
#[cfg(feature = "explore")]
use crate::sync::CellKey;

const POLL: Duration = Duration::from_millis(1);

/// In the gate's state: the calls of all other threads are stopped for good. Below it is how many forks are about to be
/// made, for more than one thread may fork at a time, and a fork may be made in a hook of another.
const ENDED: usize = 1 << (usize::BITS - 1);

static GATE: Gate = Gate::new();
static GENERATION: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static DEPTH_HERE: Cell<usize> = const { Cell::new(0) };
    /// How many of the pauses are this thread's: it is not stopped by what it announces.
    static PAUSES: Cell<usize> = const { Cell::new(0) };
    /// The same for the end of the process.
    static ENDS: Cell<bool> = const { Cell::new(false) };
}

/// Where the work of a call is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// In this process: a fork waits for it.
    Here,
    /// In another process, whose answer is waited for: a fork does not wait.
    Elsewhere,
}

/// What every call passes. There is one in a process.
#[derive(Debug)]
pub struct Gate {
    state: AtomicUsize,
    under_way: AtomicUsize,
    under_way_here: AtomicUsize,
}

/// A call under way. Dropping it ends the call.
#[derive(Debug)]
pub struct Pass {
    gate: &'static Gate,
    work: Work,
}

impl Pass {
    /// A pass, unless calls are stopped just now: then wait (detached) with [`wait_for_gate`] and try again.
    pub fn try_new(work: Work) -> Option<Self> {
        GATE.try_pass(work)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.work == Work::Here {
            DEPTH_HERE.set(DEPTH_HERE.get() - 1);
            self.gate.under_way_here.fetch_sub(1, SeqCst);
        }
        DEPTH.set(DEPTH.get() - 1);
        self.gate.under_way.fetch_sub(1, SeqCst);
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    const fn new() -> Self {
        Self { state: AtomicUsize::new(0), under_way: AtomicUsize::new(0), under_way_here: AtomicUsize::new(0) }
    }

    pub(crate) fn try_pass(&'static self, work: Work) -> Option<Pass> {
        self.under_way.fetch_add(1, SeqCst);
        if work == Work::Here {
            self.under_way_here.fetch_add(1, SeqCst);
        }
        // A call within a call (a signal handler, a finalizer) must not wait for what waits for the outer one.
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

    pub(crate) fn pause(&self, limit: Duration) -> bool {
        PAUSES.set(PAUSES.get() + 1);
        self.state.fetch_add(1, SeqCst);
        wait_while(limit, || self.under_way_here.load(SeqCst) > DEPTH_HERE.get())
    }

    pub(crate) fn resume(&self) {
        // A child forked in a hook of another fork comes here as well, and has nothing to give back.
        if PAUSES.get() > 0 {
            PAUSES.set(PAUSES.get() - 1);
            self.state.fetch_sub(1, SeqCst);
        }
    }

    fn end(&self, limit: Duration) -> bool {
        ENDS.set(true);
        self.state.fetch_or(ENDED, SeqCst);
        wait_while(limit, || self.under_way.load(SeqCst) > DEPTH.get())
    }

    fn reset_in_child(&self) {
        self.under_way.store(DEPTH.get(), SeqCst);
        self.under_way_here.store(DEPTH_HERE.get(), SeqCst);
        self.state.store(0, SeqCst);
        PAUSES.set(0);
        ENDS.set(false);
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
    GATE.wait(limit);
}

/// Stops new work here and waits for that of other threads; tells whether it ended in time. It goes on after as many calls
/// of [`resume`], in each thread as many as it has made of this.
pub fn pause(limit: Duration) -> bool {
    GATE.pause(limit)
}

/// Takes a pause of this thread back; after the last one work begins again.
pub fn resume() {
    GATE.resume();
}

/// Stops the calls of all other threads for good and waits for those under way; tells whether they ended in time.
pub fn end(limit: Duration) -> bool {
    GATE.end(limit)
}

/// In a forked child: the threads that were inside a call do not exist here.
pub fn reset_in_child() {
    GENERATION.fetch_add(1, SeqCst);
    GATE.reset_in_child();
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
        thread::sleep(POLL);
    }
    true
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    /// A call that waits for another process until it is sent an answer; then it does this, and ends.
    fn call_elsewhere(
        gate: &'static Gate,
        then: impl FnOnce() + Send + 'static,
    ) -> (mpsc::Sender<()>, thread::JoinHandle<()>) {
        let (answer, is_answered) = mpsc::channel();
        let (waits, is_waiting) = mpsc::channel();
        let waiter = thread::spawn(move || {
            let _pass = gate.try_pass(Work::Elsewhere).unwrap();
            waits.send(()).unwrap();
            is_answered.recv().unwrap();
            then();
        });
        is_waiting.recv().unwrap();
        (answer, waiter)
    }

    /// It walks through all that the gate promises.
    #[test]
    fn a_pause_waits_for_calls_and_holds_new_ones_back() {
        let gate = gate();
        let (inside, is_inside) = mpsc::channel();
        let (leave, may_leave) = mpsc::channel::<()>();
        let caller = thread::spawn(move || {
            let pass = gate.try_pass(Work::Here).expect("the gate is open");
            inside.send(()).unwrap();
            may_leave.recv().unwrap();
            assert!(gate.try_pass(Work::Here).is_some(), "a call within a call was stopped");
            drop(pass);
        });
        is_inside.recv().unwrap();
        assert!(!gate.pause(Duration::from_millis(5)), "a call was under way");
        let may_begin = move |work| thread::spawn(move || gate.try_pass(work).is_some()).join().unwrap();
        assert!(!may_begin(Work::Here), "a call began during a pause");
        assert!(may_begin(Work::Elsewhere), "a pause stopped what is done elsewhere");
        assert!(gate.try_pass(Work::Here).is_some(), "a pause stopped its own thread");
        leave.send(()).unwrap();
        assert!(gate.pause(Duration::from_secs(10)), "the call had ended");
        caller.join().unwrap();

        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            gate.wait(Duration::from_secs(10));
            done.send(()).unwrap();
        });
        assert!(is_done.recv_timeout(Duration::from_millis(20)).is_err(), "a waiter went on during a pause");
        gate.resume();
        is_done.recv_timeout(Duration::from_secs(10)).expect("a waiter goes on after a pause");

        let (answer, waiter) = call_elsewhere(gate, || {
            assert!(gate.try_pass(Work::Here).is_none(), "work here began during a pause");
        });
        assert!(gate.pause(Duration::from_millis(5)), "a pause waited for what is done elsewhere");
        answer.send(()).unwrap();
        waiter.join().unwrap();
        gate.resume();

        let own = gate.try_pass(Work::Here).unwrap();
        assert!(inside_call());
        assert!(gate.pause(Duration::from_secs(10)), "a pause waited for its own thread");
        gate.resume();
        drop(own);
        assert!(!inside_call());

        let (answer, waiter) = call_elsewhere(gate, || {});
        assert!(!gate.end(Duration::from_millis(5)), "the end did not wait for what is done elsewhere");
        assert!(!may_begin(Work::Elsewhere), "a call began at the end");
        answer.send(()).unwrap();
        waiter.join().unwrap();
        assert!(gate.end(Duration::from_secs(10)), "the call had ended");

        let own = gate.try_pass(Work::Here).unwrap();
        gate.reset_in_child();
        assert!(may_begin(Work::Here));
        // In a thread of its own, which takes it back; and whether a call could begin meanwhile.
        let pauses = || {
            thread::spawn(|| {
                let ended = gate.pause(Duration::from_millis(5));
                let begins = thread::spawn(|| gate.try_pass(Work::Here).is_some()).join().unwrap();
                gate.resume();
                (ended, begins)
            })
        };
        assert_eq!(
            pauses().join().unwrap(),
            (false, false),
            "a child's call, in flight since the fork, is not counted"
        );
        drop(own);
        assert_eq!(pauses().join().unwrap(), (true, false), "the call had ended");
        assert!(may_begin(Work::Here));
    }

    /// A gate of its own.
    fn gate() -> &'static Gate {
        Box::leak(Box::new(Gate::new()))
    }

    fn is_open(gate: &'static Gate) -> bool {
        thread::spawn(|| gate.try_pass(Work::Here).is_some()).join().unwrap()
    }

    #[test]
    fn the_gate_opens_after_the_last_of_two_forks_at_once() {
        let gate = gate();
        gate.pause(Duration::ZERO);
        let (paused, is_paused) = mpsc::channel();
        let (resume, may_resume) = mpsc::channel::<()>();
        let other = thread::spawn(move || {
            gate.pause(Duration::ZERO);
            paused.send(()).unwrap();
            may_resume.recv().unwrap();
            assert!(gate.try_pass(Work::Here).is_some(), "a pause stopped its own thread");
            gate.resume();
        });
        is_paused.recv().unwrap();
        gate.resume();
        assert!(!is_open(gate), "the other fork is in the middle");
        assert!(gate.try_pass(Work::Here).is_none(), "this thread's own fork is over");
        resume.send(()).unwrap();
        other.join().unwrap();
        assert!(is_open(gate));
    }

    #[test]
    fn a_fork_in_a_hook_of_a_fork_does_not_open_the_gate_for_the_outer_one() {
        let gate = gate();
        gate.pause(Duration::ZERO);
        gate.pause(Duration::ZERO);
        gate.resume();
        assert!(!is_open(gate));
        assert!(gate.try_pass(Work::Here).is_some());
        gate.resume();
        assert!(is_open(gate));
    }

    #[test]
    fn a_child_of_a_hook_takes_back_no_pause_that_is_not_its_own() {
        let gate = gate();
        gate.pause(Duration::ZERO);
        gate.reset_in_child();
        thread::spawn(|| {
            gate.pause(Duration::ZERO);
            thread::spawn(|| gate.resume()).join().unwrap();
            assert!(!is_open(gate));
            gate.resume();
        })
        .join()
        .unwrap();
        gate.resume();
        assert!(is_open(gate));
    }
}
