//! What is said on a socket, from the app's side: a frame is sent, and the one that answers it waited for, detached.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::RETRY;
use super::line::Line;
use crate::wire::{Frame, Incoming, Kind, Outgoing};

/// How long an engine may take to end; and how long one is waited for whose database is being closed.
pub const END_WITHIN: Duration = Duration::from_secs(30);

/// Why there was no answer.
pub enum NoAnswer {
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

impl From<PyErr> for NoAnswer {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

/// Whether another engine process would be no better.
pub fn is_final(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied)
}

/// Connects and waits for the greeting.
pub fn greet<'py>(py: Python<'py>, socket: &Path, deadline: Instant) -> Result<(Line<'py>, Frame), NoAnswer> {
    let line = loop {
        match Line::connect(py, socket) {
            Ok(line) => break line,
            // It does not accept connections fast enough, or hangs.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                go_on(py, Some(deadline))?;
                py.detach(|| thread::sleep(RETRY));
            }
            Err(error) => return Err(NoAnswer::Broken(error)),
        }
    };
    let frame = receive(py, line.stream(), Some(deadline))?;
    Ok((line, frame))
}

/// Sends a frame and waits for the one that answers it.
pub fn exchange(
    py: Python<'_>,
    mut stream: &UnixStream,
    kind: Kind,
    body: &[u8],
    deadline: Option<Instant>,
) -> Result<Frame, NoAnswer> {
    let mut outgoing = Outgoing::new(kind, body).map_err(|_| NoAnswer::TooLarge)?;
    while !py.detach(|| outgoing.write_to(&mut stream)).map_err(NoAnswer::NotSent)? {
        go_on(py, deadline)?;
    }
    receive(py, stream, deadline)
}

fn receive(py: Python<'_>, mut stream: &UnixStream, deadline: Option<Instant>) -> Result<Frame, NoAnswer> {
    let mut incoming = Incoming::default();
    loop {
        if let Some(frame) = py.detach(|| incoming.read_from(&mut stream)).map_err(NoAnswer::Broken)? {
            return Ok(frame);
        }
        go_on(py, deadline)?;
    }
}

/// Whether a wait should: not after Ctrl-C, and not after its deadline.
fn go_on(py: Python<'_>, deadline: Option<Instant>) -> Result<(), NoAnswer> {
    py.check_signals()?;
    if deadline.is_some_and(|deadline| Instant::now() >= deadline) { Err(NoAnswer::TooLate) } else { Ok(()) }
}

/// Tells the engine that this process needs it no more, and waits for its end if nobody else does; tells whether it has
/// ended.
pub fn release(py: Python<'_>, mut stream: &UnixStream, deadline: Instant) -> PyResult<bool> {
    let mut outgoing = Outgoing::new(Kind::Release, &[]).expect("an empty body fits");
    let mut incoming = Incoming::default();
    let mut is_sent = false;
    loop {
        if !is_sent {
            // What it does not take because it has gone is seen below.
            is_sent = py.detach(|| outgoing.write_to(&mut stream)).unwrap_or(true);
        } else {
            match py.detach(|| incoming.read_from(&mut stream)) {
                Ok(Some(Frame { kind: Kind::Closing, .. }) | None) => {}
                Ok(Some(_)) => return Ok(false),
                // Its lock has ended with it.
                Err(_) => return Ok(true),
            }
        }
        match go_on(py, Some(deadline)) {
            Ok(()) => {}
            Err(NoAnswer::Python(error)) => return Err(error),
            Err(_) => {
                log::warn!(target: crate::LOGGER, "an engine process does not end within {END_WITHIN:?}");
                return Ok(false);
            }
        }
    }
}
