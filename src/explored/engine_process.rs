//! The scheduler of an engine process: whatever apps do and whatever fails, every call is answered, and the process ends.

mod model;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use self::model::{Answer, Environment, FOR_EVER, Process, Request, also, app, execution};
use super::explore;
use crate::engine::isolated::protocol::frame::Kind;
use crate::engine::isolated::server::scheduler::{Effect, Interpreter, Stage, Written};
use crate::sync::{Condvar, Mutex};

const CALLS: &[Request] = &[Request::Read, Request::Write, Request::Write];
const LONG: &[Request] = &[Request::LongWrite, Request::Read];
const FAILING: Environment = Environment { calls_fail: true, ..Environment::new() };

#[test]
fn calls_of_three_threads_some_of_which_fail() {
    explore(|| execution(FAILING, |process| vec![app(process, CALLS), app(process, LONG), app(process, CALLS)]));
}

#[test]
fn the_directory_is_removed_while_calls_fail() {
    explore(|| {
        execution(FAILING, |process| {
            let removes = also(process, |process| process.is_in_place.store(false, SeqCst));
            vec![app(process, CALLS), app(process, LONG), removes, app(process, CALLS)]
        });
    });
}

#[test]
fn what_has_failed_cannot_be_reopened() {
    explore(|| {
        execution(Environment { reopening_fails: true, ..FAILING }, |process| {
            vec![app(process, CALLS), app(process, CALLS), app(process, LONG)]
        });
    });
}

#[test]
fn calls_hang_in_what_has_failed() {
    explore(|| {
        execution(Environment { calls_hang: true, ..FAILING }, |process| vec![app(process, CALLS), app(process, LONG)]);
    });
}

#[test]
fn exclusive_maintenance_among_calls_and_a_signal_to_end() {
    explore(|| {
        execution(FAILING, |process| {
            let manages = also(process, Process::manage);
            let signalled = also(process, |process| process.scheduler.advance(Stage::Closing));
            vec![app(process, LONG), manages, app(process, CALLS), signalled]
        });
    });
}

#[test]
fn the_last_user_releases_it_while_another_comes() {
    explore(|| {
        execution(Environment::new(), |process| {
            let releases = also(process, |process| {
                let Some(id) = process.scheduler.connect(Some(2), UnixStream::pair().unwrap().0) else { return };
                assert!(matches!(process.scheduler.release(Some(2)), Kind::Closing | Kind::Shared));
                process.scheduler.disconnect(id);
            });
            vec![app(process, CALLS), releases, also(process, Process::manage)]
        });
    });
}

/// A long write that goes on until a read has been answered, while somebody waits to quiesce the database.
fn a_read_within_a_long_write(wants_it_quiesced: fn(&Process)) {
    let read = Arc::new((Mutex::new(false), Condvar::new()));
    let is_read = Arc::clone(&read);
    execution(Environment { linger: FOR_EVER, ..Environment::new() }, |process| {
        let id = process.scheduler.connect(Some(1), UnixStream::pair().unwrap().0).unwrap();
        let call = process.scheduler.begin_call(1, Interpreter::HeldInSlices).unwrap();
        wants_it_quiesced(process);
        let reads = also(process, move |process| {
            assert_eq!(process.answer(Request::Read), Answer::Returned);
            *read.0.lock().unwrap() = true;
            read.1.notify_all();
        });
        let mut state = is_read.0.lock().unwrap();
        while !*state {
            state = is_read.1.wait_timeout(state, FOR_EVER).unwrap().0;
        }
        drop(state);
        call.end(Effect::default());
        process.scheduler.disconnect(id);
        reads.join().unwrap();
        process.scheduler.advance(Stage::Closing);
        vec![]
    });
}

#[test]
fn a_read_does_not_wait_for_the_rest_of_a_long_write_that_a_checkpoint_waits_for() {
    explore(|| {
        a_read_within_a_long_write(|process| {
            let written = Written { records: 20_000, ..Written::default() };
            process.scheduler.begin_call(1, Interpreter::Held).unwrap().end(Effect { written, failed: false });
        });
    });
}
