//! The engine processes that this process has started: starts and reaps them, and reads the tail of their log.
//!
//! `holder.rs` decides when one is started. Most are forked by the host (`host.rs`), whose children they are.

use std::fs::{self, File};
use std::io::{self, Read};
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
#[cfg(target_os = "linux")]
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
#[cfg(target_os = "linux")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, waitpid};
#[cfg(target_os = "linux")]
use rustix::process::{PidfdFlags, pidfd_open};

#[cfg(target_os = "linux")]
use super::host;
use super::program::{CHECKPOINT_NAME, ENGINE_NAME, End, Environment, HOST_NAME, Program, name_and_rest};
use crate::engine::isolated::protocol::address::{Address, listen, new_log};
use crate::storage::lock_file::LockFile;
use crate::storage::owner::Owner;
use crate::sync::fork_gate;

const FIRST_PROCESS: u32 = 1;

const REAP_WITHIN: Duration = Duration::from_secs(2);
const STATUS_WITHIN: Duration = Duration::from_millis(100);

/// The pause between two checks of a child where the system has no pidfd.
const END_POLL: Duration = Duration::from_millis(1);

/// How many bytes of an engine process's log an error message quotes.
const STDERR_TAIL: u64 = 2_000;

/// The engine processes that this process has started and not yet reaped, with their addresses.
static CHILDREN: Mutex<Vec<(Address, Process)>> = Mutex::new(Vec::new());

/// How many engine processes this process is starting.
static STARTING: AtomicUsize = AtomicUsize::new(0);

/// A start of an engine process, from the decision to its greeting. The host does not end meanwhile.
pub struct StartInProgress {
    /// Whether others are being started.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no host"))]
    has_company: bool,
}

impl StartInProgress {
    /// Begins a start.
    pub fn new() -> Self {
        Self { has_company: STARTING.fetch_add(1, SeqCst) > 0 }
    }

    /// Waits for a host that is being started, so that many databases that are opened at once do not start an
    /// interpreter each; the second of them starts the host. The wait is bounded. To be called without a pass: a fork of
    /// the app need not wait for it.
    #[cfg(target_os = "linux")]
    pub fn wait_for_host(&self, program: &Program, environment: &Environment) {
        if self.has_company {
            host::prepare(program, environment);
        }
        host::wait_until_ready();
    }
}

impl Drop for StartInProgress {
    fn drop(&mut self) {
        // A child that was forked by a signal handler meanwhile has begun none.
        let _ = STARTING.fetch_update(SeqCst, SeqCst, |starting| starting.checked_sub(1));
    }
}

/// An engine process.
enum Process {
    /// A child of this process.
    Spawned(Child),
    /// A child of the host.
    #[cfg(target_os = "linux")]
    Forked(host::Forked),
}

impl Process {
    fn pid(&self) -> Pid {
        match self {
            Self::Spawned(child) => Pid::from_child(child),
            #[cfg(target_os = "linux")]
            Self::Forked(forked) => forked.pid,
        }
    }

    /// Returns how it has ended, if it has.
    fn try_wait(&mut self) -> Option<End> {
        match self {
            Self::Spawned(child) => child.try_wait().map_or(Some(End::Unknown), |status| status.map(End::Status)),
            #[cfg(target_os = "linux")]
            Self::Forked(forked) => forked.try_wait(),
        }
    }
}

/// Starts an engine process in a directory, whose lock it inherits, and returns its address. The caller holds a pass
/// for work in this process.
pub fn start(
    program: &Program,
    environment: &Environment,
    arguments: &str,
    directory: &Path,
    lock: &LockFile,
) -> io::Result<Address> {
    let (listener, socket) = listen(directory)?;
    let owner = Owner { socket: Some(socket), ..lock.owner().clone() };
    let mut address = Address { directory: directory.to_path_buf(), owner };
    let start = |address: &mut Address| -> io::Result<Process> {
        let (log, path) = new_log()?;
        address.owner.log = path;
        let names = [&address.owner.socket, &address.owner.log].map(|name| name.as_deref().unwrap_or(Path::new("")));
        // It has three descriptors: the lock as standard input, the socket as standard output, the log as standard error.
        let lock = lock.try_clone()?;
        #[cfg(target_os = "linux")]
        {
            let [socket, log_name] = names.map(|name| name.as_os_str().as_bytes());
            let arguments = [arguments.as_bytes(), socket, log_name];
            let standard = [lock.as_fd(), listener.as_fd(), log.as_fd()];
            if let Some(forked) = host::fork(program, &host::Request { arguments, standard, environment, directory }) {
                return Ok(Process::Forked(forked));
            }
        }
        let child = program
            .command(environment)?
            .arg(arguments)
            .args(names)
            .current_dir(directory)
            .stdin(lock)
            .stdout(listener)
            .stderr(log)
            // A Ctrl-C in the terminal is for the app.
            .process_group(0)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.command[0].display())))?;
        // An app with one database does without a host.
        #[cfg(target_os = "linux")]
        if !CHILDREN.lock().is_empty() {
            host::prepare(program, environment);
        }
        Ok(Process::Spawned(child))
    };
    let process = start(&mut address).inspect_err(|_| address.forget())?;
    address.owner.pid = Some(process.pid().as_raw_nonzero().get().unsigned_abs());
    CHILDREN.lock().push((address.clone(), process));
    Ok(address)
}

/// Describes the end of an engine process: its status, if this process has started it, and the tail of its log.
pub fn stderr_tail(address: &Address) -> String {
    let status = match status_of(address) {
        Some(End::Status(status)) => Some(status.to_string()),
        Some(End::Unknown) | None => None,
    };
    let tail = Some(log_tail(address)).filter(|tail| !tail.is_empty());
    status.into_iter().chain(tail).collect::<Vec<_>>().join("; ")
}

/// Returns the tail of an engine process's log, or an empty string if there is none.
pub fn log_tail(address: &Address) -> String {
    let mut text = Vec::new();
    if let Some(Ok(mut log)) = address.owner.log.as_ref().map(File::open) {
        let length = log.metadata().map_or(0, |metadata| metadata.len());
        let _ = io::Seek::seek(&mut log, io::SeekFrom::Start(length.saturating_sub(STDERR_TAIL)));
        let _ = log.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// Returns whether this process has started the engine process, and it has ended with a failure.
pub fn has_died(address: &Address) -> bool {
    match status_of(address) {
        Some(End::Status(status)) => !status.success(),
        Some(End::Unknown) => true,
        None => false,
    }
}

/// Returns how an engine process has ended that this process has started, once it has. Waits briefly: its sockets are
/// closed a moment before its status is available.
fn status_of(address: &Address) -> Option<End> {
    let deadline = Instant::now() + STATUS_WITHIN;
    loop {
        let pid = {
            let _pass = fork_gate::here();
            let mut children = CHILDREN.lock();
            let (_, process) = children.iter_mut().find(|(of_child, _)| of_child.is_of_same_owner(address))?;
            if let Some(end) = process.try_wait() {
                return Some(end);
            }
            process.pid()
        };
        if Instant::now() >= deadline {
            return None;
        }
        wait_for_end(pid, deadline);
    }
}

/// Reaps the engine processes that have ended, and removes their files, including their logs. If none is left, ends the
/// host.
pub fn reap() {
    let _pass = fork_gate::here();
    let mut children = CHILDREN.lock();
    if std::process::id() == FIRST_PROCESS {
        reap_adopted(&children);
    }
    children.retain_mut(|(address, process)| {
        let lives = process.try_wait().is_none();
        if !lives {
            address.forget();
            #[cfg(target_os = "linux")]
            if let Process::Forked(forked) = process {
                forked.forget();
            }
        }
        lives
    });
    #[cfg(target_os = "linux")]
    if children.is_empty() && STARTING.load(SeqCst) == 0 {
        drop(children);
        host::end();
    }
}

/// Reaps the engine processes that the first process of a container has adopted: those whose parent has ended. They are
/// recognized by their name; any other child is left to the app.
fn reap_adopted(children: &[(Address, Process)]) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        let is_known = |process: &Process| matches!(process, Process::Spawned(child) if Pid::from_child(child) == pid);
        if !children.iter().any(|(_, process)| is_known(process)) && is_ended_engine(&entry.path()) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Returns whether a directory of `/proc` is that of an engine process, or a helper of one, that has ended and is a child
/// of the first process.
fn is_ended_engine(process: &Path) -> bool {
    name_and_rest(process).is_some_and(|(name, rest)| {
        [ENGINE_NAME, CHECKPOINT_NAME, HOST_NAME].contains(&name.as_str())
            && rest.split_whitespace().take(2).eq(["Z", "1"])
    })
}

/// Reaps an engine process that has ended. Waits briefly: its sockets are closed a moment before its status is
/// available.
pub fn reap_at(address: &Address) {
    let deadline = Instant::now() + REAP_WITHIN;
    loop {
        reap();
        let pid = {
            let _pass = fork_gate::here();
            let children = CHILDREN.lock();
            children.iter().find(|(of_child, _)| of_child.is_of_same_owner(address)).map(|(_, process)| process.pid())
        };
        match pid {
            Some(pid) if Instant::now() < deadline => wait_for_end(pid, deadline),
            _ => return,
        }
    }
}

/// Waits until a child has ended, at most until `deadline`. Where the system has no pidfd, only sleeps briefly.
fn wait_for_end(pid: Pid, deadline: Instant) {
    #[cfg(target_os = "linux")]
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], left.as_ref());
        return;
    }
    let _ = (pid, deadline);
    thread::sleep(END_POLL);
}

/// Forgets the engine processes in a forked child: they are children of its parent.
pub fn forget_inherited() {
    if let Some(mut children) = CHILDREN.try_lock() {
        std::mem::forget(std::mem::take(&mut *children));
    }
    STARTING.store(0, SeqCst);
    #[cfg(target_os = "linux")]
    host::forget_inherited();
}
