//! The options `restore_from` and `on_missing`: a database that does not exist is restored from a bucket; one that the
//! bucket does not have either is created, or is an error, or is provided by the app.
//!
//! It is restored, and provided, in a staging directory beside the final one (`staging.rs`).

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::staging::{Installed, Staging, Turn};
use crate::engine::Instance;
use crate::python::error::Error;
use crate::python::gil;
use crate::storage::directory;

/// The pause between two checks whether another process has restored the database.
const TURN_POLL: Duration = Duration::from_millis(20);

/// The reaction to a database that does not exist.
#[derive(Debug)]
pub enum OnMissing {
    /// Create an empty database.
    Create,
    /// Raise `InstanceNotFoundError`.
    Fail,
    /// Call this Python callable, which provides the database.
    Call(Py<PyAny>),
}

impl OnMissing {
    /// Parses an argument or an option `on_missing`.
    pub fn parse(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        let Ok(name) = value.cast::<PyString>() else {
            if value.is_callable() {
                return Ok(Self::Call(value.clone().unbind()));
            }
            return Err(PyTypeError::new_err(format!("on_missing={}: {EXPECTED}", value.repr()?)));
        };
        match name.to_str()? {
            "create" => Ok(Self::Create),
            "error" => Ok(Self::Fail),
            _ => Err(PyValueError::new_err(format!("on_missing={}: {EXPECTED}", value.repr()?))),
        }
    }

    /// Returns whether a missing database is created.
    pub fn creates(&self) -> bool {
        matches!(self, Self::Create)
    }
}

const EXPECTED: &str = "it must be \"create\", \"error\" or a callable";

/// What is done about a database that does not exist.
#[derive(Clone, Copy)]
pub struct Missing<'a> {
    /// A Python callable that restores it, if the bucket has it.
    pub restore: Option<&'a Py<PyAny>>,
    /// The reaction if it does not, or there is no bucket.
    pub otherwise: &'a OnMissing,
}

impl Missing<'_> {
    /// Returns whether it is created without a look at the bucket.
    pub fn creates_at_once(self) -> bool {
        self.restore.is_none() && self.otherwise.creates()
    }
}

/// Calls the Python callable that restores the database of an instance from its bucket. Returns whether a database
/// exists then. Other processes that restore a database of the same file wait meanwhile.
pub fn restore(py: Python<'_>, instance: &Instance, callable: &Py<PyAny>) -> Result<bool, Error> {
    let failed = |error: io::Error| Error::while_opening(py, instance, error.into());
    let staging = py.detach(|| Staging::new(instance.path())).map_err(failed)?;
    let turn = wait_for_turn(py, instance, &staging);
    let called = match &turn {
        // Another process may have restored it in the meantime.
        Ok(_) if py.detach(|| directory::has_database(instance.path())) => Ok(false),
        Ok(_) => call(py, instance, callable, staging.path()).and_then(|found| found.extract::<bool>(py)),
        Err(_) => Ok(false),
    };
    let is_found = *called.as_ref().unwrap_or(&false);
    let (turn, exists) = py.detach(move || {
        let installed = if is_found { staging.install(instance.path()) } else { Ok(Installed::Nothing) };
        let turn = turn.map(drop);
        drop(staging);
        (turn, installed.map(|installed| installed != Installed::Nothing || directory::has_database(instance.path())))
    });
    turn?;
    called?;
    exists.map_err(failed)
}

fn wait_for_turn(py: Python<'_>, instance: &Instance, staging: &Staging) -> Result<Turn, Error> {
    loop {
        let turn = py.detach(|| Turn::try_new(staging));
        if let Some(turn) = turn.map_err(|error| Error::while_opening(py, instance, error.into()))? {
            return Ok(turn);
        }
        gil::wait(py, || thread::sleep(TURN_POLL))?;
    }
}

/// Calls the app to provide the database of an instance. On success a database exists, whichever way it was created.
pub fn provide(py: Python<'_>, instance: &Instance, callable: &Py<PyAny>) -> Result<(), Error> {
    // The callable may instead have restored a snapshot, or created the database with the manager.
    let installed = stage(py, instance, |staging| call(py, instance, callable, staging).map(drop))?;
    if installed == Installed::Nothing { Err(Error::not_provided(instance)) } else { Ok(()) }
}

/// Puts a database into the directory of an instance that has none, as a whole: nobody sees an empty one before.
/// `copy` is called with a directory, which it fills. Returns whether it was put there: if not, there is one.
pub fn put(py: Python<'_>, instance: &Instance, copy: &Bound<'_, PyAny>) -> Result<bool, Error> {
    let installed = stage(py, instance, |staging| copy.call1((staging.as_os_str(),)).map(drop))?;
    Ok(installed == Installed::Moved)
}

/// Has a staging directory filled, and moves what is in it into the directory of an instance.
fn stage(py: Python<'_>, instance: &Instance, fill: impl FnOnce(&Path) -> PyResult<()>) -> Result<Installed, Error> {
    let failed = |error: io::Error| Error::while_opening(py, instance, error.into());
    let staging = py.detach(|| Staging::new(instance.path())).map_err(failed)?;
    let filled = fill(staging.path());
    let is_filled = filled.is_ok();
    // Detached also to remove it.
    let installed =
        py.detach(move || if is_filled { staging.install(instance.path()) } else { Ok(Installed::Nothing) });
    filled?;
    installed.map_err(failed)
}

fn call(py: Python<'_>, instance: &Instance, callable: &Py<PyAny>, directory: &Path) -> PyResult<Py<PyAny>> {
    let key = instance.key();
    let directory = py.import("pathlib")?.getattr("Path")?.call1((directory.as_os_str(),))?;
    callable.call1(py, (key.file_id(), key.embedding_type(), directory))
}
