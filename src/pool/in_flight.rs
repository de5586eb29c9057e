//! A call in flight.

use std::sync::{Arc, Weak};
use std::time::Instant;

use pyo3::prelude::*;

use super::supervisor::Supervisor;
use crate::engine::{Database, Instance};
use crate::python::gil::Lock;
use crate::sync::fork_gate::Pass;

/// A caller inside an open instance: a call under way. Dropping it counts the caller out.
pub struct Inside<'a> {
    py: Python<'a>,
    supervisor: &'a Arc<Supervisor>,
    instance: &'a Arc<Instance>,
    database: Option<Arc<Box<dyn Database>>>,
    /// Until when its end may take.
    until: Option<Instant>,
    _pass: Pass,
}

impl<'a> Inside<'a> {
    /// A caller that was counted in, until `until` or for as long as it takes.
    pub fn new(
        py: Python<'a>,
        supervisor: &'a Arc<Supervisor>,
        instance: &'a Arc<Instance>,
        database: Option<Arc<Box<dyn Database>>>,
        until: Option<Instant>,
        pass: Pass,
    ) -> Self {
        Self { py, supervisor, instance, database, until, _pass: pass }
    }

    pub fn database(&self) -> &dyn Database {
        &***self.database.as_ref().expect("it is given up at the end only")
    }

    /// Whether the directory is still the one that was opened.
    pub fn is_in_place(&self) -> bool {
        let database = self.database();
        self.py.detach(|| database.is_in_place())
    }

    /// Counts the caller out; what is left tells this database from one that is opened later.
    pub fn leave(mut self) -> PyResult<WeakDatabase> {
        let database = self.database.as_ref().map_or_else(Weak::new, Arc::downgrade);
        self.count_out().map(|()| database)
    }

    fn count_out(&mut self) -> PyResult<()> {
        let Some(database) = self.database.take() else { return Ok(()) };
        drop(database);
        self.instance.touch();
        self.instance.leave(self.instance.state.take(self.py));
        self.supervisor.close_if_cleaned_up(self.py, self.instance, self.until)
    }
}

/// An open database, for who is not inside.
pub type WeakDatabase = Weak<Box<dyn Database>>;

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.count_out() {
            error.write_unraisable(self.py, None);
        }
    }
}
