//! Whose turn it is in an engine process: calls go side by side, work on the closed database alone, and the end is last.
//!
//! Plain Rust: when a checkpoint is due, when calls that hang are given up, and when nobody needs the process any more is
//! decided here; what is done then is `serve.rs`'s. Everything here waits, so nothing is to be called while attached to
//! the interpreter, but for what changes a few fields.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::PoisonError;
use std::time::Duration;

use crate::sync::Condvar;

use crate::sync::Instant;

use crate::sync::Mutex;

use crate::engine::isolated::protocol::frame::{Kind, Outgoing};
use crate::sync::MutexGuard;

/// Records that are written before the first checkpoint; later ones depend on how many there are (`durability/checkpoint.py`).
const FIRST_CHECKPOINT_AFTER: usize = 20_000;

/// Time that Chroma spends on writes before a checkpoint is due, however few they were: about as long as a recovery has to
/// do them again. A record costs from 30 us to 10 ms.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(10);

/// How many times as long as the last checkpoint took writes are to take before the next one, so that it adds little to
/// them (`benches/checkpoints.py`: less than a tenth, with what Chroma has to read again).
const TIMES_THE_CHECKPOINT: u32 = 20;

/// A checkpoint is due earlier where there were no calls for so long.
const QUIET: Duration = Duration::from_secs(30);

/// With fewer records written since the last checkpoint Chroma has not changed its index files.
const FEWEST_RECORDS: usize = 1_000;

/// How long calls may go on in a binding that has failed before one of them ends: a lock that a failed one left behind is
/// waited for very long.
const FAILED_CALLS_END_WITHIN: Duration = Duration::from_secs(10);

const LONG: Duration = Duration::from_secs(3600);

/// The turns of one engine process.
#[derive(Debug)]
pub struct Turns {
    /// For how long the process stays when nobody is connected.
    linger: Duration,
    /// Not of a database in memory, which is gone when it is closed.
    takes_checkpoints: bool,
    began: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    connections: HashMap<u64, Connection>,
    next_connection: u64,
    /// When a connection last came or went.
    last_change: Option<Instant>,
    /// Calls in flight, also of a connection whose other end has gone; and how many of them are long writes.
    calls: usize,
    long_calls: usize,
    last_call: Option<Instant>,
    /// Connections that are being answered.
    answering: usize,
    /// Since the last checkpoint; and after how many records there is to be one.
    written: Written,
    checkpoint_after: usize,
    /// How long the last checkpoint kept calls waiting.
    last_pause: Duration,
    /// The log that was found at the opening may not have been read yet: a checkpoint would make none of it needless. The
    /// call that reads it, whichever that is, takes time for it.
    recovers: bool,
    /// The binding is not to be trusted, and to be opened anew; and since when none of the calls in it has ended.
    failed: Option<Instant>,
    /// The same may be so: so many calls have failed, and what that means is being found out, which needs the interpreter,
    /// which a call that hangs may keep; and since when.
    suspects: usize,
    suspect: Option<Instant>,
    /// Who comes to be alone in Chroma, and whose turn it is.
    next_turn: u64,
    turn: u64,
    /// How many are about to work on the closed database, or somebody does so.
    waiting_for_quiet: usize,
    working: bool,
    stage: Stage,
}

/// How far the process is on the way to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It serves whoever comes.
    #[default]
    Serving,
    /// Nobody is let in any more: whoever was is served until it leaves.
    Refusing,
    /// Whatever is asked from now on is refused. The end comes as soon as nobody is being answered.
    Closing,
    /// Nothing is done any more.
    Ended,
}

#[derive(Debug)]
struct Connection {
    /// The process at the other end.
    peer: Option<u32>,
    stream: UnixStream,
}

/// Work that a recovery would have to do again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// How many records.
    pub records: usize,
    /// That Chroma took for them.
    pub time: Duration,
}

/// What a call did besides its answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effect {
    /// Records that it may have written.
    pub written: Written,
    /// The binding is to be opened anew.
    pub failed: bool,
}

/// What is to be done next, while no call is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Open the database anew, with a checkpoint in between unless it has failed; then [`Turns::end_checkpoint`] or
    /// [`Turns::end_renewal`].
    Checkpoint,
    /// Close it for good.
    End,
    /// Calls hang in a binding that has failed: nothing can be closed any more.
    Abort,
}

/// A connection that is being answered.
#[derive(Debug)]
pub struct Answering<'a>(&'a Turns);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.answering -= 1);
    }
}

/// A call in flight. Dropped before [`Call::end`], by a panic, it counts as one that has failed.
#[derive(Debug)]
pub struct Call<'a> {
    turns: &'a Turns,
    long: bool,
    suspect: bool,
}

impl Call<'_> {
    /// It has failed in Chroma; what that means is told at its end.
    pub fn suspect(&mut self) {
        let begins = !std::mem::replace(&mut self.suspect, true);
        self.turns.change(|state| {
            state.suspects += usize::from(begins);
            state.suspect = Some(Instant::now());
        });
    }

    /// Its end.
    pub fn end(self, effect: Effect) {
        self.turns.end_call(effect, self.long, self.suspect);
        std::mem::forget(self);
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.turns.end_call(Effect { failed: true, ..Effect::default() }, self.long, self.suspect);
    }
}

/// Alone with the closed database. Dropping it lets calls go on.
#[derive(Debug)]
pub struct Work<'a>(&'a Turns);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.working = false);
    }
}

/// Alone in Chroma, with the calls that do not keep the interpreter.
#[derive(Debug)]
pub struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.turn += 1);
    }
}

impl Turns {
    /// Of a database with so many rows in its log that are in no checkpoint; `None` where none are taken.
    pub fn new(linger: Duration, log_length: Option<usize>) -> Self {
        let state = State {
            written: Written { records: log_length.unwrap_or(0), time: Duration::ZERO },
            checkpoint_after: FIRST_CHECKPOINT_AFTER,
            recovers: log_length.is_some_and(|length| length > 0),
            ..State::default()
        };
        Self {
            linger,
            takes_checkpoints: log_length.is_some(),
            began: Instant::now(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Lets a connection in, unless the process is on the way to its end; what is returned tells it from others.
    pub fn enter(&self, peer: Option<u32>, stream: UnixStream) -> Option<u64> {
        self.change(|state| {
            if state.stage > Stage::Serving {
                return None;
            }
            state.next_connection += 1;
            state.last_change = Some(Instant::now());
            state.connections.insert(state.next_connection, Connection { peer, stream });
            Some(state.next_connection)
        })
    }

    /// A connection is gone.
    pub fn leave(&self, id: u64) {
        self.change(|state| {
            state.last_change = Some(Instant::now());
            state.connections.remove(&id);
        });
    }

    /// A process needs the database no more. It ends, unless other processes do.
    pub fn release(&self, asking: Option<u32>) -> Kind {
        self.change(|state| {
            if state.connections.values().any(|connection| connection.peer != asking) {
                return Kind::Shared;
            }
            state.advance(Stage::Closing);
            Kind::Closing
        })
    }

    /// Whether it is on the way to its end.
    pub fn is_closing(&self) -> bool {
        self.state().stage >= Stage::Closing
    }

    /// On the way to the end there is no way back.
    pub fn advance(&self, stage: Stage) {
        self.change(|state| state.advance(stage));
    }

    /// Until what is returned is dropped, the process does not end. `None` where it is on the way to its end: what was
    /// asked is not done, and whoever asked is to be told so. Were it done, busy clients would keep the end from coming.
    pub fn begin_answer(&self) -> Option<Answering<'_>> {
        let begins = self.change(|state| {
            let begins = state.stage < Stage::Closing;
            state.answering += usize::from(begins);
            begins
        });
        begins.then(|| Answering(self))
    }

    /// Waits until a call may begin. `None` where the process is on the way to its end, as above: nothing that the call
    /// could wait for comes any more, and the end would wait for the call.
    ///
    /// A `long` write waits as soon as somebody wants to work on the closed database. Other calls go on while one that has
    /// begun ends, and wait only for what comes then: the end of calls as short as they are, and the work.
    pub fn begin_call(&self, long: bool) -> Option<Call<'_>> {
        let mut state = self.state();
        while state.stage < Stage::Closing && state.holds_back(long) {
            state = self.wait(state, LONG);
        }
        if state.stage >= Stage::Closing {
            return None;
        }
        state.calls += 1;
        state.long_calls += usize::from(long);
        Some(Call { turns: self, long, suspect: false })
    }

    /// Waits until a call may go into Chroma that keeps the interpreter there; one after the other, in the order in which
    /// they come. It stays alone until what is returned is dropped: if it fails, until it is known what that means. For if
    /// another one hung meanwhile, of what the first left behind, it would keep the interpreter that is needed to find out.
    /// `None` where the binding has failed: the call is to be made again, when the database was opened anew.
    pub fn take_turn(&self) -> Option<Turn<'_>> {
        let mut state = self.state();
        let turn = state.next_turn;
        state.next_turn += 1;
        while state.turn != turn {
            state = self.wait(state, LONG);
        }
        let has_failed = state.failed.is_some();
        drop(state);
        let turn = Turn(self);
        (!has_failed).then_some(turn)
    }

    fn end_call(&self, effect: Effect, long: bool, suspect: bool) {
        let Effect { written, failed } = effect;
        self.change(|state| {
            state.calls -= 1;
            state.long_calls -= usize::from(long);
            if self.takes_checkpoints && (written.records > 0 || state.recovers) {
                state.written.records += written.records;
                state.written.time += written.time;
                state.recovers &= written.records == 0;
            }
            // What is in memory would be lost with its binding.
            if (failed && self.takes_checkpoints) || state.failed.is_some() {
                state.failed = Some(Instant::now());
            }
            state.suspects -= usize::from(suspect);
            state.suspect = state.suspect.filter(|_| state.suspects > 0);
            state.last_call = Some(Instant::now());
        });
    }

    /// Waits until no call is in flight, and lets none begin until what is returned is dropped. `None` where the process is
    /// on the way to its end.
    pub fn begin_work(&self) -> Option<Work<'_>> {
        let mut state = self.state();
        state.waiting_for_quiet += 1;
        while state.stage < Stage::Closing && (state.calls > 0 || state.working) {
            state = self.wait(state, LONG);
        }
        state.waiting_for_quiet -= 1;
        if state.stage >= Stage::Closing {
            drop(state);
            self.changed.notify_all();
            return None;
        }
        state.working = true;
        Some(Work(self))
    }

    /// The end of a checkpoint, which has taken so long; the next is due after so many records. Calls go on.
    pub fn end_checkpoint(&self, took: Duration, next: Option<usize>) {
        self.change(|state| {
            state.written = Written::default();
            state.checkpoint_after = next.unwrap_or(FIRST_CHECKPOINT_AFTER);
            state.last_pause = took;
            state.recovers = false;
            state.failed = None;
            state.working = false;
        });
    }

    /// The same after the binding was opened anew because it had failed.
    pub fn end_renewal(&self) {
        self.change(|state| {
            state.failed = None;
            state.working = false;
        });
    }

    /// Waits until there is something to do; then no call is under way, and none begins before it is done.
    pub fn wait_until_due(&self) -> Due {
        let mut state = self.state();
        let mut waits_for_quiet = false;
        loop {
            let lingers = self.linger.saturating_sub(state.last_change.unwrap_or(self.began).elapsed());
            let is_left = state.connections.is_empty();
            // Where the database could not be opened, whoever was told so may yet want it restored.
            let ends =
                state.stage >= Stage::Closing || (is_left && (state.stage == Stage::Refusing || lingers.is_zero()));
            let quiet_for = state.last_call.map_or(Duration::ZERO, |last| last.elapsed());
            let is_due = !ends && (state.failed.is_some() || state.checkpoint_is_due(quiet_for));
            if waits_for_quiet != is_due {
                waits_for_quiet = is_due;
                if is_due {
                    state.waiting_for_quiet += 1;
                } else {
                    state.waiting_for_quiet -= 1;
                    // Calls that have waited go on, to their answer or to the end.
                    self.changed.notify_all();
                }
            }
            let is_quiet = state.calls == 0 && !state.working && (!ends || state.answering == 0);
            if is_quiet && (ends || is_due) {
                state.waiting_for_quiet -= usize::from(is_due);
                if ends {
                    state.advance(Stage::Ended);
                    return Due::End;
                }
                state.working = true;
                return Due::Checkpoint;
            }
            let failed = state.failed.or(state.suspect).filter(|_| state.calls > 0);
            let hangs_in = failed.map(|since| FAILED_CALLS_END_WITHIN.saturating_sub(since.elapsed()));
            if hangs_in.is_some_and(|left| left.is_zero()) {
                return Due::Abort;
            }
            // Whatever changes wakes it; what does not is the time.
            let limit = match (is_left, state.written.records >= FEWEST_RECORDS) {
                _ if !is_quiet => hangs_in.unwrap_or(LONG),
                (true, _) => lingers,
                (false, true) => QUIET.saturating_sub(quiet_for),
                (false, false) => LONG,
            };
            state = self.wait(state, limit.max(Duration::from_millis(1)));
        }
    }

    /// At the end: tells all connections that what they have asked and was not answered was not done.
    pub fn say_goodbye(&self) {
        for connection in self.state().connections.values() {
            // Who has gone needs not be told, and who does not read is not waited for.
            let _ = connection.stream.set_nonblocking(true);
            let _ = Outgoing::new(Kind::Closing, &[]).map(|mut frame| frame.write_to(&mut &connection.stream));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.state());
        self.changed.notify_all();
        result
    }
}

impl State {
    fn advance(&mut self, stage: Stage) {
        self.stage = self.stage.max(stage);
    }

    /// Whether a call that comes now has to wait.
    fn holds_back(&self, long: bool) -> bool {
        let makes_way = self.waiting_for_quiet > 0 && (long || self.long_calls == 0);
        makes_way || self.working || self.failed.is_some()
    }

    fn checkpoint_is_due(&self, quiet_for: Duration) -> bool {
        let Written { records, time } = self.written;
        let is_much = time >= CHECKPOINT_AFTER || (!self.recovers && records >= self.checkpoint_after);
        let is_worth_it = time >= self.last_pause * TIMES_THE_CHECKPOINT;
        let is_quiet = !self.recovers && quiet_for >= QUIET;
        records >= FEWEST_RECORDS && (is_quiet || (is_much && is_worth_it))
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use std::io::Read;
    use std::sync::{Arc, mpsc};
    use std::thread;

    const SHORT: Duration = Duration::from_millis(30);
    const ENOUGH: Duration = Duration::from_secs(20);

    fn turns(linger: Duration) -> Arc<Turns> {
        Arc::new(Turns::new(linger, Some(0)))
    }

    fn enter(turns: &Turns, peer: u32) -> (Option<u64>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (turns.enter(Some(peer), ours), theirs)
    }

    /// What it waits for in a thread of its own.
    fn later<T: Send + 'static>(
        turns: &Arc<Turns>,
        wait: impl FnOnce(&Turns) -> T + Send + 'static,
    ) -> mpsc::Receiver<T> {
        let (done, is_done) = mpsc::channel();
        let turns = Arc::clone(turns);
        thread::spawn(move || done.send(wait(&turns)));
        is_done
    }

    /// Makes a call that does nothing, when it may; tells whether it was made.
    fn called(turns: &Turns) -> bool {
        turns.begin_call(false).map(|call| call.end(Effect::default())).is_some()
    }

    fn call(turns: &Turns, effect: Effect) {
        turns.begin_call(false).unwrap().end(effect);
    }

    fn wrote(records: usize, seconds: u64) -> Effect {
        Effect { written: Written { records, time: Duration::from_secs(seconds) }, failed: false }
    }

    #[test]
    fn it_ends_when_nobody_is_connected_and_not_before() {
        let turns = turns(SHORT);
        let (id, _stream) = enter(&turns, 1);
        let due = later(&turns, Turns::wait_until_due);
        assert!(due.recv_timeout(SHORT * 3).is_err());
        turns.leave(id.unwrap());
        assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::End));
        assert_eq!(enter(&turns, 1).0, None);
        assert!(turns.begin_answer().is_none());
    }

    #[test]
    fn it_ends_for_its_last_user_and_stays_for_others() {
        let turns = turns(ENOUGH);
        let (other, _stream) = enter(&turns, 2);
        let _own = (enter(&turns, 1), enter(&turns, 1));
        assert_eq!(turns.release(Some(1)), Kind::Shared);
        turns.leave(other.unwrap());
        assert_eq!(turns.release(Some(1)), Kind::Closing);
        assert_eq!(turns.wait_until_due(), Due::End);
    }

    #[test]
    fn the_end_waits_for_answers_and_tells_the_others() {
        let turns = turns(ENOUGH);
        let (_id, mut stream) = enter(&turns, 1);
        let answering = turns.begin_answer().unwrap();
        turns.advance(Stage::Closing);
        let due = later(&turns, Turns::wait_until_due);
        assert!(due.recv_timeout(SHORT).is_err());
        drop(answering);
        assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::End));
        turns.say_goodbye();
        let mut told = [0; 9];
        stream.read_exact(&mut told).unwrap();
        assert_eq!(told[4], Kind::Closing as u8);
    }

    #[test]
    fn who_was_told_that_it_cannot_be_opened_is_served_until_it_leaves() {
        let turns = turns(ENOUGH);
        let (id, _stream) = enter(&turns, 1);
        turns.advance(Stage::Refusing);
        assert_eq!(enter(&turns, 2).0, None);
        let due = later(&turns, Turns::wait_until_due);
        assert!(due.recv_timeout(SHORT).is_err());
        assert!(turns.begin_answer().is_some());
        turns.leave(id.unwrap());
        assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::End));
    }

    #[test]
    fn work_is_done_when_no_call_is_under_way_and_calls_wait_for_it() {
        let turns = turns(ENOUGH);
        let first = turns.begin_call(false).unwrap();
        let (may_end, ends) = mpsc::channel::<()>();
        let work = later(&turns, move |turns| {
            let work = turns.begin_work().unwrap();
            thread::spawn(move || ends.recv()).join().unwrap().unwrap();
            drop(work);
        });
        assert!(work.recv_timeout(SHORT).is_err());
        let call = later(&turns, called);
        assert!(call.recv_timeout(SHORT).is_err(), "a call goes ahead of work that waits");
        first.end(Effect::default());
        assert!(call.recv_timeout(SHORT).is_err(), "a call begins during work");
        may_end.send(()).unwrap();
        work.recv_timeout(ENOUGH).unwrap();
        assert_eq!(call.recv_timeout(ENOUGH), Ok(true));
        turns.advance(Stage::Closing);
        assert_eq!(turns.wait_until_due(), Due::End);
        assert!(turns.begin_work().is_none(), "work begins at the end");
    }

    #[test]
    fn a_checkpoint_is_due_for_many_records_or_for_long_ones_and_if_it_is_worth_it() {
        let state = |records, seconds, pause| State {
            written: wrote(records, seconds).written,
            checkpoint_after: FIRST_CHECKPOINT_AFTER,
            last_pause: Duration::from_secs(pause),
            ..State::default()
        };
        let is_due = |state: State| state.checkpoint_is_due(Duration::ZERO);
        assert!(!is_due(state(19_999, 9, 0)));
        assert!(is_due(state(20_000, 0, 0)));
        assert!(is_due(state(1_000, 10, 0)));
        assert!(!is_due(state(999, 1_000, 0)), "Chroma has not changed its files");
        assert!(!is_due(state(20_000, 19, 1)), "it would take a twentieth of the writing");
        assert!(is_due(state(20_000, 20, 1)));
        assert!(state(1_000, 0, 1).checkpoint_is_due(QUIET));
        assert!(!state(1_000, 0, 0).checkpoint_is_due(QUIET / 2));
        let recovering = State { recovers: true, ..state(20_000, 0, 0) };
        assert!(!recovering.checkpoint_is_due(QUIET), "the log was not read yet");
        assert!(is_due(State { recovers: true, ..state(20_000, 10, 0) }));
    }

    #[test]
    fn what_was_written_counts_until_the_checkpoint() {
        let turns = turns(ENOUGH);
        let _connection = enter(&turns, 1);
        let due = later(&turns, Turns::wait_until_due);
        for _ in 0..2 {
            assert!(due.try_recv().is_err());
            call(&turns, wrote(10_000, 1));
        }
        assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::Checkpoint));
        let next = later(&turns, |turns| call(turns, wrote(29_999, 1)));
        assert!(next.recv_timeout(SHORT).is_err());
        turns.end_checkpoint(SHORT, Some(30_000));
        next.recv_timeout(ENOUGH).unwrap();
        assert!(later(&turns, Turns::wait_until_due).recv_timeout(SHORT).is_err());
    }

    #[test]
    fn a_database_in_memory_has_no_checkpoint() {
        let turns = Arc::new(Turns::new(ENOUGH, None));
        let _connection = enter(&turns, 1);
        call(&turns, wrote(1_000_000, 1_000));
        assert!(later(&turns, Turns::wait_until_due).recv_timeout(SHORT).is_err());
    }

    #[test]
    fn the_log_that_a_kill_left_counts_from_the_first_write_on() {
        let turns = Arc::new(Turns::new(ENOUGH, Some(15_000)));
        let _connection = enter(&turns, 1);
        let due = later(&turns, Turns::wait_until_due);
        call(&turns, Effect::default());
        assert!(due.recv_timeout(SHORT).is_err());
        call(&turns, wrote(5_000, 1));
        assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::Checkpoint));
    }

    #[test]
    fn a_binding_that_failed_is_opened_anew_before_the_next_call() {
        let turns = turns(ENOUGH);
        let _connection = enter(&turns, 1);
        let mut failing = turns.begin_call(false).unwrap();
        failing.suspect();
        failing.end(Effect { failed: true, ..Effect::default() });
        let call = later(&turns, called);
        assert!(call.recv_timeout(SHORT).is_err());
        assert_eq!(turns.wait_until_due(), Due::Checkpoint);
        turns.end_renewal();
        assert_eq!(call.recv_timeout(ENOUGH), Ok(true));
    }

    #[test]
    fn calls_that_keep_the_interpreter_go_one_after_the_other() {
        let turns = turns(ENOUGH);
        let first = turns.take_turn().unwrap();
        let (done, order) = mpsc::channel();
        let waiting: Vec<_> = (0..3)
            .map(|i| {
                let (turns, done) = (Arc::clone(&turns), done.clone());
                let waits = thread::spawn(move || {
                    let _turn = turns.take_turn().unwrap();
                    done.send(i).unwrap();
                });
                thread::sleep(SHORT);
                waits
            })
            .collect();
        assert!(order.try_recv().is_err());
        drop(first);
        for waits in waiting {
            waits.join().unwrap();
        }
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_call_that_waits_for_its_turn_does_not_go_into_a_binding_that_failed_meanwhile() {
        let turns = turns(ENOUGH);
        let _connection = enter(&turns, 1);
        let failing = turns.begin_call(false).unwrap();
        let turn = turns.take_turn().unwrap();
        let waiting = turns.begin_call(false).unwrap();
        let other = later(&turns, |turns| turns.take_turn().is_some());
        assert!(other.recv_timeout(SHORT).is_err());
        failing.end(Effect { failed: true, ..Effect::default() });
        drop(turn);
        assert_eq!(other.recv_timeout(ENOUGH), Ok(false));
        waiting.end(Effect::default());
        assert_eq!(turns.wait_until_due(), Due::Checkpoint);
        turns.end_renewal();
        assert!(turns.take_turn().is_some());
    }

    #[test]
    fn calls_that_hang_after_a_failure_are_given_up_and_others_are_not() {
        let turns = turns(ENOUGH);
        let _connection = enter(&turns, 1);
        let ending = turns.begin_call(false).unwrap();
        let due = later(&turns, Turns::wait_until_due);
        let long_ago = Instant::now().checked_sub(FAILED_CALLS_END_WITHIN).unwrap();
        assert!(due.recv_timeout(SHORT).is_err(), "a call that takes long is not one that hangs");
        let mut hanging = turns.begin_call(false).unwrap();
        hanging.suspect();
        turns.change(|state| state.suspect = Some(long_ago));
        // The end of another call tells nothing of this one.
        ending.end(Effect::default());
        assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::Abort));
    }

    #[test]
    fn a_call_that_waits_in_a_process_on_its_way_to_the_end_is_refused() {
        let turns = turns(ENOUGH);
        let _connection = enter(&turns, 1);
        call(&turns, Effect { failed: true, ..Effect::default() });
        let waiting = later(&turns, |turns| {
            let _answering = turns.begin_answer().unwrap();
            called(turns)
        });
        assert!(waiting.recv_timeout(SHORT).is_err());
        turns.advance(Stage::Closing);
        assert_eq!(waiting.recv_timeout(ENOUGH), Ok(false));
        assert!(turns.begin_answer().is_none(), "busy clients would keep the end from coming");
        assert_eq!(turns.wait_until_due(), Due::End);
    }

    #[test]
    fn a_call_that_panics_has_failed_and_keeps_nobody_waiting() {
        let turns = turns(ENOUGH);
        let _connection = enter(&turns, 1);
        let panicking = Arc::clone(&turns);
        let panicked = thread::spawn(move || {
            let mut call = panicking.begin_call(true).unwrap();
            call.suspect();
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.join().is_err());
        assert_eq!(turns.wait_until_due(), Due::Checkpoint);
        turns.end_renewal();
        assert!(called(&turns));
    }

    #[test]
    fn readers_go_on_until_a_long_write_has_ended_that_a_checkpoint_waits_for() {
        let turns = turns(ENOUGH);
        let _connection = enter(&turns, 1);
        let long = turns.begin_call(true).unwrap();
        call(&turns, wrote(20_000, 1));
        let due = later(&turns, Turns::wait_until_due);
        while turns.state().waiting_for_quiet == 0 {
            thread::yield_now();
        }
        let next = later(&turns, |turns| turns.begin_call(true).unwrap().end(Effect::default()));
        assert!(next.recv_timeout(SHORT).is_err(), "another long write keeps the checkpoint waiting");
        assert_eq!(later(&turns, called).recv_timeout(ENOUGH), Ok(true));
        assert!(due.try_recv().is_err());
        long.end(Effect::default());
        assert_eq!(due.recv_timeout(ENOUGH), Ok(Due::Checkpoint));
        let reader = later(&turns, called);
        assert!(reader.recv_timeout(SHORT).is_err());
        turns.end_checkpoint(SHORT, None);
        assert_eq!(reader.recv_timeout(ENOUGH), Ok(true));
        next.recv_timeout(ENOUGH).unwrap();
    }

    #[test]
    fn who_does_not_read_does_not_keep_the_end_from_coming() {
        let turns = turns(ENOUGH);
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        while std::io::Write::write(&mut &ours, &[0; 4096]).is_ok() {}
        turns.enter(Some(1), ours).unwrap();
        assert_eq!(later(&turns, Turns::say_goodbye).recv_timeout(ENOUGH), Ok(()));
    }
}
