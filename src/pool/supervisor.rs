//! The options, counters, cleanups and shutdown of a manager, whichever engine it uses.
//!
//! The last call that leaves a cleaned-up instance closes it. A cleanup waits for that, unless it would wait for its
//! own thread (a signal handler in the middle of a call). A cleanup therefore always returns, and no database is closed
//! while a call is in flight.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::idle::{self, IdleThread};
use super::memory::release_free_memory;
use super::permits::Permits;
use super::registry::Registry;
use crate::LOGGER;
use crate::engine::{Engine, Instance, Opening};
use crate::failure::Budget;
use crate::instance::key::Key;
use crate::python::error::Error;
use crate::python::gil::Lock;

/// The options of a manager.
#[derive(Debug, Default)]
pub struct Options {
    /// The absolute path of the directory with all databases.
    pub base_path: PathBuf,
    /// How long an opening waits for another owner.
    pub lock_timeout: Duration,
    /// How long a database may be idle before it is closed; `None` for no limit.
    pub idle_timeout: Option<Duration>,
    /// How many databases may be open at once; `None` for no limit.
    pub max_engines: Option<usize>,
    /// How many bytes the engine processes may have together; `None` for no limit.
    pub max_memory: Option<u64>,
}

/// Counters since the manager was constructed.
#[derive(Debug, Default)]
pub struct Counters {
    /// Databases opened.
    pub openings: AtomicU64,
    /// Explicit cleanups.
    pub cleanups: AtomicU64,
    /// Databases closed to make room for others.
    pub evictions: AtomicU64,
    /// Failed openings.
    pub errors: AtomicU64,
}

/// Creates a client of an open instance, with the `System` that Chroma has for the database. The registry sets the flag
/// when `get_client` returns the client again; see `Connection::may_create`.
pub type MakeClient = for<'py> fn(
    Python<'py>,
    &Arc<Supervisor>,
    &Arc<Instance>,
    &Arc<AtomicBool>,
    &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>>;

/// The state behind one manager.
pub struct Supervisor {
    /// The options.
    pub options: Options,
    /// The counters.
    pub counters: Counters,
    /// The instances, and the clients of each thread.
    pub registry: Arc<Registry>,
    /// The number of connections.
    pub connections: AtomicUsize,
    pub(super) engine: Box<dyn Engine>,
    pub(super) make_client: MakeClient,
    pub(super) permits: Permits,
    pub(super) shut_down: AtomicBool,
    idle_thread: Mutex<Option<IdleThread>>,
}

impl Supervisor {
    /// Creates a supervisor without instances.
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

    /// Returns the name of the engine.
    pub fn engine_name(&self) -> &'static str {
        self.engine.name()
    }

    /// Releases an instance in all threads and closes its database. Calls in flight finish first.
    pub fn cleanup(&self, py: Python<'_>, key: &Key) -> Result<(), Error> {
        self.counters.cleanups.fetch_add(1, Ordering::Relaxed);
        if let Some(instance) = self.registry.existing(py, key) {
            self.begin_cleanup(py, &instance)?;
            self.wait_until_closed(py, &instance)?;
            release_free_memory(py);
        }
        Ok(())
    }

    /// Releases all instances in all threads and closes their databases. Calls in flight finish first.
    pub fn cleanup_all(&self, py: Python<'_>) -> Result<(), Error> {
        self.counters.cleanups.fetch_add(1, Ordering::Relaxed);
        let instances = self.registry.instances(py);
        for instance in &instances {
            self.begin_cleanup(py, instance)?;
        }
        for instance in &instances {
            self.wait_until_closed(py, instance)?;
        }
        self.engine.tidy(py);
        if !instances.is_empty() {
            release_free_memory(py);
        }
        Ok(())
    }

    /// Releases the registry's references to all clients. Returns whether no client is left, that is, whether no other
    /// code refers to one.
    pub fn release_clients(&self, py: Python<'_>) -> bool {
        for instance in self.registry.instances(py) {
            self.registry.forget_clients_of(py, &instance);
        }
        self.connections.load(Ordering::SeqCst) == 0
    }

    /// Cleans up, and refuses all further calls.
    pub fn shut_down(&self, py: Python<'_>) -> Result<(), Error> {
        self.shut_down.store(true, Ordering::SeqCst);
        drop(self.idle_thread.take(py).take());
        self.cleanup_all(py)
    }

    /// Closes the databases without a call in flight, at process exit. Waits for no call.
    pub fn close_at_exit(&self, py: Python<'_>) {
        self.shut_down.store(true, Ordering::SeqCst);
        for instance in self.registry.instances(py) {
            if let Err(error) = self.begin_cleanup(py, &instance) {
                log::warn!(target: LOGGER, "{} was not closed at process exit: {error}", instance.key());
            }
        }
    }

    /// Returns the terms of an opening that begins now.
    pub fn opening(&self, may_create: bool) -> Opening {
        let opening = Opening::new(may_create, self.options.lock_timeout);
        Opening { answer_within: self.engine.call_timeout(), ..opening }
    }

    /// Returns the terms of an opening for a call that begins now. The budget bounds the call as a whole.
    pub fn opening_for_call(&self, may_create: bool) -> Opening {
        Opening { budget: self.engine.call_timeout().map(Budget::new), ..self.opening(may_create) }
    }

    /// Marks an instance as cleaned up and forgets its clients. Closes it if no call is in flight.
    pub(super) fn begin_cleanup(&self, py: Python<'_>, instance: &Arc<Instance>) -> PyResult<()> {
        instance.mark_cleaned_up();
        self.registry.forget_clients_of(py, instance);
        self.close_if_cleaned_up(py, instance, None)
    }

    /// Starts the thread that closes idle databases, unless it is running or there is no limit.
    pub(super) fn start_idle_thread(self: &Arc<Self>, py: Python<'_>) {
        let (idle, budget) = (self.options.idle_timeout, self.options.max_memory);
        let Some(round) = idle::round(idle, budget.is_some()) else { return };
        let mut thread = self.idle_thread.take(py);
        if thread.as_ref().is_none_or(|thread| !thread.belongs_to_this_process()) {
            let supervisor = Arc::downgrade(self);
            *thread = IdleThread::start(round, move |py| {
                supervisor.upgrade().is_some_and(|supervisor| {
                    let closed = idle.map_or(Ok(0), |idle| supervisor.close_idle(py, idle));
                    let fits = budget.map_or(Ok(()), |budget| supervisor.keep_within(py, budget));
                    if let Err(error) = closed.and(fits) {
                        log::warn!(target: LOGGER, "cannot close idle databases: {error}");
                    }
                    true
                })
            });
        }
    }
}

/// The reference that the exit hook holds.
pub type WeakSupervisor = Weak<Supervisor>;
