//! Exclusive maintenance and deletion: operations on a database without a call in flight.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pyo3::prelude::*;

use super::missing;
use super::supervisor::Supervisor;
use crate::engine::{Database, Instance, Task};
use crate::failure::{Attempts, Next};
use crate::instance::key::Key;
use crate::python::call::pass;
use crate::python::error::{Error, name_instance};
use crate::python::gil::{self, Lock, SIGNAL_POLL};
use crate::sync::fork_gate::{self, Pass, Work};

impl Supervisor {
    /// Performs exclusive maintenance: `task` has the closed database to itself.
    pub fn manage<'py>(
        self: &Arc<Self>,
        py: Python<'py>,
        key: &Key,
        task: &Task<'py>,
    ) -> Result<Bound<'py, PyAny>, Error> {
        let opening = self.opening(task.may_create());
        self.while_quiesced(py, key, |instance| {
            if let Task::Restore { copy, .. } = task
                && self.puts_whole(py, instance, copy)?
            {
                return Ok(py.None().into_bound(py));
            }
            let mut attempts = Attempts::new();
            loop {
                let failure = match self.engine.manage(py, instance, task, opening) {
                    Ok(done) => return Ok(done),
                    Err(failure) => failure,
                };
                if let Next::PassOn(error) = attempts.after(py, instance, failure) {
                    if let Error::Python(raised) = &error {
                        name_instance(py, instance, raised)?;
                    }
                    return Err(error);
                }
            }
        })
    }

    /// Restores a database that has no directory yet. Returns whether it did. A directory that is there may be on
    /// another disk, or have files of the app.
    fn puts_whole(&self, py: Python<'_>, instance: &Instance, copy: &Bound<'_, PyAny>) -> Result<bool, Error> {
        let is_missing = self.engine.has_directories() && py.detach(|| instance.path().symlink_metadata().is_err());
        let put = if is_missing { missing::put(py, instance, copy) } else { Ok(false) };
        if let Err(Error::Python(raised)) = &put {
            name_instance(py, instance, raised)?;
        }
        put
    }

    /// Cleans an instance up and removes its database, even if other processes have it open. Returns whether there was
    /// one.
    pub fn delete(self: &Arc<Self>, py: Python<'_>, key: &Key) -> Result<bool, Error> {
        let deadline = self.opening(false).deadline;
        if !fork_gate::inside_call() {
            self.cleanup(py, key)?;
        }
        self.while_quiesced(py, key, |instance| self.engine.delete(py, instance, deadline))
    }

    /// Runs `work` on an instance. If the engine executes calls in this process, the database is closed meanwhile and
    /// no call is in flight; otherwise its engine process sees to that.
    fn while_quiesced<T>(
        self: &Arc<Self>,
        py: Python<'_>,
        key: &Key,
        work: impl FnOnce(&Arc<Instance>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.shut_down.load(Ordering::SeqCst) {
            return Err(Error::ManagerShutDown);
        }
        let instance = self.registry.instance(py, key, &self.options.base_path);
        if fork_gate::inside_call() {
            return Err(Error::busy(&instance));
        }
        let result = match self.engine.work() {
            Work::Elsewhere => pass(py, Work::Elsewhere).map_err(Error::from).and_then(|_pass| work(&instance)),
            Work::Here => {
                drop(instance);
                let (instance, _pass) = self.begin_maintenance(py, key)?;
                let result = work(&instance);
                self.end_maintenance(py, &instance)?;
                result
            }
        };
        self.registry.forget_unused(py);
        self.engine.tidy(py);
        result
    }

    /// Closes an instance, and keeps it from being opened until [`Self::end_maintenance`].
    fn begin_maintenance(self: &Arc<Self>, py: Python<'_>, key: &Key) -> PyResult<(Arc<Instance>, Pass)> {
        loop {
            let instance = self.registry.instance(py, key, &self.options.base_path);
            let (pass, open) = self.wait_for_maintenance(py, &instance)?;
            if let Some(database) = open
                && let Err(interrupted) = self.close(py, &instance, database, None)
            {
                self.end_maintenance(py, &instance)?;
                return Err(interrupted);
            }
            if !instance.is_cleaned_up() {
                return Ok((instance, pass));
            }
            // Cleaned up in the meantime: the registry now has a new instance for this key.
            self.end_maintenance(py, &instance)?;
        }
    }

    /// Waits until no call is in flight, then begins exclusive maintenance. Returns the database if it was open.
    fn wait_for_maintenance(&self, py: Python<'_>, instance: &Instance) -> PyResult<(Pass, Option<Box<dyn Database>>)> {
        let _request = instance.request_maintenance();
        loop {
            let pass = pass(py, self.engine.work())?;
            let begun = instance.begin_maintenance(instance.state.take(py));
            if let Some(open) = begun {
                return Ok((pass, open));
            }
            drop(pass);
            gil::wait(py, || instance.wait_until_quiesced(SIGNAL_POLL))?;
        }
    }

    /// Ends exclusive maintenance.
    fn end_maintenance(&self, py: Python<'_>, instance: &Arc<Instance>) -> PyResult<()> {
        instance.closed(instance.state.take(py));
        self.close_if_cleaned_up(py, instance, None)
    }
}
