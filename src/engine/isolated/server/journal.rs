//! The journal of a long write: the call as it was sent, in a file of its own, from before its first slice until after its
//! last. If a kill or a failure interrupts the write, it is completed from the journal (`durability/batch_journal.py`).
//!
//! A file has a magic number, the length and the checksum of the call, and the call; then, once the call's place in the log
//! is known, that place as JSON and the checksum of the JSON. Only then does the file get its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use rustix::process::{Signal, getpid, kill_process};

use crate::chroma::Method;
use crate::engine::isolated::protocol::values::{self, DecodedCall};
use crate::python::arguments::Arguments;
use crate::storage::directory::HOME;

const MAGIC: [u8; 4] = *b"CMB1";

/// A call of more bytes is synced before it has the exclusive slot, so that others need not wait for that.
const MANY: usize = 1 << 20;

/// The journal of one batch.
pub struct Journal {
    new: PathBuf,
    path: PathBuf,
    file: File,
    is_begun: bool,
}

impl Journal {
    /// Writes the call, but not under the journal's name yet: nothing of it is in the database. Detached only.
    pub fn write(call: &[u8]) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (new, file) = loop {
            let name = format!("batch-{}-{}.new", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let new = Path::new(HOME).join(name);
            match OpenOptions::new().write(true).create_new(true).open(&new) {
                Ok(file) => break (new, file),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        };
        let mut journal = Self { path: new.with_extension(""), new, file, is_begun: false };
        journal.file.write_all(&MAGIC)?;
        journal.file.write_all(&(call.len() as u64).to_le_bytes())?;
        journal.file.write_all(&crc32fast::hash(call).to_le_bytes())?;
        journal.file.write_all(call)?;
        if call.len() > MANY {
            journal.file.sync_data()?;
        }
        step("batch written");
        Ok(journal)
    }

    /// From now on the batch is completed, whatever happens, if Chroma has taken a slice of it. Detached only.
    pub fn begin(&mut self, place: &[u8]) -> io::Result<()> {
        self.file.write_all(place)?;
        self.file.write_all(&crc32fast::hash(place).to_le_bytes())?;
        self.file.sync_all()?;
        fs::rename(&self.new, &self.path)?;
        self.is_begun = true;
        sync_home()?;
        step("batch begun");
        Ok(())
    }

    /// All of the batch is in the database, or nothing of it will be. Detached only.
    pub fn end(mut self) -> io::Result<()> {
        if self.is_begun {
            // Not synced: if the file comes back after a power cut, the log shows that the batch is complete. A checkpoint,
            // which shortens the log, syncs the directory first.
            fs::remove_file(&self.path)?;
        } else {
            fs::remove_file(&self.new)?;
            self.is_begun = true; // nothing is left to be removed
        }
        step("batch ended");
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.is_begun {
            let _ = fs::remove_file(&self.new);
        }
    }
}

fn sync_home() -> io::Result<()> {
    File::open(HOME)?.sync_all()
}

/// A step at which a test may kill the process, as `storage.files.step`.
pub fn step(name: &str) {
    if std::env::var("CHROMA_MANAGER_KILL_AT").is_ok_and(|place| place == name) {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// The method and the arguments, all by place, of a call that a journal has kept.
#[pyfunction]
pub fn decode_call<'py>(py: Python<'py>, call: &[u8]) -> PyResult<(String, Bound<'py, PyTuple>)> {
    let DecodedCall { method, arguments, keywords, .. } = values::decode_call(py, call)?;
    let by_place = Arguments::of(Method::named(&method), &arguments, keywords.as_ref()).by_place();
    let by_place = by_place.ok_or_else(|| PyValueError::new_err("not the arguments of a call that is sliced"))?;
    Ok((method, by_place))
}
