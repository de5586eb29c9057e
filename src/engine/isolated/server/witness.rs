//! Whether another program writes to the database while it is open here. The index files of a database are not made for
//! two Chromas, and what they hold then must not be trusted.
//!
//! `SQLite` counts the transactions that change a file in the file's header. While no call is in flight, this process makes
//! none. So the count is read when the last call in flight ends, and compared when the next one begins.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::storage::directory::{DATABASE_FILE, FileId, file_id, id_of};

/// The offset of the count in the header.
const CHANGES: u64 = 24;

/// In the working directory. Only a database that its user has put into this mode has one.
const WRITE_AHEAD_LOG: &str = "chroma.sqlite3-wal";

/// Watches for other writers.
#[derive(Debug)]
pub struct Witness {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The database's file. A process that closes any descriptor of a file releases the locks that `SQLite` holds on it, so
    /// this one stays open until another file has taken the place of that file.
    file: OwnedFd,
    /// Which file that is; `None` at first, when the descriptor is of something else.
    id: Option<FileId>,
    calls: usize,
    /// The state when no call was in flight last; `None` where it is not known.
    seen: Option<Changes>,
}

/// What distinguishes one state of a database's content from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Changes {
    count: [u8; 4],
    write_ahead_log: Option<(u64, SystemTime)>,
}

/// A call in flight.
#[derive(Debug)]
pub struct Inside<'a>(&'a Witness);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.calls -= 1;
        if state.calls == 0 && state.seen.is_some() {
            state.seen = changes(&state.file);
        }
    }
}

impl Witness {
    /// A witness that watches nothing yet. The database's file will be opened under the number of this descriptor.
    pub fn over(file: OwnedFd) -> Self {
        Self { state: Mutex::new(State { file, id: None, calls: 0, seen: None }) }
    }

    /// The database was opened, and no call is in flight: from now on no other program may write to it.
    pub fn begin(&self) {
        let mut state = self.state();
        state.seen = None;
        if state.id.is_none() || state.id != file_id(Path::new(DATABASE_FILE)) {
            state.id = None;
            let Ok(file) = File::open(DATABASE_FILE) else { return };
            let id = file.metadata().ok().map(|metadata| id_of(&metadata));
            // The old file is closed here, while `SQLite` holds no lock on it.
            if rustix::io::dup2(&file, &mut state.file).is_ok() {
                state.id = id;
            }
        }
        state.seen = state.id.and_then(|_| changes(&state.file));
    }

    /// Whether another program has written to it. Only while no call is in flight.
    pub fn has_changed(&self) -> bool {
        self.state().has_changed()
    }

    /// A call begins. `None` where another program has written to the database: the call must not be executed.
    pub fn enter(&self) -> Option<Inside<'_>> {
        let mut state = self.state();
        if state.calls == 0 && state.has_changed() {
            return None;
        }
        state.calls += 1;
        Some(Inside(self))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_changed(&self) -> bool {
        self.seen.is_some() && changes(&self.file) != self.seen
    }
}

fn changes(file: &OwnedFd) -> Option<Changes> {
    let mut count = [0; 4];
    (rustix::io::pread(file, &mut count, CHANGES) == Ok(4)).then_some(())?;
    let log = fs::metadata(WRITE_AHEAD_LOG).ok();
    let write_ahead_log = log.and_then(|log| Some((log.len(), log.modified().ok()?)));
    Some(Changes { count, write_ahead_log })
}
