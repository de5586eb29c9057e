//! What an app has of `pool/`, without an interpreter: instances, permits and the gate.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::explored::once_in;
use crate::instance::key::Key;
use crate::instance::{Enter, Instance, State};
use crate::pool::permits::Permits;
use crate::sync::fork_gate::{Gate, Pass, Work, inside_call};
use crate::sync::time::Clock;
use crate::sync::{Mutex, MutexGuard, thread};

const POLL: Duration = Duration::from_millis(50);
pub(super) const KEYS: usize = 2;
const MOST_OPEN: usize = 1;

type Database = Arc<AtomicBool>;
type Known = Arc<Instance<Database>>;

/// The reason why a call was refused.
#[derive(Debug)]
pub(super) enum Refused {
    CleanedUp,
    Busy,
    NotOpened,
}

pub(super) struct Manager {
    gate: &'static Gate,
    work: Work,
    permits: Permits,
    instances: Mutex<Vec<Option<Known>>>,
    open: AtomicUsize,
    /// How often the directory of each database was removed.
    pub(super) removed: [AtomicUsize; KEYS],
    /// The number of threads doing work that a fork must not interrupt.
    at_work: AtomicUsize,
}

fn state(instance: &Instance<Database>) -> MutexGuard<'_, State<Database>> {
    instance.state.lock().unwrap()
}

impl Manager {
    fn instance(&self, key: usize) -> Known {
        let mut instances = self.instances.lock().unwrap();
        let new = || Arc::new(Instance::new(Key::new("doc", &key.to_string()).unwrap(), Path::new("/base")));
        Arc::clone(instances[key].get_or_insert_with(new))
    }

    fn forget(&self, instance: &Known) {
        for known in &mut *self.instances.lock().unwrap() {
            if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, instance)) {
                *known = None;
            }
        }
    }

    fn pass(&self, work: Work) -> Pass {
        loop {
            if let Some(pass) = self.gate.try_pass(work) {
                return pass;
            }
            self.gate.wait(POLL);
        }
    }

    fn here(&self, work: impl FnOnce()) {
        let _pass = self.pass(Work::Here);
        self.at_work.fetch_add(1, SeqCst);
        thread::yield_now();
        work();
        self.at_work.fetch_sub(1, SeqCst);
    }

    /// Models `Connection::call`. `within` models a signal handler that runs during the call.
    pub(super) fn call(&self, key: usize, within: fn(&Self, usize)) -> Result<(), Refused> {
        let instance = self.instance(key);
        loop {
            let removed = self.removed[key].load(SeqCst);
            let (pass, database) = self.enter(&instance)?;
            assert!(database.load(SeqCst), "a closed database was handed out");
            within(self, key);
            thread::yield_now();
            assert!(database.load(SeqCst), "closed during a call");
            let stale = Arc::downgrade(&database);
            drop(database);
            instance.leave(state(&instance));
            self.close_if_cleaned_up(&instance);
            drop(pass);
            if self.removed[key].load(SeqCst) == removed {
                return Ok(());
            }
            self.close_stale(&instance, &stale)?;
        }
    }

    fn enter(&self, instance: &Known) -> Result<(Pass, Arc<Database>), Refused> {
        loop {
            let pass = self.pass(self.work);
            match instance.enter(state(instance)) {
                Enter::Ready(database) => return Ok((pass, database)),
                Enter::CleanedUp => return Err(Refused::CleanedUp),
                Enter::Busy => return Err(Refused::Busy),
                Enter::MustOpen => {
                    drop(pass);
                    self.open(instance)?;
                }
                Enter::Wait => {
                    drop(pass);
                    if inside_call() {
                        return Err(Refused::Busy);
                    }
                    instance.wait_until_settled(POLL);
                }
            }
        }
    }

    fn open(&self, instance: &Known) -> Result<(), Refused> {
        let opened = self.take_permit(instance).and_then(|()| {
            let mut fails = false;
            self.here(|| fails = once_in(5));
            if fails {
                self.permits.release();
                return Err(Refused::NotOpened);
            }
            Ok(())
        });
        if let Err(refused) = opened {
            instance.failed(state(instance));
            if instance.is_cleaned_up() {
                self.forget(instance);
            }
            return Err(refused);
        }
        assert!(self.open.fetch_add(1, SeqCst) < MOST_OPEN, "more databases are open than allowed");
        instance.opened(state(instance), Arc::new(AtomicBool::new(true)));
        self.close_if_cleaned_up(instance);
        Ok(())
    }

    fn take_permit(&self, instance: &Known) -> Result<(), Refused> {
        while !self.permits.take() {
            let instances: Vec<_> = self.instances.lock().unwrap().iter().flatten().cloned().collect();
            if instances.iter().any(|instance| self.try_close(instance)) {
                continue;
            }
            if inside_call() {
                return Err(Refused::Busy);
            }
            if instance.is_cleaned_up() {
                return Err(Refused::CleanedUp);
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn try_close(&self, instance: &Known) -> bool {
        let _pass = self.pass(self.work);
        let Some(database) = instance.begin_closing(state(instance)) else { return false };
        self.close(&database);
        instance.closed(state(instance));
        true
    }

    fn close(&self, database: &Database) {
        self.here(|| assert!(database.swap(false, SeqCst), "closed twice"));
        self.open.fetch_sub(1, SeqCst);
        self.permits.release();
    }

    fn close_if_cleaned_up(&self, instance: &Known) {
        if instance.is_cleaned_up() {
            self.try_close(instance);
            if state(instance).is_closed() {
                self.forget(instance);
            }
        }
    }

    fn close_stale(&self, instance: &Known, stale: &Weak<Database>) -> Result<(), Refused> {
        loop {
            {
                let _pass = self.pass(self.work);
                if let Some(database) = instance.begin_closing_of(state(instance), stale) {
                    self.close(&database);
                    instance.closed(state(instance));
                }
            }
            if !state(instance).is_open_with(stale) {
                return Ok(());
            }
            if inside_call() {
                return Err(Refused::Busy);
            }
            instance.wait_until_quiesced(POLL);
        }
    }

    pub(super) fn cleanup(&self, key: usize) {
        let Some(instance) = self.instances.lock().unwrap()[key].clone() else { return };
        instance.mark_cleaned_up();
        loop {
            self.close_if_cleaned_up(&instance);
            let would_wait_for_itself = inside_call();
            let state = state(&instance);
            if would_wait_for_itself || state.is_closed() || state.is_changing_in_this_thread() {
                return;
            }
            drop(state);
            instance.wait_until_quiesced(POLL);
        }
    }

    /// Models `Supervisor::while_quiesced` with an engine in this process.
    pub(super) fn manage(&self, key: usize) {
        loop {
            let instance = self.instance(key);
            let request = instance.request_maintenance();
            let (pass, open) = loop {
                let pass = self.pass(self.work);
                if let Some(open) = instance.begin_maintenance(state(&instance)) {
                    break (pass, open);
                }
                drop(pass);
                instance.wait_until_quiesced(POLL);
            };
            drop(request);
            if let Some(database) = open {
                self.close(&database);
            }
            let is_done = !instance.is_cleaned_up();
            instance.closed(state(&instance));
            self.close_if_cleaned_up(&instance);
            drop(pass);
            if is_done {
                return;
            }
        }
    }

    pub(super) fn fork(&self) {
        let is_quiesced = self.gate.pause(Duration::from_secs(30));
        thread::yield_now();
        assert!(!is_quiesced || self.at_work.load(SeqCst) == 0, "a fork in the middle of another thread's work");
        self.gate.resume();
    }
}

/// Runs the threads, until each has ended.
pub(super) fn execution(work: Work, threads: &[fn(&Manager)]) {
    let clock = Clock::start();
    let manager = Arc::new(Manager {
        gate: Box::leak(Box::default()),
        work,
        permits: Permits::new(Some(MOST_OPEN)),
        instances: Mutex::new(vec![None; KEYS]),
        open: AtomicUsize::new(0),
        removed: Default::default(),
        at_work: AtomicUsize::new(0),
    });
    let threads: Vec<_> = threads
        .iter()
        .map(|run| {
            let (manager, run) = (Arc::clone(&manager), *run);
            thread::spawn(move || run(&manager))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    for key in 0..KEYS {
        manager.cleanup(key);
    }
    assert_eq!(manager.open.load(SeqCst), 0, "a database stayed open");
    assert!((0..MOST_OPEN).all(|_| manager.permits.take()), "a permit was lost");
    clock.stop();
}
