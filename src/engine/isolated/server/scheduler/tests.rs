//! The scheduler, with real threads. Its schedules are explored in `src/explored/engine_process.rs`.

use super::*;
use std::io::Read;
use std::sync::{Arc, mpsc};
use std::thread;

const SHORT: Duration = Duration::from_millis(30);
const ENOUGH: Duration = Duration::from_secs(20);

fn scheduler(linger: Duration) -> Arc<Scheduler> {
    Arc::new(Scheduler::new(linger, Some(0)))
}

fn connect(scheduler: &Scheduler, peer: u32) -> (Option<u64>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (scheduler.connect(Some(peer), ours), theirs)
}

/// What a thread of its own waits for.
fn later<T: Send + 'static>(
    scheduler: &Arc<Scheduler>,
    wait: impl FnOnce(&Scheduler) -> T + Send + 'static,
) -> mpsc::Receiver<T> {
    let (done, is_done) = mpsc::channel();
    let scheduler = Arc::clone(scheduler);
    thread::spawn(move || done.send(wait(&scheduler)));
    is_done
}

/// Makes a call that does nothing; tells whether it was accepted.
fn called(scheduler: &Scheduler) -> bool {
    scheduler.begin_call(1, Interpreter::Held).map(|call| call.end(Effect::default())).is_some()
}

fn call(scheduler: &Scheduler, effect: Effect) {
    scheduler.begin_call(1, Interpreter::Held).unwrap().end(effect);
}

fn wrote(records: usize, seconds: u64) -> Effect {
    let written = Written { records, time: Duration::from_secs(seconds), ..Written::default() };
    Effect { written, failed: false }
}

#[test]
fn it_ends_when_nobody_is_connected_and_not_before() {
    let scheduler = scheduler(SHORT);
    let (id, _stream) = connect(&scheduler, 1);
    let due = later(&scheduler, Scheduler::wait_until_due);
    assert!(due.recv_timeout(SHORT * 3).is_err());
    scheduler.disconnect(id.unwrap());
    assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::End));
    assert_eq!(connect(&scheduler, 1).0, None);
    assert!(scheduler.begin_request().is_none());
}

#[test]
fn it_ends_for_its_last_user_and_stays_for_others() {
    let scheduler = scheduler(ENOUGH);
    let (other, _stream) = connect(&scheduler, 2);
    let _own = (connect(&scheduler, 1), connect(&scheduler, 1));
    assert_eq!(scheduler.release(Some(1)), Kind::Shared);
    scheduler.disconnect(other.unwrap());
    assert_eq!(scheduler.release(Some(1)), Kind::Closing);
    assert_eq!(scheduler.wait_until_due(), Due::End);
}

#[test]
fn the_end_waits_for_answers_and_tells_the_others() {
    let scheduler = scheduler(ENOUGH);
    let (_id, mut stream) = connect(&scheduler, 1);
    let request = scheduler.begin_request().unwrap();
    scheduler.advance(Stage::Closing);
    let due = later(&scheduler, Scheduler::wait_until_due);
    assert!(due.recv_timeout(SHORT).is_err());
    drop(request);
    assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::End));
    scheduler.send_closing_notice();
    let mut told = [0; 9];
    stream.read_exact(&mut told).unwrap();
    assert_eq!(told[4], Kind::Closing as u8);
}

#[test]
fn who_was_told_that_it_cannot_be_opened_is_served_until_it_disconnects() {
    let scheduler = scheduler(ENOUGH);
    let (id, _stream) = connect(&scheduler, 1);
    scheduler.advance(Stage::Refusing);
    assert_eq!(connect(&scheduler, 2).0, None);
    let due = later(&scheduler, Scheduler::wait_until_due);
    assert!(due.recv_timeout(SHORT).is_err());
    assert!(scheduler.begin_request().is_some());
    scheduler.disconnect(id.unwrap());
    assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::End));
}

#[test]
fn maintenance_waits_for_calls_in_flight_and_calls_wait_for_maintenance() {
    let scheduler = scheduler(ENOUGH);
    let first = scheduler.begin_call(1, Interpreter::Held).unwrap();
    let (may_end, ends) = mpsc::channel::<()>();
    let maintenance = later(&scheduler, move |scheduler| {
        let maintenance = scheduler.begin_maintenance().unwrap();
        thread::spawn(move || ends.recv()).join().unwrap().unwrap();
        drop(maintenance);
    });
    assert!(maintenance.recv_timeout(SHORT).is_err());
    let call = later(&scheduler, called);
    assert!(call.recv_timeout(SHORT).is_err(), "a call goes ahead of maintenance that waits");
    first.end(Effect::default());
    assert!(call.recv_timeout(SHORT).is_err(), "a call begins during maintenance");
    may_end.send(()).unwrap();
    maintenance.recv_timeout(ENOUGH).unwrap();
    assert_eq!(call.recv_timeout(ENOUGH), Ok(true));
    scheduler.advance(Stage::Closing);
    assert_eq!(scheduler.wait_until_due(), Due::End);
    assert!(scheduler.begin_maintenance().is_none(), "maintenance begins at the end");
}

/// From now on checkpoints are taken of the closed database.
fn fail_in_background(scheduler: &Scheduler) {
    scheduler.end_in_background(Duration::ZERO, Err(NotTaken::Failed));
}

#[test]
fn a_checkpoint_in_the_background_is_taken_while_calls_go_on() {
    let scheduler = scheduler(ENOUGH);
    let _connection = connect(&scheduler, 1);
    let in_flight = scheduler.begin_call(1, Interpreter::HeldInSlices).unwrap();
    let due = later(&scheduler, Scheduler::wait_until_due);
    call(&scheduler, wrote(10_000, 1));
    assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::CheckpointInBackground));
    let next = later(&scheduler, Scheduler::wait_until_due);
    let kept_open = scheduler.keep_open().unwrap();
    let covered = kept_open.coverable();
    call(&scheduler, wrote(30_000, 100));
    in_flight.end(Effect::default());
    assert!(next.recv_timeout(SHORT).is_err(), "another one, or the database is closed under it");
    assert!(!scheduler.is_awaited());
    let maintenance = later(&scheduler, |scheduler| drop(scheduler.begin_maintenance().unwrap()));
    assert!(maintenance.recv_timeout(SHORT).is_err(), "the database is closed while its files are copied");
    assert!(scheduler.is_awaited());
    drop(kept_open);
    maintenance.recv_timeout(ENOUGH).unwrap();
    assert!(next.try_recv().is_err());
    scheduler.end_in_background(SHORT, Ok(Covered { is_purged: true, ..covered }));
    assert_eq!(next.recv_timeout(ENOUGH), Ok(Due::CheckpointInBackground));
    scheduler.advance(Stage::Closing);
    assert!(scheduler.keep_open().is_none());
    assert_eq!(scheduler.wait_until_due(), Due::End, "the end waits for it");
}

#[test]
fn what_was_written_counts_until_the_checkpoint() {
    let scheduler = scheduler(ENOUGH);
    fail_in_background(&scheduler);
    let _connection = connect(&scheduler, 1);
    let due = later(&scheduler, Scheduler::wait_until_due);
    for _ in 0..2 {
        assert!(due.try_recv().is_err());
        call(&scheduler, wrote(10_000, 1));
    }
    assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::Checkpoint));
    let next = later(&scheduler, |scheduler| call(scheduler, wrote(14_999, 1)));
    assert!(next.recv_timeout(SHORT).is_err());
    scheduler.end_checkpoint(SHORT, Some(30_000));
    next.recv_timeout(ENOUGH).unwrap();
    assert!(later(&scheduler, Scheduler::wait_until_due).recv_timeout(SHORT).is_err());
}

#[test]
fn a_database_in_memory_has_no_checkpoint() {
    let scheduler = Arc::new(Scheduler::new(ENOUGH, None));
    let _connection = connect(&scheduler, 1);
    call(&scheduler, wrote(1_000_000, 1_000));
    assert!(later(&scheduler, Scheduler::wait_until_due).recv_timeout(SHORT).is_err());
}

#[test]
fn the_log_that_a_kill_left_counts_from_the_first_write_on() {
    let scheduler = Arc::new(Scheduler::new(ENOUGH, Some(15_000)));
    fail_in_background(&scheduler);
    let _connection = connect(&scheduler, 1);
    let due = later(&scheduler, Scheduler::wait_until_due);
    call(&scheduler, Effect::default());
    assert!(due.recv_timeout(SHORT).is_err());
    call(&scheduler, wrote(5_000, 1));
    assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::Checkpoint));
}

#[test]
fn a_binding_that_failed_is_reopened_before_the_next_call() {
    let scheduler = scheduler(ENOUGH);
    let _connection = connect(&scheduler, 1);
    let mut failing = scheduler.begin_call(1, Interpreter::Held).unwrap();
    failing.suspect();
    failing.end(Effect { failed: true, ..Effect::default() });
    let call = later(&scheduler, called);
    assert!(call.recv_timeout(SHORT).is_err());
    assert_eq!(scheduler.wait_until_due(), Due::Checkpoint);
    scheduler.end_reopening();
    assert_eq!(call.recv_timeout(ENOUGH), Ok(true));
}

#[test]
fn calls_that_hold_the_interpreter_go_one_after_the_other() {
    let scheduler = scheduler(ENOUGH);
    let first = scheduler.take_slot().unwrap();
    let (done, order) = mpsc::channel();
    let waiting: Vec<_> = (0..3)
        .map(|i| {
            let (waiter, done) = (Arc::clone(&scheduler), done.clone());
            let waits = thread::spawn(move || {
                let _slot = waiter.take_slot().unwrap();
                done.send(i).unwrap();
            });
            // The first has one ticket; the next thread comes when this one has another.
            while scheduler.state().next_ticket < i + 2 {
                thread::yield_now();
            }
            waits
        })
        .collect();
    assert!(order.try_recv().is_err());
    drop(first);
    for waits in waiting {
        waits.join().unwrap();
    }
    assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_call_that_waits_for_the_slot_does_not_enter_a_binding_that_failed_meanwhile() {
    let scheduler = scheduler(ENOUGH);
    let _connection = connect(&scheduler, 1);
    let failing = scheduler.begin_call(1, Interpreter::Held).unwrap();
    let slot = scheduler.take_slot().unwrap();
    let waiting = scheduler.begin_call(1, Interpreter::Held).unwrap();
    let other = later(&scheduler, |scheduler| scheduler.take_slot().is_some());
    assert!(other.recv_timeout(SHORT).is_err());
    failing.end(Effect { failed: true, ..Effect::default() });
    drop(slot);
    assert_eq!(other.recv_timeout(ENOUGH), Ok(false));
    waiting.end(Effect::default());
    assert_eq!(scheduler.wait_until_due(), Due::Checkpoint);
    scheduler.end_reopening();
    assert!(scheduler.take_slot().is_some());
}

#[test]
fn calls_that_hang_after_a_failure_are_given_up_and_others_are_not() {
    let scheduler = scheduler(ENOUGH);
    let _connection = connect(&scheduler, 1);
    let ending = scheduler.begin_call(1, Interpreter::Held).unwrap();
    let due = later(&scheduler, Scheduler::wait_until_due);
    assert!(due.recv_timeout(SHORT).is_err(), "a call that takes long is not one that hangs");
    let mut hanging = scheduler.begin_call(1, Interpreter::Held).unwrap();
    hanging.suspect();
    scheduler.change(|state| state.failures.age());
    // The end of another call tells nothing of this one.
    ending.end(Effect::default());
    assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::Abort));
}

#[test]
fn a_call_that_waits_in_a_process_that_closes_is_refused() {
    let scheduler = scheduler(ENOUGH);
    let _connection = connect(&scheduler, 1);
    call(&scheduler, Effect { failed: true, ..Effect::default() });
    let waiting = later(&scheduler, |scheduler| {
        let _request = scheduler.begin_request().unwrap();
        called(scheduler)
    });
    assert!(waiting.recv_timeout(SHORT).is_err());
    scheduler.advance(Stage::Closing);
    assert_eq!(waiting.recv_timeout(ENOUGH), Ok(false));
    assert!(scheduler.begin_request().is_none(), "busy clients would put off the end for ever");
    assert_eq!(scheduler.wait_until_due(), Due::End);
}

#[test]
fn a_call_that_panics_has_failed_and_keeps_nobody_waiting() {
    let scheduler = scheduler(ENOUGH);
    let _connection = connect(&scheduler, 1);
    let panicking = Arc::clone(&scheduler);
    let panicked = thread::spawn(move || {
        let mut call = panicking.begin_call(1, Interpreter::HeldInSlices).unwrap();
        call.suspect();
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(panicked.join().is_err());
    assert_eq!(scheduler.wait_until_due(), Due::Checkpoint);
    scheduler.end_reopening();
    assert!(called(&scheduler));
}

#[test]
fn readers_go_on_until_a_long_write_has_ended_that_a_checkpoint_waits_for() {
    let scheduler = scheduler(ENOUGH);
    let _connection = connect(&scheduler, 1);
    fail_in_background(&scheduler);
    let long = scheduler.begin_call(1, Interpreter::HeldInSlices).unwrap();
    call(&scheduler, wrote(20_000, 1));
    let due = later(&scheduler, Scheduler::wait_until_due);
    while scheduler.state().waiting_to_quiesce == 0 {
        thread::yield_now();
    }
    let next = later(&scheduler, |scheduler| {
        scheduler.begin_call(1, Interpreter::HeldInSlices).unwrap().end(Effect::default());
    });
    assert!(next.recv_timeout(SHORT).is_err(), "another long write keeps the checkpoint waiting");
    assert_eq!(later(&scheduler, called).recv_timeout(ENOUGH), Ok(true));
    assert!(due.try_recv().is_err());
    long.end(Effect::default());
    assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::Checkpoint));
    let reader = later(&scheduler, called);
    assert!(reader.recv_timeout(SHORT).is_err());
    scheduler.end_checkpoint(SHORT, None);
    assert_eq!(reader.recv_timeout(ENOUGH), Ok(true));
    next.recv_timeout(ENOUGH).unwrap();
}

#[test]
fn who_does_not_read_does_not_put_off_the_end() {
    let scheduler = scheduler(ENOUGH);
    let (ours, _theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    while std::io::Write::write(&mut &ours, &[0; 4096]).is_ok() {}
    scheduler.connect(Some(1), ours).unwrap();
    assert_eq!(later(&scheduler, Scheduler::send_closing_notice).recv_timeout(ENOUGH), Ok(()));
}

fn add() -> (&'static Method, Slices) {
    let method = Method::named("add");
    (method, method.slices.unwrap())
}

/// The time of a slice of that many records, where each takes a millisecond.
fn milliseconds(records: usize) -> Duration {
    Duration::from_millis(records as u64)
}

#[test]
fn a_long_write_takes_small_slices_from_the_moment_that_another_call_comes() {
    let scheduler = scheduler(ENOUGH);
    let (_, slices) = add();
    let write = scheduler.begin_call(1, Interpreter::HeldInSlices).unwrap();
    let next = || write.next_slice(300, milliseconds(300), slices, 10_000);
    assert_eq!(next(), 400, "nobody else is there");
    let other = scheduler.begin_call(2, Interpreter::Released).unwrap();
    assert_eq!(next(), 80, "another call is in flight");
    scheduler.state().company.age();
    assert_eq!(next(), 80, "it has been in flight for long");
    other.end(Effect::default());
    assert_eq!(next(), 80, "another connection has called recently");
    scheduler.state().company.age();
    assert_eq!(next(), 400, "nobody else has called for long");
}

#[test]
fn the_earlier_calls_of_a_connection_are_no_company_for_its_next_one_and_those_of_others_are() {
    let scheduler = scheduler(ENOUGH);
    let (_, slices) = add();
    let next = |connection| {
        let write = scheduler.begin_call(connection, Interpreter::HeldInSlices).unwrap();
        let size = write.next_slice(300, milliseconds(300), slices, 10_000);
        write.end(Effect::default());
        size
    };
    assert_eq!((next(1), next(1)), (400, 400));
    assert_eq!((next(2), next(2)), (80, 80));
    assert_eq!((next(1), next(3), next(3)), (80, 80, 80));
    scheduler.state().company.age();
    assert_eq!((next(3), next(3)), (400, 400));
}

#[test]
fn a_call_that_waits_for_the_slot_is_company() {
    let scheduler = scheduler(ENOUGH);
    let (_, slices) = add();
    let write = scheduler.begin_call(1, Interpreter::HeldInSlices).unwrap();
    let slot = scheduler.take_slot().unwrap();
    let waiting = later(&scheduler, |scheduler| {
        let call = scheduler.begin_call(2, Interpreter::Held).unwrap();
        drop(scheduler.take_slot());
        call.end(Effect::default());
    });
    while scheduler.state().next_ticket < 2 {
        thread::yield_now();
    }
    scheduler.state().company.age();
    assert_eq!(write.next_slice(300, milliseconds(300), slices, 10_000), 80);
    drop(slot);
    waiting.recv_timeout(ENOUGH).unwrap();
}

#[test]
fn a_slice_fits_the_time_grows_slowly_and_takes_a_small_rest_along_where_nobody_waits_for_it() {
    let scheduler = scheduler(ENOUGH);
    let (_, slices) = add();
    let write = scheduler.begin_call(1, Interpreter::HeldInSlices).unwrap();
    let next = |size, took: u64, left| write.next_slice(size, Duration::from_millis(took), slices, left);
    assert_eq!(next(128, 1, 10_000), 256, "it at most doubles");
    assert_eq!(next(400, 800, 10_000), 200);
    assert_eq!(next(100, 1_000_000, 10_000), 1);
    assert_eq!((next(400, 400, 500), next(400, 400, 501)), (500, 400));
    assert_eq!(next(400, 400, 7), 7);
    let _other = scheduler.begin_call(2, Interpreter::Released).unwrap();
    assert_eq!((next(80, 80, 80), next(80, 80, 81)), (80, 80));
}

#[test]
fn the_first_slice_is_as_large_as_the_records_of_the_last_write_were_fast() {
    let scheduler = scheduler(ENOUGH);
    let (add, slices) = add();
    let write = scheduler.begin_call(1, Interpreter::HeldInSlices).unwrap();
    let first = |collection| write.first_slice(add, collection, slices, 10_000);
    assert_eq!(first("a"), slices.first);
    write.note_pace(add, "a", slices.first - 1, milliseconds(1));
    assert_eq!(first("a"), slices.first, "so few records tell little");
    write.note_pace(add, "a", 300, milliseconds(300));
    assert_eq!(first("a"), 400);
    assert_eq!(write.first_slice(add, "a", slices, 500), 500, "all of the write is one slice");
    assert_eq!(first("b"), slices.first, "another collection");
    write.note_pace(add, "a", 5_000, milliseconds(1));
    assert_eq!(first("a"), 4 * slices.first, "others may be slower");
    let _other = scheduler.begin_call(2, Interpreter::Released).unwrap();
    write.note_pace(add, "a", 300, milliseconds(300));
    assert_eq!(first("a"), 80);
}

#[test]
fn a_write_waits_for_the_reads_in_flight_but_not_for_long_and_for_nothing_else() {
    let scheduler = scheduler(ENOUGH);
    let write = scheduler.begin_call(1, Interpreter::Held).unwrap();
    let _other_write = scheduler.begin_call(2, Interpreter::HeldInSlices).unwrap();
    let waits = || {
        let began = Instant::now();
        write.let_reads_end();
        began.elapsed() >= READS_END_WITHIN
    };
    // On a busy machine it may take as long without a wait, but not each time.
    let never_waits = || (0..1_000).any(|_| !waits());
    assert!(never_waits());
    let read = scheduler.begin_call(3, Interpreter::Released).unwrap();
    assert!((0..3).all(|_| waits()));
    read.end(Effect::default());
    assert!(never_waits());
}

#[test]
fn a_call_that_makes_nothing_due_wakes_nobody() {
    let scheduler = scheduler(ENOUGH);
    let (_id, _stream) = connect(&scheduler, 1);
    let due = later(&scheduler, Scheduler::wait_until_due);
    let expects = || scheduler.state().expects_nothing_before;
    while expects().is_none() {
        thread::yield_now();
    }
    let before = expects();
    for _ in 0..100 {
        drop(scheduler.begin_request().unwrap());
        call(&scheduler, wrote(1, 0));
    }
    thread::sleep(SHORT);
    assert_eq!(expects(), before);
    call(&scheduler, wrote(20_000, 0));
    assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::CheckpointInBackground));
}
