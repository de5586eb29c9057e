//! What is said on a socket, from the app's side: a frame is sent, and the one that answers it waited for, detached.

use std::io;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::child;
use super::connections::Channel;
use crate::engine::isolated::protocol::address::Address;
use crate::engine::isolated::protocol::frame::{Frame, Incoming, Kind, Outgoing};
use crate::engine::isolated::protocol::greeting;
use crate::failure::FIRST_PAUSE;
use crate::python::gil;

/// How long an engine may take to end; and how long one is waited for whose database is being closed.
pub const END_WITHIN: Duration = Duration::from_secs(30);

/// Why there was no answer.
pub enum RequestError {
    /// Nobody is there who could be asked.
    Unreachable(io::Error),
    /// Whoever is there has another database, and was told nothing.
    Foreign,
    /// The other end has gone before it was told everything, so it has done nothing.
    NotSent(io::Error),
    /// The other end has gone.
    Broken(io::Error),
    /// It takes longer than it may.
    TooLate,
    /// Nothing was sent: it is more than a frame may have.
    TooLarge,
    /// Something of Python's happened meanwhile: Ctrl-C.
    Python(PyErr),
}

impl From<PyErr> for RequestError {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

/// Whether another engine process would be no better.
pub fn is_final(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied)
}

/// Connects and waits for the greeting; it has proven to be that of the directory's owner, and is returned without the
/// proof.
pub fn greet<'py>(
    py: Python<'py>,
    address: &Address,
    deadline: Instant,
) -> Result<(Channel<'py>, Frame), RequestError> {
    let deadline = Some(deadline);
    let line = loop {
        match Channel::connect(py, address) {
            Ok(line) => break line,
            // More are waiting to be let in than can be.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                check_deadline(py, deadline)?;
                gil::wait(py, || thread::sleep(FIRST_PAUSE))?;
            }
            Err(error) => return Err(RequestError::Unreachable(error)),
        }
    };
    let mut frame = receive(py, line.stream(), deadline)?;
    let is_proven = match frame.kind {
        Kind::Hello | Kind::Failed | Kind::Closing | Kind::Busy => {
            py.detach(|| greeting::check(&mut frame.body, address))
        }
        _ => None,
    };
    match is_proven {
        Some(true) => Ok((line, frame)),
        Some(false) => Err(RequestError::Foreign),
        // Said at the end to all who are connected, also to who was not greeted yet.
        None if frame.kind == Kind::Closing => Err(RequestError::Broken(io::ErrorKind::UnexpectedEof.into())),
        None => {
            let problem = format!("a damaged message: {:?}, where a greeting was expected", frame.kind);
            Err(RequestError::Broken(io::Error::new(io::ErrorKind::InvalidData, problem)))
        }
    }
}

/// Sends a frame and waits for the one that answers it.
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
    receive(py, stream, deadline)
}

fn receive(py: Python<'_>, mut stream: &UnixStream, deadline: Option<Instant>) -> Result<Frame, RequestError> {
    let mut incoming = Incoming::default();
    let mut answer = Vec::new();
    let mut read = || {
        let Some(Frame { kind, mut body }) = incoming.read_from(&mut stream)? else { return Ok(None) };
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

/// Whether a wait should: not after Ctrl-C, and not after its deadline.
fn check_deadline(py: Python<'_>, deadline: Option<Instant>) -> Result<(), RequestError> {
    py.check_signals()?;
    if deadline.is_some_and(|deadline| Instant::now() >= deadline) { Err(RequestError::TooLate) } else { Ok(()) }
}

/// Tells the engine that this process needs it no more, and waits for its end if nobody else does; tells whether it has
/// ended.
pub fn release(py: Python<'_>, mut stream: &UnixStream, deadline: Instant) -> PyResult<bool> {
    let mut outgoing = Outgoing::new(Kind::Release, &[]).expect("an empty body fits");
    let mut incoming = Incoming::default();
    let mut is_sent = false;
    loop {
        if is_sent {
            match py.detach(|| incoming.read_from(&mut stream)) {
                Ok(Some(Frame { kind: Kind::Closing, .. }) | None) => {}
                Ok(Some(_)) => return Ok(false),
                // Its lock has ended with it.
                Err(_) => return Ok(true),
            }
        } else {
            // What it does not take because it has gone is seen above.
            is_sent = py.detach(|| outgoing.write_to(&mut stream)).unwrap_or(true);
        }
        match check_deadline(py, Some(deadline)) {
            Ok(()) => {}
            Err(RequestError::Python(error)) => return Err(error),
            Err(_) => {
                log::warn!(target: crate::LOGGER, "an engine process does not end within {END_WITHIN:?}");
                return Ok(false);
            }
        }
    }
}

/// A connection to whoever answers at a socket, if somebody does.
pub fn reach<'py>(py: Python<'py>, socket: &Address, deadline: Instant) -> PyResult<Option<Channel<'py>>> {
    match greet(py, socket, deadline) {
        Ok((line, _)) => Ok(Some(line)),
        Err(RequestError::Python(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Tells the engine at that socket that this process needs it no more; tells whether it has ended.
pub fn leave(py: Python<'_>, line: &Channel<'_>, socket: &Address, deadline: Instant) -> PyResult<bool> {
    let has_ended = release(py, line.stream(), deadline)?;
    if has_ended {
        py.detach(|| child::reap_at(socket));
    }
    Ok(has_ended)
}
