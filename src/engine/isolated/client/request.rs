//! One exchange on a socket, from the app's side: sends a frame and waits for the response, detached.
//!
//! What follows a failed exchange is decided by the callers and by `failure.rs`.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::child;
use super::connections::Channel;
use crate::engine::isolated::protocol::address::Address;
use crate::engine::isolated::protocol::frame::{Frame, Incoming, Kind, Outgoing};
use crate::engine::isolated::protocol::greeting;
use crate::engine::isolated::protocol::page::Taking;
use crate::failure::FIRST_PAUSE;
use crate::python::gil;

/// How long to wait for the end of an engine process whose database is being closed.
pub const END_WITHIN: Duration = Duration::from_secs(30);

/// The reason why an exchange has failed.
pub enum RequestError {
    /// The connection failed.
    Unreachable(io::Error),
    /// The process that answers has another database. Nothing was sent.
    Foreign,
    /// The connection was closed before the request was sent completely. The request was not executed.
    NotSent(io::Error),
    /// The connection was closed, or a malformed frame was received, before the response was complete.
    Broken(io::Error),
    /// The deadline has passed.
    TooLate,
    /// The request is larger than a frame may be. Nothing was sent.
    TooLarge,
    /// A signal handler has raised.
    Python(PyErr),
}

impl From<PyErr> for RequestError {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

/// Returns whether another engine process would fail with the same error.
pub fn is_final(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied)
}

/// Connects and waits for the greeting. Returns it, without its proof, after checking that the directory's owner has
/// sent it. The page that comes with it is kept in the channel.
pub fn greet<'py>(
    py: Python<'py>,
    address: &Address,
    deadline: Instant,
) -> Result<(Channel<'py>, Frame), RequestError> {
    let deadline = Some(deadline);
    let mut channel = loop {
        match Channel::connect(py, address) {
            Ok(channel) => break channel,
            // The backlog is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                check_deadline(py, deadline)?;
                gil::wait(py, || thread::sleep(FIRST_PAUSE))?;
            }
            Err(error) => return Err(RequestError::Unreachable(error)),
        }
    };
    let mut source = Taking::new(channel.stream());
    let mut frame = receive(py, &mut source, deadline)?;
    channel.page = source.into_page().map(Arc::new);
    let is_proven = match frame.kind {
        Kind::Hello | Kind::Failed | Kind::Closing | Kind::Busy => {
            py.detach(|| greeting::check(&mut frame.body, address))
        }
        _ => None,
    };
    match is_proven {
        Some(true) => Ok((channel, frame)),
        Some(false) => Err(RequestError::Foreign),
        // An engine process that ends sends this to all connections, including those that it has not greeted.
        None if frame.kind == Kind::Closing => Err(RequestError::Broken(io::ErrorKind::UnexpectedEof.into())),
        None => {
            let problem = format!("a damaged message: {:?}, where a greeting was expected", frame.kind);
            Err(RequestError::Broken(io::Error::new(io::ErrorKind::InvalidData, problem)))
        }
    }
}

/// Sends a frame and waits for the response.
pub fn exchange(
    py: Python<'_>,
    mut stream: &UnixStream,
    kind: Kind,
    body: &[u8],
    deadline: Option<Instant>,
) -> Result<Frame, RequestError> {
    let mut outgoing = Outgoing::new(kind, body).map_err(|_| RequestError::TooLarge)?;
    while !py.detach(|| outgoing.write_to(&mut stream)).map_err(RequestError::NotSent)? {
        check_deadline(py, deadline)?;
    }
    receive(py, &mut stream, deadline)
}

fn receive(py: Python<'_>, source: &mut (impl Read + Send), deadline: Option<Instant>) -> Result<Frame, RequestError> {
    let mut incoming = Incoming::default();
    let mut answer = Vec::new();
    let mut read = || {
        let Some(Frame { kind, mut body }) = incoming.read_from(source)? else { return Ok(None) };
        if kind != Kind::Part && answer.is_empty() {
            return Ok(Some(Frame { kind, body }));
        }
        answer.append(&mut body);
        Ok((kind != Kind::Part).then(|| Frame { kind, body: std::mem::take(&mut answer) }))
    };
    loop {
        if let Some(frame) = py.detach(&mut read).map_err(RequestError::Broken)? {
            return Ok(frame);
        }
        check_deadline(py, deadline)?;
    }
}

/// Returns an error if a signal handler has raised or the deadline has passed.
fn check_deadline(py: Python<'_>, deadline: Option<Instant>) -> Result<(), RequestError> {
    py.check_signals()?;
    if deadline.is_some_and(|deadline| Instant::now() >= deadline) { Err(RequestError::TooLate) } else { Ok(()) }
}

/// Tells an engine process that this process no longer needs it, and waits for its end unless other processes need it.
/// Returns whether it has ended.
pub fn release(py: Python<'_>, mut stream: &UnixStream, deadline: Instant) -> PyResult<bool> {
    let mut outgoing = Outgoing::new(Kind::Release, &[]).expect("an empty body fits");
    let mut incoming = Incoming::default();
    let mut is_sent = false;
    loop {
        if is_sent {
            match py.detach(|| incoming.read_from(&mut stream)) {
                Ok(Some(Frame { kind: Kind::Closing, .. }) | None) => {}
                Ok(Some(_)) => return Ok(false),
                // It has ended, and its lock is released.
                Err(_) => return Ok(true),
            }
        } else {
            // An error means that it has ended, which the next read detects.
            is_sent = py.detach(|| outgoing.write_to(&mut stream)).unwrap_or(true);
        }
        match check_deadline(py, Some(deadline)) {
            Ok(()) => {}
            Err(RequestError::Python(error)) => return Err(error),
            Err(_) => {
                log::warn!(target: crate::LOGGER, "an engine process did not end within {END_WITHIN:?}");
                return Ok(false);
            }
        }
    }
}

/// Connects to the engine process at an address, if it answers and owns the directory.
pub fn try_connect<'py>(py: Python<'py>, socket: &Address, deadline: Instant) -> PyResult<Option<Channel<'py>>> {
    match greet(py, socket, deadline) {
        Ok((channel, _)) => Ok(Some(channel)),
        Err(RequestError::Python(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Like [`release`], and reaps the engine process if it has ended.
pub fn release_and_reap(py: Python<'_>, channel: &Channel<'_>, socket: &Address, deadline: Instant) -> PyResult<bool> {
    let has_ended = release(py, channel.stream(), deadline)?;
    if has_ended {
        py.detach(|| child::reap_at(socket));
    }
    Ok(has_ended)
}
