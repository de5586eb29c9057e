//! The engine processes that one search has started, and what became of them.

use std::io;
use std::path::Path;

use super::child::{self, StartInProgress};
use crate::engine::isolated::protocol::address::Address;
use crate::storage::directory::{FileId, lock_id};

/// How many may die before the search gives up.
const MAX_DEATHS: u32 = 5;

/// The engine processes of a search.
#[derive(Default)]
pub struct Started {
    /// The last one, and the lock file that it holds.
    last: Option<(Address, Option<FileId>)>,
    /// Its start, which ends with the search or its death.
    in_progress: Option<StartInProgress>,
    deaths: u32,
}

impl Started {
    /// Adds one, which holds this lock file.
    pub fn add(&mut self, address: Address, lock: Option<FileId>, in_progress: StartInProgress) {
        self.last = Some((address, lock));
        self.in_progress = Some(in_progress);
    }

    /// Returns whether the last one is at this address.
    pub fn is_at(&self, address: &Address) -> bool {
        self.last.as_ref().is_some_and(|(last, _)| last.is_of_same_owner(address))
    }

    /// Returns whether the one at this address has ended because the directory was removed or replaced while it started.
    /// Must not be called while attached to the interpreter.
    pub fn is_replaced(&self, address: &Address, directory: &Path) -> bool {
        let last = self.last.as_ref().filter(|(last, _)| last.is_of_same_owner(address));
        last.is_some_and(|(_, lock)| *lock != lock_id(directory))
    }

    /// Counts one that did not answer, if this process has started it and it has died. Returns the problem. Must not be
    /// called while attached to the interpreter.
    pub fn count_death(&mut self, address: &Address, error: &io::Error) -> String {
        self.in_progress = None;
        self.deaths += u32::from(child::has_died(address));
        let stderr_tail = child::stderr_tail(address);
        if stderr_tail.is_empty() { error.to_string() } else { stderr_tail }
    }

    /// Returns whether any has died.
    pub fn have_died(&self) -> bool {
        self.deaths > 0
    }

    /// Returns whether so many have died that another one would die, too.
    pub fn keep_dying(&self) -> bool {
        self.deaths >= MAX_DEATHS
    }
}
