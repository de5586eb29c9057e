//! The life of an instance, with real threads. Its schedules are explored in `src/explored/app.rs`.

use super::*;
use std::sync::atomic::AtomicUsize;

const LONG: Duration = Duration::from_secs(10);

fn instance() -> Arc<Instance<&'static str>> {
    Arc::new(Instance::new(Key::new("doc", "azure").unwrap(), Path::new("/base")))
}

fn state<D>(instance: &Instance<D>) -> MutexGuard<'_, State<D>> {
    instance.state.lock().unwrap()
}

fn enter<D>(instance: &Instance<D>) -> Enter<D> {
    instance.enter(state(instance))
}

#[test]
fn the_first_caller_opens_and_the_others_wait_for_it() {
    let instance = instance();
    assert!(matches!(enter(&instance), Enter::MustOpen));
    let other = Arc::clone(&instance);
    assert!(matches!(thread::spawn(move || enter(&other)).join().unwrap(), Enter::Wait));
    instance.opened(state(&instance), "open");
    assert!(matches!(enter(&instance), Enter::Ready(_)));
}

#[test]
fn a_thread_that_is_opening_does_not_wait_for_itself() {
    let instance = instance();
    assert!(matches!(enter(&instance), Enter::MustOpen));
    assert!(matches!(enter(&instance), Enter::Busy));
}

#[test]
fn after_a_failed_opening_the_next_caller_tries_again() {
    let instance = instance();
    assert!(matches!(enter(&instance), Enter::MustOpen));
    instance.failed(state(&instance));
    assert!(matches!(enter(&instance), Enter::MustOpen));
}

#[test]
fn a_database_is_not_closed_during_a_call() {
    let instance = instance();
    enter(&instance);
    instance.opened(state(&instance), "open");
    let Enter::Ready(database) = enter(&instance) else { panic!("it is open") };
    assert!(instance.begin_closing(state(&instance)).is_none());
    drop(database);
    instance.leave(state(&instance));
    assert_eq!(instance.begin_closing(state(&instance)), Some("open"));
    assert!(!state(&instance).is_closed(), "it is closed only when the closing has completed");
    instance.closed(state(&instance));
    assert!(matches!(enter(&instance), Enter::MustOpen), "an idle close is not final");
}

#[test]
fn an_instance_that_was_cleaned_up_refuses_callers_and_can_still_be_closed() {
    let instance = instance();
    enter(&instance);
    instance.opened(state(&instance), "open");
    instance.mark_cleaned_up();
    assert!(matches!(enter(&instance), Enter::CleanedUp));
    assert!(instance.begin_closing(state(&instance)).is_some());
}

#[test]
fn a_wait_ends_with_the_change_and_does_not_begin_without_one() {
    let instance = instance();
    let start = Instant::now();
    instance.wait_until_quiesced(LONG);
    enter(&instance);
    let waiter = Arc::clone(&instance);
    let thread = thread::spawn(move || waiter.wait_until_settled(LONG));
    thread::sleep(Duration::from_millis(20));
    instance.opened(state(&instance), "open");
    thread.join().unwrap();
    assert!(start.elapsed() < LONG / 2);
}

#[test]
fn only_a_wait_for_quiescence_waits_for_a_call_in_flight() {
    let instance = instance();
    enter(&instance);
    instance.opened(state(&instance), "open");
    let Enter::Ready(database) = enter(&instance) else { panic!("it is open") };
    let start = Instant::now();
    instance.wait_until_settled(LONG);
    assert!(start.elapsed() < LONG / 2);
    let waiter = Arc::clone(&instance);
    let thread = thread::spawn(move || waiter.wait_until_quiesced(LONG));
    thread::sleep(Duration::from_millis(20));
    assert!(!thread.is_finished());
    drop(database);
    instance.leave(state(&instance));
    thread.join().unwrap();
    assert!(start.elapsed() < LONG / 2);
}

#[test]
fn a_stale_database_is_closed_and_its_successor_is_not() {
    let instance = instance();
    enter(&instance);
    instance.opened(state(&instance), "first");
    let Enter::Ready(database) = enter(&instance) else { panic!("it is open") };
    let first = Arc::downgrade(&database);
    assert!(instance.begin_closing_of(state(&instance), &first).is_none(), "a call is in flight");
    drop(database);
    instance.leave(state(&instance));
    assert_eq!(instance.begin_closing_of(state(&instance), &first), Some("first"));
    instance.closed(state(&instance));
    enter(&instance);
    instance.opened(state(&instance), "second");
    assert!(instance.begin_closing_of(state(&instance), &first).is_none());
    assert!(state(&instance).is_open());
}

#[test]
fn exclusive_maintenance_keeps_callers_out() {
    let instance = instance();
    enter(&instance);
    instance.opened(state(&instance), "open");
    let Enter::Ready(database) = enter(&instance) else { panic!("it is open") };
    assert!(instance.begin_maintenance(state(&instance)).is_none(), "a call is in flight");
    drop(database);
    instance.leave(state(&instance));
    assert_eq!(instance.begin_maintenance(state(&instance)), Some(Some("open")));
    let other = Arc::clone(&instance);
    assert!(matches!(thread::spawn(move || enter(&other)).join().unwrap(), Enter::Wait));
    instance.closed(state(&instance));
    assert_eq!(instance.begin_maintenance(state(&instance)), Some(None));
    instance.closed(state(&instance));
    assert!(matches!(enter(&instance), Enter::MustOpen));
}

#[test]
fn new_calls_do_not_delay_a_request_for_maintenance() {
    let instance = instance();
    enter(&instance);
    instance.opened(state(&instance), "open");
    let Enter::Ready(database) = enter(&instance) else { panic!("it is open") };
    let request = instance.request_maintenance();
    assert!(matches!(enter(&instance), Enter::Wait));
    let waiter = Arc::clone(&instance);
    let thread = thread::spawn(move || waiter.wait_until_settled(Duration::from_millis(50)));
    thread.join().unwrap();
    drop(database);
    instance.leave(state(&instance));
    assert!(instance.begin_maintenance(state(&instance)).is_some());
    drop(request);
    instance.closed(state(&instance));
    assert!(matches!(enter(&instance), Enter::MustOpen));
}

#[test]
fn every_use_resets_the_idle_time() {
    let instance = instance();
    thread::sleep(Duration::from_millis(30));
    assert!(instance.is_idle_for(Duration::from_millis(20)));
    instance.touch();
    assert!(!instance.is_idle_for(Duration::from_millis(20)));
}

#[test]
fn every_opening_has_one_closing_when_threads_race() {
    let (instance, openings, closings) = (instance(), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    match enter(&instance) {
                        Enter::Ready(database) => {
                            drop(database);
                            instance.leave(state(&instance));
                            if instance.begin_closing(state(&instance)).is_some() {
                                closings.fetch_add(1, Ordering::Relaxed);
                                instance.closed(state(&instance));
                            }
                        }
                        Enter::MustOpen => {
                            openings.fetch_add(1, Ordering::Relaxed);
                            instance.opened(state(&instance), "open");
                        }
                        Enter::Wait => instance.wait_until_settled(LONG),
                        Enter::Busy | Enter::CleanedUp => panic!("no call is nested, and nothing was cleaned up"),
                    }
                }
            });
        }
    });
    let left_open = usize::from(instance.begin_closing(state(&instance)).is_some());
    assert_eq!(openings.into_inner(), closings.into_inner() + left_open);
}
