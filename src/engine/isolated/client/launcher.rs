//! The engine process of an instance: found by its lock file, or started where there is none.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::child::{self, Program};
use super::connections::Channel;
use super::patience::{Patience, Problem, is_of_owner};
use super::request::{RequestError, greet, is_final};
use crate::LOGGER;
use crate::engine::isolated::protocol::address::Address;
use crate::engine::isolated::protocol::frame::{Frame, Kind};
use crate::engine::isolated::protocol::values::decode_exception;
use crate::engine::{Instance, Opening};
use crate::failure::{Budget, FIRST_PAUSE};
use crate::python::call::call_python;
use crate::python::error::{Error, Place};
use crate::python::gil::{self, Lock, SIGNAL_POLL};
use crate::storage::directory::{self, FileId, Seen};
use crate::storage::lock_file::{self, Attempt, LockFile};
use crate::storage::owner::{MOMENTARY, Owner};
use crate::sync::fork_gate;

/// How long an engine may take to start before that is an error. Before it greets it may have to copy or to examine what is
/// in its directory, in each second so many bytes at the least; and to take again what was written since a checkpoint,
/// some ten seconds of work on a machine that has time for it.
pub const START_WITHIN: Duration = Duration::from_secs(60);
const SLOWEST_START: u64 = 10_000_000;

/// As in `storage/paths.py`: it is there while indexes are being rebuilt.
const REPAIR: &str = ".chroma_manager/repair.json";

/// How many engine processes of an opening may die: then the next one would do so too.
const MAX_DEATHS: u32 = 5;

/// How long an engine that can start no thread is asked again.
const BUSY_WITHIN: Duration = Duration::from_secs(10);
const NO_THREAD: &str = "its engine process can start no thread for another connection: the limit of this user's threads \
                         (RLIMIT_NPROC), or that of the container (pids.max), is reached. Raise it, or use fewer threads";

/// What an opening has done so far.
#[derive(Default)]
struct Starts {
    /// Engine processes that it started and that died.
    deaths: u32,
    /// The last one, and the directory's lock that it has.
    started: Option<Address>,
    lock: Option<FileId>,
    /// How often the directory was replaced while it started.
    replaced: usize,
    /// Directories created.
    created: Vec<PathBuf>,
}

impl Starts {
    /// Counts an engine process that did not answer, if it was one of ours that has died; tells what it says of that.
    fn count(&mut self, address: &Address, error: &io::Error) -> String {
        self.deaths += u32::from(child::has_died(address));
        let stderr_tail = child::stderr_tail(address);
        if stderr_tail.is_empty() { error.to_string() } else { stderr_tail }
    }

    fn has_started(&self, address: &Address) -> bool {
        self.started.as_ref().is_some_and(|started| started.is_of_same_owner(address))
    }
}

/// Who has the instance.
enum Found {
    /// An engine process that this opening has started.
    Started(Address),
    /// An engine process.
    Engine(Address),
    /// Somebody who is just starting one, or removing the directory; `None` where it is to be looked at anew.
    Momentary(Option<Owner>),
    /// An app that has it in its own process.
    Embedded(Owner),
}

/// Finds and starts the engine processes of an instance.
pub struct Launcher {
    /// Under which its connections are kept.
    pub id: u64,
    /// The directory.
    pub path: PathBuf,
    program: Program,
    /// What an engine process is told at its start.
    arguments: String,
    engine: Mutex<EngineProcess>,
}

/// The engine process that was connected to last.
#[derive(Clone, Debug, Default)]
struct EngineProcess {
    socket: Address,
    /// Its directory, as it was then.
    seen: Option<Seen>,
}

impl Launcher {
    /// None is started yet.
    pub fn new(id: u64, path: &Path, program: Program, arguments: String) -> Self {
        Self { id, path: path.to_path_buf(), program, arguments, engine: Mutex::default() }
    }

    /// Whether the directory is the one of the engine process that was connected to last. Detached only.
    pub fn is_in_place(&self) -> bool {
        Seen::at(&self.path).is_some_and(|now| self.engine.lock().seen == Some(now))
    }

    /// Where the engine process is that was connected to last.
    pub fn socket(&self, py: Python<'_>) -> Address {
        self.engine.take(py).socket.clone()
    }

    /// A connection to the engine of the instance, which has the database open.
    pub fn connect<'py>(&self, py: Python<'py>, instance: &Instance, opening: Opening) -> Result<Channel<'py>, Error> {
        match self.find_or_start(py, instance, opening)? {
            (line, None) => Ok(line),
            (line, Some(failure)) => {
                drop(line);
                let socket = self.socket(py);
                py.detach(|| child::reap_at(&socket));
                Err(Error::while_opening(py, instance, failure))
            }
        }
    }

    /// A connection to the engine of the instance, which is started where there is none; and why it could not open the
    /// database, if so.
    pub fn find_or_start<'py>(
        &self,
        py: Python<'py>,
        instance: &Instance,
        opening: Opening,
    ) -> Result<(Channel<'py>, Option<PyErr>), Error> {
        py.detach(child::reap);
        let limit = py.detach(|| start_within(&self.path));
        let mut give_up = Instant::now() + limit;
        let mut give_up_busy = None;
        let mut last_problem = String::from("nobody answered");
        let mut starts = Starts::default();
        let mut patience = Patience::default();
        // Who has the lock, where that is not an engine process of ours.
        let mut owner = None;
        while Instant::now() < give_up && starts.deaths < MAX_DEATHS {
            opening.go_on(instance)?;
            let found = self.own_or_find(py, instance, opening.may_create, &mut starts)?;
            owner = match &found {
                Found::Engine(address) => Some(address.owner.clone()),
                Found::Momentary(owner) => owner.clone(),
                Found::Started(_) | Found::Embedded(_) => None,
            };
            let socket = match found {
                Found::Started(address) | Found::Engine(address) => address,
                Found::Momentary(_) => {
                    last_problem = "it is about to start an engine process, or to remove the database".into();
                    gil::wait(py, || thread::sleep(FIRST_PAUSE))?;
                    continue;
                }
                Found::Embedded(owner) if Instant::now() >= opening.deadline => {
                    return Err(Error::locked(instance, owner));
                }
                Found::Embedded(_) => {
                    gil::wait(py, || thread::sleep(SIGNAL_POLL))?;
                    continue;
                }
            };
            // One that this opening has started has to open the database first.
            let found = opening.answer_within.filter(|_| !starts.has_started(&socket)).map(Budget::new);
            let bound = opening.budget.or(found);
            match greet(py, &socket, bound.map_or(give_up, |bound| give_up.min(bound.until))) {
                // It has begun to end.
                Ok((_, Frame { kind: Kind::Closing, .. })) => {}
                Ok((_, Frame { kind: Kind::Busy, .. })) => {
                    if let Some(line) = Channel::waiting(py, self.id) {
                        return Ok((line, None));
                    }
                    if Instant::now() >= *give_up_busy.get_or_insert_with(|| Instant::now() + BUSY_WITHIN) {
                        return Err(Error::cannot_open(instance, NO_THREAD.into(), None));
                    }
                    gil::wait(py, || thread::sleep(SIGNAL_POLL))?;
                }
                Ok((line, Frame { kind, body })) => {
                    let seen = py.detach(|| Seen::at(&self.path));
                    *self.engine.take(py) = EngineProcess { socket, seen };
                    return Ok((line, what_is_told(py, instance, kind, &body)));
                }
                Err(RequestError::Python(error)) => return Err(error.into()),
                Err(RequestError::Broken(error)) if is_final(&error) => {
                    return Err(Error::while_opening(py, instance, error.into()));
                }
                Err(RequestError::TooLate) if bound.is_some_and(|bound| bound.until < give_up) => {
                    return Err(bound.expect("it was late for it").spent(instance, "opening"));
                }
                // It is this process that cannot connect: it has no descriptor left, say.
                Err(RequestError::Unreachable(error)) if !is_of_owner(&error) => {
                    return Err(Error::while_opening(py, instance, error.into()));
                }
                Err(RequestError::Foreign) => {
                    last_problem = "the engine process of another database answered".into();
                    if let Some(error) =
                        py.detach(|| patience.ends(instance, &socket, &Problem::Another, opening.deadline))
                    {
                        return Err(error);
                    }
                }
                // It rebuilds indexes, which is the work of minutes where they are large.
                Err(RequestError::TooLate) if py.detach(|| self.path.join(REPAIR).exists()) => {
                    give_up = Instant::now() + limit;
                }
                Err(RequestError::TooLate | RequestError::TooLarge) => {
                    last_problem = format!("it did not greet within {limit:?}");
                }
                // It has just ended, or it could not start: its lock is free, or will be.
                Err(RequestError::NotSent(error) | RequestError::Broken(error)) => {
                    if starts.has_started(&socket) && py.detach(|| starts.lock != directory::lock_id(&self.path)) {
                        // It has ended because the directory was removed or replaced while it started.
                        opening.restart(py, instance, &mut starts.replaced)?;
                        continue;
                    }
                    last_problem = py.detach(|| starts.count(&socket, &error));
                }
                Err(RequestError::Unreachable(error)) => {
                    if starts.has_started(&socket) && py.detach(|| starts.lock != directory::lock_id(&self.path)) {
                        opening.restart(py, instance, &mut starts.replaced)?;
                        continue;
                    }
                    let ends = py.detach(|| {
                        last_problem = starts.count(&socket, &error);
                        patience.ends(instance, &socket, &Problem::Nobody(error), opening.deadline)
                    });
                    if let Some(error) = ends {
                        return Err(error);
                    }
                }
            }
            if instance.is_cleaned_up() {
                return Err(Error::cleaned_up(instance));
            }
            gil::wait(py, || thread::sleep(FIRST_PAUSE))?;
        }
        Err(give_up_opening(py, instance, &starts, owner, last_problem))
    }

    /// A connection to the engine that was connected to before.
    pub fn find_again<'py>(
        &self,
        py: Python<'py>,
        instance: &Instance,
        method: &str,
        budget: Option<Budget>,
    ) -> Result<Channel<'py>, Error> {
        let give_up = Instant::now() + START_WITHIN;
        let mut patience = Patience::default();
        loop {
            let socket = self.newest_address(py);
            match greet(py, &socket, budget.map_or(give_up, |budget| give_up.min(budget.until))) {
                Ok((line, Frame { kind: Kind::Hello, .. })) => return Ok(line),
                Err(RequestError::Python(error)) => return Err(error.into()),
                Ok((_, Frame { kind: Kind::Busy, .. })) => {
                    return Err(Error::cannot_open(instance, NO_THREAD.into(), None));
                }
                Err(RequestError::TooLate) if budget.is_some_and(|budget| budget.until < give_up) => {
                    return Err(budget.expect("it was late for it").spent(instance, method));
                }
                // It lives, and may be about to bind its socket anew.
                Err(RequestError::Unreachable(error))
                    if is_of_owner(&error) && py.detach(|| self.has_owner(&socket)) =>
                {
                    budget.map_or(Ok(()), |budget| budget.go_on(instance, method))?;
                    let problem = Problem::Nobody(error);
                    if let Some(error) = py.detach(|| patience.ends(instance, &socket, &problem, Instant::now())) {
                        return Err(error);
                    }
                    gil::wait(py, || thread::sleep(FIRST_PAUSE))?;
                }
                _ => {
                    let stderr_tail = py.detach(|| child::stderr_tail(&socket));
                    py.detach(|| child::reap_at(&socket));
                    return Err(Error::engine_crashed(instance, method, stderr_tail));
                }
            }
        }
    }

    /// Where the engine is now that was connected to last.
    pub fn newest_address(&self, py: Python<'_>) -> Address {
        let known = self.socket(py);
        let found = py.detach(|| lock_file::owner(&self.path)).and_then(|owner| Address::of(&self.path, owner));
        found.filter(|found| found.is_of_same_owner(&known)).unwrap_or(known)
    }

    fn has_owner(&self, address: &Address) -> bool {
        lock_file::owner(&self.path).is_some_and(|owner| owner.secret == address.owner.secret)
    }

    fn own_or_find(
        &self,
        py: Python<'_>,
        instance: &Instance,
        may_create: bool,
        starts: &mut Starts,
    ) -> Result<Found, Error> {
        let wrap = |error: PyErr| Error::while_opening(py, instance, error);
        let path = instance.path();
        let claim = py.detach(|| directory::claim(path, may_create, Some(Path::new(MOMENTARY))));
        let (lock, created) = match claim {
            Ok(Some((Attempt::Acquired(lock), created))) => (lock, created),
            Ok(None) => return Err(Error::not_found(instance)),
            Ok(Some((Attempt::Held(owner), _))) => {
                if owner.is_momentary() {
                    return Ok(Found::Momentary(Some(owner)));
                }
                let address = Address::of(path, owner.clone());
                return Ok(address.map_or(Found::Embedded(owner), Found::Engine));
            }
            Err(error) => return Err(wrap(error.into())),
        };
        starts.created.extend(created);
        let Starts { created, started, lock: lock_id, .. } = starts;
        if let Err(error) = call_python(py, "chroma_manager.engine.settings", "refuse_newer", (path,)) {
            py.detach(|| directory::remove_created(path, Some(lock), created));
            return Err(wrap(error));
        }
        let started = py.detach(|| {
            // A child forked in the middle would have descriptors that nobody closes there, the lock's among them.
            let _pass = fork_gate::here();
            match child::start(&self.program, &self.arguments, path, &lock) {
                Ok(address) => {
                    *started = Some(address.clone());
                    *lock_id = lock.metadata().ok().map(|metadata| directory::id_of(&metadata));
                    lock.hand_over(&address.owner).map(|()| Found::Started(address))
                }
                // Removed just now.
                Err(_) if !path.is_dir() => Ok(Found::Momentary(None)),
                Err(error) => {
                    directory::remove_created(path, Some(lock), created);
                    Err(error)
                }
            }
        });
        started.map_err(|error| {
            let reason = format!("its engine process cannot be started: {error}; engine=\"embedded\" needs none");
            Error::cannot_open(instance, reason, Some(error.into()))
        })
    }
}

/// Why an engine process that greets could not open the database, if so; what it has found and done is logged.
fn what_is_told(py: Python<'_>, instance: &Instance, kind: Kind, body: &[u8]) -> Option<PyErr> {
    if kind != Kind::Hello {
        return Some(decode_exception(py, body, &[]).unwrap_or_else(|error| error));
    }
    log_notices(instance, body);
    None
}

/// What an engine process has found and done besides what it was asked for.
pub fn log_notices(instance: &Instance, notices: &[u8]) {
    for notice in String::from_utf8_lossy(notices).lines() {
        log::warn!(target: LOGGER, "{}: {notice}", Place::name(instance));
    }
}

/// The error of an opening that has tried for long enough; it takes back what it created.
fn give_up_opening(
    py: Python<'_>,
    instance: &Instance,
    starts: &Starts,
    owner: Option<Owner>,
    last_problem: String,
) -> Error {
    py.detach(|| {
        child::reap();
        if let Ok(Attempt::Acquired(lock)) = LockFile::try_acquire(instance.path(), Some(Path::new(MOMENTARY))) {
            directory::remove_created(instance.path(), Some(lock), &starts.created);
        }
    });
    if let Some(owner) = owner {
        return Error::unreachable(instance, owner, last_problem);
    }
    // What an engine process dies of the app itself would die of.
    let advice = if starts.deaths > 0 { "" } else { "; engine=\"embedded\" needs none" };
    let reason = format!("its engine process does not start ({last_problem}){advice}");
    Error::cannot_open(instance, reason, None)
}

fn start_within(directory: &Path) -> Duration {
    START_WITHIN + Duration::from_secs(directory::size(directory) / SLOWEST_START)
}
