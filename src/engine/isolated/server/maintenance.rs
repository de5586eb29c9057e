//! Exclusive maintenance: what is done while the database is closed and no call is in flight.
//!
//! What a checkpoint, a snapshot or a restore is, is in the Python half (`durability/`).

use std::path::Path;
use std::time::Instant;

use pyo3::prelude::*;

use super::engine::{Answer, Engine};
use super::scheduler::{Maintenance, Stage};
use crate::engine::isolated::protocol::frame::Kind;
use crate::engine::isolated::protocol::values::{Decoder, Encoder, Matrices, encode_exception, name_of};
use crate::storage::removing;

impl Engine {
    /// Closes the binding, takes a checkpoint if one is due, and reopens it.
    pub fn checkpoint(&self, py: Python<'_>) {
        let began = Instant::now();
        self.binding.close(py);
        let next = self.binding.host(py).call_method0("checkpoint");
        let next = next.and_then(|next| next.extract::<Option<usize>>());
        self.reopen(py);
        match next {
            Ok(Some(next)) => self.scheduler.end_checkpoint(began.elapsed(), Some(next)),
            Ok(None) => self.scheduler.end_reopening(),
            Err(error) => {
                // All of the log is there still, and another checkpoint is tried later.
                error.print(py);
                self.scheduler.end_checkpoint(began.elapsed(), None);
            }
        }
    }

    /// Where the database cannot be opened any more, this process ends, and the next one says why.
    fn reopen(&self, py: Python<'_>) {
        match self.binding.reopen(py) {
            Ok(()) => {
                py.detach(|| {
                    self.place.refresh();
                    self.catalogue.opened(self.place.seen());
                });
                self.binding.watch(py);
            }
            Err(error) => {
                error.print(py);
                self.scheduler.advance(Stage::Closing);
            }
        }
    }

    fn begin_maintenance(&self) -> Option<Maintenance<'_>> {
        let maintenance = self.scheduler.begin_maintenance().filter(|_| self.is_in_place());
        // Whoever looks from now on asks, and waits.
        self.catalogue.count();
        maintenance
    }

    /// Does a piece of maintenance that an app asks for, and reopens the database.
    pub fn manage(&self, body: &[u8]) -> Answer {
        let Some(maintenance) = self.begin_maintenance() else { return (Kind::Stale, Vec::new()) };
        let result = Python::attach(|py| {
            let finish = self.manage_closed(py, body);
            if self.binding.failure().is_none() {
                self.reopen(py);
            }
            drop(maintenance);
            // The rest does not need the database, and calls go on meanwhile.
            let answer = finish.and_then(|finish| {
                let mut encoder = Encoder::new(py);
                encoder.value(&finish.call0(py)?.into_bound(py))?;
                Ok(encoder.finish())
            });
            answer.map_err(|error| encode_exception(py, &self.named(py, body, error)))
        });
        match result {
            Ok(answer) => (Kind::Returned, answer),
            Err(error) => (Kind::Raised, error),
        }
    }

    fn manage_closed(&self, py: Python<'_>, body: &[u8]) -> PyResult<Py<PyAny>> {
        let mut decoder = Decoder::new(py, body, Matrices::Rows);
        let method = decoder.text()?.to_owned();
        let arguments = decoder.last_value()?;
        self.binding.close(py);
        if method != "restore" && self.binding.failure().is_none() {
            self.binding.complete_batches(py)?;
        }
        Ok(self.binding.host(py).call_method1("manage", (method, arguments))?.unbind())
    }

    /// An error of maintenance, with the names of the verb and of the database.
    fn named(&self, py: Python<'_>, body: &[u8], error: PyErr) -> PyErr {
        let named = self.binding.host(py).call_method1("named", (name_of(body).unwrap_or_default(), error.value(py)));
        named.map_or(error, PyErr::from_value)
    }

    /// Removes the database while this process owns it, so that nobody opens it meanwhile. Then this process ends.
    pub fn delete(&self) -> Answer {
        let Some(maintenance) = self.begin_maintenance() else { return (Kind::Stale, Vec::new()) };
        Python::attach(|py| self.binding.close(py));
        let removed = removing::remove_content(Path::new("."));
        self.scheduler.advance(Stage::Closing);
        drop(maintenance);
        match removed {
            Ok(()) => (Kind::Returned, Vec::new()),
            Err(error) => (Kind::Raised, Python::attach(|py| encode_exception(py, &error.into()))),
        }
    }
}
