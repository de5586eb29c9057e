//! What an engine can do: open an instance's database, answer calls to it, close it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use once_cell::unsync::OnceCell;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::failure::{Budget, Failure};
use crate::python::error::Error;
use crate::sync::fork_gate::Work;

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

    /// How long a call may take, with all that it waits for.
    fn call_timeout(&self) -> Option<Duration> {
        None
    }

    /// Clears away what is left of databases that ended by themselves.
    fn tidy(&self, _: Python<'_>) {}

    /// Opens the instance's database.
    ///
    /// Attached at the call; detaches for all that waits. A failure leaves nothing behind.
    fn open(&self, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<Box<dyn Database>, Error>;

    /// One attempt to do something with the closed database.
    ///
    /// Where the work of calls is done in this process, the instance's database is closed, and stays so meanwhile.
    fn manage<'py>(
        &self,
        py: Python<'py>,
        instance: &Arc<Instance>,
        task: &Task<'py>,
        opening: Opening,
    ) -> Result<Bound<'py, PyAny>, Failure>;

    /// Removes the database with its directory, whoever else uses it; tells whether there was one. It is not open in this
    /// process.
    fn delete(&self, py: Python<'_>, instance: &Arc<Instance>, deadline: Instant) -> Result<bool, Error>;
}

/// Exclusive maintenance: what is done with a database while it is closed.
#[derive(Debug)]
pub enum Task<'py> {
    /// It is copied.
    Snapshot {
        /// The directory of the copy, which does not exist.
        destination: Bound<'py, PyString>,
    },
    /// A snapshot takes its place.
    Restore {
        /// The directory of the snapshot.
        source: Bound<'py, PyString>,
    },
    /// It is examined.
    Verify {
        /// Whether what is damaged is rebuilt, too.
        repair: bool,
    },
}

impl<'py> Task<'py> {
    /// Its name, as `ChromaDBManager`'s method has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "snapshot",
            Self::Restore { .. } => "restore",
            Self::Verify { .. } => "verify",
        }
    }

    /// Its arguments, as they are sent.
    pub fn arguments(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        match self {
            Self::Snapshot { destination: path } | Self::Restore { source: path } => PyTuple::new(py, [path]),
            Self::Verify { repair } => PyTuple::new(py, [*repair]),
        }
    }

    /// Whether it may be done where there is no database.
    pub fn may_create(&self) -> bool {
        matches!(self, Self::Restore { .. })
    }
}

/// How a database is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Whether it may be created where there is none: for who asks for a client, not for handles of one that is gone.
    pub may_create: bool,
    /// Until when another owner is waited for.
    pub deadline: Instant,
    /// Until when it begins anew because the directory was replaced in the middle of it.
    pub replaced_until: Instant,
    /// What is left to the call for which it is opened.
    pub budget: Option<Budget>,
    /// How long an engine that was there already may take to answer, where no call is bounded by more than that.
    pub answer_within: Option<Duration>,
}

/// How long an opening, or a call, begins anew while the directory is being replaced again and again.
const REPLACED_FOR: Duration = Duration::from_secs(5);

/// How often at the least: one time may take that long, where a process has to end its work first.
const REPLACED_TIMES: usize = 3;

impl Opening {
    /// Of whoever comes now.
    pub fn new(may_create: bool, lock_timeout: Duration) -> Self {
        let now = Instant::now();
        let (deadline, replaced_until) = (now + lock_timeout, now + REPLACED_FOR);
        Self { may_create, deadline, replaced_until, budget: None, answer_within: None }
    }

    /// The directory was replaced: whether it may begin anew.
    pub fn restart(&self, py: Python<'_>, instance: &Instance, times: &mut usize) -> Result<(), Error> {
        instance.count_replacement();
        *times += 1;
        self.check_replacements(instance, *times)?;
        py.check_signals()?;
        self.check_budget(instance)
    }

    /// An error where it has been for so long that it is to be told.
    pub fn check_replacements(&self, instance: &Instance, times: usize) -> Result<(), Error> {
        if times >= REPLACED_TIMES && Instant::now() >= self.replaced_until {
            let reason = "its directory is being replaced, or its engine process told to end, all the time";
            return Err(Error::cannot_open(instance, reason.into(), None));
        }
        Ok(())
    }

    /// When what is left to the call is spent.
    pub fn until(&self) -> Option<Instant> {
        self.budget.map(|budget| budget.until)
    }

    /// Whether it may still go on.
    pub fn check_budget(&self, instance: &Instance) -> Result<(), Error> {
        self.budget.map_or(Ok(()), |budget| budget.check(instance, "opening"))
    }
}

/// A call of a client, which may take more than one attempt.
#[derive(Debug)]
pub struct Request<'a, 'py> {
    /// The name of a method of `chromadb_rust_bindings.Bindings`.
    pub method: &'a Bound<'py, PyString>,
    /// Its arguments by place.
    pub arguments: &'a Bound<'py, PyTuple>,
    /// Its arguments by name.
    pub keywords: Option<&'a Bound<'py, PyDict>>,
    /// What is left to it.
    pub budget: Option<Budget>,
    /// How it is sent, and the exceptions that its arguments have raised: encoded once, at the first attempt that needs it.
    pub encoded: OnceCell<(Vec<u8>, Vec<PyErr>)>,
}

/// An open database.
pub trait Database: Send + Sync {
    /// Chroma's `System` of this database: its settings and its telemetry, shared by all clients.
    fn system<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny>;

    /// Whether the directory is still the one that was opened, as far as this process can see. Detached only.
    fn is_in_place(&self) -> bool;

    /// One attempt of a call.
    fn attempt<'py>(&self, py: Python<'py>, request: &Request<'_, 'py>) -> Result<Bound<'py, PyAny>, Failure>;

    /// Closes it: afterwards its files are closed, its memory and its threads given back, and its directory is nobody's.
    /// Where a signal handler raises meanwhile, or after `until`, that is not waited for any more.
    fn close(self: Box<Self>, py: Python<'_>, until: Option<Instant>) -> PyResult<()>;
}
