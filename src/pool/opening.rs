//! How a call gets into an instance: the database is opened first where it is closed, and another one closed where too many are
//! open.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::in_flight::Inside;
use super::supervisor::Supervisor;
use crate::LOGGER;
use crate::engine::{Instance, Opening};
use crate::instance::Enter;
use crate::python::call::pass;
use crate::python::error::Error;
use crate::python::gil::{self, Lock, SIGNAL_POLL};
use crate::storage::directory;
use crate::sync::fork_gate;

/// How often is looked for a permit while all that is open is in use.
const PERMIT_POLL: Duration = Duration::from_millis(2);

impl Supervisor {
    /// Goes into an instance, opening it first where it is closed.
    pub fn enter<'a>(
        self: &'a Arc<Self>,
        py: Python<'a>,
        instance: &'a Arc<Instance>,
        opening: Opening,
    ) -> Result<Inside<'a>, Error> {
        let times_replaced = instance.times_replaced();
        loop {
            let pass = pass(py, self.engine.work())?;
            match instance.enter(instance.state.take(py)) {
                Enter::Ready(database) => {
                    instance.touch();
                    let (database, until) = (Some(database), opening.until());
                    return Ok(Inside::new(py, self, instance, database, until, pass));
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
                    // Whoever opens it may be told so only now, and one after the other would be.
                    opening.check_replacements(instance, instance.times_replaced() - times_replaced)?;
                    gil::wait(py, || instance.wait_until_settled(SIGNAL_POLL))?;
                }
            }
        }
    }

    pub fn open(self: &Arc<Self>, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<(), Error> {
        self.start_idle_thread(py);
        let is_there = py.detach(|| directory::has_database(instance.path()));
        let result = self
            .take_permit(py, instance, opening)
            .and_then(|()| self.engine.open(py, instance, opening).inspect_err(|_| self.permits.release()));
        match result {
            Ok(database) => {
                instance.opened(instance.state.take(py), database);
                self.counters.openings.fetch_add(1, Ordering::Relaxed);
                log::debug!(target: LOGGER, "opened {} ({})", instance.key(), instance.path().display());
                if self.registry.note(py, instance.key()) && !is_there {
                    log::warn!(
                        target: LOGGER,
                        "{} ({}) was removed after this process had used it, and is created again, empty; on_missing is \
                         what to set if it should not be",
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

    /// Takes a place for a database that is to be opened. Where there is none, it closes the one that was not used for the
    /// longest time and has no call under way; or waits until there is such a one.
    pub fn take_permit(&self, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<(), Error> {
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

    pub fn evict(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<bool> {
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
