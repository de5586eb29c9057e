//! How databases are closed: when nobody uses them, after a cleanup, after a failure, and where their directory is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::in_flight::WeakDatabase;
use super::memory::give_memory_back;
use super::supervisor::Supervisor;
use crate::LOGGER;
use crate::engine::{Database, Instance, Opening};
use crate::python::call::pass;
use crate::python::error::Error;
use crate::python::gil::{self, Lock, SIGNAL_POLL};
use crate::sync::fork_gate;

impl Supervisor {
    /// Closes the databases that were not used for `idle`, and lets go of their clients; handles that somebody kept go
    /// on, and open them again. Tells how many it closed.
    pub fn close_idle(&self, py: Python<'_>, idle: Duration) -> PyResult<usize> {
        let mut closed = 0;
        for instance in self.registry.instances(py) {
            if !instance.is_idle_for(idle) {
                continue;
            }
            closed += usize::from(self.try_close(py, &instance, None)?);
            if instance.state.take(py).is_closed() {
                self.registry.forget_clients_of(py, &instance);
            }
        }
        self.registry.forget_unused(py);
        self.engine.tidy(py);
        if closed > 0 {
            give_memory_back(py);
        }
        Ok(closed)
    }

    pub fn close_if_cleaned_up(
        &self,
        py: Python<'_>,
        instance: &Arc<Instance>,
        until: Option<Instant>,
    ) -> PyResult<()> {
        if instance.is_cleaned_up() {
            self.try_close(py, instance, until)?;
            if instance.state.take(py).is_closed() {
                self.registry.forget(py, instance);
            }
        }
        Ok(())
    }

    /// After a call that failed: closes its database, if that is what it needs, for the next call to open it anew. Where
    /// others are inside yet, one of them does so, for they fail too.
    pub fn close_if_damaged(
        &self,
        py: Python<'_>,
        instance: &Arc<Instance>,
        error: &PyErr,
        until: Option<Instant>,
    ) -> PyResult<()> {
        if self.engine.is_damaged_by(py, error) {
            self.try_close(py, instance, until)?;
        }
        Ok(())
    }

    /// Closes an instance that is open and has nobody inside; tells whether it was.
    pub fn try_close(&self, py: Python<'_>, instance: &Arc<Instance>, until: Option<Instant>) -> PyResult<bool> {
        let _pass = pass(py, self.engine.work())?;
        let Some(database) = instance.begin_closing(instance.state.take(py)) else { return Ok(false) };
        let closed = self.close(py, instance, database, until);
        instance.closed(instance.state.take(py));
        closed.map(|()| true)
    }

    /// Whatever comes of it, the database is not open in this process any more.
    pub fn close(
        &self,
        py: Python<'_>,
        instance: &Instance,
        database: Box<dyn Database>,
        until: Option<Instant>,
    ) -> PyResult<()> {
        let closed = database.close(py, until);
        self.permits.release();
        log::debug!(target: LOGGER, "closed {} ({})", instance.key(), instance.path().display());
        closed
    }

    /// Closes a database whose directory was found to be another one, or none, when the calls inside have ended. Whoever
    /// enters next opens what is there now.
    pub fn close_stale(
        &self,
        py: Python<'_>,
        instance: &Arc<Instance>,
        gone: &WeakDatabase,
        opening: Opening,
    ) -> Result<(), Error> {
        loop {
            {
                let _pass = pass(py, self.engine.work())?;
                if let Some(database) = instance.begin_closing_of(instance.state.take(py), gone) {
                    log::warn!(
                        target: LOGGER,
                        "{} was removed or replaced while it was open, or its engine process was told to end",
                        instance.key()
                    );
                    let closed = self.close(py, instance, database, opening.until());
                    instance.closed(instance.state.take(py));
                    closed?;
                }
            }
            if !instance.state.take(py).is_open_with(gone) {
                return Ok(());
            }
            if fork_gate::inside_call() {
                return Err(Error::busy(instance));
            }
            opening.check_budget(instance)?;
            gil::wait(py, || instance.wait_until_quiesced(SIGNAL_POLL))?;
        }
    }

    /// Waits until an ended instance is closed, unless this thread is what keeps it open.
    pub fn wait_until_closed(&self, py: Python<'_>, instance: &Arc<Instance>) -> PyResult<()> {
        loop {
            self.close_if_cleaned_up(py, instance, None)?;
            let waits_for_itself = fork_gate::inside_call();
            let state = instance.state.take(py);
            if waits_for_itself || state.is_closed() || state.is_changing_in_this_thread() {
                return Ok(());
            }
            drop(state);
            gil::wait(py, || instance.wait_until_quiesced(SIGNAL_POLL))?;
        }
    }
}
