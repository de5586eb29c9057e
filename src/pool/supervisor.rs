//! Opens, closes and cleans up the instances of a manager, whichever engine is under them.
//!
//! Whoever leaves an ended instance last closes it; whoever cleans up waits for that, unless the wait would be for itself
//! (a signal handler in the middle of a call). So a cleanup returns in any order of events, and no call loses its database
//! under its feet.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::idle::IdleThread;
use super::memory::give_memory_back;
use super::permits::Permits;
use super::registry::Registry;
use crate::LOGGER;
use crate::engine::{Engine, Instance, Opening};
use crate::failure::Budget;
use crate::instance::key::Key;
use crate::python::error::Error;
use crate::python::gil::Lock;

/// What a manager was configured with.
#[derive(Debug, Default)]
pub struct Options {
    /// Absolute.
    pub base_path: PathBuf,
    pub lock_timeout: Duration,
    pub idle_timeout: Option<Duration>,
    pub max_engines: Option<usize>,
}

/// Counters since the manager was constructed.
#[derive(Debug, Default)]
pub struct Counters {
    pub openings: AtomicU64,
    pub cleanups: AtomicU64,
    pub evictions: AtomicU64,
    pub errors: AtomicU64,
}

/// Makes a client of an open instance, with Chroma's `System` of its database; the flag is the registry's to set when
/// `get_client` gives the client out again.
pub type MakeClient = for<'py> fn(
    Python<'py>,
    &Arc<Supervisor>,
    &Arc<Instance>,
    &Arc<AtomicBool>,
    &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>>;

/// The instances of one manager and what happens to them.
pub struct Supervisor {
    pub options: Options,
    pub counters: Counters,
    pub registry: Arc<Registry>,
    /// How many there are.
    pub connections: AtomicUsize,
    pub(super) engine: Box<dyn Engine>,
    pub(super) make_client: MakeClient,
    pub(super) permits: Permits,
    pub(super) shut_down: AtomicBool,
    idle_thread: Mutex<Option<IdleThread>>,
}

impl Supervisor {
    pub fn new(options: Options, engine: Box<dyn Engine>, make_client: MakeClient) -> Self {
        Self {
            permits: Permits::new(options.max_engines),
            options,
            engine,
            make_client,
            counters: Counters::default(),
            registry: Arc::default(),
            connections: AtomicUsize::new(0),
            shut_down: AtomicBool::new(false),
            idle_thread: Mutex::new(None),
        }
    }

    pub fn engine_name(&self) -> &'static str {
        self.engine.name()
    }

    /// Releases an instance in all threads and closes its database. Calls under way finish first.
    pub fn cleanup(&self, py: Python<'_>, key: &Key) -> Result<(), Error> {
        self.counters.cleanups.fetch_add(1, Ordering::Relaxed);
        if let Some(instance) = self.registry.existing(py, key) {
            self.end(py, &instance)?;
            self.wait_until_closed(py, &instance)?;
            give_memory_back(py);
        }
        Ok(())
    }

    /// The same for all instances.
    pub fn cleanup_all(&self, py: Python<'_>) -> Result<(), Error> {
        self.counters.cleanups.fetch_add(1, Ordering::Relaxed);
        let instances = self.registry.instances(py);
        for instance in &instances {
            self.end(py, instance)?;
        }
        for instance in &instances {
            self.wait_until_closed(py, instance)?;
        }
        self.engine.tidy(py);
        if !instances.is_empty() {
            give_memory_back(py);
        }
        Ok(())
    }

    /// Lets go of all clients; tells whether nobody else has one. Where somebody does, the others get new ones.
    pub fn release_clients(&self, py: Python<'_>) -> bool {
        for instance in self.registry.instances(py) {
            self.registry.forget_clients_of(py, &instance);
        }
        self.connections.load(Ordering::SeqCst) == 0
    }

    /// Cleans up, and lets nobody in again.
    pub fn shut_down(&self, py: Python<'_>) -> Result<(), Error> {
        self.shut_down.store(true, Ordering::SeqCst);
        drop(self.idle_thread.take(py).take());
        self.cleanup_all(py)
    }

    /// At the end of the process: closes what nobody is inside of, and waits for nobody.
    pub fn abandon(&self, py: Python<'_>) {
        self.shut_down.store(true, Ordering::SeqCst);
        for instance in self.registry.instances(py) {
            if let Err(error) = self.end(py, &instance) {
                log::warn!(target: LOGGER, "{} was not closed at the end of the process: {error}", instance.key());
            }
        }
    }

    /// How a caller that comes now opens a database.
    pub fn opening(&self, may_create: bool) -> Opening {
        let opening = Opening::new(may_create, self.options.lock_timeout);
        Opening { answer_within: self.engine.call_timeout(), ..opening }
    }

    /// The same for a call, which is bounded as a whole.
    pub fn opening_for_call(&self, may_create: bool) -> Opening {
        Opening { budget: self.engine.call_timeout().map(Budget::new), ..self.opening(may_create) }
    }

    pub(super) fn end(&self, py: Python<'_>, instance: &Arc<Instance>) -> PyResult<()> {
        instance.mark_cleaned_up();
        self.registry.forget_clients_of(py, instance);
        self.close_if_cleaned_up(py, instance, None)
    }

    pub(super) fn start_idle_thread(self: &Arc<Self>, py: Python<'_>) {
        let Some(idle) = self.options.idle_timeout else { return };
        let mut thread = self.idle_thread.take(py);
        if thread.as_ref().is_none_or(|thread| !thread.belongs_to_this_process()) {
            let supervisor = Arc::downgrade(self);
            *thread = IdleThread::start(idle, move |py| {
                supervisor.upgrade().is_some_and(|supervisor| {
                    if let Err(error) = supervisor.close_idle(py, idle) {
                        log::warn!(target: LOGGER, "closing idle databases: {error}");
                    }
                    true
                })
            });
        }
    }
}

/// What the end of the process and the idle thread hold.
pub type WeakSupervisor = Weak<Supervisor>;
