//! Long writes whose caller has disconnected: it was interrupted, killed, or did not wait any longer.
//!
//! One that has not written anything is dropped. One that has begun writes the rest at once, and whoever calls from then
//! on waits for that. So the next call sees all of an interrupted write, or nothing of it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Whether the other end of a connection has closed it. One that has only finished sending has not.
pub fn is_disconnected(caller: &UnixStream) -> bool {
    let mut descriptors = [PollFd::from_borrowed_fd(caller.as_fd(), PollFlags::empty())];
    let polled = poll(&mut descriptors, Some(&Timespec::default()));
    polled.is_ok_and(|ready| ready > 0)
}

/// The long writes in flight.
#[derive(Debug, Default)]
pub struct LongWrites {
    callers: Mutex<Vec<Arc<UnixStream>>>,
    ended: Condvar,
}

/// A long write in flight. Dropping it ends it.
#[derive(Debug)]
pub struct LongWrite<'a> {
    all: &'a LongWrites,
    caller: Arc<UnixStream>,
}

impl LongWrites {
    /// A long write begins.
    pub fn begin(&self, caller: &Arc<UnixStream>) -> LongWrite<'_> {
        self.callers().push(Arc::clone(caller));
        LongWrite { all: self, caller: Arc::clone(caller) }
    }

    /// Waits until no long write is in flight whose caller has disconnected. Detached only.
    pub fn wait_for_orphans(&self) {
        let mut callers = self.callers();
        while callers.iter().any(|caller| is_disconnected(caller)) {
            callers = self.ended.wait(callers).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn callers(&self) -> MutexGuard<'_, Vec<Arc<UnixStream>>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LongWrite<'_> {
    /// The connection on which it was sent.
    pub fn caller(&self) -> &UnixStream {
        &self.caller
    }

    /// Whether its caller has disconnected.
    pub fn is_orphan(&self) -> bool {
        is_disconnected(&self.caller)
    }
}

impl Drop for LongWrite<'_> {
    fn drop(&mut self) {
        let mut callers = self.all.callers();
        if let Some(place) = callers.iter().position(|caller| Arc::ptr_eq(caller, &self.caller)) {
            callers.swap_remove(place);
        }
        drop(callers);
        self.all.ended.notify_all();
    }
}
