//! The connection that a client's calls go through: an object with the methods of `chromadb_rust_bindings.Bindings`.
//!
//! Chroma's `RustBindingsAPI` uses it in the place of the binding. It forwards a call to the engine, and guarantees
//! that the database is open until the call returns, or raises an error that says why not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use once_cell::unsync::OnceCell;
use parking_lot::Mutex;
use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::chroma::{self, Caller};
use crate::engine::{self, Instance, Request};
use crate::failure::{Attempts, Failure, Next};
use crate::pool::supervisor::Supervisor;
use crate::python::call::call_python;
use crate::python::error::Error;
use crate::python::gil::Lock;

/// The connection of one client to its database.
#[pyclass(frozen, module = "chroma_manager._native")]
pub struct Connection {
    supervisor: Weak<Supervisor>,
    instance: Mutex<Arc<Instance>>,
    /// Whether the next call may create a database that was removed in the meantime. `get_client` sets it when it
    /// returns the client again: checking for the database itself would cost every `get_client` a system call.
    may_create: Arc<AtomicBool>,
    closed: AtomicBool,
}

impl Connection {
    /// Creates a connection to an instance. `may_create` is shared with the registry.
    pub fn new(supervisor: &Arc<Supervisor>, instance: &Arc<Instance>, may_create: &Arc<AtomicBool>) -> Self {
        supervisor.connections.fetch_add(1, Ordering::SeqCst);
        Self {
            supervisor: Arc::downgrade(supervisor),
            instance: Mutex::new(Arc::clone(instance)),
            may_create: Arc::clone(may_create),
            closed: AtomicBool::new(false),
        }
    }

    fn call<'py>(
        &self,
        py: Python<'py>,
        method: &Bound<'py, PyString>,
        arguments: &Bound<'py, PyTuple>,
        keywords: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let supervisor = self.supervisor.upgrade().ok_or(Error::ManagerShutDown)?;
        let instance = self.instance(py, &supervisor);
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::client_closed(&instance, "its close() was called").into());
        }
        // A call of a collection never recreates a removed database: the collection was removed with it.
        let is_client_method = chroma::Method::named(method.to_str()?).caller == Caller::Client;
        let opening = supervisor.opening_for_call(is_client_method && self.may_create.swap(false, Ordering::Relaxed));
        let in_call = |error: Error| error.in_call(method.to_str().unwrap_or_default());
        let request = Request { method, arguments, keywords, budget: opening.budget, encoded: OnceCell::new() };
        let (mut attempts, mut times_reopened) = (Attempts::new(), 0);
        loop {
            let in_flight = supervisor.enter(py, &instance, opening).map_err(in_call)?;
            let attempt = in_flight.database().attempt(py, &request);
            let database = in_flight.leave()?;
            let failure = match attempt {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => {
                    let error = PyErr::from(error);
                    if is_failed_read(py, method, &error) { Failure::Read(error) } else { error.into() }
                }
                Err(failure) => failure,
            };
            match attempts.after(py, &instance, failure) {
                Next::Attempt => {}
                Next::Reopen => {
                    supervisor.close_stale(py, &instance, &database, opening).map_err(in_call)?;
                    opening.restart(py, &instance, &mut times_reopened).map_err(in_call)?;
                }
                Next::PassOn(error) => {
                    let error = PyErr::from(error);
                    supervisor.close_if_damaged(py, &instance, &error, opening.until())?;
                    return Err(error);
                }
            }
        }
    }

    /// Returns the instance. In a forked child this is the child's own, unless the parent had cleaned it up.
    fn instance(&self, py: Python<'_>, supervisor: &Supervisor) -> Arc<Instance> {
        let known = Arc::clone(&self.instance.take(py));
        if known.belongs_to_this_process() || known.is_cleaned_up() {
            return known;
        }
        let own = supervisor.registry.instance(py, known.key(), &supervisor.options.base_path);
        *self.instance.take(py) = Arc::clone(&own);
        own
    }
}

/// Creates a client of an instance, with a new connection.
pub fn make_client<'py>(
    py: Python<'py>,
    supervisor: &Arc<Supervisor>,
    instance: &Arc<Instance>,
    may_create: &Arc<AtomicBool>,
    system: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let connection = Bound::new(py, Connection::new(supervisor, instance, may_create))?;
    call_python(py, "chroma_manager.client", "make_client", (connection, system))
}

fn is_failed_read(py: Python<'_>, method: &Bound<'_, PyString>, error: &PyErr) -> bool {
    // Only what goes on beside writes fails of them.
    method.to_str().is_ok_and(|name| chroma::Method::named(name).releases_interpreter)
        && call_python(py, "chroma_manager.storage.shortage", "is_failed_read", (error.value(py),))
            .is_ok_and(|found| found.is_truthy().unwrap_or(false))
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(supervisor) = self.supervisor.upgrade() {
            supervisor.connections.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[pymethods]
impl Connection {
    fn __getattr__(slf: Bound<'_, Self>, name: Bound<'_, PyString>) -> PyResult<Method> {
        // Special names that Python looks up on any object (`__deepcopy__`, `__array__`) are not methods of the
        // binding.
        if name.to_str()?.starts_with("__") {
            return Err(PyAttributeError::new_err(format!("'Connection' object has no attribute '{name}'")));
        }
        Ok(Method { connection: slf.unbind(), name: name.unbind() })
    }

    /// Returns the catalogue of the database as it is now. `None` if the database is not open, or if it cannot be told when
    /// its catalogue changes.
    fn catalogue(&self, py: Python<'_>) -> Option<Catalogue> {
        let supervisor = self.supervisor.upgrade()?;
        let instance = Arc::clone(&self.instance.take(py));
        if !instance.belongs_to_this_process() {
            return None;
        }
        let in_flight = supervisor.enter_if_open(py, &instance)?;
        let seen = in_flight.database().catalogue(py)?;
        drop(in_flight);
        Some(Catalogue { instance, seen })
    }

    /// Returns whether nothing in a catalogue has changed since, and a call would find the same. Counts as a call.
    fn is_current(&self, py: Python<'_>, catalogue: &Catalogue) -> bool {
        let instance = &catalogue.instance;
        let is_current = instance.belongs_to_this_process()
            && catalogue.seen.is_current(py)
            && !instance.is_cleaned_up()
            && !self.closed.load(Ordering::SeqCst);
        if is_current {
            self.may_create.store(false, Ordering::Relaxed);
        }
        is_current
    }

    /// Closes the connection of `client`, which is removed from its thread. The database stays open for other clients.
    fn close(&self, py: Python<'_>, client: &Bound<'_, PyAny>) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(supervisor) = self.supervisor.upgrade() {
            supervisor.registry.forget_client(py, client);
        }
    }
}

/// The catalogue of a database as it was at one moment. It belongs to no connection: threads share what they know.
#[pyclass(frozen, module = "chroma_manager._native")]
pub struct Catalogue {
    instance: Arc<Instance>,
    seen: Box<dyn engine::Catalogue>,
}

/// A bound method of a connection.
#[pyclass(frozen, module = "chroma_manager._native")]
pub struct Method {
    connection: Py<Connection>,
    name: Py<PyString>,
}

#[pymethods]
impl Method {
    #[pyo3(signature = (*args, **kwargs))]
    fn __call__<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.connection.get().call(py, self.name.bind(py), args, kwargs)
    }
}
