//! The engine `embedded`: Chroma's own binding in this process, behind a lock file that keeps other processes out.
//!
//! Chroma's binding holds the interpreter lock in most of its calls, and nothing here can change that; what is here is
//! that it is opened once, owned by one process, and really closed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::open_files::OpenFiles;
use super::{Database, Engine, Instance};
use crate::LOGGER;
use crate::attached;
use crate::calls::Work;
use crate::error::Error;
use crate::lock_file::{self, Attempt, LockFile};
use crate::supervisor::call_python;

/// How often a foreign owner is asked again.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// How often creating and locking a directory is tried while somebody else keeps removing it.
const REMOVAL_RACES: u32 = 10;

/// `chromadb.PersistentClient`'s engine, in this process.
#[derive(Debug)]
pub struct Embedded {
    settings: Py<PyAny>,
}

impl Embedded {
    /// With these `chromadb.config.Settings`, or `None` for Chroma's own.
    pub fn new(settings: Py<PyAny>) -> Self {
        Self { settings }
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
        call_python(py, "chroma_manager.shortage", "is_failure", (error.value(py),))
            .is_ok_and(|found| found.is_truthy().unwrap_or(false))
    }

    fn open(&self, py: Python<'_>, instance: &Arc<Instance>, deadline: Instant) -> Result<Box<dyn Database>, Error> {
        let (lock, created) = own_directory(py, instance, deadline)?;
        let files = py.detach(|| OpenFiles::before(instance.path()));
        match self.open_bindings(py, instance) {
            Ok((bindings, system)) => Ok(Box::new(Opened { bindings, system, lock, files })),
            Err(error) => {
                py.detach(|| {
                    warn_of_open_files(&files);
                    lock_file::remove_created(instance.path(), Some(lock), &created);
                });
                Err(Error::while_opening(py, instance, error))
            }
        }
    }
}

impl Embedded {
    fn open_bindings(&self, py: Python<'_>, instance: &Instance) -> PyResult<(Py<PyAny>, Py<PyAny>)> {
        call_python(py, "chroma_manager.embedded", "open_bindings", (&self.settings, instance.path()))?.extract()
    }
}

struct Opened {
    bindings: Py<PyAny>,
    system: Py<PyAny>,
    lock: LockFile,
    files: OpenFiles,
}

impl Database for Opened {
    fn system<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.system.bind(py)
    }

    fn call<'py>(
        &self,
        py: Python<'py>,
        method: &Bound<'py, PyString>,
        arguments: &Bound<'py, PyTuple>,
        keywords: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let result = self.bindings.bind(py).getattr(method)?.call(arguments, keywords);
        result.map_err(|error| {
            let explained =
                call_python(py, "chroma_manager.shortage", "explained", (error.value(py), self.files.directory()));
            explained.map_or(error, PyErr::from_value)
        })
    }

    fn close(self: Box<Self>, py: Python<'_>) {
        let Self { bindings, system, lock, files } = *self;
        // The last reference: this is where Chroma closes.
        drop(bindings);
        drop(system);
        py.detach(|| {
            warn_of_open_files(&files);
            drop(lock);
        });
    }
}

/// Creates the directory where it is missing and owns it. Also returned: which directories were created.
fn own_directory(py: Python<'_>, instance: &Instance, deadline: Instant) -> Result<(LockFile, Vec<PathBuf>), Error> {
    let path = instance.path();
    let mut races = 0;
    loop {
        let attempt = py.detach(|| {
            let created = lock_file::create_directories(path)?;
            LockFile::try_acquire(path, None)
                .inspect_err(|_| lock_file::remove_created(path, None, &created))
                .map(|attempt| (attempt, created))
        });
        match attempt {
            Ok((Attempt::Acquired(lock), created)) => return Ok((lock, created)),
            Ok((Attempt::Held(owner), _)) if Instant::now() >= deadline => {
                return Err(Error::locked(instance, owner.pid));
            }
            Ok((Attempt::Held(_), _)) => {}
            // Removed by somebody between the two steps: then it is to be created anew.
            Err(error) if error.kind() == io::ErrorKind::NotFound && races < REMOVAL_RACES => races += 1,
            Err(error) => return Err(Error::while_opening(py, instance, error.into())),
        }
        if instance.is_ended() {
            return Err(Error::ended(instance));
        }
        attached::wait(py, || thread::sleep(LOCK_POLL))?;
    }
}

fn warn_of_open_files(files: &OpenFiles) {
    if !files.wait_until_closed() {
        let directory = files.directory().display();
        log::warn!(target: LOGGER, "{directory}: this process still has files open in it some seconds after closing");
    }
}
