//! The files that this process has open in a database's directory, as far as the system tells (`/proc`; elsewhere none).
//!
//! Chroma closes its files in threads of its own, some milliseconds after its object is gone. Until then the database is
//! not closed, whatever its object says.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const CLOSED_WITHIN: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_micros(500);

/// What is open in a directory beyond what was open there before.
pub struct OpenFiles {
    /// `None` for the working directory, wherever it is moved to.
    directory: Option<PathBuf>,
    /// Descriptors that are not this opening's: the lock's, or left by a process that this one was forked from.
    before: BTreeSet<OsString>,
}

impl OpenFiles {
    #[cfg(unix)]
    /// Takes note of what is open in the working directory now.
    pub fn in_working_directory() -> Self {
        let opened = Self { directory: None, before: BTreeSet::new() };
        Self { before: opened.now(), ..opened }
    }

    /// Takes note of what is open now.
    pub fn before(directory: &Path) -> Self {
        let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_path_buf());
        let before = descriptors_in(&directory);
        Self { directory: Some(directory), before }
    }

    /// Waits, for at most two seconds, until nothing more is open; tells whether that came to be. Detached only.
    pub fn wait_until_closed(&self) -> bool {
        let deadline = Instant::now() + CLOSED_WITHIN;
        while !self.now().is_subset(&self.before) {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }

    fn now(&self) -> BTreeSet<OsString> {
        match &self.directory {
            Some(directory) => descriptors_in(directory),
            None => env::current_dir().map(|directory| descriptors_in(&directory)).unwrap_or_default(),
        }
    }
}

fn descriptors_in(directory: &Path) -> BTreeSet<OsString> {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return BTreeSet::new() };
    descriptors
        .flatten()
        .filter(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|file| file.starts_with(directory)))
        .map(|descriptor| descriptor.file_name())
        .collect()
}
