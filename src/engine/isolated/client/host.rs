//! The host: a process that has loaded all that an engine process needs, and forks engine processes on demand.
//!
//! A fork takes 2 ms where the start of an interpreter takes 60. An app has one host, from its second engine process on:
//! it is started beside that one, and those that are opened meanwhile wait until it can fork. It ends when no engine
//! process of the app is left, or with the app. Its program is `worker/host.py`.
//!
//! Nothing depends on it. Where it is not ready, does not answer, or is not what a new process of this app would be (the
//! app has changed its user, its limits, its namespaces), the caller starts the engine process itself. An engine process
//! waits after its fork for the app's permission, so that one whose app has given up touches nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
    sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::program::{ENGINE_NAME, End, Environment, Program, name_and_rest};
use crate::sync::fork_gate;

/// How long openings wait for a host that has been started. After that they start engine processes themselves, until it
/// is ready.
const READY_WITHIN: Duration = Duration::from_secs(2);
const READY_POLL: Duration = Duration::from_millis(1);

/// How long the host may take to fork. A fork that takes longer is given up.
const FORKS_WITHIN: Duration = Duration::from_secs(2);

/// How long the host may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// The variable with which a user turns the host off, and its value.
const START_VARIABLE: &str = "CHROMA_MANAGER_START";
const SPAWN: &str = "spawn";

/// The message of a host that has loaded everything.
const READY: usize = 1;

/// The app's permission to an engine process.
const PERMIT: &[u8] = b"g";

/// The message that an engine process has ended: its number, and its status as `waitpid` says it.
const ENDED: usize = 12;

/// The lines of `/proc/self/status` that a child inherits.
const INHERITED: [&str; 13] = [
    "Umask:",
    "Uid:",
    "Gid:",
    "Groups:",
    "SigIgn:",
    "CapInh:",
    "CapPrm:",
    "CapEff:",
    "CapBnd:",
    "CapAmb:",
    "NoNewPrivs:",
    "Seccomp:",
    "Cpus_allowed:",
];
const NAMESPACES: [&str; 8] = ["mnt", "user", "pid_for_children", "net", "ipc", "uts", "cgroup", "../root"];

/// The host of this process.
static HOST: Mutex<Option<Host>> = Mutex::new(None);

/// The statuses of engine processes that have ended, by their numbers.
static ENDS: Mutex<BTreeMap<u64, ExitStatus>> = Mutex::new(BTreeMap::new());

/// The number of the next engine process that a host is to fork.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// Whether a host can be had here: none has failed before it was ready.
static IS_USABLE: AtomicBool = AtomicBool::new(true);

struct Host {
    process: Child,
    /// Messages in both directions, each of them whole.
    channel: OwnedFd,
    program: Program,
    /// What it has inherited from this process.
    inherited: Vec<u8>,
    started: Instant,
    is_ready: bool,
}

/// An engine process that a host has forked.
#[derive(Clone, Copy, Debug)]
pub struct Forked {
    /// Its process.
    pub pid: Pid,
    /// The host that is its parent.
    host: u32,
    number: u64,
}

/// What an engine process needs.
pub struct Request<'a> {
    /// The arguments of its program: the description of its database, the socket's name, and the log's.
    pub arguments: [&'a [u8]; 3],
    /// Its standard input, output and error: the lock, the listening socket, and the log.
    pub standard: [BorrowedFd<'a>; 3],
    /// Its environment.
    pub environment: &'a Environment,
    /// Its working directory.
    pub directory: &'a Path,
}

/// Forks an engine process. Returns `None` where the caller has to start it. Must not be called while attached to the
/// interpreter.
pub fn fork(program: &Program, request: &Request<'_>) -> Option<Forked> {
    let directory = File::open(request.directory).ok()?;
    let (mut answer, engine) = UnixStream::pair().ok()?;
    let (host, number) = {
        let mut place = HOST.lock();
        let host = living(&mut place)?;
        if !(host.is_ready && host.is_of(program)) {
            return None;
        }
        let number = NUMBERS.fetch_add(1, Relaxed);
        let message = message(number, request);
        let [lock, socket, log] = request.standard;
        host.send(&message, &[lock, socket, log, directory.as_fd(), engine.as_fd()]).ok()?;
        (host.process.id(), number)
    };
    drop(engine);
    let permit = |answer: &mut UnixStream| {
        answer.set_read_timeout(Some(FORKS_WITHIN))?;
        let mut pid = [0; 4];
        answer.read_exact(&mut pid)?;
        answer.write_all(PERMIT)?;
        Ok::<_, io::Error>(Pid::from_raw(i32::from_ne_bytes(pid)))
    };
    if let Ok(Some(pid)) = permit(&mut answer) {
        return Some(Forked { pid, host, number });
    }
    give_up(host);
    None
}

/// Starts a host for engine processes of this program, unless there is one. An error is not one of the caller's, who
/// does without.
pub fn prepare(program: &Program, environment: &Environment) {
    let _pass = fork_gate::here();
    let is_wanted = environment.get(OsStr::new(START_VARIABLE)).is_none_or(|how| how != SPAWN);
    if !is_wanted || !IS_USABLE.load(Relaxed) {
        return;
    }
    let mut place = HOST.lock();
    if living(&mut place).is_some_and(|host| host.is_of(program)) {
        return;
    }
    if let Some(old) = place.take() {
        old.end();
    }
    *place = Host::start(program, environment).ok();
}

/// Waits until the host can fork. Returns at once if there is none, or if it has not become ready in time.
pub fn wait_until_ready() {
    let is_awaited = || {
        let _pass = fork_gate::here();
        living(&mut HOST.lock()).is_some_and(|host| !host.is_ready && host.started.elapsed() < READY_WITHIN)
    };
    while is_awaited() {
        thread::sleep(READY_POLL);
    }
}

/// Ends the host. It leaves the engine processes that it has forked.
pub fn end() {
    let host = HOST.lock().take();
    if let Some(host) = host {
        host.end();
    }
}

/// Receives what the host has sent, and returns it unless it has ended.
fn living(place: &mut Option<Host>) -> Option<&mut Host> {
    if let Some(mut ended) = place.take_if(|host| host.receive().is_none()) {
        let status = ended.process.wait();
        // Not where somebody has killed it.
        let has_failed = status.is_ok_and(|status| status.code().is_some());
        if has_failed && !ended.is_ready {
            // Another one would fail, too.
            IS_USABLE.store(false, Relaxed);
        }
    }
    place.as_mut()
}

/// Ends the host that does not answer, unless there is another one by now.
fn give_up(host: u32) {
    let given_up = HOST.lock().take_if(|found| found.process.id() == host);
    if let Some(mut host) = given_up {
        let _ = host.process.kill();
        let _ = host.process.wait();
    }
}

/// Closes the channel in a forked child: the host belongs to its parent.
pub fn forget_inherited() {
    if let Some(mut place) = HOST.try_lock()
        && let Some(Host { process, .. }) = place.take()
    {
        std::mem::forget(process);
    }
    if let Some(mut ends) = ENDS.try_lock() {
        ends.clear();
    }
}

impl Forked {
    /// Returns the end of the engine process, if it has ended.
    pub fn try_wait(&self) -> Option<End> {
        let is_parent = {
            let mut place = HOST.lock();
            living(&mut place).is_some_and(|host| host.process.id() == self.host)
        };
        if let Some(status) = ENDS.lock().get(&self.number) {
            return Some(End::Status(*status));
        }
        (!is_parent && !is_engine(self.pid)).then_some(End::Unknown)
    }

    /// Forgets its status.
    pub fn forget(self) {
        ENDS.lock().remove(&self.number);
    }
}

/// Returns whether a process is an engine process that has not ended.
fn is_engine(pid: Pid) -> bool {
    let process = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    name_and_rest(&process).is_some_and(|(name, rest)| name == ENGINE_NAME && !rest.starts_with(['Z', 'X']))
}

impl Host {
    fn start(program: &Program, environment: &Environment) -> io::Result<Self> {
        let (channel, its_end) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = program.command(environment)?;
        command.args(&program.host).stdin(its_end).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let inherited = inherited()?;
        let process = command.spawn()?;
        Ok(Self { process, channel, program: program.clone(), inherited, started: Instant::now(), is_ready: false })
    }

    /// Whether it is what this program would be if it was started now.
    fn is_of(&self, program: &Program) -> bool {
        self.program == *program && inherited().is_ok_and(|now| now == self.inherited)
    }

    /// Receives what it has sent; `None` where it has ended.
    fn receive(&mut self) -> Option<()> {
        loop {
            let mut message = [0; ENDED];
            match recv(&self.channel, &mut message, RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => return None,
                Ok((_, READY)) => self.is_ready = true,
                Ok((_, ENDED)) => {
                    let (number, status) = message.split_at(8);
                    let number = u64::from_ne_bytes(number.try_into().ok()?);
                    let status = ExitStatus::from_raw(i32::from_ne_bytes(status.try_into().ok()?));
                    ENDS.lock().insert(number, status);
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Some(()),
            }
        }
    }

    fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        sendmsg(&self.channel, &[IoSlice::new(message)], &mut ancillary, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Closes the channel, whereupon it ends.
    fn end(self) {
        let Self { mut process, channel, .. } = self;
        drop(channel);
        if let Ok(descriptor) = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()) {
            let within = Timespec::try_from(ENDS_WITHIN).ok();
            let _ = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], within.as_ref());
        }
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// A request: the number, the arguments of the program, and the environment, with a NUL after each.
fn message(number: u64, request: &Request<'_>) -> Vec<u8> {
    let mut message = number.to_string().into_bytes();
    for argument in request.arguments {
        message.push(0);
        message.extend_from_slice(argument);
    }
    for (name, value) in request.environment {
        message.push(0);
        message.extend_from_slice(name.as_bytes());
        message.push(b'=');
        message.extend_from_slice(value.as_bytes());
    }
    message
}

/// What a process that is started now would inherit from this one besides descriptors and environment.
fn inherited() -> io::Result<Vec<u8>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mut found: Vec<u8> =
        status.lines().filter(|line| INHERITED.iter().any(|name| line.starts_with(name))).collect::<String>().into();
    for file in ["/proc/self/limits", "/proc/self/cgroup", "/proc/self/oom_score_adj"] {
        found.extend(fs::read(file)?);
    }
    for namespace in NAMESPACES {
        found.extend(fs::read_link(Path::new("/proc/self/ns").join(namespace))?.as_os_str().as_bytes());
    }
    Ok(found)
}
