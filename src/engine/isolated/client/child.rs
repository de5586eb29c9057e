//! Engine processes as child processes: starts and reaps them, and reads the tail of their log.
//!
//! `holder.rs` decides when one is started.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
#[cfg(target_os = "linux")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, waitpid};
#[cfg(target_os = "linux")]
use rustix::process::{PidfdFlags, pidfd_open};

use crate::engine::isolated::protocol::address::{Address, forget_previous, listen, new_log};
use crate::storage::lock_file::LockFile;
use crate::storage::owner::Owner;
use crate::sync::fork_gate;

/// The program of an engine process.
#[derive(Clone, Debug)]
pub struct Program {
    /// The interpreter, its options, and the script.
    pub command: Vec<OsString>,
    /// The environment variables that differ from the app's; `None` removes one.
    pub environment: BTreeMap<OsString, Option<OsString>>,
}

impl Program {
    fn command(&self) -> io::Result<Command> {
        let (python, arguments) = self.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(python);
        command.args(arguments);
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Ok(command)
    }
}

/// The name that an engine process gives itself.
const NAME: &str = "chroma-engine";

const FIRST_PROCESS: u32 = 1;

const REAP_WITHIN: Duration = Duration::from_secs(2);
const STATUS_WITHIN: Duration = Duration::from_millis(100);

/// The pause between two checks of a child where the system has no pidfd.
const END_POLL: Duration = Duration::from_millis(1);

/// How many bytes of an engine process's log an error message quotes.
const STDERR_TAIL: u64 = 2_000;

/// The engine processes that this process has started and not yet reaped, with their addresses.
static CHILDREN: Mutex<Vec<(Address, Child)>> = Mutex::new(Vec::new());

/// Starts an engine process in a directory, whose lock it inherits, and returns its address. The caller holds a pass
/// for work in this process.
pub fn start(program: &Program, arguments: &str, directory: &Path, lock: &LockFile) -> io::Result<Address> {
    forget_previous(lock.previous());
    let (listener, socket) = listen(directory)?;
    let owner = Owner { socket: Some(socket), ..lock.owner().clone() };
    let mut address = Address { directory: directory.to_path_buf(), owner };
    let spawn = |address: &mut Address| {
        let (log, path) = new_log()?;
        address.owner.log = path;
        // It inherits three descriptors: the lock as standard input, the socket as standard output, the log as standard
        // error.
        program
            .command()?
            .arg(arguments)
            .arg(address.owner.socket.as_deref().unwrap_or(Path::new("")))
            .arg(address.owner.log.as_deref().unwrap_or(Path::new("")))
            .current_dir(directory)
            .stdin(lock.try_clone()?)
            .stdout(listener)
            .stderr(log)
            // A Ctrl-C in the terminal is for the app.
            .process_group(0)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.command[0].display())))
    };
    let child = spawn(&mut address).inspect_err(|_| address.forget())?;
    address.owner.pid = Some(child.id());
    CHILDREN.lock().push((address.clone(), child));
    Ok(address)
}

/// Describes the end of an engine process: its status, if this process has started it, and the tail of its log.
pub fn stderr_tail(address: &Address) -> String {
    let status = status_of(address).map(|status| status.to_string());
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
    status_of(address).is_some_and(|status| !status.success())
}

/// Returns the status of an engine process that this process has started, once it has ended. Waits briefly: its sockets
/// are closed a moment before its status is available.
fn status_of(address: &Address) -> Option<ExitStatus> {
    let deadline = Instant::now() + STATUS_WITHIN;
    loop {
        let pid = {
            let _pass = fork_gate::here();
            let mut children = CHILDREN.lock();
            let (_, child) = children.iter_mut().find(|(of_child, _)| of_child.is_of_same_owner(address))?;
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            Pid::from_child(child)
        };
        if Instant::now() >= deadline {
            return None;
        }
        wait_for_end(pid, deadline);
    }
}

/// Reaps the engine processes that have ended, and removes their files, including their logs.
pub fn reap() {
    let _pass = fork_gate::here();
    let mut children = CHILDREN.lock();
    if std::process::id() == FIRST_PROCESS {
        reap_adopted(&children);
    }
    children.retain_mut(|(address, child)| {
        let lives = matches!(child.try_wait(), Ok(None));
        if !lives {
            address.forget();
        }
        lives
    });
}

/// Reaps the engine processes that the first process of a container has adopted: those whose parent has ended. They are
/// recognized by their name; any other child is left to the app.
fn reap_adopted(children: &[(Address, Child)]) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        if children.iter().all(|(_, child)| Pid::from_child(child) != pid) && is_ended_engine(&entry.path()) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Returns whether a directory of `/proc` is that of an engine process that has ended and is a child of the first
/// process.
fn is_ended_engine(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    let Some((_, from_name)) = stat.split_once('(') else { return false };
    let Some((name, rest)) = from_name.rsplit_once(')') else { return false };
    name == NAME && rest.split_whitespace().take(2).eq(["Z", "1"])
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
            children
                .iter()
                .find(|(of_child, _)| of_child.is_of_same_owner(address))
                .map(|(_, child)| Pid::from_child(child))
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
}
