//! The traits of an engine and of an open database, and the arguments of their methods. Called by `pool/` and
//! `connection.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use once_cell::unsync::OnceCell;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::failure::{Budget, Failure};
use crate::python::error::Error;
use crate::sync::fork_gate::Work;

/// An instance whose open database belongs to an engine.
pub type Instance = crate::instance::Instance<Box<dyn Database>>;

/// An engine: opens databases, which execute the calls of clients.
pub trait Engine: Send + Sync {
    /// Returns the name, as in the option `engine`.
    fn name(&self) -> &'static str;

    /// Returns where calls are executed.
    fn work(&self) -> Work;

    /// Returns whether each database is a directory of this machine, which can be looked at and filled.
    fn has_directories(&self) -> bool {
        true
    }

    /// Returns whether a database must be reopened after one of its calls has raised this exception.
    fn is_damaged_by(&self, _: Python<'_>, _: &PyErr) -> bool {
        false
    }

    /// Returns how long a call may take, including all its waits.
    fn call_timeout(&self) -> Option<Duration> {
        None
    }

    /// Cleans up after engine processes that have ended by themselves.
    fn tidy(&self, _: Python<'_>) {}

    /// Opens the database of an instance. Detaches for all waits. A failure leaves nothing behind on the disk.
    fn open(&self, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<Box<dyn Database>, Error>;

    /// Makes one attempt at exclusive maintenance. If calls are executed in this process, the caller has closed the
    /// database, and keeps it closed.
    fn manage<'py>(
        &self,
        py: Python<'py>,
        instance: &Arc<Instance>,
        task: &Task<'py>,
        opening: Opening,
    ) -> Result<Bound<'py, PyAny>, Failure>;

    /// Removes the database with its directory, even if other processes use it. Returns whether there was one. The
    /// caller has closed it in this process.
    fn delete(&self, py: Python<'_>, instance: &Arc<Instance>, deadline: Instant) -> Result<bool, Error>;
}

/// A task of exclusive maintenance.
#[derive(Debug)]
pub enum Task<'py> {
    /// Copy the database.
    Snapshot {
        /// The directory of the copy, which does not exist yet.
        destination: Bound<'py, PyString>,
    },
    /// Replace the database by a snapshot.
    Restore {
        /// The directory of the snapshot.
        source: Bound<'py, PyString>,
        /// A callable that copies the snapshot into a directory.
        copy: Bound<'py, PyAny>,
    },
    /// Verify the database.
    Verify {
        /// Whether to rebuild what is damaged.
        repair: bool,
    },
    /// Rebuild the database without what was deleted.
    Compact,
}

impl<'py> Task<'py> {
    /// Returns the name of the method of `ChromaDBManager`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "snapshot",
            Self::Restore { .. } => "restore",
            Self::Verify { .. } => "verify",
            Self::Compact => "compact",
        }
    }

    /// Returns the arguments that are sent to the engine process.
    pub fn arguments(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        match self {
            Self::Snapshot { destination: path } | Self::Restore { source: path, .. } => PyTuple::new(py, [path]),
            Self::Verify { repair } => PyTuple::new(py, [*repair]),
            Self::Compact => Ok(PyTuple::empty(py)),
        }
    }

    /// Returns whether the database need not exist.
    pub fn may_create(&self) -> bool {
        matches!(self, Self::Restore { .. })
    }
}

/// The terms of an opening.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Whether to create the database if it does not exist: for a new client, but not for a handle of a removed
    /// database.
    pub may_create: bool,
    /// When to stop waiting for another owner.
    pub deadline: Instant,
    /// When to stop restarting because the directory was replaced during the opening.
    pub replaced_until: Instant,
    /// The budget of the call that needs the database.
    pub budget: Option<Budget>,
    /// How long an engine process that was already running may take to answer, if there is no budget.
    pub answer_within: Option<Duration>,
}

/// How long an opening, or a call, restarts while the directory is replaced repeatedly.
const REPLACED_FOR: Duration = Duration::from_secs(5);

/// How often it restarts at least: a single restart may take as long, if a process must finish its work first.
const REPLACED_TIMES: usize = 3;

impl Opening {
    /// Returns the terms of an opening that begins now.
    pub fn new(may_create: bool, lock_timeout: Duration) -> Self {
        let now = Instant::now();
        let (deadline, replaced_until) = (now + lock_timeout, now + REPLACED_FOR);
        Self { may_create, deadline, replaced_until, budget: None, answer_within: None }
    }

    /// Records that the directory was replaced.
    ///
    /// # Errors
    ///
    /// Returns an error if the opening must not restart: after too many replacements, after a signal handler has
    /// raised, or when the budget is spent.
    pub fn restart(&self, py: Python<'_>, instance: &Instance, times: &mut usize) -> Result<(), Error> {
        instance.count_replacement();
        *times += 1;
        self.check_replacements(instance, *times)?;
        py.check_signals()?;
        self.check_budget(instance)
    }

    /// Returns an error if the directory was replaced too often, for too long.
    pub fn check_replacements(&self, instance: &Instance, times: usize) -> Result<(), Error> {
        if times >= REPLACED_TIMES && Instant::now() >= self.replaced_until {
            let reason = "its directory is repeatedly replaced, or its engine process repeatedly told to end";
            return Err(Error::cannot_open(instance, reason.into(), None));
        }
        Ok(())
    }

    /// Returns when the budget is spent, if there is one.
    pub fn until(&self) -> Option<Instant> {
        self.budget.map(|budget| budget.until)
    }

    /// Returns an error if the budget is spent.
    pub fn check_budget(&self, instance: &Instance) -> Result<(), Error> {
        self.budget.map_or(Ok(()), |budget| budget.check(instance, "opening"))
    }
}

/// A call of a client. It may take more than one attempt.
#[derive(Debug)]
pub struct Request<'a, 'py> {
    /// The name of the method of `chromadb_rust_bindings.Bindings`.
    pub method: &'a Bound<'py, PyString>,
    /// The positional arguments.
    pub arguments: &'a Bound<'py, PyTuple>,
    /// The keyword arguments.
    pub keywords: Option<&'a Bound<'py, PyDict>>,
    /// The budget of the call.
    pub budget: Option<Budget>,
    /// The encoded call, and the exceptions that conversions of its arguments have raised. The first attempt that needs
    /// them encodes the call.
    pub encoded: OnceCell<(Vec<u8>, Vec<PyErr>)>,
}

/// The catalogue of an open database as it was at one moment: the collections, and what is known of each besides its
/// records.
pub trait Catalogue: Send + Sync {
    /// Returns whether nothing in it has changed since, as far as is known without asking.
    fn is_current(&self, py: Python<'_>) -> bool;
}

/// An open database, which executes calls.
pub trait Database: Send + Sync {
    /// Returns Chroma's `System` of this database: its settings and its telemetry, shared by all clients.
    fn system<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny>;

    /// Returns whether the directory is still the one that was opened, as far as this process can see. Must not be
    /// called while attached to the interpreter.
    fn is_in_place(&self) -> bool;

    /// Returns the catalogue as it is now, if it can be told when it changes.
    fn catalogue(&self, _: Python<'_>) -> Option<Box<dyn Catalogue>> {
        None
    }

    /// Makes one attempt at a call.
    fn attempt<'py>(&self, py: Python<'py>, request: &Request<'_, 'py>) -> Result<Bound<'py, PyAny>, Failure>;

    /// Closes the database, and waits until its files are closed, its memory and its threads are released, and its
    /// directory has no owner. Stops waiting after `until`, or when a signal handler raises.
    fn close(self: Box<Self>, py: Python<'_>, until: Option<Instant>) -> PyResult<()>;
}
