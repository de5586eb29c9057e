//! The gate, with real threads. Its schedules are explored in `src/explored/forks.rs`.

use super::*;
use std::sync::mpsc;
use std::thread;

const SHORT: Duration = Duration::from_millis(5);
const ENOUGH: Duration = Duration::from_secs(10);

/// Returns a new gate.
fn gate() -> &'static Gate {
    Box::leak(Box::new(Gate::new()))
}

/// Starts a call in a thread of its own. When the returned sender is used, the call runs `then` and ends.
fn call(
    gate: &'static Gate,
    work: Work,
    then: impl FnOnce() + Send + 'static,
) -> (mpsc::Sender<()>, thread::JoinHandle<()>) {
    let (end, may_end) = mpsc::channel();
    let (begins, has_begun) = mpsc::channel();
    let caller = thread::spawn(move || {
        let _pass = gate.try_pass(work).expect("the gate is open");
        begins.send(()).unwrap();
        may_end.recv().unwrap();
        then();
    });
    has_begun.recv().unwrap();
    (end, caller)
}

/// Whether another thread may begin a call.
fn may_begin(gate: &'static Gate, work: Work) -> bool {
    thread::spawn(move || gate.try_pass(work).is_some()).join().unwrap()
}

#[test]
fn a_pause_waits_for_calls_and_holds_new_ones_back() {
    let gate = gate();
    let (end, caller) = call(gate, Work::Here, || {
        assert!(gate.try_pass(Work::Here).is_some(), "a nested call was stopped");
    });
    assert!(!gate.pause(SHORT), "a call was in flight");
    assert!(!may_begin(gate, Work::Here), "a call began during a pause");
    assert!(may_begin(gate, Work::Elsewhere), "a pause stopped work elsewhere");
    assert!(gate.try_pass(Work::Here).is_some(), "a pause stopped its own thread");
    end.send(()).unwrap();
    assert!(gate.pause(ENOUGH), "the call had ended");
    caller.join().unwrap();
}

#[test]
fn whoever_waits_for_the_gate_continues_after_the_pause() {
    let gate = gate();
    gate.pause(Duration::ZERO);
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        gate.wait(6 * ENOUGH);
        done.send(()).unwrap();
    });
    assert!(is_done.recv_timeout(4 * SHORT).is_err(), "a waiter continued during a pause");
    gate.resume();
    is_done.recv_timeout(ENOUGH).expect("a waiter continues after a pause");
}

#[test]
fn a_pause_does_not_wait_for_work_elsewhere() {
    let gate = gate();
    let (end, caller) = call(gate, Work::Elsewhere, || {
        assert!(gate.try_pass(Work::Here).is_none(), "work here began during a pause");
    });
    assert!(gate.pause(SHORT), "a pause waited for work elsewhere");
    end.send(()).unwrap();
    caller.join().unwrap();
}

#[test]
fn a_pause_does_not_wait_for_its_own_thread() {
    let gate = gate();
    let own = gate.try_pass(Work::Here).unwrap();
    assert!(inside_call());
    assert!(gate.pause(ENOUGH), "a pause waited for its own thread");
    gate.resume();
    drop(own);
    assert!(!inside_call());
}

#[test]
fn the_end_waits_for_all_calls_and_holds_new_ones_back() {
    let gate = gate();
    let (end, caller) = call(gate, Work::Elsewhere, || {});
    assert!(!gate.end(SHORT), "the end did not wait for work elsewhere");
    assert!(!may_begin(gate, Work::Elsewhere), "a call began at the end");
    end.send(()).unwrap();
    caller.join().unwrap();
    assert!(gate.end(ENOUGH), "the call had ended");
    assert!(gate.try_pass(Work::Here).is_some(), "the end stopped its own thread");
}

#[test]
fn a_child_counts_the_calls_of_the_thread_that_forked() {
    let gate = gate();
    gate.end(Duration::ZERO);
    let own = gate.try_pass(Work::Here).unwrap();
    gate.reset_in_child();
    assert!(may_begin(gate, Work::Here));
    // Pauses in a thread of its own; returns whether the calls had ended, and whether another call could begin.
    let pauses = || {
        thread::spawn(|| {
            let ended = gate.pause(SHORT);
            let begins = may_begin(gate, Work::Here);
            gate.resume();
            (ended, begins)
        })
    };
    assert_eq!(pauses().join().unwrap(), (false, false), "a child's call, in flight since the fork, is not counted");
    drop(own);
    assert_eq!(pauses().join().unwrap(), (true, false), "the call had ended");
    assert!(may_begin(gate, Work::Here));
}

#[test]
fn the_gate_opens_after_the_last_of_two_simultaneous_forks() {
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
    assert!(!may_begin(gate, Work::Here), "the other fork has not ended");
    assert!(gate.try_pass(Work::Here).is_none(), "this thread's own fork is over");
    resume.send(()).unwrap();
    other.join().unwrap();
    assert!(may_begin(gate, Work::Here));
}

#[test]
fn a_fork_in_a_fork_hook_does_not_open_the_gate_for_the_outer_fork() {
    let gate = gate();
    gate.pause(Duration::ZERO);
    gate.pause(Duration::ZERO);
    gate.resume();
    assert!(!may_begin(gate, Work::Here));
    assert!(gate.try_pass(Work::Here).is_some());
    gate.resume();
    assert!(may_begin(gate, Work::Here));
}

#[test]
fn a_child_of_a_fork_hook_does_not_end_the_pause_of_another_thread() {
    let gate = gate();
    gate.pause(Duration::ZERO);
    gate.reset_in_child();
    thread::spawn(|| {
        gate.pause(Duration::ZERO);
        thread::spawn(|| gate.resume()).join().unwrap();
        assert!(!may_begin(gate, Work::Here));
        gate.resume();
    })
    .join()
    .unwrap();
    gate.resume();
    assert!(may_begin(gate, Work::Here));
}
