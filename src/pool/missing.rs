//! What becomes of a call for a database that is not there: it is created, that is an error, or the app puts it there.
//!
//! What the app puts there it puts into a new directory beside, which takes the place of the database when it is complete:
//! so nobody opens half a download, and a kill in the middle leaves nothing that looks like a database.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::engine::Instance;
use crate::python::error::Error;
use crate::storage::directory::{self, DATABASE_FILE};
use crate::storage::lock_file::{self, Attempt};
use crate::storage::owner::{MOMENTARY, is_socket_name, random_name};

/// What a missing database means to who asks for it.
#[derive(Debug)]
pub enum OnMissing {
    /// A new one.
    Create,
    /// `InstanceNotFoundError`.
    Fail,
    /// It is called to put the database there.
    Call(Py<PyAny>),
}

impl OnMissing {
    /// Of an argument or an option `on_missing`.
    pub fn of(value: &Bound<'_, PyAny>) -> PyResult<Self> {
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

    pub fn creates(&self) -> bool {
        matches!(self, Self::Create)
    }
}

const EXPECTED: &str = "it must be \"create\", \"error\" or a callable";

/// Has the app put a database there. Afterwards there is one, whoever put it there.
pub fn put_there(py: Python<'_>, instance: &Instance, callable: &Py<PyAny>) -> Result<(), Error> {
    let failed = |error: io::Error| Error::while_opening(py, instance, error.into());
    let staging = py.detach(|| Staging::new(instance.path())).map_err(failed)?;
    let called = call(py, instance, callable, &staging.path);
    let is_put = called.is_ok();
    // It may as well have restored a snapshot, or created the database with the manager.
    let is_there = py.detach(move || if is_put { staging.take_place_at(instance.path()) } else { Ok(false) });
    called?;
    if is_there.map_err(failed)? { Ok(()) } else { Err(Error::not_put_there(instance)) }
}

fn call(py: Python<'_>, instance: &Instance, callable: &Py<PyAny>, directory: &Path) -> PyResult<()> {
    let key = instance.key();
    let directory = py.import("pathlib")?.getattr("Path")?.call1((directory.as_os_str(),))?;
    callable.call1(py, (key.file_id(), key.embedding_type(), directory)).map(drop)
}

/// A new, empty directory beside a database's, which is removed in the end.
struct Staging {
    path: PathBuf,
    created: Vec<PathBuf>,
    /// Itself, locked: one that nobody has locked was left by a process that was killed.
    _lock: File,
}

/// How the name of one begins and ends.
const PREFIX: &str = ".chroma_manager.";
const SUFFIX: &str = ".incoming";

impl Staging {
    fn new(directory: &Path) -> io::Result<Self> {
        let above = directory.parent().unwrap_or(directory);
        remove_abandoned(above);
        let created = directory::create_directories(above)?;
        loop {
            let path = above.join(format!("{PREFIX}{}{SUFFIX}", random_name()?));
            let locked = fs::create_dir(&path).and_then(|()| File::open(&path)).and_then(|opened| {
                opened.lock()?;
                Ok(opened)
            });
            match locked {
                Ok(lock) if path.exists() => return Ok(Self { path, created, _lock: lock }),
                // Taken for abandoned before it was locked.
                Ok(_) => {}
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    directory::remove_created(&path, None, &created);
                    return Err(error);
                }
            }
        }
    }

    /// Moves what is in it into a directory, if there is a database in it and none there; tells whether there is one then.
    fn take_place_at(self, directory: &Path) -> io::Result<bool> {
        if directory::has_database(directory) || !directory::has_database(&self.path) {
            return Ok(directory::has_database(directory));
        }
        sync_all_in(&self.path)?;
        match directory::claim(directory, true, Some(Path::new(MOMENTARY)))? {
            Some((Attempt::Acquired(lock), created)) => {
                if !directory::has_database(directory) {
                    self.move_into(directory)
                        .inspect_err(|_| directory::remove_created(directory, Some(lock), &created))?;
                }
                Ok(true)
            }
            // Somebody opens it, who has put it there or created it.
            _ => Ok(true),
        }
    }

    /// The database's file is the last: whatever happens in between, what is there is no database.
    fn move_into(&self, directory: &Path) -> io::Result<()> {
        directory::remove_content(directory)?;
        let entries = fs::read_dir(&self.path)?.collect::<io::Result<Vec<_>>>()?;
        let names = entries.iter().map(fs::DirEntry::file_name);
        for name in names.filter(|name| !is_of_owner(Path::new(name)) && name != DATABASE_FILE) {
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
        directory::remove_created(&self.path, None, &self.created);
    }
}

fn remove_abandoned(above: &Path) {
    for entry in fs::read_dir(above).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        let lock = File::open(entry.path()).ok().filter(|_| is_ours);
        if lock.as_ref().is_some_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a file of that name is the owner's of a directory, and means nothing in another one.
fn is_of_owner(name: &Path) -> bool {
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
