//! Whether the database's directory is still the one that was opened. An app may remove, replace or move it meanwhile.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::storage::directory::Seen;
use crate::storage::lock_file;

/// The directory of this process's database.
pub struct Place {
    /// Absolute: where apps look for the database. The working directory stays the one that was opened.
    directory: PathBuf,
    lock: ManuallyDrop<File>,
    /// What was there when the database was opened; `None` where it was another owner's by then, or not a database.
    seen: Mutex<Option<Seen>>,
}

impl Place {
    /// The directory whose lock this is, as it is now. Detached only.
    pub fn new(directory: PathBuf, lock: ManuallyDrop<File>) -> Self {
        let place = Self { directory, lock, seen: Mutex::default() };
        place.refresh();
        place
    }

    /// The database was reopened. Detached only.
    pub fn refresh(&self) {
        let seen = Seen::at(&self.directory).filter(|seen| seen.has_file(&self.lock));
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// What was there when the database was opened.
    pub fn seen(&self) -> Option<Seen> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is still what was opened. What could not be opened may not be a database; it is in its place as long as
    /// its lock is.
    pub fn is_kept(&self, could_open: bool) -> bool {
        let seen = self.seen();
        let is_there = seen.is_some() || (!could_open && lock_file::is_lock_of(&self.lock, &self.directory));
        is_there && Seen::at(&self.directory) == seen
    }
}
