//! A replacement for `chromadb_rust_bindings.Bindings` whose database is in an engine process.
//!
//! Chroma's own test suite runs over it, which compares the engine with Chroma. It is built from the parts of a
//! manager, with one instance.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::connection::{Connection, make_client};
use crate::engine::Isolated;
use crate::instance::key::Key;
use crate::pool::hooks;
use crate::pool::supervisor::{Options, Supervisor};
use crate::python::call::call_python;
use crate::python::error::Error;

/// A database in an engine process of its own. Dropping the object closes it.
#[pyclass(frozen, module = "chroma_manager._native")]
pub struct Bindings {
    supervisor: Arc<Supervisor>,
    connection: Py<Connection>,
    /// The temporary directory of a database in memory.
    scratch: Option<PathBuf>,
}

#[pymethods]
impl Bindings {
    #[new]
    #[pyo3(signature = (allow_reset, sqlite_db_config, hnsw_cache_size, persist_path=None))]
    fn new(
        py: Python<'_>,
        allow_reset: bool,
        sqlite_db_config: &Bound<'_, PyAny>,
        hnsw_cache_size: usize,
        persist_path: Option<PathBuf>,
    ) -> PyResult<Self> {
        let arguments = (allow_reset, sqlite_db_config, hnsw_cache_size, &persist_path);
        let (source, directory): (Py<PyAny>, PathBuf) =
            call_python(py, "chroma_manager.engine.isolated", "source_of_bindings", arguments)?.extract()?;
        let (key, base_path) = key_of(&directory)?;
        let engine = Isolated::new(py, source, None, None);
        let supervisor =
            Arc::new(Supervisor::new(Options { base_path, ..Options::default() }, Box::new(engine), make_client));
        hooks::close_at_exit(py, Arc::downgrade(&supervisor));
        let instance = supervisor.registry.instance(py, &key, &supervisor.options.base_path);
        drop(supervisor.enter(py, &instance, supervisor.opening(true)).map_err(|error| cause_of(py, error))?);
        let connection = Py::new(py, Connection::new(&supervisor, &instance, &Arc::default()))?;
        Ok(Self { supervisor, connection, scratch: persist_path.is_none().then_some(directory) })
    }

    /// Closes the database. All later calls raise.
    fn close(&self, py: Python<'_>) -> Result<(), Error> {
        self.supervisor.shut_down(py)
    }

    fn __getattr__<'py>(&self, py: Python<'py>, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        self.connection.bind(py).getattr(name)
    }
}

impl Drop for Bindings {
    fn drop(&mut self) {
        Python::attach(|py| {
            if let Err(error) = self.supervisor.shut_down(py) {
                PyErr::from(error).write_unraisable(py, None);
            }
            if let Some(scratch) = &self.scratch {
                // Nothing is left in it but a lock file that is not held.
                let _ = py.detach(|| fs::remove_dir_all(scratch));
            }
        });
    }
}

/// Splits a directory into a base path and a key.
fn key_of(directory: &std::path::Path) -> PyResult<(Key, PathBuf)> {
    let mut names = directory.iter().rev().map(|name| name.to_string_lossy());
    match (names.next(), names.next(), directory.ancestors().nth(2)) {
        (Some(last), Some(first), Some(base)) => {
            Ok((Key::new(&first, &last).map_err(Error::from)?, base.to_path_buf()))
        }
        _ => Err(PyValueError::new_err(format!("{}: it must be a directory in a directory", directory.display()))),
    }
}

/// Returns the exception that Chroma's own binding would have raised.
fn cause_of(py: Python<'_>, error: Error) -> PyErr {
    let error = PyErr::from(error);
    error.cause(py).unwrap_or(error)
}
