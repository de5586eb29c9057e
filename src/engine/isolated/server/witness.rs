//! Whether another program writes to the database while it is open here. The index files of a database are not made for
//! two Chromas, and what they hold then must not be trusted.
//!
//! `SQLite` counts the transactions that change a database: with a write-ahead log in the shared index of that log,
//! otherwise in the header of the database's file. While no call is in flight, this process makes none. So the count is
//! read when the last call in flight ends, and compared when the next one begins.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::storage::directory::{DATABASE_FILE, FileId, file_id};
use crate::storage::open_files::{IgnoredFile, OpenFiles};

/// The index of the write-ahead log, in the working directory.
const INDEX_FILE: &str = "chroma.sqlite3-shm";

/// The part of a file that every transaction changes.
#[derive(Clone, Copy, Debug)]
struct Header {
    offset: u64,
    length: usize,
}

/// In the database's file: the number of transactions, unless there is a write-ahead log.
const CHANGES: Header = Header { offset: 24, length: 4 };

/// In the index: the number of transactions, the number of frames, and what tells one write-ahead log from the next.
const INDEX: Header = Header { offset: 0, length: 48 };

/// The longest of them: what tells whether there was a transaction that has changed the database.
pub type Transactions = [u8; INDEX.length];

/// In the database's file: how it is to be written.
const WRITE_VERSION: u64 = 18;
const WRITE_AHEAD: [u8; 1] = [2];

/// Watches for other writers.
#[derive(Debug, Default)]
pub struct Witness {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    database: Option<Watched>,
    /// `None` without a write-ahead log.
    index: Option<Watched>,
    calls: usize,
    /// The header when no call was in flight last; `None` where it is not known.
    seen: Option<Transactions>,
}

/// A file that is watched. A process that closes any descriptor of a file releases the locks that `SQLite` holds on it, so
/// this one stays open until another file has taken the place of that file.
#[derive(Debug)]
struct Watched {
    file: IgnoredFile,
    id: FileId,
}

impl Watched {
    /// Opens the file at `path`, unless it is open here.
    fn refresh(watched: &mut Option<Self>, path: &str, files: &OpenFiles) {
        let path = Path::new(path);
        let id = file_id(path);
        if watched.as_ref().map(|watched| watched.id) == id {
            return;
        }
        let opened = id.and_then(|id| Some(Self { file: files.open_ignored(path).ok()?, id }));
        *watched = opened;
    }

    fn read(&self, header: Header) -> Option<Transactions> {
        let mut content = [0; INDEX.length];
        let read = rustix::io::pread(self.file(), &mut content[..header.length], header.offset);
        (read == Ok(header.length)).then_some(content)
    }

    fn file(&self) -> &File {
        self.file.file()
    }
}

/// A call in flight.
#[derive(Debug)]
pub struct Inside<'a>(&'a Witness);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.calls -= 1;
        if state.calls == 0 && state.seen.is_some() {
            state.seen = state.header();
        }
    }
}

impl Witness {
    /// The database was opened, and no call is in flight: from now on no other program may write to it.
    pub fn begin(&self, files: &OpenFiles) {
        let mut state = self.state();
        Watched::refresh(&mut state.database, DATABASE_FILE, files);
        if state.database.as_ref().is_some_and(is_write_ahead) {
            Watched::refresh(&mut state.index, INDEX_FILE, files);
        } else {
            state.index = None;
        }
        state.seen = state.header();
    }

    /// Whether the open database has a write-ahead log: then `SQLite` has synced all that makes a transaction durable.
    pub fn sees_write_ahead_log(&self) -> bool {
        self.state().index.is_some()
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

    /// What tells whether there was another transaction; `None` where it is not known.
    pub fn transactions(&self) -> Option<Transactions> {
        self.state().header()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_changed(&self) -> bool {
        self.seen.is_some() && self.header() != self.seen
    }

    fn header(&self) -> Option<Transactions> {
        match (&self.index, &self.database) {
            (Some(index), _) => index.read(INDEX),
            (None, Some(database)) => database.read(CHANGES),
            (None, None) => None,
        }
    }
}

fn is_write_ahead(database: &Watched) -> bool {
    let mut version = [0; 1];
    rustix::io::pread(database.file(), &mut version, WRITE_VERSION) == Ok(1) && version == WRITE_AHEAD
}
