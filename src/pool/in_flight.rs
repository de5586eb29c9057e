//! A call in flight: the guard that keeps its database open.

use std::sync::{Arc, Weak};
use std::time::Instant;

use pyo3::prelude::*;

use super::supervisor::Supervisor;
use crate::engine::{Database, Instance};
use crate::python::gil::Lock;
use crate::sync::fork_gate::Pass;

/// A call in flight in an open instance. Dropping it ends the call.
pub struct InFlight<'a> {
    py: Python<'a>,
    supervisor: &'a Arc<Supervisor>,
    instance: &'a Arc<Instance>,
    database: Option<Arc<Box<dyn Database>>>,
    /// The time limit of the closing that the end of the call may have to do.
    until: Option<Instant>,
    _pass: Pass,
}

impl<'a> InFlight<'a> {
    /// Wraps a call that has entered an instance. `until` limits the closing that its end may have to do.
    pub(super) fn new(
        py: Python<'a>,
        supervisor: &'a Arc<Supervisor>,
        instance: &'a Arc<Instance>,
        database: Option<Arc<Box<dyn Database>>>,
        until: Option<Instant>,
        pass: Pass,
    ) -> Self {
        Self { py, supervisor, instance, database, until, _pass: pass }
    }

    /// Returns the open database.
    pub fn database(&self) -> &dyn Database {
        &***self.database.as_ref().expect("present until the call ends")
    }

    /// Returns whether the directory is still the one that was opened.
    pub(super) fn is_in_place(&self) -> bool {
        let database = self.database();
        self.py.detach(|| database.is_in_place())
    }

    /// Ends the call. The returned reference distinguishes the database from one that is opened later.
    pub fn leave(mut self) -> PyResult<WeakDatabase> {
        let database = self.database.as_ref().map_or_else(Weak::new, Arc::downgrade);
        self.end().map(|()| database)
    }

    fn end(&mut self) -> PyResult<()> {
        let Some(database) = self.database.take() else { return Ok(()) };
        drop(database);
        self.instance.touch();
        self.instance.leave(self.instance.state.take(self.py));
        self.supervisor.close_if_cleaned_up(self.py, self.instance, self.until)
    }
}

/// A reference to an open database that does not keep it open.
pub type WeakDatabase = Weak<Box<dyn Database>>;

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            error.write_unraisable(self.py, None);
        }
    }
}
