//! The native base class of `ChromaDBManager`: the methods that need no Python code.
//!
//! `manager.py` has the rest: the one manager of a process, the validation of options, and `get_collection`.

use std::path::{self, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString};

use crate::connection::make_client;
#[cfg(unix)]
use crate::engine::Isolated;
use crate::engine::{Embedded, Engine, Server, Task};
use crate::instance::key::{ClientKeyRef, InvalidKey, Key};
use crate::pool::hooks;
use crate::pool::missing::{Missing, OnMissing};
use crate::pool::stats::Stats;
use crate::pool::supervisor::{Options, Supervisor};
use crate::python::error::Error;

/// The manager: the instances of this process, and the clients of each thread.
#[pyclass(frozen, subclass, module = "chroma_manager._native")]
pub struct Manager {
    supervisor: Arc<Supervisor>,
    base_path: PathBuf,
    on_missing: OnMissing,
    restore: Option<Py<PyAny>>,
}

#[pymethods]
impl Manager {
    #[new]
    #[allow(clippy::too_many_arguments)] // one per option
    fn new(
        py: Python<'_>,
        base_path: PathBuf,
        engine: &str,
        source: Py<PyAny>,
        idle_timeout: Option<f64>,
        lock_timeout: f64,
        max_engines: Option<usize>,
        call_timeout: Option<f64>,
        on_missing: &Bound<'_, PyAny>,
        python: Option<PathBuf>,
        max_memory: Option<u64>,
        restore: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let call_timeout = call_timeout.map(|timeout| seconds("call_timeout", timeout)).transpose()?;
        let options = Options {
            // With a server it is a URL.
            base_path: if engine == "server" { base_path.clone() } else { path::absolute(&base_path)? },
            lock_timeout: seconds("lock_timeout", lock_timeout)?,
            idle_timeout: idle_timeout.map(|timeout| seconds("idle_timeout", timeout)).transpose()?,
            max_engines,
            max_memory,
        };
        let engine: Box<dyn Engine> = match engine {
            "embedded" if call_timeout.is_none() => Box::new(Embedded::new(source, python)),
            #[cfg(unix)]
            "isolated" => Box::new(Isolated::new(py, source, python, call_timeout)),
            "server" => Box::new(Server::new(source, call_timeout)),
            _ => {
                return Err(PyValueError::new_err(format!(
                    "there is no engine {engine:?}, or it does not support these options"
                )));
            }
        };
        let supervisor = Arc::new(Supervisor::new(options, engine, make_client));
        hooks::close_at_exit(py, Arc::downgrade(&supervisor));
        Ok(Self { supervisor, base_path, on_missing: OnMissing::parse(on_missing)?, restore })
    }

    #[pyo3(signature = (file_id, embedding_type, *, on_missing=None))]
    fn get_client(
        &self,
        py: Python<'_>,
        file_id: &Bound<'_, PyAny>,
        embedding_type: &Bound<'_, PyAny>,
        on_missing: Option<&Bound<'_, PyAny>>,
    ) -> Result<Py<PyAny>, Error> {
        self.client(py, file_id, embedding_type, None, on_missing)
    }

    #[pyo3(signature = (file_id, embedding_type, user_id=None, is_embedding=false, *, on_missing=None))]
    fn get_instance(
        &self,
        py: Python<'_>,
        file_id: &Bound<'_, PyAny>,
        embedding_type: &Bound<'_, PyAny>,
        user_id: Option<&Bound<'_, PyAny>>,
        is_embedding: bool,
        on_missing: Option<&Bound<'_, PyAny>>,
    ) -> Result<Py<PyAny>, Error> {
        self.client(py, file_id, embedding_type, user_id.filter(|_| !is_embedding), on_missing)
    }

    fn cleanup_instance(
        &self,
        py: Python<'_>,
        file_id: &Bound<'_, PyAny>,
        embedding_type: &Bound<'_, PyAny>,
    ) -> Result<(), Error> {
        self.supervisor.cleanup(py, &key(file_id, embedding_type)?)
    }

    fn cleanup_all_instances(&self, py: Python<'_>) -> Result<(), Error> {
        self.supervisor.cleanup_all(py)
    }

    fn cleanup(&self, py: Python<'_>) -> Result<(), Error> {
        self.supervisor.cleanup_all(py)
    }

    fn delete_instance(
        &self,
        py: Python<'_>,
        file_id: &Bound<'_, PyAny>,
        embedding_type: &Bound<'_, PyAny>,
    ) -> Result<bool, Error> {
        self.supervisor.delete(py, &key(file_id, embedding_type)?)
    }

    fn _snapshot<'py>(
        &self,
        py: Python<'py>,
        file_id: &Bound<'py, PyAny>,
        embedding_type: &Bound<'py, PyAny>,
        destination: Bound<'py, PyString>,
    ) -> Result<Bound<'py, PyAny>, Error> {
        self.supervisor.manage(py, &key(file_id, embedding_type)?, &Task::Snapshot { destination })
    }

    fn _restore<'py>(
        &self,
        py: Python<'py>,
        file_id: &Bound<'py, PyAny>,
        embedding_type: &Bound<'py, PyAny>,
        source: Bound<'py, PyString>,
        copy: Bound<'py, PyAny>,
    ) -> Result<Bound<'py, PyAny>, Error> {
        self.supervisor.manage(py, &key(file_id, embedding_type)?, &Task::Restore { source, copy })
    }

    fn _verify<'py>(
        &self,
        py: Python<'py>,
        file_id: &Bound<'py, PyAny>,
        embedding_type: &Bound<'py, PyAny>,
        repair: bool,
    ) -> Result<Bound<'py, PyAny>, Error> {
        self.supervisor.manage(py, &key(file_id, embedding_type)?, &Task::Verify { repair })
    }

    fn _compact<'py>(
        &self,
        py: Python<'py>,
        file_id: &Bound<'py, PyAny>,
        embedding_type: &Bound<'py, PyAny>,
    ) -> Result<Bound<'py, PyAny>, Error> {
        self.supervisor.manage(py, &key(file_id, embedding_type)?, &Task::Compact)
    }

    #[pyo3(signature = (max_idle=300.0))]
    fn cleanup_old_instances(&self, py: Python<'_>, max_idle: f64) -> PyResult<usize> {
        self.supervisor.close_idle(py, seconds("max_idle", max_idle)?)
    }

    fn _clear_thread_local_clients(&self, py: Python<'_>) {
        self.supervisor.registry.clear_this_thread(py);
    }

    #[allow(clippy::unused_self)] // part of the public API
    fn _get_instance_key(
        &self,
        file_id: &Bound<'_, PyAny>,
        embedding_type: &Bound<'_, PyAny>,
    ) -> Result<String, Error> {
        Ok(key(file_id, embedding_type)?.to_string())
    }

    fn _get_db_path<'py>(
        &self,
        file_id: &Bound<'py, PyAny>,
        embedding_type: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyString>> {
        Ok(key(file_id, embedding_type)?.path(&self.base_path).as_os_str().into_pyobject(file_id.py())?)
    }

    fn stats(&self, py: Python<'_>) -> Stats {
        Stats::of(py, &self.supervisor)
    }

    fn _let_go_of_clients(&self, py: Python<'_>) -> bool {
        self.supervisor.release_clients(py)
    }

    fn _shut_down(&self, py: Python<'_>) -> Result<(), Error> {
        self.supervisor.shut_down(py)
    }
}

impl Manager {
    fn client(
        &self,
        py: Python<'_>,
        file_id: &Bound<'_, PyAny>,
        embedding_type: &Bound<'_, PyAny>,
        user_id: Option<&Bound<'_, PyAny>>,
        on_missing: Option<&Bound<'_, PyAny>>,
    ) -> Result<Py<PyAny>, Error> {
        let given = on_missing.map(OnMissing::parse).transpose()?;
        let missing = Missing { restore: self.restore.as_ref(), otherwise: given.as_ref().unwrap_or(&self.on_missing) };
        let file_id = text("file_id", file_id)?;
        let embedding_type = text("embedding_type", embedding_type)?;
        let user_id = user_id.map(text_of_user).transpose()?;
        let user_id = user_id.as_ref().map(|user_id| text("user_id", user_id)).transpose()?;
        let user_id = user_id.filter(|user_id| !user_id.is_empty());
        let client_key = ClientKeyRef { file_id, embedding_type, user_id };
        if let Some(client) = self.supervisor.registry.find(py, client_key, missing.creates_at_once()) {
            let has_database = |key: Key| self.supervisor.has_database(&key.path(&self.base_path));
            let exists = || Key::new(file_id, embedding_type).is_ok_and(has_database);
            if missing.creates_at_once() || py.detach(exists) {
                return Ok(client);
            }
        }
        self.supervisor.new_client(py, &Key::new(file_id, embedding_type)?, user_id, missing)
    }
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| PyValueError::new_err(format!("{name}={value}: it must be a number of seconds, 0 or more")))
}

fn key(file_id: &Bound<'_, PyAny>, embedding_type: &Bound<'_, PyAny>) -> Result<Key, Error> {
    Ok(Key::new(text("file_id", file_id)?, text("embedding_type", embedding_type)?)?)
}

/// Converts a user id to a `str`.
fn text_of_user<'py>(user_id: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = user_id.py();
    if user_id.is_instance_of::<PyString>() {
        return Ok(user_id.clone());
    }
    let is_number = user_id.hasattr(intern!(py, "__index__"))? && !user_id.is_instance_of::<PyBool>();
    if is_number {
        return Ok(py.import("operator")?.call_method1("index", (user_id,))?.str()?.into_any());
    }
    if user_id.is_instance(&py.import("uuid")?.getattr("UUID")?)? {
        return Ok(user_id.str()?.into_any());
    }
    let class = user_id.get_type().qualname()?;
    Err(PyTypeError::new_err(format!("user_id must be a str, an int or a uuid.UUID, not {class}")))
}

fn text<'a>(part: &'static str, value: &'a Bound<'_, PyAny>) -> Result<&'a str, Error> {
    let Ok(text) = value.cast::<PyString>() else {
        return Err(Error::NotAString { part, kind: value.get_type().to_string() });
    };
    text.to_str().map_err(|_| InvalidKey::not_unicode(part, text.to_string_lossy().into_owned()).into())
}
