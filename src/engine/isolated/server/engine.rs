//! What all connections of an engine process share. What is done with it is in `executor.rs` and `maintenance.rs`.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::binding::Binding;
use super::catalogue::Catalogue;
use super::group::Groups;
use super::index_files::IndexFiles;
use super::listener::Listener;
use super::orphans::{LongWrites, is_disconnected};
use super::place::Place;
use super::scheduler::{Scheduler, Slot, Stage};
use crate::engine::isolated::protocol::frame::Kind;

/// How many bytes the log may have: whatever Chroma and Python write to standard error.
const LONGEST_LOG: u64 = 256 * 1024;

/// The kind and the body of an answer.
pub type Answer = (Kind, Vec<u8>);

/// An engine process.
pub struct Engine {
    pub scheduler: Scheduler,
    pub binding: Binding,
    pub place: Place,
    pub catalogue: Catalogue,
    pub long_writes: LongWrites,
    pub groups: Groups,
    pub index_files: IndexFiles,
    pub listener: Arc<Listener>,
    pub log: File,
}

impl Engine {
    /// Whether the directory still has what was opened. If not, this process ends, and the next one opens what is there.
    pub fn is_in_place(&self) -> bool {
        let is_in_place = self.binding.is_in_memory() || self.place.is_kept(self.binding.failure().is_none());
        if !is_in_place {
            self.scheduler.advance(Stage::Closing);
        }
        is_in_place
    }

    /// The answer to a call that was not executed, or not completely.
    pub fn not_executed(&self) -> Answer {
        (if self.is_in_place() { Kind::Retry } else { Kind::Stale }, Vec::new())
    }

    /// The next exclusive slot of a call, if it is to go on. Detached only.
    pub fn take_slot(&self) -> Option<Slot<'_>> {
        self.scheduler.take_slot().filter(|_| self.is_in_place())
    }

    /// The first slot of a call, which is not executed if its caller has disconnected meanwhile. Detached only.
    pub fn take_first_slot(&self, caller: &UnixStream) -> Option<Slot<'_>> {
        self.take_slot().filter(|_| !is_disconnected(caller))
    }

    /// Truncates the log where it has become too long. Nothing can be done about an error in it.
    pub fn bound_log(&self) {
        if self.log.metadata().is_ok_and(|log| log.len() > LONGEST_LOG) {
            let _ = self.log.set_len(0);
        }
    }
}
