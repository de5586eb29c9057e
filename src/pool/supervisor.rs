//! Opens, closes and cleans up the instances of a manager, whichever engine is under them.
//!
//! Whoever leaves an ended instance last closes it; whoever cleans up waits for that, unless the wait would be for itself
//! (a signal handler in the middle of a call). So a cleanup returns in any order of events, and no call loses its database
//! under its feet.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::idle::IdleThread;
use super::missing::{self, OnMissing};
use super::permits::Places;
use super::registry::Registry;
use crate::LOGGER;
use crate::engine::{Database, Engine, Instance, Opening, Task};
use crate::failure::{Attempts, Budget, Next};
use crate::instance::Enter;
use crate::instance::key::{ClientKey, Key};
use crate::python::call::pass;
use crate::python::error::{Error, name_place};
use crate::python::gil::{self, Lock, SIGNAL_POLL};
use crate::storage::directory;
use crate::sync::fork_gate::{self, Pass, Work};

/// How often a new client is tried for while others keep cleaning up what it needs.
const CLEANUP_RACES: u32 = 20;

/// How often a database is put there that somebody else removes before it is opened.
const REMOVAL_RACES: u32 = 3;

/// How often is looked for a place while all that is open is in use.
const PLACE_POLL: Duration = Duration::from_millis(2);

/// What a manager was configured with.
#[derive(Debug, Default)]
pub struct Options {
    /// Absolute.
    pub base_path: PathBuf,
    pub lock_timeout: Duration,
    pub idle_timeout: Option<Duration>,
    pub max_engines: Option<usize>,
}

/// Counters since the manager was constructed.
#[derive(Debug, Default)]
pub struct Counters {
    pub openings: AtomicU64,
    pub cleanups: AtomicU64,
    pub evictions: AtomicU64,
    pub errors: AtomicU64,
}

/// Makes a client of an open instance, with Chroma's `System` of its database; the flag is the registry's to set when
/// `get_client` gives the client out again.
pub type MakeClient = for<'py> fn(
    Python<'py>,
    &Arc<Supervisor>,
    &Arc<Instance>,
    &Arc<AtomicBool>,
    &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>>;

/// The instances of one manager and what happens to them.
pub struct Supervisor {
    pub options: Options,
    pub counters: Counters,
    pub registry: Arc<Registry>,
    /// How many there are.
    pub connections: AtomicUsize,
    engine: Box<dyn Engine>,
    make_client: MakeClient,
    places: Places,
    shut_down: AtomicBool,
    idle_thread: Mutex<Option<IdleThread>>,
}

impl Supervisor {
    pub fn new(options: Options, engine: Box<dyn Engine>, make_client: MakeClient) -> Self {
        Self {
            places: Places::new(options.max_engines),
            options,
            engine,
            make_client,
            counters: Counters::default(),
            registry: Arc::default(),
            connections: AtomicUsize::new(0),
            shut_down: AtomicBool::new(false),
            idle_thread: Mutex::new(None),
        }
    }

    pub fn engine_name(&self) -> &'static str {
        self.engine.name()
    }

    /// A new client of that instance, opened if need be, and this thread's own from now on.
    pub fn new_client(
        self: &Arc<Self>,
        py: Python<'_>,
        key: &Key,
        user_id: Option<&str>,
        on_missing: &OnMissing,
    ) -> Result<Py<PyAny>, Error> {
        let mut opening = self.opening(on_missing.creates());
        let (mut races, mut times_gone, mut times_put) = (0, 0, 0);
        loop {
            if self.shut_down.load(Ordering::SeqCst) {
                return Err(Error::ManagerShutDown);
            }
            let instance = self.registry.instance(py, key, &self.options.base_path);
            let system = match self.enter(py, &instance, opening) {
                Ok(inside) if !inside.is_in_place() => {
                    let gone = inside.leave()?;
                    self.close_gone(py, &instance, &gone, opening)?;
                    opening.begin_anew(py, &instance, &mut times_gone)?;
                    continue;
                }
                Ok(inside) => inside.database().system(py).clone(),
                // Cleaned up while it was being opened: the caller came later, and gets a new one.
                Err(Error::ClientClosed { .. }) if races < CLEANUP_RACES => {
                    races += 1;
                    self.wait_until_gone(py, &instance)?;
                    continue;
                }
                Err(Error::NotFound { .. }) if matches!(on_missing, OnMissing::Fail) => {
                    return Err(Error::missing(&instance));
                }
                Err(error @ Error::NotFound { .. }) => match on_missing {
                    OnMissing::Call(callable) if times_put < REMOVAL_RACES => {
                        times_put += u32::from(self.have_put_there(py, &instance, callable)?);
                        opening = self.opening(false);
                        continue;
                    }
                    _ => return Err(error),
                },
                Err(error) => return Err(error),
            };
            let asked_for = Arc::default();
            let client = (self.make_client)(py, self, &instance, &asked_for, &system)?;
            let client_key = ClientKey { instance: key.clone(), user_id: user_id.map(Into::into) };
            if self.registry.insert(py, client_key, &client, &instance, asked_for)? {
                return Ok(client.unbind());
            }
        }
    }

    /// Has the app put the database of an instance there; tells whether it was called for that, or somebody else was.
    fn have_put_there(&self, py: Python<'_>, instance: &Instance, callable: &Py<PyAny>) -> Result<bool, Error> {
        let key = instance.key();
        match self.registry.begin_putting(py, key) {
            None => {
                let put = missing::put_there(py, instance, callable);
                self.registry.end_putting(py, key);
                put.map(|()| true)
            }
            Some(thread) if thread == thread::current().id() => {
                let reason = "it is not there, and this very thread is in on_missing to put it there; call get_client() or \
                              get_collection() with on_missing=\"create\"";
                Err(Error::cannot_open(instance, reason.into(), None))
            }
            Some(_) => {
                while self.registry.is_awaited(py, key) {
                    gil::wait(py, || thread::sleep(PLACE_POLL))?;
                }
                Ok(false)
            }
        }
    }

    /// Goes into an instance, opening it first where it is closed.
    pub fn enter<'a>(
        self: &'a Arc<Self>,
        py: Python<'a>,
        instance: &'a Arc<Instance>,
        opening: Opening,
    ) -> Result<Inside<'a>, Error> {
        let times_replaced = instance.times_replaced();
        loop {
            let pass = pass(py, self.engine.work())?;
            match instance.enter(instance.state.take(py)) {
                Enter::Ready(database) => {
                    instance.touch();
                    let (database, until) = (Some(database), opening.until());
                    return Ok(Inside { py, supervisor: self, instance, database, until, _pass: pass });
                }
                Enter::Ended => return Err(Error::ended(instance)),
                Enter::Busy => return Err(Error::busy(instance)),
                Enter::MustOpen => {
                    drop(pass);
                    self.open(py, instance, opening)?;
                }
                Enter::Wait => {
                    drop(pass);
                    if fork_gate::inside_call() {
                        return Err(Error::busy(instance));
                    }
                    opening.go_on(instance)?;
                    // Whoever opens it may be told so only now, and one after the other would be.
                    opening.is_not_replaced_for_long(instance, instance.times_replaced() - times_replaced)?;
                    gil::wait(py, || instance.wait_until_settled(SIGNAL_POLL))?;
                }
            }
        }
    }

    fn open(self: &Arc<Self>, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<(), Error> {
        self.start_idle_thread(py);
        let is_there = py.detach(|| directory::has_database(instance.path()));
        let result = self
            .take_place(py, instance, opening)
            .and_then(|()| self.engine.open(py, instance, opening).inspect_err(|_| self.places.give_back()));
        match result {
            Ok(database) => {
                instance.opened(instance.state.take(py), database);
                self.counters.openings.fetch_add(1, Ordering::Relaxed);
                log::debug!(target: LOGGER, "opened {} ({})", instance.key(), instance.path().display());
                if self.registry.note(py, instance.key()) && !is_there {
                    log::warn!(
                        target: LOGGER,
                        "{} ({}) was removed after this process had used it, and is created again, empty; on_missing is \
                         what to set if it should not be",
                        instance.key(),
                        instance.path().display()
                    );
                }
                self.close_if_ended(py, instance, opening.until())?;
                Ok(())
            }
            Err(error) => {
                instance.failed(instance.state.take(py));
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                if instance.is_ended() {
                    self.registry.forget(py, instance);
                } else {
                    self.registry.forget_unused(py);
                }
                Err(error)
            }
        }
    }

    /// Takes a place for a database that is to be opened. Where there is none, it closes the one that was not used for the
    /// longest time and has no call under way; or waits until there is such a one.
    fn take_place(&self, py: Python<'_>, instance: &Arc<Instance>, opening: Opening) -> Result<(), Error> {
        while !self.places.take() {
            opening.go_on(instance)?;
            if self.evict(py, opening.until())? {
                continue;
            }
            if fork_gate::inside_call() {
                return Err(Error::busy(instance));
            }
            if instance.is_ended() {
                return Err(Error::ended(instance));
            }
            gil::wait(py, || thread::sleep(PLACE_POLL))?;
        }
        Ok(())
    }

    fn evict(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<bool> {
        let mut instances = self.registry.instances(py);
        instances.sort_by(|a, b| a.last_used().total_cmp(&b.last_used()));
        for instance in instances {
            if self.try_close(py, &instance, until)? {
                self.counters.evictions.fetch_add(1, Ordering::Relaxed);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Releases an instance in all threads and closes its database. Calls under way finish first.
    pub fn cleanup(&self, py: Python<'_>, key: &Key) -> Result<(), Error> {
        self.counters.cleanups.fetch_add(1, Ordering::Relaxed);
        if let Some(instance) = self.registry.existing(py, key) {
            self.end(py, &instance)?;
            self.wait_until_gone(py, &instance)?;
            give_memory_back(py);
        }
        Ok(())
    }

    /// The same for all instances.
    pub fn cleanup_all(&self, py: Python<'_>) -> Result<(), Error> {
        self.counters.cleanups.fetch_add(1, Ordering::Relaxed);
        let instances = self.registry.instances(py);
        for instance in &instances {
            self.end(py, instance)?;
        }
        for instance in &instances {
            self.wait_until_gone(py, instance)?;
        }
        self.engine.tidy(py);
        if !instances.is_empty() {
            give_memory_back(py);
        }
        Ok(())
    }

    /// Exclusive maintenance: does something with a database while it is closed for everybody.
    pub fn manage<'py>(
        self: &Arc<Self>,
        py: Python<'py>,
        key: &Key,
        task: &Task<'py>,
    ) -> Result<Bound<'py, PyAny>, Error> {
        let opening = self.opening(task.may_create());
        self.while_quiet(py, key, |instance| {
            let mut attempts = Attempts::new();
            loop {
                let failure = match self.engine.manage(py, instance, task, opening) {
                    Ok(done) => return Ok(done),
                    Err(failure) => failure,
                };
                if let Next::PassOn(error) = attempts.after(py, instance, failure) {
                    if let Error::Python(raised) = &error {
                        name_place(py, instance, raised)?;
                    }
                    return Err(error);
                }
            }
        })
    }

    /// Cleans an instance up and removes its database, whoever else has it open; tells whether there was one.
    pub fn delete(self: &Arc<Self>, py: Python<'_>, key: &Key) -> Result<bool, Error> {
        let deadline = self.opening(false).deadline;
        if !fork_gate::inside_call() {
            self.cleanup(py, key)?;
        }
        self.while_quiet(py, key, |instance| self.engine.delete(py, instance, deadline))
    }

    /// Does something when no call of this process is under way in an instance; where the work of calls is done here, the
    /// database is closed meanwhile.
    fn while_quiet<T>(
        self: &Arc<Self>,
        py: Python<'_>,
        key: &Key,
        work: impl FnOnce(&Arc<Instance>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.shut_down.load(Ordering::SeqCst) {
            return Err(Error::ManagerShutDown);
        }
        let instance = self.registry.instance(py, key, &self.options.base_path);
        if fork_gate::inside_call() {
            return Err(Error::busy(&instance));
        }
        let result = match self.engine.work() {
            Work::Elsewhere => pass(py, Work::Elsewhere).map_err(Error::from).and_then(|_pass| work(&instance)),
            Work::Here => {
                drop(instance);
                let (instance, _pass) = self.begin_work(py, key)?;
                let result = work(&instance);
                self.end_work(py, &instance)?;
                result
            }
        };
        self.registry.forget_unused(py);
        self.engine.tidy(py);
        result
    }

    /// Closes an instance, and has nobody open it before [`Self::end_work`].
    fn begin_work(self: &Arc<Self>, py: Python<'_>, key: &Key) -> PyResult<(Arc<Instance>, Pass)> {
        loop {
            let instance = self.registry.instance(py, key, &self.options.base_path);
            let (pass, open) = self.wait_for_work(py, &instance)?;
            if let Some(database) = open
                && let Err(interrupted) = self.close(py, &instance, database, None)
            {
                self.end_work(py, &instance)?;
                return Err(interrupted);
            }
            if !instance.is_ended() {
                return Ok((instance, pass));
            }
            // Cleaned up meanwhile: who asks for it now gets another one.
            self.end_work(py, &instance)?;
        }
    }

    fn wait_for_work(&self, py: Python<'_>, instance: &Instance) -> PyResult<(Pass, Option<Box<dyn Database>>)> {
        let _wanted = instance.want_work();
        loop {
            let pass = pass(py, self.engine.work())?;
            let begun = instance.begin_work(instance.state.take(py));
            if let Some(open) = begun {
                return Ok((pass, open));
            }
            drop(pass);
            gil::wait(py, || instance.wait_until_quiet(SIGNAL_POLL))?;
        }
    }

    fn end_work(&self, py: Python<'_>, instance: &Arc<Instance>) -> PyResult<()> {
        instance.closed(instance.state.take(py));
        self.close_if_ended(py, instance, None)
    }

    /// Closes the databases that were not used for `idle`, and lets go of their clients; handles that somebody kept go
    /// on, and open them again. Tells how many it closed.
    pub fn close_idle(&self, py: Python<'_>, idle: Duration) -> PyResult<usize> {
        let mut closed = 0;
        for instance in self.registry.instances(py) {
            if !instance.is_idle_for(idle) {
                continue;
            }
            closed += usize::from(self.try_close(py, &instance, None)?);
            if instance.state.take(py).is_closed() {
                self.registry.forget_clients_of(py, &instance);
            }
        }
        self.registry.forget_unused(py);
        self.engine.tidy(py);
        if closed > 0 {
            give_memory_back(py);
        }
        Ok(closed)
    }

    /// Lets go of all clients; tells whether nobody else has one. Where somebody does, the others get new ones.
    pub fn let_go_of_clients(&self, py: Python<'_>) -> bool {
        for instance in self.registry.instances(py) {
            self.registry.forget_clients_of(py, &instance);
        }
        self.connections.load(Ordering::SeqCst) == 0
    }

    /// Cleans up, and lets nobody in again.
    pub fn shut_down(&self, py: Python<'_>) -> Result<(), Error> {
        self.shut_down.store(true, Ordering::SeqCst);
        drop(self.idle_thread.take(py).take());
        self.cleanup_all(py)
    }

    /// At the end of the process: closes what nobody is inside of, and waits for nobody.
    pub fn abandon(&self, py: Python<'_>) {
        self.shut_down.store(true, Ordering::SeqCst);
        for instance in self.registry.instances(py) {
            if let Err(error) = self.end(py, &instance) {
                log::warn!(target: LOGGER, "{} was not closed at the end of the process: {error}", instance.key());
            }
        }
    }

    /// How a caller that comes now opens a database.
    pub fn opening(&self, may_create: bool) -> Opening {
        let opening = Opening::new(may_create, self.options.lock_timeout);
        Opening { answer_within: self.engine.call_timeout(), ..opening }
    }

    /// The same for a call, which is bounded as a whole.
    pub fn opening_for_call(&self, may_create: bool) -> Opening {
        Opening { budget: self.engine.call_timeout().map(Budget::new), ..self.opening(may_create) }
    }

    fn end(&self, py: Python<'_>, instance: &Arc<Instance>) -> PyResult<()> {
        instance.end();
        self.registry.forget_clients_of(py, instance);
        self.close_if_ended(py, instance, None)
    }

    fn close_if_ended(&self, py: Python<'_>, instance: &Arc<Instance>, until: Option<Instant>) -> PyResult<()> {
        if instance.is_ended() {
            self.try_close(py, instance, until)?;
            if instance.state.take(py).is_closed() {
                self.registry.forget(py, instance);
            }
        }
        Ok(())
    }

    /// After a call that failed: closes its database, if that is what it needs, for the next call to open it anew. Where
    /// others are inside yet, one of them does so, for they fail too.
    pub fn close_if_damaged(
        &self,
        py: Python<'_>,
        instance: &Arc<Instance>,
        error: &PyErr,
        until: Option<Instant>,
    ) -> PyResult<()> {
        if self.engine.is_damaged_by(py, error) {
            self.try_close(py, instance, until)?;
        }
        Ok(())
    }

    /// Closes an instance that is open and has nobody inside; tells whether it was.
    fn try_close(&self, py: Python<'_>, instance: &Arc<Instance>, until: Option<Instant>) -> PyResult<bool> {
        let _pass = pass(py, self.engine.work())?;
        let Some(database) = instance.begin_closing(instance.state.take(py)) else { return Ok(false) };
        let closed = self.close(py, instance, database, until);
        instance.closed(instance.state.take(py));
        closed.map(|()| true)
    }

    /// Whatever comes of it, the database is not open in this process any more.
    fn close(
        &self,
        py: Python<'_>,
        instance: &Instance,
        database: Box<dyn Database>,
        until: Option<Instant>,
    ) -> PyResult<()> {
        let closed = database.close(py, until);
        self.places.give_back();
        log::debug!(target: LOGGER, "closed {} ({})", instance.key(), instance.path().display());
        closed
    }

    /// Closes a database whose directory was found to be another one, or none, when the calls inside have ended. Whoever
    /// enters next opens what is there now.
    pub fn close_gone(
        &self,
        py: Python<'_>,
        instance: &Arc<Instance>,
        gone: &WeakDatabase,
        opening: Opening,
    ) -> Result<(), Error> {
        loop {
            {
                let _pass = pass(py, self.engine.work())?;
                if let Some(database) = instance.begin_closing_of(instance.state.take(py), gone) {
                    log::warn!(
                        target: LOGGER,
                        "{} was removed or replaced while it was open, or its engine process was told to end",
                        instance.key()
                    );
                    let closed = self.close(py, instance, database, opening.until());
                    instance.closed(instance.state.take(py));
                    closed?;
                }
            }
            if !instance.state.take(py).is_open_with(gone) {
                return Ok(());
            }
            if fork_gate::inside_call() {
                return Err(Error::busy(instance));
            }
            opening.go_on(instance)?;
            gil::wait(py, || instance.wait_until_quiet(SIGNAL_POLL))?;
        }
    }

    /// Waits until an ended instance is closed, unless this thread is what keeps it open.
    fn wait_until_gone(&self, py: Python<'_>, instance: &Arc<Instance>) -> PyResult<()> {
        loop {
            self.close_if_ended(py, instance, None)?;
            let waits_for_itself = fork_gate::inside_call();
            let state = instance.state.take(py);
            if waits_for_itself || state.is_closed() || state.is_in_hands_of_this_thread() {
                return Ok(());
            }
            drop(state);
            gil::wait(py, || instance.wait_until_quiet(SIGNAL_POLL))?;
        }
    }

    fn start_idle_thread(self: &Arc<Self>, py: Python<'_>) {
        let Some(idle) = self.options.idle_timeout else { return };
        let mut thread = self.idle_thread.take(py);
        if thread.as_ref().is_none_or(|thread| !thread.is_of_this_process()) {
            let supervisor = Arc::downgrade(self);
            *thread = IdleThread::start(idle, move |py| {
                supervisor.upgrade().is_some_and(|supervisor| {
                    if let Err(error) = supervisor.close_idle(py, idle) {
                        log::warn!(target: LOGGER, "closing idle databases: {error}");
                    }
                    true
                })
            });
        }
    }
}

/// A caller inside an open instance: a call under way. Dropping it counts the caller out.
pub struct Inside<'a> {
    py: Python<'a>,
    supervisor: &'a Arc<Supervisor>,
    instance: &'a Arc<Instance>,
    database: Option<Arc<Box<dyn Database>>>,
    /// Until when its end may take.
    until: Option<Instant>,
    _pass: Pass,
}

impl Inside<'_> {
    pub fn database(&self) -> &dyn Database {
        &***self.database.as_ref().expect("it is given up at the end only")
    }

    fn is_in_place(&self) -> bool {
        let database = self.database();
        self.py.detach(|| database.is_in_place())
    }

    /// Counts the caller out; what is left tells this database from one that is opened later.
    pub fn leave(mut self) -> PyResult<WeakDatabase> {
        let database = self.database.as_ref().map_or_else(Weak::new, Arc::downgrade);
        self.count_out().map(|()| database)
    }

    fn count_out(&mut self) -> PyResult<()> {
        let Some(database) = self.database.take() else { return Ok(()) };
        drop(database);
        self.instance.touch();
        self.instance.leave(self.instance.state.take(self.py));
        self.supervisor.close_if_ended(self.py, self.instance, self.until)
    }
}

/// An open database, for who is not inside.
pub type WeakDatabase = Weak<Box<dyn Database>>;

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.count_out() {
            error.write_unraisable(self.py, None);
        }
    }
}

/// Gives the allocator's free pages back to the system: of 50 closed databases it otherwise keeps 170 MB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn give_memory_back(py: Python<'_>) {
    py.detach(|| {
        // SAFETY: it takes no pointer, and may be called by any thread at any time.
        unsafe { libc::malloc_trim(0) };
    });
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_memory_back(_: Python<'_>) {}

/// What the end of the process and the idle thread hold.
pub type WeakSupervisor = Weak<Supervisor>;
