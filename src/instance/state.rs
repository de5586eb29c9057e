//! The state of an instance: open or not, and the calls in flight. How it gets from one to another is in `mod.rs`.

use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::sync::thread::{self, ThreadId};

/// The part of an instance that its mutex protects.
#[derive(Debug)]
pub struct State<D> {
    pub(super) phase: Phase<D>,
    pub(super) in_flight: usize,
    pub(super) opened_at: Option<SystemTime>,
}

/// Whether the database is open, and which thread opens or closes it.
#[derive(Debug)]
pub(super) enum Phase<D> {
    Closed,
    Opening(ThreadId),
    Open(Arc<D>),
    Closing(ThreadId),
}

impl<D> State<D> {
    /// Returns whether the database is open.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Returns whether the open database is this one.
    pub fn is_open_with(&self, database: &Weak<D>) -> bool {
        matches!(&self.phase, Phase::Open(open) if Weak::as_ptr(database) == Arc::as_ptr(open))
    }

    /// Returns whether the database is closed, and not being opened.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Returns the time of the opening, in seconds since the Unix epoch, or `None` if the database is not open.
    pub fn opened_at(&self) -> Option<f64> {
        self.opened_at.map(|at| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
    }

    /// Returns whether this thread itself is opening or closing the database, further up its call stack.
    pub fn is_changing_in_this_thread(&self) -> bool {
        matches!(&self.phase, Phase::Opening(by) | Phase::Closing(by) if *by == thread::current().id())
    }

    /// Returns whether nothing is opening or closing the database.
    pub(super) fn is_settled(&self) -> bool {
        self.is_open() || self.is_closed()
    }
}
