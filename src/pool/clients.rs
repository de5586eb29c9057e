//! Creating a client for a thread, and having the app provide a database that is missing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

use super::missing::{self, Missing, OnMissing};
use super::supervisor::Supervisor;
use crate::engine::Instance;
use crate::instance::key::{ClientKey, Key};
use crate::python::error::Error;
use crate::python::gil;

/// How often a new client is attempted while other threads keep cleaning up its instance.
const CLEANUP_RACES: u32 = 20;

/// How often a database is provided that another process removes before it is opened.
const REMOVAL_RACES: u32 = 3;

/// The pause between two checks whether another thread has provided the database.
const PROVIDE_POLL: Duration = Duration::from_millis(2);

impl Supervisor {
    /// Creates a client of an instance and registers it as this thread's own. Opens the database if it is closed.
    pub fn new_client(
        self: &Arc<Self>,
        py: Python<'_>,
        key: &Key,
        user_id: Option<&str>,
        missing: Missing<'_>,
    ) -> Result<Py<PyAny>, Error> {
        let mut opening = self.opening(missing.creates_at_once());
        let mut restore = missing.restore;
        let (mut races, mut times_stale, mut times_provided) = (0, 0, 0);
        loop {
            if self.shut_down.load(Ordering::SeqCst) {
                return Err(Error::ManagerShutDown);
            }
            let instance = self.registry.instance(py, key, &self.options.base_path);
            let system = match self.enter(py, &instance, opening) {
                Ok(in_flight) if !in_flight.is_in_place() => {
                    let stale = in_flight.leave()?;
                    self.close_stale(py, &instance, &stale, opening)?;
                    opening.restart(py, &instance, &mut times_stale)?;
                    continue;
                }
                Ok(in_flight) => in_flight.database().system(py).clone(),
                // Cleaned up during the opening. This caller came after the cleanup began, and gets a new instance.
                Err(Error::ClientClosed { .. }) if races < CLEANUP_RACES => {
                    races += 1;
                    self.wait_until_closed(py, &instance)?;
                    continue;
                }
                Err(error @ Error::NotFound { .. }) => match (restore, missing.otherwise) {
                    (Some(callable), otherwise) if times_provided < REMOVAL_RACES => {
                        match self.restore_missing(py, &instance, callable)? {
                            Restoring::Done => times_provided += 1,
                            Restoring::Elsewhere => {}
                            Restoring::NotInBucket => restore = None,
                        }
                        opening = self.opening(restore.is_none() && otherwise.creates());
                        continue;
                    }
                    (_, OnMissing::Call(callable)) if times_provided < REMOVAL_RACES => {
                        times_provided += u32::from(self.provide_missing(py, &instance, callable)?);
                        opening = self.opening(false);
                        continue;
                    }
                    (_, OnMissing::Fail) => return Err(Error::missing(&instance)),
                    _ => return Err(error),
                },
                Err(error) => return Err(error),
            };
            let may_create = Arc::default();
            let client = (self.make_client)(py, self, &instance, &may_create, &system)?;
            let client_key = ClientKey { instance: key.clone(), user_id: user_id.map(Into::into) };
            if self.registry.insert(py, client_key, &client, &instance, may_create)? {
                return Ok(client.unbind());
            }
        }
    }

    /// Has the app provide the database of an instance. Returns whether this thread has called it; if another thread
    /// was already doing so, waits for that one.
    fn provide_missing(&self, py: Python<'_>, instance: &Instance, callable: &Py<PyAny>) -> Result<bool, Error> {
        if !self.engine.has_directories() {
            let reason = "it does not exist, and there is no directory that on_missing could fill; use \"create\" or \
                          \"error\"";
            return Err(Error::cannot_open(instance, reason.into(), None));
        }
        let key = instance.key();
        match self.registry.begin_providing(py, key) {
            None => {
                let provided = missing::provide(py, instance, callable);
                self.registry.end_providing(py, key);
                provided.map(|()| true)
            }
            Some(thread) if thread == thread::current().id() => {
                let reason = "it does not exist, and this very thread is in on_missing to provide it; call get_client() or \
                              get_collection() with on_missing=\"create\"";
                Err(Error::cannot_open(instance, reason.into(), None))
            }
            Some(_) => {
                self.wait_until_provided(py, key)?;
                Ok(false)
            }
        }
    }

    /// Restores the database of an instance from the bucket; if another thread is already doing so, waits for that one.
    fn restore_missing(&self, py: Python<'_>, instance: &Instance, callable: &Py<PyAny>) -> Result<Restoring, Error> {
        let key = instance.key();
        match self.registry.begin_providing(py, key) {
            None => {
                let restored = missing::restore(py, instance, callable);
                self.registry.end_providing(py, key);
                restored.map(|exists| if exists { Restoring::Done } else { Restoring::NotInBucket })
            }
            // The app's callable, which is called for a database that the bucket does not have, creates it.
            Some(thread) if thread == thread::current().id() => Ok(Restoring::NotInBucket),
            Some(_) => self.wait_until_provided(py, key).map(|()| Restoring::Elsewhere),
        }
    }

    fn wait_until_provided(&self, py: Python<'_>, key: &Key) -> Result<(), Error> {
        while self.registry.is_being_provided(py, key) {
            gil::wait(py, || thread::sleep(PROVIDE_POLL))?;
        }
        Ok(())
    }
}

/// The result of an attempt to restore a missing database.
enum Restoring {
    Done,
    /// Another thread was at it, and is no longer.
    Elsewhere,
    NotInBucket,
}
