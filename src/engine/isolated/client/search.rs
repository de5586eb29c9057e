//! One search for the engine process of an instance, which is found by its lock file or started.
//!
//! The lock file elects the owner. A process that gets the lock starts the engine process, which inherits the lock and
//! keeps it for its life. Any other process connects to the socket that the file names. The lock is released when the
//! engine process ends, however it ends.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::child;
use super::connections::Channel;
use super::holder::{Holder, Start};
use super::patience::{Patience, Problem, is_caused_by_owner};
use super::request::{RequestError, greet, is_final};
use super::started::Started;
use crate::LOGGER;
use crate::engine::isolated::protocol::address::Address;
use crate::engine::isolated::protocol::frame::{Frame, Kind};
use crate::engine::isolated::protocol::values::decode_exception;
use crate::engine::{Instance, Opening};
use crate::failure::{Budget, FIRST_PAUSE};
use crate::python::error::{Error, InstanceName};
use crate::python::gil::{self, SIGNAL_POLL};
use crate::storage::claiming;
use crate::storage::directory;
use crate::storage::lock_file::{Attempt, LockFile};
use crate::storage::owner::{MOMENTARY, Owner};

/// How long an engine process may take to start. Before it greets, it may have to replay what was written since a
/// checkpoint (some ten seconds on a machine that is not busy).
pub const START_WITHIN: Duration = Duration::from_secs(60);

/// The lowest rate, in bytes per second, at which an engine process copies or examines its directory before it greets.
const SLOWEST_START: u64 = 10_000_000;

/// What exists while indexes are rebuilt, by a repair or by a compaction; see `storage/paths.py`.
const REBUILDING: [&str; 2] = [".chroma_manager/repair.json", ".chroma_manager/restoring.new"];

/// How long to retry where the system starts no process, or no thread for an engine process.
const BUSY_WITHIN: Duration = Duration::from_secs(10);

/// The reason for the error after that.
pub const NO_THREAD: &str = "its engine process cannot start a thread for another connection: the limit on this user's \
                             threads (RLIMIT_NPROC), or on those of the container (pids.max), is reached. Raise it, or use \
                             fewer threads";

const NO_PROCESS: &str = "no engine process can be started: the limit on this user's processes and threads (RLIMIT_NPROC), \
                          or on those of the container (pids.max), is reached. Raise it, use fewer threads, or keep fewer \
                          databases open (max_engines); engine=\"embedded\" needs none";

/// The result of a search.
pub struct Found<'py> {
    /// A connection to the engine process.
    pub channel: Channel<'py>,
    /// Its address, or `None` if the channel was an idle one.
    pub socket: Option<Address>,
    /// The exception with which it failed to open the database, if it did.
    pub failure: Option<PyErr>,
}

/// The state of a search.
pub struct Search<'a, 'py> {
    py: Python<'py>,
    instance: &'a Instance,
    opening: Opening,
    start: Start<'a>,
    /// How long an engine process may take to start, and when the search gives up.
    limit: Duration,
    give_up: Instant,
    /// When the search gives up on a system that starts no process or thread.
    give_up_busy: Option<Instant>,
    patience: Patience,
    last_problem: String,
    /// The last owner found, if it was not an engine process that this search has started.
    owner: Option<Owner>,
    started: Started,
    /// How often the directory was replaced while an engine process started.
    times_replaced: usize,
    /// The directories that this search has created.
    created: Vec<PathBuf>,
}

impl<'a, 'py> Search<'a, 'py> {
    /// Begins a search.
    pub fn new(py: Python<'py>, instance: &'a Instance, opening: Opening, start: Start<'a>) -> Self {
        py.detach(child::reap);
        let limit = py.detach(|| start_within(instance.path()));
        Self {
            py,
            instance,
            opening,
            start,
            limit,
            give_up: Instant::now() + limit,
            give_up_busy: None,
            patience: Patience::default(),
            last_problem: "no process answered".into(),
            owner: None,
            started: Started::default(),
            times_replaced: 0,
            created: Vec::new(),
        }
    }

    /// Searches until an engine process greets.
    ///
    /// # Errors
    ///
    /// Returns an error that says why none does.
    pub fn run(mut self) -> Result<Found<'py>, Error> {
        while Instant::now() < self.give_up && !self.started.keep_dying() {
            self.opening.check_budget(self.instance)?;
            let (may_create, created) = (self.opening.may_create, &mut self.created);
            let holder = Holder::find_or_start(self.py, self.instance, self.start, may_create, created)?;
            let Some(socket) = self.wait_for_engine(holder)? else { continue };
            // An engine process that this search has started must open the database first.
            let answer_within = self.opening.answer_within.filter(|_| !self.started.is_at(&socket)).map(Budget::new);
            let bound = self.opening.budget.or(answer_within);
            let deadline = bound.map_or(self.give_up, |bound| self.give_up.min(bound.until));
            match greet(self.py, &socket, deadline) {
                Ok((channel, frame)) => {
                    if let Some(found) = self.handle_greeting(channel, frame, socket)? {
                        return Ok(found);
                    }
                }
                Err(RequestError::TooLate) if bound.is_some_and(|bound| bound.until < self.give_up) => {
                    return Err(bound.expect("the budget set the deadline").timed_out(self.instance, "opening"));
                }
                Err(failed) => {
                    if self.handle_failure(failed, &socket)? {
                        continue;
                    }
                }
            }
            if self.instance.is_cleaned_up() {
                return Err(Error::cleaned_up(self.instance));
            }
            gil::wait(self.py, || thread::sleep(FIRST_PAUSE))?;
        }
        Err(self.into_error())
    }

    /// Returns the address of the engine process that holds the lock. If another process holds it, waits briefly and
    /// returns `None`.
    fn wait_for_engine(&mut self, holder: Holder) -> Result<Option<Address>, Error> {
        self.owner = match &holder {
            Holder::Engine(address) => Some(address.owner.clone()),
            Holder::Momentary(owner) => owner.clone(),
            Holder::Started(..) | Holder::Embedded(_) | Holder::NoProcess(_) => None,
        };
        match holder {
            Holder::Engine(address) => Ok(Some(address)),
            Holder::Started(address, lock, in_progress) => {
                self.started.add(address.clone(), lock, in_progress);
                Ok(Some(address))
            }
            Holder::Momentary(_) => {
                self.last_problem = "the owner is about to start an engine process, or to remove the database".into();
                gil::wait(self.py, || thread::sleep(FIRST_PAUSE))?;
                Ok(None)
            }
            Holder::NoProcess(error) => {
                if self.is_busy_for_long() {
                    return Err(Error::cannot_open(self.instance, NO_PROCESS.into(), Some(error.into())));
                }
                gil::wait(self.py, || thread::sleep(SIGNAL_POLL))?;
                Ok(None)
            }
            Holder::Embedded(owner) if Instant::now() >= self.opening.deadline => {
                Err(Error::locked(self.instance, owner))
            }
            Holder::Embedded(_) => {
                gil::wait(self.py, || thread::sleep(SIGNAL_POLL))?;
                Ok(None)
            }
        }
    }

    /// Handles the greeting of an engine process. Returns `None` if the search must go on.
    fn handle_greeting(
        &mut self,
        channel: Channel<'py>,
        frame: Frame,
        socket: Address,
    ) -> Result<Option<Found<'py>>, Error> {
        match frame.kind {
            // The engine process has begun to end.
            Kind::Closing => Ok(None),
            Kind::Busy => {
                if let Some(channel) = Channel::take_idle(self.py, self.start.id) {
                    return Ok(Some(Found { channel, socket: None, failure: None }));
                }
                if self.is_busy_for_long() {
                    return Err(Error::cannot_open(self.instance, NO_THREAD.into(), None));
                }
                gil::wait(self.py, || thread::sleep(SIGNAL_POLL))?;
                Ok(None)
            }
            Kind::Hello => {
                log_notices(self.instance, &frame.body);
                Ok(Some(Found { channel, socket: Some(socket), failure: None }))
            }
            _ => {
                let failure = decode_exception(self.py, &frame.body, &[]).unwrap_or_else(|error| error);
                Ok(Some(Found { channel, socket: Some(socket), failure: Some(failure) }))
            }
        }
    }

    /// Returns whether the system has started no process or thread for so long that the search gives up.
    fn is_busy_for_long(&mut self) -> bool {
        Instant::now() >= *self.give_up_busy.get_or_insert_with(|| Instant::now() + BUSY_WITHIN)
    }

    /// Handles a failure to connect or to be greeted. Returns whether the search restarts at once, because the
    /// directory was replaced.
    ///
    /// # Errors
    ///
    /// Returns an error if another attempt would not help.
    fn handle_failure(&mut self, failed: RequestError, socket: &Address) -> Result<bool, Error> {
        let (py, instance) = (self.py, self.instance);
        match failed {
            RequestError::Python(error) => return Err(error.into()),
            RequestError::Broken(error) if is_final(&error) => {
                return Err(Error::while_opening(py, instance, error.into()));
            }
            // This process cannot connect: it has no descriptor left, for example.
            RequestError::Unreachable(error) if !is_caused_by_owner(&error) => {
                return Err(Error::while_opening(py, instance, error.into()));
            }
            RequestError::Foreign => {
                self.last_problem = "the engine process of another database answered".into();
                self.wait_for_owner(socket, &Problem::OtherDatabase)?;
            }
            RequestError::TooLate if self.is_rebuilding() => self.give_up = Instant::now() + self.limit,
            RequestError::TooLate | RequestError::TooLarge => {
                self.last_problem = format!("it did not greet within {:?}", self.limit);
            }
            RequestError::NotSent(_) | RequestError::Broken(_) | RequestError::Unreachable(_)
                if self.is_replaced(socket) =>
            {
                self.opening.restart(py, instance, &mut self.times_replaced)?;
                return Ok(true);
            }
            // It has just ended, is about to, or could not start. Its lock is free, or will be soon.
            RequestError::NotSent(error) | RequestError::Broken(error) => {
                self.count_death(socket, &error);
                if self.is_rebuilding() {
                    self.give_up = Instant::now() + self.limit;
                }
            }
            RequestError::Unreachable(error) => {
                self.count_death(socket, &error);
                self.wait_for_owner(socket, &Problem::NoAnswer(error))?;
            }
        }
        Ok(false)
    }

    /// Returns an error if the wait for an owner that cannot be reached is over.
    fn wait_for_owner(&mut self, socket: &Address, problem: &Problem) -> Result<(), Error> {
        let (instance, deadline) = (self.instance, self.opening.deadline);
        let patience = &mut self.patience;
        self.py.detach(|| patience.check(instance, socket, problem, deadline)).map_or(Ok(()), Err)
    }

    /// Returns whether an engine process of this search has ended because the directory was removed or replaced while
    /// it started.
    fn is_replaced(&self, socket: &Address) -> bool {
        let (started, path) = (&self.started, self.instance.path());
        self.py.detach(|| started.is_replaced(socket, path))
    }

    /// Returns whether indexes are being rebuilt, at an opening or at a closing. It takes minutes if they are large.
    fn is_rebuilding(&self) -> bool {
        let path = self.instance.path();
        self.py.detach(|| REBUILDING.iter().any(|name| path.join(name).exists()))
    }

    fn count_death(&mut self, socket: &Address, error: &io::Error) {
        let started = &mut self.started;
        self.last_problem = self.py.detach(|| started.count_death(socket, error));
    }

    /// Ends the search without success: removes what it has created, and returns the error.
    fn into_error(self) -> Error {
        let instance = self.instance;
        self.py.detach(|| {
            child::reap();
            if let Ok(Attempt::Acquired(lock)) = LockFile::try_acquire(instance.path(), Some(Path::new(MOMENTARY))) {
                claiming::remove_created(instance.path(), Some(lock), &self.created);
            }
        });
        if let Some(owner) = self.owner {
            return Error::unreachable(instance, owner, self.last_problem);
        }
        // With the engine `embedded`, the app itself would die in the same way.
        let advice = if self.started.have_died() { "" } else { "; engine=\"embedded\" needs none" };
        let reason = format!("its engine process did not start ({}){advice}", self.last_problem);
        Error::cannot_open(instance, reason, None)
    }
}

/// Logs the notices of an engine process: what it has found and done on its own initiative.
pub fn log_notices(instance: &Instance, notices: &[u8]) {
    for notice in String::from_utf8_lossy(notices).lines() {
        log::warn!(target: LOGGER, "{}: {notice}", InstanceName::of(instance));
    }
}

/// Returns how long an engine process may take to start in a directory.
fn start_within(directory: &Path) -> Duration {
    START_WITHIN + Duration::from_secs(directory::size(directory) / SLOWEST_START)
}
