//! The app's sockets to engine processes: those in use by a call, and idle ones. With each is the page of memory that its
//! engine process shares.
//!
//! One table of the process holds them all, so that a forked child can close those that it inherits. An engine process
//! ends when the last copy of its sockets is closed, and two processes that read from one socket would take each
//! other's responses.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use hashbrown::HashMap;
use parking_lot::Mutex;
use pyo3::prelude::*;
use rustix::net::RecvFlags;

use crate::engine::isolated::protocol::address::Address;
use crate::engine::isolated::protocol::page::Page;
use crate::python::gil::{Lock, SIGNAL_POLL};
use crate::sync::fork_gate;

static SOCKETS: Mutex<Option<Sockets>> = Mutex::new(None);

#[derive(Default)]
struct Sockets {
    /// The idle sockets of each database.
    idle: HashMap<u64, Vec<Idle>>,
    /// The sockets in use, and the thread of each call.
    in_use: HashMap<RawFd, ThreadId>,
}

/// An idle socket.
struct Idle {
    stream: UnixStream,
    page: Option<Arc<Page>>,
}

/// A socket in use by a call. Dropping it closes the socket.
pub struct Channel<'py> {
    py: Python<'py>,
    /// `None` once the channel was kept or dropped.
    stream: Option<UnixStream>,
    /// That of the engine process at the other end, if it has passed one.
    pub page: Option<Arc<Page>>,
}

impl<'py> Channel<'py> {
    /// Connects to an engine process of this user, without waiting.
    ///
    /// # Errors
    ///
    /// Returns an error of the kind [`io::ErrorKind::WouldBlock`] if the engine process has too many connections that
    /// it has not yet accepted.
    pub fn connect(py: Python<'py>, address: &Address) -> io::Result<Self> {
        let connect = || {
            // A fork waits until the socket is in the table.
            let _pass = fork_gate::here();
            let stream = address.connect()?;
            stream.set_read_timeout(Some(SIGNAL_POLL))?;
            stream.set_write_timeout(Some(SIGNAL_POLL))?;
            SOCKETS.lock().get_or_insert_default().use_by_this_thread(&stream);
            Ok(stream)
        };
        py.detach(connect).map(|stream| Self { py, stream: Some(stream), page: None })
    }

    /// Takes an idle channel to a database whose other end is still open, if there is one.
    pub fn take_idle(py: Python<'py>, database: u64) -> Option<Self> {
        loop {
            let mut table = SOCKETS.take(py);
            let sockets = table.as_mut()?;
            let Idle { stream, page } = sockets.idle.get_mut(&database)?.pop()?;
            if is_open(&stream) {
                sockets.use_by_this_thread(&stream);
                return Some(Self { py, stream: Some(stream), page });
            }
        }
    }

    /// Keeps the channel as an idle one, for the next call to the database.
    pub fn keep(mut self, database: u64) {
        let mut table = SOCKETS.take(self.py);
        if let (Some(sockets), Some(stream)) = (table.as_mut(), self.stream.take()) {
            sockets.in_use.remove(&stream.as_raw_fd());
            sockets.idle.entry(database).or_default().push(Idle { stream, page: self.page.take() });
        }
        drop(table);
    }

    /// Returns the socket.
    pub fn stream(&self) -> &UnixStream {
        self.stream.as_ref().expect("present until the channel is kept or dropped")
    }
}

impl Drop for Channel<'_> {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        let mut table = SOCKETS.take(self.py);
        if let Some(sockets) = table.as_mut() {
            sockets.in_use.remove(&stream.as_raw_fd());
        }
        // Closed under the lock: the number of the descriptor may be reused at once.
        drop(stream);
    }
}

impl Sockets {
    fn use_by_this_thread(&mut self, stream: &UnixStream) {
        self.in_use.insert(stream.as_raw_fd(), thread::current().id());
    }
}

/// Closes the idle sockets of a database.
pub fn close_idle(py: Python<'_>, database: u64) {
    let streams = SOCKETS.take(py).as_mut().and_then(|sockets| sockets.idle.remove(&database));
    drop(streams);
}

/// Returns whether the engine process that has passed this page lives: whether an idle socket to it is open. It closes
/// them all when it ends, however it ends. If no socket is idle, it is not known.
pub fn is_alive(py: Python<'_>, database: u64, page: &Arc<Page>) -> bool {
    let table = SOCKETS.take(py);
    let idle = table.as_ref().and_then(|sockets| sockets.idle.get(&database));
    idle.is_some_and(|idle| {
        let is_of_page = |idle: &&Idle| idle.page.as_ref().is_some_and(|other| Arc::ptr_eq(other, page));
        idle.iter().rev().filter(is_of_page).any(|idle| is_open(&idle.stream))
    })
}

/// Closes all sockets in a forked child. The socket of a call of this thread (whose signal handler forks) is replaced
/// by one that is closed at the other end, which the call detects when it continues.
pub fn forget_inherited() {
    let Some(mut table) = SOCKETS.try_lock() else { return };
    let Some(sockets) = table.take() else { return };
    for (descriptor, thread) in sockets.in_use {
        #[allow(unsafe_code)]
        // SAFETY: the descriptor is open: it stays in the table until it is closed.
        let mut inherited = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(descriptor) });
        if thread == thread::current().id() {
            if let Ok((closed, _)) = UnixStream::pair() {
                let _ = rustix::io::dup2(closed.as_fd(), &mut inherited);
            }
        } else {
            // The thread of the call does not exist in the child.
            drop(ManuallyDrop::into_inner(inherited));
        }
    }
}

fn is_open(stream: &UnixStream) -> bool {
    // No response is expected: if there is anything to read, the other end has closed the connection.
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(stream.as_fd(), &mut [0_u8; 1], flags), Err(rustix::io::Errno::AGAIN))
}
