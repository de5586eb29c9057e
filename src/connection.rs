//! What a client's calls go through: an object with the methods of `chromadb_rust_bindings.Bindings`.
//!
//! Chroma's `RustBindingsAPI` has it where it otherwise has the binding itself. It adds nothing to a call but this: the
//! database is open and stays open until the call returns, or the call is refused with a reason.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::attached::Lock;
use crate::engine::Instance;
use crate::error::Error;
use crate::supervisor::Supervisor;

/// One client's way to its database.
#[pyclass(frozen, module = "chroma_manager._native")]
pub struct Connection {
    supervisor: Weak<Supervisor>,
    instance: Mutex<Arc<Instance>>,
    closed: AtomicBool,
}

impl Connection {
    pub fn new(supervisor: &Arc<Supervisor>, instance: &Arc<Instance>) -> Self {
        supervisor.connections.fetch_add(1, Ordering::SeqCst);
        Self {
            supervisor: Arc::downgrade(supervisor),
            instance: Mutex::new(Arc::clone(instance)),
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
        let inside = supervisor.enter(py, &instance, supervisor.deadline())?;
        let result = inside.database().call(py, method, arguments, keywords);
        drop(inside);
        result.inspect_err(|error| supervisor.close_if_damaged(py, &instance, error))
    }

    /// The instance; in a forked child the child's own, unless the parent had cleaned it up.
    fn instance(&self, py: Python<'_>, supervisor: &Supervisor) -> Arc<Instance> {
        let known = Arc::clone(&self.instance.take(py));
        if known.is_of_this_process() || known.is_ended() {
            return known;
        }
        let own = supervisor.registry.instance(py, known.key(), &supervisor.options.base_path);
        *self.instance.take(py) = Arc::clone(&own);
        own
    }
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
        // What Python itself asks every object for (`__deepcopy__`, `__array__`) is no call of the database.
        if name.to_str()?.starts_with("__") {
            return Err(PyAttributeError::new_err(format!("'Connection' object has no attribute '{name}'")));
        }
        Ok(Method { connection: slf.unbind(), name: name.unbind() })
    }

    /// Closes it for `client`, which its thread forgets. The database stays open for the others.
    fn close(&self, py: Python<'_>, client: &Bound<'_, PyAny>) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(supervisor) = self.supervisor.upgrade() {
            supervisor.registry.forget_client(py, client);
        }
    }
}

/// A method of a connection, to be called.
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
