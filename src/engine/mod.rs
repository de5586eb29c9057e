//! What an engine can do: open an instance's database, answer calls to it, close it. Nothing else knows which one it is.

mod embedded;
#[cfg(unix)]
pub mod isolated;
mod open_files;

use std::sync::Arc;
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

pub use embedded::Embedded;
#[cfg(unix)]
pub use isolated::{Isolated, forget_inherited};

use crate::calls::Work;
use crate::error::Error;

/// An instance whose open database is some engine's.
pub type Instance = crate::instance::Instance<Box<dyn Database>>;

/// A way to execute the calls of clients.
pub trait Engine: Send + Sync {
    /// Its name, as in the option `engine`.
    fn name(&self) -> &'static str;

    /// Where the work of a call is done.
    fn work(&self) -> Work;

    /// Whether a database in whose call this was raised is to be closed, and opened anew for the next call.
    fn is_damaged_by(&self, _: Python<'_>, _: &PyErr) -> bool {
        false
    }

    /// Clears away what is left of databases that ended by themselves.
    fn tidy(&self, _: Python<'_>) {}

    /// Opens the instance's database, waiting until `deadline` for another owner to give it up.
    ///
    /// Attached at the call; detaches for all that waits. A failure leaves nothing behind.
    fn open(&self, py: Python<'_>, instance: &Arc<Instance>, deadline: Instant) -> Result<Box<dyn Database>, Error>;
}

/// An open database.
pub trait Database: Send + Sync {
    /// Chroma's `System` of this database: its settings and its telemetry, shared by all clients.
    fn system<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny>;

    /// Calls the method of that name of `chromadb_rust_bindings.Bindings`.
    fn call<'py>(
        &self,
        py: Python<'py>,
        method: &Bound<'py, PyString>,
        arguments: &Bound<'py, PyTuple>,
        keywords: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>>;

    /// Closes it: afterwards its files are closed, its memory and its threads given back, and its directory is nobody's.
    fn close(self: Box<Self>, py: Python<'_>);
}
