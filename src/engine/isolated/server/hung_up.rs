//! Long writes whose caller has gone: it was interrupted, killed, or did not wait any longer.
//!
//! One of which nothing was written is dropped. Of one that has begun the rest is written at once, and whoever calls from
//! then on waits for that: so an interrupted write is there as a whole for the next call, or not at all.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Whether nobody is at the other end any more. One that has said all that it wants to say is there.
pub fn has_gone(caller: &UnixStream) -> bool {
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

/// One of them, until this is dropped.
#[derive(Debug)]
pub struct LongWrite<'a> {
    all: &'a LongWrites,
    caller: Arc<UnixStream>,
}

impl LongWrites {
    /// One begins.
    pub fn begin(&self, caller: &Arc<UnixStream>) -> LongWrite<'_> {
        self.callers().push(Arc::clone(caller));
        LongWrite { all: self, caller: Arc::clone(caller) }
    }

    /// Waits until none is in flight whose caller has gone. Detached only.
    pub fn wait_for_orphans(&self) {
        let mut callers = self.callers();
        while callers.iter().any(|caller| has_gone(caller)) {
            callers = self.ended.wait(callers).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn callers(&self) -> MutexGuard<'_, Vec<Arc<UnixStream>>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LongWrite<'_> {
    /// Whose it is.
    pub fn caller(&self) -> &UnixStream {
        &self.caller
    }

    /// Whether its caller has gone.
    pub fn is_orphan(&self) -> bool {
        has_gone(&self.caller)
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
