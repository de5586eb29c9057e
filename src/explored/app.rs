//! Instances, permits and the gate in an app: a model of `pool/`, which needs an interpreter. Every opened database is
//! closed once, the limit on open databases holds, no call gets a closed database, and no thread waits forever.

mod model;

use std::sync::atomic::Ordering::SeqCst;

use self::model::{KEYS, Manager, execution};
use super::{explore, once_in};
use crate::sync::fork_gate::Work;
use crate::sync::thread;

fn calls(manager: &Manager) {
    for key in 0..KEYS {
        let _ = manager.call(key, |_, _| ());
    }
}

fn calls_with_cleanups_within(manager: &Manager) {
    for key in (0..KEYS).rev() {
        let _ = manager.call(key, |manager, key| {
            if once_in(2) {
                manager.cleanup(key);
            }
            if once_in(2) {
                let _ = manager.call(1 - key, |_, _| ());
            }
        });
    }
}

#[test]
fn calls_that_evict_each_other_and_a_cleanup() {
    explore(|| execution(Work::Elsewhere, &[calls, calls, |manager| manager.cleanup(0)]));
}

#[test]
fn cleanups_and_calls_in_the_middle_of_calls() {
    explore(|| execution(Work::Here, &[calls_with_cleanups_within, calls, calls_with_cleanups_within]));
}

#[test]
fn exclusive_maintenance_among_calls() {
    explore(|| execution(Work::Here, &[calls, |manager| manager.manage(0), |manager| manager.cleanup(0)]));
}

#[test]
fn directories_that_are_removed_during_calls() {
    explore(|| {
        execution(
            Work::Elsewhere,
            &[calls, calls, |manager| {
                for removed in &manager.removed {
                    removed.fetch_add(1, SeqCst);
                    thread::yield_now();
                }
            }],
        );
    });
}

#[test]
fn forks_among_calls() {
    explore(|| execution(Work::Here, &[calls, Manager::fork, Manager::fork]));
    explore(|| execution(Work::Elsewhere, &[calls, Manager::fork, |manager| manager.cleanup(0)]));
}
