//! The engine `embedded`: Chroma's own binding in this process, behind a lock file that keeps other processes out.
//!
//! Chroma's binding holds the interpreter lock in most of its calls, and nothing here can change that; what is here is
//! that it is opened once, owned by one process, and really closed.

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
use crate::storage::directory::{self, Removal, Seen};
use crate::storage::lock_file::{Attempt, LockFile};
use crate::storage::open_files::OpenFiles;
use crate::storage::owner::Owner;
use crate::sync::fork_gate::Work;

/// How often a foreign owner is asked again.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// How long one may take that is about to be another one, or nobody.
const MOMENTARY_WITHIN: Duration = Duration::from_secs(60);

/// `chromadb.PersistentClient`'s engine, in this process.
#[derive(Debug)]
pub struct Embedded {
    source: Py<PyAny>,
    python: Option<PathBuf>,
}

impl Embedded {
    /// With what `chroma_manager.engine.embedded` takes, a `chroma_manager.options.Source`; and the interpreter for what is done in other
    /// processes, where it is named.
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
        let mut times_gone = 0;
        loop {
            let (lock, created) = own_directory(py, instance, opening)?;
            let files = py.detach(|| OpenFiles::before(instance.path()));
            match self.open_bindings(py, instance) {
                Ok((bindings, system)) => {
                    let seen = py.detach(|| Seen::at(instance.path()).filter(|seen| seen.has(&lock)));
                    if let Some(seen) = seen {
                        let path = instance.path().to_path_buf();
                        return Ok(Box::new(Opened { bindings, system, lock, files, path, seen }));
                    }
                    // Removed or replaced meanwhile: what was opened is not what is there.
                    close(py, (bindings, system), lock, &files, instance.path());
                }
                Err(error) => {
                    let in_place = py.detach(|| {
                        warn_of_open_files(instance.path(), &files);
                        let in_place = lock.is_in(instance.path());
                        if in_place {
                            directory::remove_created(instance.path(), Some(lock), &created);
                        }
                        in_place
                    });
                    let error = Error::while_opening(py, instance, error);
                    if in_place || matches!(error, Error::Python(_)) {
                        return Err(error);
                    }
                }
            }
            opening.restart(py, instance, &mut times_gone)?;
        }
    }

    fn manage<'py>(
        &self,
        py: Python<'py>,
        instance: &Arc<Instance>,
        task: &Task<'py>,
        opening: Opening,
    ) -> Result<Bound<'py, PyAny>, Failure> {
        let (lock, created) = own_directory(py, instance, opening)?;
        let files = py.detach(|| OpenFiles::before(instance.path()));
        let done = self.manage_owned(py, instance, task);
        let failed = done.is_err();
        py.detach(|| {
            warn_of_open_files(instance.path(), &files);
            if failed && !directory::has_database(instance.path()) {
                directory::remove_created(instance.path(), Some(lock), &created);
            }
        });
        done.map_err(Failure::from)
    }

    fn delete(&self, py: Python<'_>, instance: &Arc<Instance>, deadline: Instant) -> Result<bool, Error> {
        let began = Instant::now();
        loop {
            match py.detach(|| directory::remove(instance.path(), false)) {
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

    fn open_bindings(&self, py: Python<'_>, instance: &Instance) -> PyResult<(Py<PyAny>, Py<PyAny>)> {
        let arguments = (&self.source, &self.python, instance.path());
        call_python(py, "chroma_manager.engine.embedded", "open_bindings", arguments)?.extract()
    }
}

struct Opened {
    bindings: Py<PyAny>,
    system: Py<PyAny>,
    lock: LockFile,
    files: OpenFiles,
    path: PathBuf,
    seen: Seen,
}

impl Database for Opened {
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
            // What is raised in a directory that was removed in the middle of the call helps nobody.
            if error.is_instance_of::<PyException>(py) && !py.detach(|| self.is_in_place()) {
                return Failure::Stale;
            }
            let explained =
                call_python(py, "chroma_manager.storage.shortage", "explained", (error.value(py), &self.path));
            explained.map_or(error, PyErr::from_value).into()
        })
    }

    fn close(self: Box<Self>, py: Python<'_>, _: Option<Instant>) -> PyResult<()> {
        let Self { bindings, system, lock, files, path, .. } = *self;
        close(py, (bindings, system), lock, &files, &path);
        Ok(())
    }
}

/// Closes a database, and releases its directory.
fn close(py: Python<'_>, database: (Py<PyAny>, Py<PyAny>), lock: LockFile, files: &OpenFiles, path: &Path) {
    // The last reference: this is where Chroma closes.
    drop(database);
    let is_closed = py.detach(|| warn_of_open_files(path, files) && lock.is_in(path));
    if is_closed && let Err(error) = call_python(py, "chroma_manager.engine.embedded", "closed", (path,)) {
        // It costs the next opening time, and no more.
        log::debug!(target: LOGGER, "what was closed is examined at its next opening: {}", describe(py, &error));
    }
    py.detach(|| drop(lock));
}

/// Owns the directory, created where it is missing and may be. Also returned: which directories were created.
fn own_directory(py: Python<'_>, instance: &Instance, opening: Opening) -> Result<(LockFile, Vec<PathBuf>), Error> {
    let path = instance.path();
    let began = Instant::now();
    loop {
        match py.detach(|| directory::claim(path, opening.may_create, None)) {
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

/// Whether an owner was waited for long enough since `began`.
fn has_waited_for(owner: &Owner, began: Instant, deadline: Instant) -> bool {
    let deadline = if owner.is_momentary() { deadline.max(began + MOMENTARY_WITHIN) } else { deadline };
    Instant::now() >= deadline
}

/// Tells whether none are open any more.
fn warn_of_open_files(directory: &Path, files: &OpenFiles) -> bool {
    let are_closed = files.wait_until_closed();
    if !are_closed {
        let directory = directory.display();
        log::warn!(target: LOGGER, "{directory}: this process still has files open in it some seconds after closing");
    }
    are_closed
}
