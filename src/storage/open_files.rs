//! The files that this process has open in a database's directory, according to `/proc`. Where there is no `/proc`,
//! none.
//!
//! Chroma closes its files in threads of its own, some milliseconds after the binding was dropped. The database counts
//! as open until then.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
#[cfg(unix)]
use std::fs::File;
#[cfg(unix)]
use std::io;
#[cfg(unix)]
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const CLOSED_WITHIN: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_micros(500);

/// The files in a directory that were opened since a point in time.
pub struct OpenFiles {
    /// `None` stands for the working directory, even if it is moved.
    directory: Option<PathBuf>,
    /// Descriptors that were open before: the lock's, or those inherited through a fork.
    before: BTreeSet<OsString>,
    ignored: Ignored,
}

/// The descriptors of files that are not waited for.
type Ignored = Arc<Mutex<BTreeSet<OsString>>>;

/// An open file that is not waited for.
#[cfg(unix)]
#[derive(Debug)]
pub struct IgnoredFile {
    file: File,
    ignored: Ignored,
}

#[cfg(unix)]
impl IgnoredFile {
    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(unix)]
impl Drop for IgnoredFile {
    fn drop(&mut self) {
        // Before its number belongs to another file.
        locked(&self.ignored).remove(&number_of(&self.file));
    }
}

impl OpenFiles {
    /// Records the files that are open in the working directory now.
    #[cfg(unix)]
    pub fn in_working_directory() -> Self {
        let opened = Self { directory: None, before: BTreeSet::new(), ignored: Ignored::default() };
        Self { before: opened.now(), ..opened }
    }

    /// Records the files that are open in `directory` now.
    pub fn before(directory: &Path) -> Self {
        let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_path_buf());
        let before = descriptors_in(&directory);
        Self { directory: Some(directory), before, ignored: Ignored::default() }
    }

    /// Opens a file that is not waited for.
    #[cfg(unix)]
    pub fn open_ignored(&self, path: &Path) -> io::Result<IgnoredFile> {
        let file = File::open(path)?;
        locked(&self.ignored).insert(number_of(&file));
        Ok(IgnoredFile { file, ignored: Arc::clone(&self.ignored) })
    }

    /// Waits for at most two seconds until all files that were opened since are closed, and returns whether they are.
    /// Must not be called while attached to the interpreter.
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
        let open = match &self.directory {
            Some(directory) => descriptors_in(directory),
            None => env::current_dir().map(|directory| descriptors_in(&directory)).unwrap_or_default(),
        };
        &open - &*locked(&self.ignored)
    }
}

fn locked(ignored: &Ignored) -> MutexGuard<'_, BTreeSet<OsString>> {
    ignored.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(unix)]
fn number_of(file: &File) -> OsString {
    file.as_raw_fd().to_string().into()
}

fn descriptors_in(directory: &Path) -> BTreeSet<OsString> {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return BTreeSet::new() };
    descriptors
        .flatten()
        .filter(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|file| file.starts_with(directory)))
        .map(|descriptor| descriptor.file_name())
        .collect()
}
