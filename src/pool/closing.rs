//! Closing databases: idle ones, and those that were cleaned up, have failed, or whose directory was replaced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::in_flight::WeakDatabase;
use super::memory::release_free_memory;
use super::supervisor::Supervisor;
use crate::LOGGER;
use crate::engine::{Database, Instance, Opening};
use crate::python::call::pass;
use crate::python::error::Error;
use crate::python::gil::{self, Lock, SIGNAL_POLL};
use crate::sync::fork_gate;

impl Supervisor {
    /// Closes the databases that were not used for `idle`, and releases their clients. Handles that the app has kept
    /// remain usable, and reopen the database. Returns the number of databases closed.
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
            release_free_memory(py);
        }
        Ok(closed)
    }

    /// Closes an instance that was cleaned up, if no call is in flight.
    pub(super) fn close_if_cleaned_up(
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

    /// Closes the database after a failed call if the error means that it must be reopened. While other calls are in
    /// flight, does nothing: they fail as well, and the last of them closes it.
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

    /// Closes an instance if it is open and no call is in flight. Returns whether it has closed it.
    pub(super) fn try_close(&self, py: Python<'_>, instance: &Arc<Instance>, until: Option<Instant>) -> PyResult<bool> {
        let _pass = pass(py, self.engine.work())?;
        let Some(database) = instance.begin_closing(instance.state.take(py)) else { return Ok(false) };
        let closed = self.close(py, instance, database, until);
        instance.closed(instance.state.take(py));
        closed.map(|()| true)
    }

    /// Closes a database and releases its permit. Even after an error the database is no longer open in this process.
    pub(super) fn close(
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

    /// Waits for the calls in flight, then closes a database whose directory was replaced or removed. The next call
    /// opens the database that is there now.
    pub fn close_stale(
        &self,
        py: Python<'_>,
        instance: &Arc<Instance>,
        stale: &WeakDatabase,
        opening: Opening,
    ) -> Result<(), Error> {
        loop {
            {
                let _pass = pass(py, self.engine.work())?;
                if let Some(database) = instance.begin_closing_of(instance.state.take(py), stale) {
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
            if !instance.state.take(py).is_open_with(stale) {
                return Ok(());
            }
            if fork_gate::inside_call() {
                return Err(Error::busy(instance));
            }
            opening.check_budget(instance)?;
            gil::wait(py, || instance.wait_until_quiesced(SIGNAL_POLL))?;
        }
    }

    /// Waits until an instance that was cleaned up is closed. Returns at once if this thread itself keeps it open.
    pub(super) fn wait_until_closed(&self, py: Python<'_>, instance: &Arc<Instance>) -> PyResult<()> {
        loop {
            self.close_if_cleaned_up(py, instance, None)?;
            let would_wait_for_itself = fork_gate::inside_call();
            let state = instance.state.take(py);
            if would_wait_for_itself || state.is_closed() || state.is_changing_in_this_thread() {
                return Ok(());
            }
            drop(state);
            gil::wait(py, || instance.wait_until_quiesced(SIGNAL_POLL))?;
        }
    }
}
