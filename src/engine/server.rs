//! The engine `server`: the instances are on a Chroma server, which Python's half asks over HTTP.
//!
//! What is here makes an instance on a server look like any other to the modules above: that it is open means that it
//! was there when it was first used. Connections, names, time limits and retries are in
//! `python/chroma_manager/engine/server/`, and those limits end every wait.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pyo3::intern;
use pyo3::prelude::*;

use super::{Database, Engine, Instance, Opening, Request, Task};
use crate::failure::Failure;
use crate::python::error::{Error, name_instance};
use crate::python::exceptions::{ChromaManagerError, InstanceNotFoundError};
use crate::sync::fork_gate::Work;

/// The engine of a Chroma server.
#[derive(Debug)]
pub struct Server {
    server: Py<PyAny>,
    call_timeout: Option<Duration>,
}

impl Server {
    /// Creates an engine. `server` is a `chroma_manager.engine.server.server.ChromaServer`.
    pub fn new(server: Py<PyAny>, call_timeout: Option<Duration>) -> Self {
        Self { server, call_timeout }
    }
}

impl Engine for Server {
    fn name(&self) -> &'static str {
        "server"
    }

    fn work(&self) -> Work {
        Work::Elsewhere
    }

    fn has_directories(&self) -> bool {
        false
    }

    fn call_timeout(&self) -> Option<Duration> {
        self.call_timeout
    }

    fn open(&self, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<Box<dyn Database>, Error> {
        let key = instance.key();
        let within = opening.until().map(left_until).or(opening.answer_within).map(|left| left.as_secs_f64());
        let arguments = (key.file_id(), key.embedding_type(), opening.may_create, within);
        let opened = self.server.bind(py).call_method1(intern!(py, "open"), arguments).and_then(|database| {
            let system = database.getattr(intern!(py, "system"))?.unbind();
            let instance = Arc::downgrade(instance);
            Ok(ServerDatabase { database: database.unbind(), system, instance })
        });
        match opened {
            Ok(database) => Ok(Box::new(database)),
            Err(error) if error.is_instance_of::<InstanceNotFoundError>(py) => Err(Error::not_found(instance)),
            Err(error) => Err(named(py, instance, error)?),
        }
    }

    fn manage<'py>(
        &self,
        py: Python<'py>,
        instance: &Arc<Instance>,
        task: &Task<'py>,
        _: Opening,
    ) -> Result<Bound<'py, PyAny>, Failure> {
        let refused = self.server.bind(py).call_method1(intern!(py, "refuse"), (task.name(),));
        refused.map_err(|error| named(py, instance, error).unwrap_or_else(Error::from).into())
    }

    fn delete(&self, py: Python<'_>, instance: &Arc<Instance>, _: Instant) -> Result<bool, Error> {
        let key = instance.key();
        let deleted = self.server.bind(py).call_method1(intern!(py, "delete"), (key.file_id(), key.embedding_type()));
        match deleted.and_then(|existed| existed.extract()) {
            Ok(existed) => Ok(existed),
            Err(error) => Err(named(py, instance, error)?),
        }
    }
}

/// An open database on a server.
struct ServerDatabase {
    /// A `chroma_manager.engine.server.server.RemoteDatabase`.
    database: Py<PyAny>,
    system: Py<PyAny>,
    instance: Weak<Instance>,
}

impl Database for ServerDatabase {
    fn system<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.system.bind(py)
    }

    fn is_in_place(&self) -> bool {
        // The next call finds out.
        true
    }

    fn attempt<'py>(&self, py: Python<'py>, request: &Request<'_, 'py>) -> Result<Bound<'py, PyAny>, Failure> {
        let within = request.budget.map(|budget| left_until(budget.until).as_secs_f64());
        let arguments = (request.method, request.arguments, request.keywords, within);
        self.database.bind(py).call_method1(intern!(py, "call"), arguments).map_err(|error| {
            if error.is_instance_of::<InstanceNotFoundError>(py) {
                return Failure::Stale;
            }
            // A call in flight keeps its instance.
            if let Some(instance) = self.instance.upgrade()
                && let Err(error) = name_instance(py, &instance, &error)
            {
                return error.into();
            }
            error.into()
        })
    }

    fn close(self: Box<Self>, _: Python<'_>, _: Option<Instant>) -> PyResult<()> {
        // The connections are not the instance's.
        Ok(())
    }
}

/// Returns the error of an opening or a deletion: one of ours, which gets the name of the instance, or one of Chroma's,
/// which becomes the cause of one of ours.
fn named(py: Python<'_>, instance: &Instance, error: PyErr) -> Result<Error, Error> {
    if error.is_instance_of::<ChromaManagerError>(py) {
        name_instance(py, instance, &error)?;
        return Ok(error.into());
    }
    Ok(Error::while_opening(py, instance, error))
}

fn left_until(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
