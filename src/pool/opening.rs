//! Entering an instance: opens its database if it is closed, and evicts another one if too many are open.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::in_flight::InFlight;
use super::supervisor::Supervisor;
use crate::LOGGER;
use crate::engine::{Instance, Opening};
use crate::instance::Enter;
use crate::python::call::pass;
use crate::python::error::Error;
use crate::python::gil::{self, Lock, SIGNAL_POLL};
use crate::storage::directory;
use crate::sync::fork_gate::{self, Pass};

/// The pause between two attempts to take a permit while all open databases are in use.
const PERMIT_POLL: Duration = Duration::from_millis(2);

impl Supervisor {
    /// Enters an instance for a call, opening its database first if that is closed.
    pub fn enter<'a>(
        self: &'a Arc<Self>,
        py: Python<'a>,
        instance: &'a Arc<Instance>,
        opening: Opening,
    ) -> Result<InFlight<'a>, Error> {
        let times_replaced = instance.times_replaced();
        loop {
            let pass = pass(py, self.engine.work())?;
            match instance.enter(instance.state.take(py)) {
                Enter::Ready(database) => {
                    instance.touch();
                    let (database, until) = (Some(database), opening.until());
                    return Ok(InFlight::new(py, self, instance, database, until, pass));
                }
                Enter::CleanedUp => return Err(Error::cleaned_up(instance)),
                Enter::Busy => return Err(Error::busy(instance)),
                Enter::MustOpen => {
                    drop(pass);
                    self.open(py, instance, opening)?;
                }
                Enter::Wait => {
                    drop(pass);
                    if fork_gate::inside_call() {
                        return Err(Error::busy(instance));
                    }
                    opening.check_budget(instance)?;
                    // Checked while waiting, too. Otherwise each waiting thread would in turn become the one that
                    // opens, and report the error only after its own attempts.
                    opening.check_replacements(instance, instance.times_replaced() - times_replaced)?;
                    gil::wait(py, || instance.wait_until_settled(SIGNAL_POLL))?;
                }
            }
        }
    }

    /// Returns whether there is a database at a path, as far as this machine can tell. Must not be called while attached
    /// to the interpreter.
    pub fn has_database(&self, path: &Path) -> bool {
        !self.engine.has_directories() || directory::has_database(path)
    }

    /// Enters an instance whose database is open. Does not wait.
    pub fn enter_if_open<'a>(self: &'a Arc<Self>, py: Python<'a>, instance: &'a Arc<Instance>) -> Option<InFlight<'a>> {
        let pass = Pass::try_new(self.engine.work())?;
        let state = instance.state.take(py);
        if !state.is_open() {
            return None;
        }
        match instance.enter(state) {
            Enter::Ready(database) => Some(InFlight::new(py, self, instance, Some(database), None, pass)),
            _ => None,
        }
    }

    /// Opens the database of an instance that this thread has put into the phase of opening.
    fn open(self: &Arc<Self>, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<(), Error> {
        self.start_idle_thread(py);
        let existed = py.detach(|| self.has_database(instance.path()));
        let result = self
            .take_permit(py, instance, opening)
            .and_then(|()| self.engine.open(py, instance, opening).inspect_err(|_| self.permits.release()));
        match result {
            Ok(database) => {
                instance.opened(instance.state.take(py), database);
                self.counters.openings.fetch_add(1, Ordering::Relaxed);
                log::debug!(target: LOGGER, "opened {} ({})", instance.key(), instance.path().display());
                if self.registry.mark_known(py, instance.key()) && !existed {
                    log::warn!(
                        target: LOGGER,
                        "{} ({}) was removed after this process had used it, and is created again, empty; set \
                         on_missing to prevent this",
                        instance.key(),
                        instance.path().display()
                    );
                }
                self.close_if_cleaned_up(py, instance, opening.until())?;
                Ok(())
            }
            Err(error) => {
                instance.failed(instance.state.take(py));
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                if instance.is_cleaned_up() {
                    self.registry.forget(py, instance);
                } else {
                    self.registry.forget_unused(py);
                }
                Err(error)
            }
        }
    }

    /// Takes a permit to open a database. If none is free, closes the least recently used database without a call in
    /// flight, or waits until there is one.
    fn take_permit(&self, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<(), Error> {
        while !self.permits.take() {
            opening.check_budget(instance)?;
            if self.evict(py, opening.until())? {
                continue;
            }
            if fork_gate::inside_call() {
                return Err(Error::busy(instance));
            }
            if instance.is_cleaned_up() {
                return Err(Error::cleaned_up(instance));
            }
            gil::wait(py, || thread::sleep(PERMIT_POLL))?;
        }
        Ok(())
    }

    /// Closes the least recently used database without a call in flight, and returns whether there was one.
    fn evict(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<bool> {
        let mut instances = self.registry.instances(py);
        instances.sort_by(|a, b| a.last_used().total_cmp(&b.last_used()));
        for instance in instances {
            if self.try_close(py, &instance, until)? {
                self.counters.evictions.fetch_add(1, Ordering::Relaxed);
                return Ok(true);
            }
        }
        Ok(false)
    }
}
