//! The app's sockets to engine processes: those that wait for a call, and those in use.
//!
//! All are in one table of the process, so that a forked child can let go of what it inherits: an engine ends when the
//! last copy of its sockets is closed, and two processes that read one socket would take each other's answers.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, ThreadId};

use hashbrown::HashMap;
use parking_lot::Mutex;
use pyo3::prelude::*;
use rustix::net::RecvFlags;

use crate::engine::isolated::protocol::address::Address;
use crate::python::gil::{Lock, SIGNAL_POLL};
use crate::sync::fork_gate;

static SOCKETS: Mutex<Option<Sockets>> = Mutex::new(None);

#[derive(Default)]
struct Sockets {
    /// By database.
    waiting: HashMap<u64, Vec<UnixStream>>,
    /// With the thread whose call it is.
    in_use: HashMap<RawFd, ThreadId>,
}

/// A socket in use by a call. Dropping it hangs up.
pub struct Channel<'py> {
    py: Python<'py>,
    /// Until it is kept, or hung up.
    stream: Option<UnixStream>,
}

impl<'py> Channel<'py> {
    /// A new one, to an engine of this user. Where it has too many connections that it did not accept yet, the error is one
    /// that says so (`WouldBlock`), and nothing was waited for.
    pub fn connect(py: Python<'py>, address: &Address) -> io::Result<Self> {
        let connect = || {
            // A fork waits until it is in the table.
            let _pass = fork_gate::here();
            let stream = address.connect()?;
            stream.set_read_timeout(Some(SIGNAL_POLL))?;
            stream.set_write_timeout(Some(SIGNAL_POLL))?;
            SOCKETS.lock().get_or_insert_default().use_by_this_thread(&stream);
            Ok(stream)
        };
        py.detach(connect).map(|stream| Self { py, stream: Some(stream) })
    }

    /// One that waits for a call to that database, and whose other end is still there.
    pub fn waiting(py: Python<'py>, database: u64) -> Option<Self> {
        loop {
            let mut table = SOCKETS.take(py);
            let sockets = table.as_mut()?;
            let stream = sockets.waiting.get_mut(&database)?.pop()?;
            if is_open(&stream) {
                sockets.use_by_this_thread(&stream);
                return Some(Self { py, stream: Some(stream) });
            }
        }
    }

    /// Has it wait for the next call to that database.
    pub fn keep(mut self, database: u64) {
        let mut table = SOCKETS.take(self.py);
        if let (Some(sockets), Some(stream)) = (table.as_mut(), self.stream.take()) {
            sockets.in_use.remove(&stream.as_raw_fd());
            sockets.waiting.entry(database).or_default().push(stream);
        }
        drop(table);
    }

    pub fn stream(&self) -> &UnixStream {
        self.stream.as_ref().expect("it is given up at the end only")
    }
}

impl Drop for Channel<'_> {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        let mut table = SOCKETS.take(self.py);
        if let Some(sockets) = table.as_mut() {
            sockets.in_use.remove(&stream.as_raw_fd());
        }
        // Under the lock: its number is another's as soon as it is closed.
        drop(stream);
    }
}

impl Sockets {
    fn use_by_this_thread(&mut self, stream: &UnixStream) {
        self.in_use.insert(stream.as_raw_fd(), thread::current().id());
    }
}

/// Closes the sockets that wait for calls to a database.
pub fn hang_up(py: Python<'_>, database: u64) {
    let streams = SOCKETS.take(py).as_mut().and_then(|sockets| sockets.waiting.remove(&database));
    drop(streams);
}

/// In a forked child: closes them all. That of a call of this very thread (whose signal handler forks) stays, but has
/// nobody at its other end any more: the call finds that out when it goes on.
pub fn forget_inherited() {
    let Some(mut table) = SOCKETS.try_lock() else { return };
    let Some(sockets) = table.take() else { return };
    for (descriptor, thread) in sockets.in_use {
        #[allow(unsafe_code)]
        // SAFETY: the descriptor is open, for it is in the table until it is closed.
        let mut inherited = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(descriptor) });
        if thread == thread::current().id() {
            if let Ok((nobody, _)) = UnixStream::pair() {
                let _ = rustix::io::dup2(nobody.as_fd(), &mut inherited);
            }
        } else {
            // Its thread does not exist here.
            drop(ManuallyDrop::into_inner(inherited));
        }
    }
}

fn is_open(stream: &UnixStream) -> bool {
    // Nothing is under way on it: if there is something to read, it is the end.
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(stream.as_fd(), &mut [0_u8; 1], flags), Err(rustix::io::Errno::AGAIN))
}
