//! The gate: a fork never interrupts the work of another thread, even if several threads fork at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use super::{explore, once_in};
use crate::sync::fork_gate::{Gate, Pass, Work, inside_call};
use crate::sync::thread;

const LIMIT: Duration = Duration::from_secs(30);

struct Process {
    gate: &'static Gate,
    /// The number of threads at work in this process.
    at_work: AtomicUsize,
}

impl Process {
    fn start() -> Arc<Self> {
        Arc::new(Self { gate: Box::leak(Box::default()), at_work: AtomicUsize::new(0) })
    }

    fn pass(&self, work: Work) -> Pass {
        loop {
            if let Some(pass) = self.gate.try_pass(work) {
                return pass;
            }
            self.gate.wait(Duration::from_millis(1));
        }
    }

    /// A call that is executed in this process, sometimes with a nested call, and with a fork if `forks` is set.
    fn work(&self, forks: bool) {
        let _pass = self.pass(Work::Here);
        assert!(inside_call());
        self.at_work.fetch_add(1, SeqCst);
        thread::yield_now();
        if once_in(4) {
            drop(self.pass(Work::Here));
        }
        if forks {
            self.fork(1, 0);
        }
        thread::yield_now();
        self.at_work.fetch_sub(1, SeqCst);
    }

    /// Does what Python does: the hook before, the fork, the hook after. The first hook may contain another fork.
    fn fork(&self, own: usize, within: usize) {
        let is_quiesced = self.gate.pause(LIMIT);
        if within > 0 {
            self.fork(own, within - 1);
        }
        for _ in 0..2 {
            thread::yield_now();
            assert!(!is_quiesced || self.at_work.load(SeqCst) == own, "a fork in the middle of another thread's work");
        }
        // A thread's own pause does not stop it.
        drop(self.pass(Work::Here));
        self.gate.resume();
    }
}

fn run_together(threads: Vec<fn(&Process)>) {
    let process = Process::start();
    let threads: Vec<_> = threads
        .into_iter()
        .map(|run| {
            let process = Arc::clone(&process);
            thread::spawn(move || run(&process))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(process.gate.try_pass(Work::Here).is_some(), "the gate stayed closed");
}

fn works(process: &Process) {
    for _ in 0..2 {
        process.work(false);
    }
}

#[test]
fn two_simultaneous_forks_and_work() {
    explore(|| run_together(vec![|process| process.fork(0, 0), |process| process.fork(0, 0), works]));
}

#[test]
fn a_fork_in_a_fork_hook_and_work() {
    explore(|| run_together(vec![|process| process.fork(0, 2), works, works]));
}

#[test]
fn a_fork_in_the_middle_of_work_and_a_fork() {
    explore(|| run_together(vec![|process| process.work(true), |process| process.fork(0, 0), works]));
}
