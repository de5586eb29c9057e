//! An open database of the engine `isolated`, in the app.
//!
//! Encodes a call, sends it on a connection of its own, and waits for the response, detached. Connects if no connection
//! is idle, and starts an engine process if there is none.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::catalogue::SeenCatalogue;
use super::client::child;
use super::client::connections::{self, Channel};
use super::client::launcher::Launcher;
use super::client::request::{END_WITHIN, RequestError, exchange, is_final, release_and_reap, try_connect};
use super::client::search::log_notices;
use super::protocol::address::Address;
use super::protocol::frame::{Frame, Kind, MAX_BODY};
use super::protocol::values::{Decoder, Matrices, decode_exception, encode_call};
use crate::chroma::Method;
use crate::engine::{Catalogue, Database, Instance, Opening, Request};
use crate::failure::{Budget, Failure};
use crate::python::arguments::Arguments;
use crate::python::error::{Error, name_instance};
use crate::python::exceptions::describe;
use crate::storage::lock_file;

/// The reason of a retry of a call.
const REOPENED_REPEATEDLY: &str = "it is repeatedly reopened because other calls in it fail: see their errors";

/// An open database. Its engine process may be a different one at each call.
pub struct IsolatedDatabase {
    launcher: Launcher,
    instance: Weak<Instance>,
    system: Py<PyAny>,
    /// Whether the database is in memory: it is lost with its engine process, so no other is started.
    is_in_memory: bool,
}

impl Database for IsolatedDatabase {
    fn system<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.system.bind(py)
    }

    fn is_in_place(&self) -> bool {
        // Nothing can replace a database in memory.
        self.is_in_memory || self.launcher.is_in_place()
    }

    fn catalogue(&self, py: Python<'_>) -> Option<Box<dyn Catalogue>> {
        SeenCatalogue::now(py, &self.launcher).map(|catalogue| Box::new(catalogue) as Box<dyn Catalogue>)
    }

    fn attempt<'py>(&self, py: Python<'py>, request: &Request<'_, 'py>) -> Result<Bound<'py, PyAny>, Failure> {
        let (call, raised) = request
            .encoded
            .get_or_try_init(|| encode_call(request.method.to_str()?, request.arguments, request.keywords))?;
        let instance = self.instance.upgrade().ok_or(Error::ManagerShutDown)?;
        let method = request.method.to_str()?;
        let (Frame { kind, body }, channel) = match self.send_call(py, &instance, request, call) {
            Err(Failure::Final(Error::NotFound { .. })) if !self.is_in_memory => return Err(Failure::Stale),
            asked => asked?,
        };
        let answer = match kind {
            Kind::Stale | Kind::Closing if !self.is_in_memory => {
                // Kept, because the closing detects the end of the process on this connection.
                channel.keep(self.launcher.id);
                return Err(Failure::Stale);
            }
            Kind::Retry => {
                channel.keep(self.launcher.id);
                log_notices(&instance, &body);
                request.budget.map_or(Ok(()), |budget| budget.check(&instance, method))?;
                return Err(Failure::Retry(REOPENED_REPEATEDLY));
            }
            Kind::Returned => Decoder::new(py, &body, Matrices::Numpy).last_value().map(Ok),
            Kind::Raised => decode_exception(py, &body, raised).and_then(|raised| {
                name_instance(py, &instance, &raised)?;
                Ok(Err(raised))
            }),
            _ => return Err(Error::malformed(&instance, method, format!("a frame of the kind {kind:?}")).into()),
        };
        match answer {
            Ok(answer) => {
                channel.keep(self.launcher.id);
                Ok(answer?)
            }
            Err(error) if error.is_instance_of::<PyException>(py) => {
                Err(Error::malformed(&instance, method, describe(py, &error)).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn close(self: Box<Self>, py: Python<'_>, until: Option<Instant>) -> PyResult<()> {
        let socket = self.launcher.newest_address(py);
        let deadline = Instant::now() + END_WITHIN;
        let deadline = until.map_or(deadline, |until| deadline.min(until));
        // Where no socket is left (after an interrupted call, for example), the engine process may still be at work. A
        // new connection releases it.
        let idle = Channel::take_idle(py, self.launcher.id);
        connections::close_idle(py, self.launcher.id);
        let channel = idle.map_or_else(|| try_connect(py, &socket, deadline), |channel| Ok(Some(channel)))?;
        match channel {
            Some(channel) if !release_and_reap(py, &channel, &socket, deadline)? => return Ok(()),
            Some(_) => {}
            None => py.detach(|| child::reap_at(&socket)),
        }
        // If it had died, exclusive maintenance may have started another one.
        let owner = if self.is_in_memory { None } else { py.detach(|| lock_file::owner(&self.launcher.path)) };
        if let Some(socket) =
            owner.filter(|owner| !owner.is_momentary()).and_then(|owner| Address::of(&self.launcher.path, owner))
            && let Some(channel) = try_connect(py, &socket, deadline)?
        {
            release_and_reap(py, &channel, &socket, deadline)?;
        }
        Ok(())
    }
}

impl IsolatedDatabase {
    /// Creates the database. `system` is what Chroma's API has for it.
    pub fn new(launcher: Launcher, instance: &Arc<Instance>, system: Py<PyAny>, is_in_memory: bool) -> Self {
        Self { launcher, instance: Arc::downgrade(instance), system, is_in_memory }
    }

    /// Returns the launcher, which finds or starts the engine process.
    pub fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    /// Sends a call and waits for the response, within the call's budget.
    fn send_call<'py>(
        &self,
        py: Python<'py>,
        instance: &Instance,
        request: &Request<'_, 'py>,
        body: &[u8],
    ) -> Result<(Frame, Channel<'py>), Failure> {
        let (method, budget) = (request.method.to_str()?, request.budget);
        let opening = Opening { budget, ..Opening::new(false, Duration::ZERO) };
        let channel = match Channel::take_idle(py, self.launcher.id) {
            Some(channel) => channel,
            None if self.is_in_memory => self.launcher.reconnect(py, instance, method, budget)?,
            None => self.launcher.connect(py, instance, opening).map_err(|error| error.in_call(method))?,
        };
        let failed = match exchange(py, channel.stream(), Kind::Call, body, budget.map(|budget| budget.until)) {
            Ok(frame) => return Ok((frame, channel)),
            Err(RequestError::TooLarge) => {
                channel.keep(self.launcher.id);
                return Err(Error::too_large(instance, method, body.len(), MAX_BODY).into());
            }
            Err(failed) => failed,
        };
        drop(channel);
        if matches!(failed, RequestError::NotSent(_)) {
            connections::close_idle(py, self.launcher.id);
            let socket = self.launcher.socket(py);
            let stderr_tail = py.detach(|| child::log_tail(&socket));
            return Err(Failure::Unsent(Error::engine_crashed(instance, method, stderr_tail)));
        }
        let is_lost = matches!(&failed, RequestError::Broken(error) if !is_final(error));
        let error = self.error_of(py, instance, method, body.len(), failed, budget);
        if is_lost {
            let arguments = Arguments::of(Method::named(method), request.arguments, request.keywords);
            let is_safe_to_repeat = !self.is_in_memory && arguments.are_safe_to_repeat();
            return Err(Failure::Lost { error, is_safe_to_repeat });
        }
        Err(error.into())
    }

    /// Returns the error of a call that got no response.
    pub fn error_of(
        &self,
        py: Python<'_>,
        instance: &Instance,
        method: &str,
        size: usize,
        failed: RequestError,
        budget: Option<Budget>,
    ) -> Error {
        match (failed, budget) {
            (RequestError::Python(error), _) => error.into(),
            (RequestError::TooLate, Some(budget)) => budget.timed_out(instance, method),
            (RequestError::TooLarge, _) => Error::too_large(instance, method, size, MAX_BODY),
            (RequestError::Broken(error), _) if is_final(&error) => {
                Error::malformed(instance, method, error.to_string())
            }
            (
                RequestError::NotSent(_)
                | RequestError::Broken(_)
                | RequestError::Unreachable(_)
                | RequestError::Foreign
                | RequestError::TooLate,
                _,
            ) => {
                connections::close_idle(py, self.launcher.id);
                let socket = self.launcher.socket(py);
                Error::engine_crashed(instance, method, py.detach(|| child::stderr_tail(&socket)))
            }
        }
    }
}
