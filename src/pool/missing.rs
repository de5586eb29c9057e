//! The option `on_missing`: a database that does not exist is created, or is an error, or is provided by the app.
//!
//! The app provides a database in a staging directory beside the final one. The files are moved when they are complete,
//! so that no call opens a partial download, and a kill in the middle leaves nothing that looks like a database.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::engine::Instance;
use crate::python::error::Error;
use crate::storage::claiming;
use crate::storage::directory::{self, DATABASE_FILE};
use crate::storage::lock_file::{self, Attempt};
use crate::storage::owner::{MOMENTARY, is_socket_name, random_name};
use crate::storage::removing;

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

/// Calls the app to provide the database of an instance. On success a database exists, whichever way it was created.
pub fn provide(py: Python<'_>, instance: &Instance, callable: &Py<PyAny>) -> Result<(), Error> {
    let failed = |error: io::Error| Error::while_opening(py, instance, error.into());
    let staging = py.detach(|| Staging::new(instance.path())).map_err(failed)?;
    let called = call(py, instance, callable, &staging.path);
    let has_returned = called.is_ok();
    // The callable may instead have restored a snapshot, or created the database with the manager.
    let exists = py.detach(move || if has_returned { staging.install_at(instance.path()) } else { Ok(false) });
    called?;
    if exists.map_err(failed)? { Ok(()) } else { Err(Error::not_provided(instance)) }
}

fn call(py: Python<'_>, instance: &Instance, callable: &Py<PyAny>, directory: &Path) -> PyResult<()> {
    let key = instance.key();
    let directory = py.import("pathlib")?.getattr("Path")?.call1((directory.as_os_str(),))?;
    callable.call1(py, (key.file_id(), key.embedding_type(), directory)).map(drop)
}

/// A new, empty directory beside that of a database. Dropping it removes it.
struct Staging {
    path: PathBuf,
    created: Vec<PathBuf>,
    /// The locked descriptor of the directory. One that is not locked was left by a process that was killed.
    _lock: File,
}

/// The prefix and the suffix of the name of a staging directory.
const PREFIX: &str = ".chroma_manager.";
const SUFFIX: &str = ".incoming";

impl Staging {
    fn new(directory: &Path) -> io::Result<Self> {
        let parent = directory.parent().unwrap_or(directory);
        remove_abandoned(parent);
        let created = claiming::create_directories(parent)?;
        loop {
            let path = parent.join(format!("{PREFIX}{}{SUFFIX}", random_name()?));
            let locked = fs::create_dir(&path).and_then(|()| File::open(&path)).and_then(|opened| {
                opened.lock()?;
                Ok(opened)
            });
            match locked {
                Ok(lock) if path.exists() => return Ok(Self { path, created, _lock: lock }),
                // Another process took it for abandoned, and removed it, before it was locked.
                Ok(_) => {}
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    claiming::remove_created(&path, None, &created);
                    return Err(error);
                }
            }
        }
    }

    /// Moves the content into `directory`, if the staging directory has a database and `directory` has none. Returns
    /// whether `directory` has a database then.
    fn install_at(self, directory: &Path) -> io::Result<bool> {
        if directory::has_database(directory) || !directory::has_database(&self.path) {
            return Ok(directory::has_database(directory));
        }
        sync_all_in(&self.path)?;
        match claiming::claim(directory, true, Some(Path::new(MOMENTARY)))? {
            Some((Attempt::Acquired(lock), created)) => {
                if !directory::has_database(directory) {
                    self.move_into(directory)
                        .inspect_err(|_| claiming::remove_created(directory, Some(lock), &created))?;
                }
                Ok(true)
            }
            // Another owner is opening a database that it has created or provided.
            _ => Ok(true),
        }
    }

    /// Moves the content into `directory`. The database file comes last, so that an interruption leaves nothing that
    /// looks like a database.
    fn move_into(&self, directory: &Path) -> io::Result<()> {
        removing::remove_content(directory)?;
        let entries = fs::read_dir(&self.path)?.collect::<io::Result<Vec<_>>>()?;
        let names = entries.iter().map(fs::DirEntry::file_name);
        for name in names.filter(|name| !belongs_to_owner(Path::new(name)) && name != DATABASE_FILE) {
            fs::rename(self.path.join(&name), directory.join(&name))?;
        }
        File::open(directory)?.sync_all()?;
        fs::rename(self.path.join(DATABASE_FILE), directory.join(DATABASE_FILE))?;
        File::open(directory)?.sync_all()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        claiming::remove_created(&self.path, None, &self.created);
    }
}

fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        let lock = File::open(entry.path()).ok().filter(|_| is_ours);
        if lock.as_ref().is_some_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Returns whether a file of this name belongs to the owner of a directory, and has no meaning in another one.
fn belongs_to_owner(name: &Path) -> bool {
    name == lock_file::NAME || is_socket_name(name)
}

fn sync_all_in(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_all_in(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}
