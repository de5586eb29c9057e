//! How a thread gets a client of its own, and what is done where there is no database.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

use super::missing::{self, OnMissing};
use super::supervisor::Supervisor;
use crate::engine::Instance;
use crate::instance::key::{ClientKey, Key};
use crate::python::error::Error;
use crate::python::gil;

/// How often a new client is tried for while others keep cleaning up what it needs.
const CLEANUP_RACES: u32 = 20;

/// How often a database is put there that somebody else removes before it is opened.
const REMOVAL_RACES: u32 = 3;

/// How often is looked whether another thread has put the database there.
const PUT_POLL: Duration = Duration::from_millis(2);

impl Supervisor {
    /// A new client of that instance, opened if need be, and this thread's own from now on.
    pub fn new_client(
        self: &Arc<Self>,
        py: Python<'_>,
        key: &Key,
        user_id: Option<&str>,
        on_missing: &OnMissing,
    ) -> Result<Py<PyAny>, Error> {
        let mut opening = self.opening(on_missing.creates());
        let (mut races, mut times_gone, mut times_put) = (0, 0, 0);
        loop {
            if self.shut_down.load(Ordering::SeqCst) {
                return Err(Error::ManagerShutDown);
            }
            let instance = self.registry.instance(py, key, &self.options.base_path);
            let system = match self.enter(py, &instance, opening) {
                Ok(inside) if !inside.is_in_place() => {
                    let gone = inside.leave()?;
                    self.close_stale(py, &instance, &gone, opening)?;
                    opening.restart(py, &instance, &mut times_gone)?;
                    continue;
                }
                Ok(inside) => inside.database().system(py).clone(),
                // Cleaned up while it was being opened: the caller came later, and gets a new one.
                Err(Error::ClientClosed { .. }) if races < CLEANUP_RACES => {
                    races += 1;
                    self.wait_until_closed(py, &instance)?;
                    continue;
                }
                Err(Error::NotFound { .. }) if matches!(on_missing, OnMissing::Fail) => {
                    return Err(Error::missing(&instance));
                }
                Err(error @ Error::NotFound { .. }) => match on_missing {
                    OnMissing::Call(callable) if times_put < REMOVAL_RACES => {
                        times_put += u32::from(self.have_put_there(py, &instance, callable)?);
                        opening = self.opening(false);
                        continue;
                    }
                    _ => return Err(error),
                },
                Err(error) => return Err(error),
            };
            let asked_for = Arc::default();
            let client = (self.make_client)(py, self, &instance, &asked_for, &system)?;
            let client_key = ClientKey { instance: key.clone(), user_id: user_id.map(Into::into) };
            if self.registry.insert(py, client_key, &client, &instance, asked_for)? {
                return Ok(client.unbind());
            }
        }
    }

    /// Has the app put the database of an instance there; tells whether it was called for that, or somebody else was.
    pub fn have_put_there(&self, py: Python<'_>, instance: &Instance, callable: &Py<PyAny>) -> Result<bool, Error> {
        let key = instance.key();
        match self.registry.begin_putting(py, key) {
            None => {
                let put = missing::put_there(py, instance, callable);
                self.registry.end_putting(py, key);
                put.map(|()| true)
            }
            Some(thread) if thread == thread::current().id() => {
                let reason = "it is not there, and this very thread is in on_missing to put it there; call get_client() or \
                              get_collection() with on_missing=\"create\"";
                Err(Error::cannot_open(instance, reason.into(), None))
            }
            Some(_) => {
                while self.registry.is_awaited(py, key) {
                    gil::wait(py, || thread::sleep(PUT_POLL))?;
                }
                Ok(false)
            }
        }
    }
}
