//! Schedules what an engine process does: calls side by side, exclusive maintenance of the closed database, and the end.
//!
//! Plain Rust, without Chroma: it decides when a call may begin, when a checkpoint is due, when calls that hang are given
//! up, and when nobody needs the process any more. What is done then is in `process.rs`, `executor.rs` and
//! `maintenance.rs`. Everything here waits, so nothing may be called while attached to the interpreter, except what only
//! changes a few fields. It is longer than other files, because calls, slots and maintenance change one state under one
//! lock: a file for each would import this one, which imports it.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `lifetime.rs` | when the process ends |
//! | `connections.rs` | who is connected |
//! | `company.rs` | whether others call while a long write goes on |
//! | `checkpoint_policy.rs` | when a checkpoint is due |
//! | `pace.rs` | how large the slices of a long write are |
//! | `failures.rs` | whether the binding must be reopened, and whether calls hang in it |
//! | `state.rs` | all of that, and what is in flight |

mod checkpoint_policy;
mod company;
mod connections;
mod failures;
mod lifetime;
mod pace;
mod state;
#[cfg(all(test, not(feature = "explore")))]
mod tests;

use std::mem;
use std::os::unix::net::UnixStream;
use std::sync::PoisonError;
use std::time::Duration;

pub use self::checkpoint_policy::{Covered, NotTaken, Written};
pub use self::lifetime::Stage;
use self::pace::next_size;
use self::state::{SOON, State};
use crate::chroma::{Method, Slices};
use crate::engine::isolated::protocol::frame::Kind;
use crate::sync::{Condvar, Instant, Mutex, MutexGuard};

/// How long a write waits for reads before it holds the interpreter. Most reads take a few milliseconds; slices take 80.
const READS_END_WITHIN: Duration = Duration::from_millis(25);

const LONG: Duration = Duration::from_secs(3600);

/// The scheduler of one engine process.
#[derive(Debug)]
pub struct Scheduler {
    state: Mutex<State>,
    /// For requests: what they wait for may have come.
    changed: Condvar,
    /// For [`Scheduler::wait_until_due`]: something may be due earlier than it expects.
    due: Condvar,
}

/// What a call did besides its answer.
#[derive(Clone, Debug, Default)]
pub struct Effect {
    /// Records that it may have written.
    pub written: Written,
    /// The binding must be reopened before the next call.
    pub failed: bool,
}

/// What is to be done next: while no call is in flight, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Reopen the database, with a checkpoint in between unless it has failed; then [`Scheduler::end_checkpoint`] or
    /// [`Scheduler::end_reopening`].
    Checkpoint,
    /// Take a checkpoint in the background; then [`Scheduler::end_in_background`]. Calls go on.
    CheckpointInBackground,
    /// Close it for good.
    End,
    /// Calls hang in a binding that has failed: nothing can be closed any more.
    Abort,
}

/// What a call does with the interpreter while it is in Chroma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpreter {
    /// It releases it: a read.
    Released,
    /// It holds it.
    Held,
    /// It is a long write, which holds it again and again.
    HeldInSlices,
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Request<'a>(&'a Scheduler);

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.0.tell(|state| state.lifetime.end_request());
    }
}

/// A call in flight. If it is dropped before [`Call::end`], by a panic, it has failed.
#[derive(Debug)]
pub struct Call<'a> {
    scheduler: &'a Scheduler,
    connection: u64,
    /// Counts the calls of the process.
    number: u64,
    interpreter: Interpreter,
    suspect: bool,
}

impl Call<'_> {
    /// Returns how many of `count` records the first slice of a write may have.
    pub fn first_slice(&self, method: &Method, collection: &str, slices: Slices, count: usize) -> usize {
        let state = self.scheduler.state();
        state.pace.first_size(method, collection, slices, count, self.has_company(&state))
    }

    /// Returns how many of the records that are `left` the next slice may have, where one of `size` took so long.
    pub fn next_slice(&self, size: usize, took: Duration, slices: Slices, left: usize) -> usize {
        next_size(size, took, slices, left, self.has_company(&self.scheduler.state()))
    }

    /// Whether no other call is in flight.
    pub fn is_alone(&self) -> bool {
        self.scheduler.state().calls == 1
    }

    /// Chroma took so long for some records.
    pub fn note_pace(&self, method: &Method, collection: &str, records: usize, took: Duration) {
        self.scheduler.state().pace.note(method, collection, records, took);
    }

    /// It has failed in Chroma. Whether the binding must be reopened is told at its end.
    pub fn suspect(&mut self) {
        let is_new = !mem::replace(&mut self.suspect, true);
        self.scheduler.change(|state| state.failures.suspect(is_new));
    }

    /// It has ended.
    pub fn end(self, effect: Effect) {
        self.end_with(effect);
        mem::forget(self);
    }

    /// Waits for the reads in flight, but not for long and not for those that come meanwhile. A read needs the interpreter
    /// before and after its work in Chroma: without this it would wait for two slices.
    pub fn let_reads_end(&self) {
        let began = Instant::now();
        let mut state = self.scheduler.state();
        let newest = state.begun;
        while state.reads.iter().any(|read| *read <= newest) {
            let left = READS_END_WITHIN.saturating_sub(began.elapsed());
            if left.is_zero() {
                break;
            }
            state = self.scheduler.wait(state, left);
        }
    }

    /// Whether other calls are in flight or wait, or another connection has called recently.
    fn has_company(&self, state: &State) -> bool {
        state.calls > 1 || state.company.is_there(self.connection)
    }

    fn end_with(&self, effect: Effect) {
        self.scheduler.change(|state| {
            state.calls -= 1;
            match self.interpreter {
                Interpreter::Released => state.reads.retain(|read| *read != self.number),
                Interpreter::Held => {}
                Interpreter::HeldInSlices => state.long_calls -= 1,
            }
            state.company.note(self.connection);
            state.checkpoints.wrote(effect.written);
            // A database in memory would be lost with its binding.
            state.failures.end_call(effect.failed && state.checkpoints.is_on_disk(), self.suspect);
            state.last_call = Some(Instant::now());
        });
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.end_with(Effect { failed: true, ..Effect::default() });
    }
}

/// Exclusive maintenance: no call is in flight. Dropping it lets calls go on.
#[derive(Debug)]
pub struct Maintenance<'a>(&'a Scheduler);

impl Drop for Maintenance<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.in_maintenance = false);
    }
}

/// The database is kept open.
#[derive(Debug)]
pub struct KeptOpen<'a>(&'a Scheduler);

impl KeptOpen<'_> {
    /// What a checkpoint has that is taken now. To be asked with the exclusive slot.
    pub fn coverable(&self) -> Covered {
        self.0.state().checkpoints.coverable()
    }
}

impl Drop for KeptOpen<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.calls -= 1);
    }
}

/// The exclusive slot: no other call that holds the interpreter is in Chroma.
#[derive(Debug)]
pub struct Slot<'a>(&'a Scheduler);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.admitted += 1);
    }
}

impl Scheduler {
    /// Of a database with so many rows in its log that no checkpoint covers; `None` where no checkpoints are taken. The
    /// process lingers for so long when nobody is connected.
    pub fn new(linger: Duration, log_length: Option<usize>) -> Self {
        Self { state: Mutex::new(State::new(linger, log_length)), changed: Condvar::new(), due: Condvar::new() }
    }

    /// Chroma has read the log at the opening, which took so long. To be called before there are calls.
    pub fn replayed(&self, time: Duration) {
        self.tell(|state| state.checkpoints.replayed(time));
    }

    /// Accepts a connection, unless the process is on the way to its end; returns its id.
    pub fn connect(&self, peer: Option<u32>, stream: UnixStream) -> Option<u64> {
        self.tell(|state| {
            state.lifetime.is_serving().then(|| {
                state.lifetime.connections_changed();
                state.connections.add(peer, stream)
            })
        })
    }

    /// A connection was closed.
    pub fn disconnect(&self, id: u64) {
        self.tell(|state| {
            state.lifetime.connections_changed();
            state.connections.remove(id);
        });
    }

    /// A process does not need the database any more. The engine process ends, unless other processes do.
    pub fn release(&self, asking: Option<u32>) -> Kind {
        self.change(|state| {
            if state.connections.has_other_than(asking) {
                return Kind::Shared;
            }
            state.lifetime.advance(Stage::Closing);
            Kind::Closing
        })
    }

    /// Whether the process refuses all requests.
    pub fn is_closing(&self) -> bool {
        self.state().lifetime.is_closing()
    }

    /// Takes the process a step on the way to its end. There is no way back.
    pub fn advance(&self, stage: Stage) {
        self.change(|state| state.lifetime.advance(stage));
    }

    /// Accepts a request: until what is returned is dropped, the process does not end. `None` where it is closing: the
    /// request is not executed, and whoever sent it must be told so. Otherwise busy clients would put off the end for ever.
    pub fn begin_request(&self) -> Option<Request<'_>> {
        let is_accepted = self.tell(|state| state.lifetime.begin_request());
        is_accepted.then(|| Request(self))
    }

    /// Waits until a call of a connection may begin. `None` where the process is closing: the end waits for the call, and what the call
    /// waits for does not come any more.
    ///
    /// As soon as somebody waits to quiesce the database, long writes wait. Other calls go on while a long write is in
    /// flight, and wait after it has ended; then only for calls as short as they are, and for the maintenance.
    pub fn begin_call(&self, connection: u64, interpreter: Interpreter) -> Option<Call<'_>> {
        let mut state = self.state();
        state.company.note(connection);
        let long = interpreter == Interpreter::HeldInSlices;
        let mut state = self.wait_until_open(state, long)?;
        state.calls += 1;
        state.long_calls += usize::from(long);
        state.begun += 1;
        let number = state.begun;
        if interpreter == Interpreter::Released {
            state.reads.push(number);
        }
        Some(Call { scheduler: self, connection, number, interpreter, suspect: false })
    }

    /// Waits until a call may enter Chroma that holds the interpreter there: one after the other, in the order in which
    /// they ask. The call has the slot until what is returned is dropped. If the call fails, it keeps the slot until it is
    /// known what that means: another call could hang on what the failed one left behind, and would hold the interpreter
    /// that is needed to find out. `None` where the binding has failed: the call must be retried after it was reopened.
    pub fn take_slot(&self) -> Option<Slot<'_>> {
        let mut state = self.state();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        while state.admitted != ticket {
            state = self.wait(state, LONG);
        }
        let has_failed = state.failures.has_failed();
        drop(state);
        let slot = Slot(self);
        (!has_failed).then_some(slot)
    }

    /// Waits until no call is in flight, and lets none begin until what is returned is dropped. `None` where the process is
    /// closing.
    pub fn begin_maintenance(&self) -> Option<Maintenance<'_>> {
        let mut state = self.state();
        state.waiting_to_quiesce += 1;
        while !state.lifetime.is_closing() && (state.calls > 0 || state.in_maintenance) {
            state = self.wait(state, LONG);
        }
        state.waiting_to_quiesce -= 1;
        if state.lifetime.is_closing() {
            drop(state);
            self.changed.notify_all();
            return None;
        }
        state.in_maintenance = true;
        Some(Maintenance(self))
    }

    /// A checkpoint was taken, which took so long; the next one is due after so many records. Calls go on.
    pub fn end_checkpoint(&self, took: Duration, next: Option<usize>) {
        self.change(|state| {
            state.checkpoints.taken(took, next);
            state.reopened();
        });
    }

    /// Waits until the database is open, and keeps it open until what is returned is dropped. `None` where the process is
    /// closing.
    pub fn keep_open(&self) -> Option<KeptOpen<'_>> {
        self.wait_until_open(self.state(), false)?.calls += 1;
        Some(KeptOpen(self))
    }

    /// Whether somebody waits for what keeps the database open.
    pub fn is_awaited(&self) -> bool {
        let state = self.state();
        state.waiting_to_quiesce > 0 || state.failures.has_failed() || state.outlook().ends
    }

    /// A checkpoint in the background has ended, after so long.
    pub fn end_in_background(&self, took: Duration, taken: Result<Covered, NotTaken>) {
        self.tell(|state| state.checkpoints.ended_in_background(took, taken));
    }

    /// The binding was reopened because it had failed, and no checkpoint was taken. Calls go on.
    pub fn end_reopening(&self) {
        self.change(State::reopened);
    }

    /// Waits until there is something to do. When it returns, no call is in flight, and none begins before it is done,
    /// except for a checkpoint in the background.
    pub fn wait_until_due(&self) -> Due {
        let mut state = self.state();
        loop {
            let outlook = state.outlook();
            if state.makes_way != outlook.reopens {
                state.makes_way = outlook.reopens;
                if outlook.reopens {
                    state.waiting_to_quiesce += 1;
                } else {
                    state.waiting_to_quiesce -= 1;
                    // Calls that have waited go on, to their answer or to the end.
                    self.changed.notify_all();
                }
                continue;
            }
            if state.is_due_in_background(&outlook) {
                state.checkpoints.begin_in_background();
                return Due::CheckpointInBackground;
            }
            if outlook.is_quiesced && outlook.ends {
                state.lifetime.advance(Stage::Ended);
                return Due::End;
            }
            if outlook.is_quiesced && outlook.reopens {
                state.waiting_to_quiesce -= 1;
                state.makes_way = false;
                state.in_maintenance = true;
                return Due::Checkpoint;
            }
            if !outlook.is_quiesced && outlook.limit.is_some_and(|left| left.is_zero()) {
                return Due::Abort;
            }
            // What changes wakes it if that is due earlier; the passing of time does not.
            let limit = outlook.limit.unwrap_or(LONG).max(SOON);
            state.expects_nothing_before = Some(Instant::now() + limit);
            state = self.due.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0;
            state.expects_nothing_before = None;
        }
    }

    /// At the end: tells all who are connected that their unanswered requests were not executed.
    pub fn send_closing_notice(&self) {
        self.state().connections.send_closing_notice();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the database is open, and nothing holds a call back. `None` where the process is closing.
    fn wait_until_open<'a>(&self, mut state: MutexGuard<'a, State>, long: bool) -> Option<MutexGuard<'a, State>> {
        while !state.lifetime.is_closing() && state.holds_back(long) {
            state = self.wait(state, LONG);
        }
        (!state.lifetime.is_closing()).then_some(state)
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        state.waiting += 1;
        let mut state = self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0;
        state.waiting -= 1;
        state
    }

    /// Changes something that requests wait for.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let (result, somebody_waits) = self.tell(|state| (change(state), state.waiting > 0));
        if somebody_waits {
            self.changed.notify_all();
        }
        result
    }

    /// Changes something that no request waits for. Most changes make nothing due earlier, and wake nobody: to wake a
    /// thread takes longer than to answer a short call.
    fn tell<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state();
        let result = change(&mut state);
        let is_due = state.is_due_early();
        drop(state);
        if is_due {
            self.due.notify_all();
        }
        result
    }
}
