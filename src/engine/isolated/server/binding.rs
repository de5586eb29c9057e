//! Chroma's binding in this process: opened, closed and reopened through the Python half (`worker/`), and watched for other
//! programs that write to its database.

use std::fs::File;
use std::io;
use std::mem;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;

use super::witness::{Inside, Transactions, Witness};
use crate::engine::isolated::protocol::values::encode_exception;
use crate::python::gil::Lock;
use crate::storage::open_files::OpenFiles;

/// The binding of one database.
pub struct Binding {
    /// `worker.database.Database`.
    host: Py<PyAny>,
    /// The binding, unless it is closed; or the exception that opening it raised, encoded.
    open: Result<Mutex<Option<Py<PyAny>>>, Vec<u8>>,
    files: OpenFiles,
    witness: Witness,
    /// What must be said to whoever connects or calls next: sentences, a line each.
    notices: Mutex<String>,
    /// Open all the time, so that a write can be synced where no descriptor is left.
    working_directory: File,
    /// `None` for a database in memory.
    log_length: Option<usize>,
    largest_batch: usize,
}

/// What a binding has open in the working directory besides the database.
pub struct Opened {
    pub working_directory: File,
    pub files: OpenFiles,
}

impl Opened {
    /// Before there are threads, whose descriptors come and go.
    pub fn in_working_directory() -> io::Result<Self> {
        Ok(Self { working_directory: File::open(".")?, files: OpenFiles::in_working_directory() })
    }
}

impl Binding {
    /// Opens the database of an `worker.database.Database`. That it cannot be opened is not an error here: apps are told so.
    pub fn open(host: &Bound<'_, PyAny>, opened: Opened) -> PyResult<Self> {
        let py = host.py();
        let Opened { working_directory, files } = opened;
        let open = open(host, &files);
        let largest_batch = match &open {
            Ok(binding) => binding.call_method0("get_max_batch_size")?.extract()?,
            Err(_) => 0,
        };
        Ok(Self {
            host: host.clone().unbind(),
            open: match open {
                Ok(binding) => Ok(Mutex::new(Some(binding.unbind()))),
                Err(error) => Err(encode_exception(py, &error)),
            },
            files,
            witness: Witness::default(),
            notices: Mutex::default(),
            working_directory,
            log_length: host.getattr("log_length")?.extract()?,
            largest_batch,
        })
    }

    /// The Python half of the database.
    pub fn host<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.host.bind(py)
    }

    /// Why the database could not be opened, if so.
    pub fn failure(&self) -> Option<&[u8]> {
        self.open.as_ref().err().map(Vec::as_slice)
    }

    /// How many rows of the log were in no checkpoint when it was opened; `None` for a database in memory.
    pub fn log_length(&self) -> Option<usize> {
        self.log_length
    }

    /// How long Chroma has read its log when the database was opened; `None` where it reads the log in the first call that needs it.
    pub fn replay_time(&self, py: Python<'_>) -> PyResult<Option<Duration>> {
        let seconds: f64 = self.host(py).getattr("replay_seconds")?.extract()?;
        Ok((seconds > 0.0).then(|| Duration::from_secs_f64(seconds)))
    }

    /// Whether the database is lost when it is closed.
    pub fn is_in_memory(&self) -> bool {
        self.failure().is_none() && self.log_length.is_none()
    }

    /// The largest number of records that Chroma takes in one call.
    pub fn largest_batch(&self) -> usize {
        self.largest_batch
    }

    /// The binding, unless it is closed.
    pub fn get<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let open = self.open.as_ref().ok()?;
        let binding = open.take(py).as_ref().map(|binding| binding.clone_ref(py));
        binding.map(|binding| binding.into_bound(py))
    }

    /// Closes it. No call is in flight: the last reference is here, and Chroma closes when it is dropped.
    pub fn close(&self, py: Python<'_>) {
        if let Err(error) = self.host(py).call_method0("end_in_background") {
            error.print(py);
        }
        let binding = self.open.as_ref().ok().and_then(|open| open.take(py).take());
        if binding.is_some() && py.detach(|| self.witness.has_changed()) {
            self.note_other_writer(py);
        }
        drop(binding);
        py.detach(|| self.files.wait_until_closed());
    }

    /// Opens it again.
    pub fn reopen(&self, py: Python<'_>) -> PyResult<()> {
        let binding = open(self.host(py), &self.files)?;
        if let Ok(place) = &self.open {
            *place.take(py) = Some(binding.unbind());
        }
        Ok(())
    }

    /// Opens the closed database and closes it where an interrupted batch is left: that completes the batch.
    pub fn complete_batches(&self, py: Python<'_>) -> PyResult<()> {
        if self.host(py).getattr("has_interrupted_batches")?.is_truthy()? {
            drop(open(self.host(py), &self.files)?);
            py.detach(|| self.files.wait_until_closed());
        }
        Ok(())
    }

    /// The database was opened: watches for other programs that write to it, and notes what must be said about it.
    pub fn watch(&self, py: Python<'_>) {
        if self.failure().is_some() || self.is_in_memory() {
            return;
        }
        py.detach(|| self.witness.begin(&self.files));
        self.note(py, self.host(py).call_method0("take_notices").and_then(|notices| notices.extract()));
    }

    /// What every transaction changes that writes to the database; `None` where it is not known.
    pub fn transactions(&self, py: Python<'_>) -> Option<Transactions> {
        py.detach(|| self.witness.transactions())
    }

    /// Whether the open database has a write-ahead log. Detached only.
    pub fn has_write_ahead_log(&self) -> bool {
        self.witness.sees_write_ahead_log()
    }

    /// A call enters the binding. `None` where another program has written to the database: the call must not be executed.
    pub fn enter(&self) -> Option<Inside<'_>> {
        self.witness.enter()
    }

    /// Another program has written to the database: its index files are not to be trusted, and it must be reopened.
    pub fn note_other_writer(&self, py: Python<'_>) {
        self.note(py, self.host(py).call_method0("written_elsewhere").and_then(|notice| notice.extract()));
    }

    /// What must be said to whoever asks now, and to nobody else.
    pub fn take_notices(&self) -> Vec<u8> {
        mem::take(&mut *self.notices.lock().unwrap_or_else(PoisonError::into_inner)).into_bytes()
    }

    fn note(&self, py: Python<'_>, more: PyResult<String>) {
        match more {
            Ok(more) if more.is_empty() => {}
            Ok(more) => {
                let mut notices = self.notices.take(py);
                if !notices.is_empty() {
                    notices.push('\n');
                }
                notices.push_str(&more);
            }
            Err(error) => error.print(py),
        }
    }

    /// Makes what was written survive a power cut. Where there is no write-ahead log, `SQLite` syncs its journal and its file,
    /// but not the directory from which it has removed the journal: if the journal came back, it would roll the transaction
    /// back.
    pub fn sync(&self, py: Python<'_>) -> PyResult<()> {
        if py.detach(|| self.has_write_ahead_log()) {
            return Ok(());
        }
        py.detach(|| self.working_directory.sync_all()).or_else(|error| {
            let error = PyErr::from(error).into_value(py);
            Err(PyErr::from_value(self.host(py).call_method1("not_synced", (error,))?))
        })
    }

    /// What a call is to raise where Chroma has raised `error`, and whether the binding must be reopened.
    pub fn judge(&self, py: Python<'_>, error: PyErr) -> (PyErr, bool) {
        let judged = self.host(py).call_method1("failed", (error.value(py),));
        let judged = judged.and_then(|judged| judged.extract::<(Bound<'_, PyAny>, bool)>());
        judged.map_or((error, true), |(exception, failed)| (PyErr::from_value(exception), failed))
    }
}

fn open<'py>(host: &Bound<'py, PyAny>, files: &OpenFiles) -> PyResult<Bound<'py, PyAny>> {
    loop {
        let binding = host.call_method0("open")?;
        if !binding.is_none() {
            return Ok(binding);
        }
        host.py().detach(|| files.wait_until_closed());
    }
}
