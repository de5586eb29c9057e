//! The engine `embedded`: Chroma's own binding in this process, and a lock file that keeps other processes out.
//!
//! Most calls of Chroma's binding hold the interpreter lock, which cannot be changed from here. The engine guarantees
//! that a database is opened once, owned by one process, and really closed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::{Database, Engine, Instance, Opening, Request, Task};
use crate::LOGGER;
use crate::failure::Failure;
use crate::python::call::call_python;
use crate::python::error::Error;
use crate::python::exceptions::describe;
use crate::python::gil;
use crate::storage::claiming;
use crate::storage::directory::{self, Seen};
use crate::storage::lock_file::{Attempt, LockFile};
use crate::storage::open_files::OpenFiles;
use crate::storage::owner::Owner;
use crate::storage::removing::{self, Removal};
use crate::sync::fork_gate::Work;

/// The pause between two attempts to get the lock of another owner.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// How long a momentary owner may hold the lock.
const MOMENTARY_WITHIN: Duration = Duration::from_secs(60);

/// The engine of `chromadb.PersistentClient`, in this process.
#[derive(Debug)]
pub struct Embedded {
    source: Py<PyAny>,
    python: Option<PathBuf>,
}

impl Embedded {
    /// Creates an engine. `source` is the `chroma_manager.options.Source` that `chroma_manager.engine.embedded` takes.
    /// `python` is the interpreter of helper processes, if the app names one.
    pub fn new(source: Py<PyAny>, python: Option<PathBuf>) -> Self {
        Self { source, python }
    }
}

impl Engine for Embedded {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn work(&self) -> Work {
        Work::Here
    }

    fn is_damaged_by(&self, py: Python<'_>, error: &PyErr) -> bool {
        call_python(py, "chroma_manager.storage.shortage", "is_failure", (error.value(py),))
            .is_ok_and(|found| found.is_truthy().unwrap_or(false))
    }

    fn open(&self, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<Box<dyn Database>, Error> {
        let mut times_replaced = 0;
        loop {
            let (lock, created) = claim_directory(py, instance, opening)?;
            let files = py.detach(|| OpenFiles::before(instance.path()));
            match self.open_bindings(py, instance) {
                Ok((bindings, system)) => {
                    let seen = py.detach(|| Seen::at(instance.path()).filter(|seen| seen.has(&lock)));
                    if let Some(seen) = seen {
                        let path = instance.path().to_path_buf();
                        let origin = self.origin(py);
                        return Ok(Box::new(EmbeddedDatabase { bindings, system, lock, files, path, seen, origin }));
                    }
                    // Removed or replaced in the meantime: another directory was opened than is there now.
                    close(py, (bindings, system), lock, &files, instance.path(), &self.origin(py));
                }
                Err(error) => {
                    let in_place = py.detach(|| {
                        wait_for_files_to_close(instance.path(), &files);
                        let in_place = lock.is_in(instance.path());
                        if in_place {
                            claiming::remove_created(instance.path(), Some(lock), &created);
                        }
                        in_place
                    });
                    let error = Error::while_opening(py, instance, error);
                    if in_place || matches!(error, Error::Python(_)) {
                        return Err(error);
                    }
                }
            }
            opening.restart(py, instance, &mut times_replaced)?;
        }
    }

    fn manage<'py>(
        &self,
        py: Python<'py>,
        instance: &Arc<Instance>,
        task: &Task<'py>,
        opening: Opening,
    ) -> Result<Bound<'py, PyAny>, Failure> {
        let (lock, created) = claim_directory(py, instance, opening)?;
        let files = py.detach(|| OpenFiles::before(instance.path()));
        let done = self.manage_owned(py, instance, task);
        let failed = done.is_err();
        py.detach(|| {
            wait_for_files_to_close(instance.path(), &files);
            if failed && !directory::has_database(instance.path()) {
                claiming::remove_created(instance.path(), Some(lock), &created);
            }
        });
        done.map_err(Failure::from)
    }

    fn delete(&self, py: Python<'_>, instance: &Arc<Instance>, deadline: Instant) -> Result<bool, Error> {
        let began = Instant::now();
        loop {
            match py.detach(|| removing::remove(instance.path(), false)) {
                Ok(Removal::Held(owner)) if has_waited_for(&owner, began, deadline) => {
                    return Err(Error::locked(instance, owner));
                }
                Ok(Removal::Held(_)) => gil::wait(py, || thread::sleep(LOCK_POLL))?,
                Ok(Removal::Removed(existed)) => return Ok(existed),
                Ok(Removal::Kept) => return Ok(false),
                Err(error) => return Err(PyErr::from(error).into()),
            }
        }
    }
}

impl Embedded {
    fn manage_owned<'py>(&self, py: Python<'py>, instance: &Instance, task: &Task<'py>) -> PyResult<Bound<'py, PyAny>> {
        let arguments = (&self.source, &self.python, instance.path(), task.name(), task.arguments(py)?);
        call_python(py, "chroma_manager.engine.embedded", "manage", arguments)
    }

    fn origin(&self, py: Python<'_>) -> Origin {
        (self.source.clone_ref(py), self.python.clone())
    }

    fn open_bindings(&self, py: Python<'_>, instance: &Instance) -> PyResult<(Py<PyAny>, Py<PyAny>)> {
        let arguments = (&self.source, &self.python, instance.path());
        call_python(py, "chroma_manager.engine.embedded", "open_bindings", arguments)?.extract()
    }
}

/// The options with which a database was opened; see `Embedded`.
type Origin = (Py<PyAny>, Option<PathBuf>);

/// An open database in this process.
struct EmbeddedDatabase {
    bindings: Py<PyAny>,
    system: Py<PyAny>,
    lock: LockFile,
    files: OpenFiles,
    path: PathBuf,
    seen: Seen,
    origin: Origin,
}

impl Database for EmbeddedDatabase {
    fn system<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.system.bind(py)
    }

    fn is_in_place(&self) -> bool {
        Seen::at(&self.path) == Some(self.seen)
    }

    fn attempt<'py>(&self, py: Python<'py>, request: &Request<'_, 'py>) -> Result<Bound<'py, PyAny>, Failure> {
        if !py.detach(|| self.is_in_place()) {
            return Err(Failure::Stale);
        }
        let method = self.bindings.bind(py).getattr(request.method)?;
        method.call(request.arguments, request.keywords).map_err(|error| {
            // An error in a directory that was removed during the call says nothing about the call.
            if error.is_instance_of::<PyException>(py) && !py.detach(|| self.is_in_place()) {
                return Failure::Stale;
            }
            let explained =
                call_python(py, "chroma_manager.storage.shortage", "explained", (error.value(py), &self.path));
            explained.map_or(error, PyErr::from_value).into()
        })
    }

    fn close(self: Box<Self>, py: Python<'_>, _: Option<Instant>) -> PyResult<()> {
        let Self { bindings, system, lock, files, path, origin, .. } = *self;
        close(py, (bindings, system), lock, &files, &path, &origin);
        Ok(())
    }
}

/// Closes a database and releases its directory.
fn close(
    py: Python<'_>,
    database: (Py<PyAny>, Py<PyAny>),
    lock: LockFile,
    files: &OpenFiles,
    path: &Path,
    (source, python): &Origin,
) {
    // Chroma closes the database when the last reference is dropped.
    drop(database);
    let is_closed = py.detach(|| wait_for_files_to_close(path, files) && lock.is_in(path));
    if is_closed && let Err(error) = call_python(py, "chroma_manager.engine.embedded", "closed", (source, python, path))
    {
        // The only consequence is a slower opening.
        log::debug!(target: LOGGER, "the next opening will examine the index files: {}", describe(py, &error));
    }
    py.detach(|| drop(lock));
}

/// Waits until this process owns the directory of an instance, which it creates if that is allowed. Also returns the
/// directories that it has created.
fn claim_directory(py: Python<'_>, instance: &Instance, opening: Opening) -> Result<(LockFile, Vec<PathBuf>), Error> {
    let path = instance.path();
    let began = Instant::now();
    loop {
        match py.detach(|| claiming::claim(path, opening.may_create, None)) {
            Ok(Some((Attempt::Acquired(lock), created))) => return Ok((lock, created)),
            Ok(Some((Attempt::Held(owner), _))) if has_waited_for(&owner, began, opening.deadline) => {
                return Err(Error::locked(instance, owner));
            }
            Ok(Some((Attempt::Held(_), _))) => {}
            Ok(None) => return Err(Error::not_found(instance)),
            Err(error) => return Err(Error::while_opening(py, instance, error.into())),
        }
        if instance.is_cleaned_up() {
            return Err(Error::cleaned_up(instance));
        }
        opening.check_budget(instance)?;
        gil::wait(py, || thread::sleep(LOCK_POLL))?;
    }
}

/// Returns whether a wait for an owner that began at `began` is over.
fn has_waited_for(owner: &Owner, began: Instant, deadline: Instant) -> bool {
    let deadline = if owner.is_momentary() { deadline.max(began + MOMENTARY_WITHIN) } else { deadline };
    Instant::now() >= deadline
}

/// Waits until Chroma has closed its files, and logs a warning if it has not. Returns whether it has.
fn wait_for_files_to_close(directory: &Path, files: &OpenFiles) -> bool {
    let are_closed = files.wait_until_closed();
    if !are_closed {
        let directory = directory.display();
        log::warn!(target: LOGGER, "{directory}: this process still has files open in it some seconds after closing");
    }
    are_closed
}
