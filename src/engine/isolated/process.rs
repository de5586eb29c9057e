//! Finds the engine process of an instance, or starts it.
//!
//! The lock file is the election: who gets the lock starts the engine, which inherits the lock and keeps it for its life;
//! who does not connects to the socket that the file names. An engine that ends gives up the lock, whatever ended it.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::geteuid;

use super::peer;
use crate::calls;
use crate::lock_file::LockFile;

/// How an engine process is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The interpreter.
    pub python: PathBuf,
    /// `engine_process.py`.
    pub script: PathBuf,
}

const REAP_WITHIN: Duration = Duration::from_secs(2);
const STATUS_WITHIN: Duration = Duration::from_millis(100);

/// How much of an engine's log an error message quotes.
const LAST_WORDS: u64 = 2_000;

/// A socket's path must fit into 108 bytes of an address, on some systems 104.
const LONGEST_ADDRESS: usize = 100;

/// Engine processes that this process has started and not yet seen the end of, with their sockets.
static CHILDREN: Mutex<Vec<(PathBuf, Child)>> = Mutex::new(Vec::new());

/// Starts an engine that works in a directory and inherits its lock; tells its process id and its socket. Within a pass
/// for work here.
pub fn start(program: &Program, arguments: &str, directory: &Path, lock: &LockFile) -> io::Result<(u32, PathBuf)> {
    let socket = new_address()?;
    let child = start_at(&socket, program, arguments, directory, lock).inspect_err(|_| forget_address(&socket))?;
    let pid = child.id();
    CHILDREN.lock().push((socket.clone(), child));
    Ok((pid, socket))
}

fn start_at(socket: &Path, program: &Program, arguments: &str, directory: &Path, lock: &LockFile) -> io::Result<Child> {
    let listener = UnixListener::bind(socket)?;
    let log = OpenOptions::new().create(true).append(true).open(log_of(socket))?;
    log.set_permissions(fs::Permissions::from_mode(0o600))?;
    // Three descriptors are all it inherits: the lock as its standard input, the socket as its output, the log as errors.
    Command::new(&program.python)
        .args(["-I", "-S", "-X", "frozen_modules=on"])
        .arg(&program.script)
        .arg(arguments)
        .arg(socket)
        .current_dir(directory)
        .stdin(lock.try_clone()?)
        .stdout(OwnedFd::from(listener))
        .stderr(log)
        // A Ctrl-C at the terminal is the app's.
        .process_group(0)
        .spawn()
}

/// Connects to an engine of this user. It greets when it is ready.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = super::line::connect_at_once(socket)?;
    if peer::is_same_user(stream.as_fd()) {
        Ok(stream)
    } else {
        Err(io::Error::new(ErrorKind::PermissionDenied, "the engine process belongs to another user"))
    }
}

/// How an engine ended, as far as it is known: its status, if this process started it, and what it wrote last.
pub fn last_words(socket: &Path) -> String {
    let status = status_of(socket).map(|status| status.to_string());
    let mut text = Vec::new();
    if let Ok(mut log) = File::open(log_of(socket)) {
        let length = log.metadata().map_or(0, |metadata| metadata.len());
        let _ = io::Seek::seek(&mut log, io::SeekFrom::Start(length.saturating_sub(LAST_WORDS)));
        let _ = log.read_to_end(&mut text);
    }
    let words = Some(String::from_utf8_lossy(&text).trim().to_owned()).filter(|words| !words.is_empty());
    status.into_iter().chain(words).collect::<Vec<_>>().join("; ")
}

/// Whether it is an engine that this process started and that ended otherwise than it should.
pub fn has_died(socket: &Path) -> bool {
    status_of(socket).is_some_and(|status| !status.success())
}

/// It is gone for its clients a moment before it is for the system.
fn status_of(socket: &Path) -> Option<ExitStatus> {
    let deadline = Instant::now() + STATUS_WITHIN;
    loop {
        {
            let _pass = calls::here();
            let mut children = CHILDREN.lock();
            let (_, child) = children.iter_mut().find(|(of_child, _)| of_child == socket)?;
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Removes what is left of an engine that has ended.
pub fn forget_address(socket: &Path) {
    // A lock file may name anything; what is removed is a socket of ours.
    let is_ours = socket.extension().is_some_and(|extension| extension == "sock")
        && socket.parent().is_some_and(|directory| is_private(directory, geteuid().as_raw()));
    if !is_ours {
        return;
    }
    let _ = fs::remove_file(socket);
    let _ = fs::remove_file(log_of(socket));
}

/// Takes note of the engines that have ended, so that none stays as a zombie, and none leaves files. Their last words are
/// gone then.
pub fn reap() {
    let _pass = calls::here();
    CHILDREN.lock().retain_mut(|(socket, child)| {
        let lives = matches!(child.try_wait(), Ok(None));
        if !lives {
            forget_address(socket);
        }
        lives
    });
}

/// Waits, for a moment, until an engine that has ended is not left as a zombie: it is gone for its clients before it is
/// for the system.
pub fn reap_at(socket: &Path) {
    let deadline = Instant::now() + REAP_WITHIN;
    loop {
        reap();
        let pass = calls::here();
        if Instant::now() >= deadline || !CHILDREN.lock().iter().any(|(of_child, _)| of_child == socket) {
            return;
        }
        drop(pass);
        thread::sleep(Duration::from_millis(1));
    }
}

/// In a forked child: the engines are the parent's children.
pub fn forget_inherited() {
    if let Some(mut children) = CHILDREN.try_lock() {
        std::mem::forget(std::mem::take(&mut *children));
    }
}

fn log_of(socket: &Path) -> PathBuf {
    socket.with_extension("log")
}

fn new_address() -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let directory = runtime_directory()?;
    loop {
        let name = format!("{}-{}.sock", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let address = directory.join(name);
        // Left by a process that had our id: its engine may still be there.
        if !address.exists() {
            return Ok(address);
        }
    }
}

/// A directory that only this user can enter.
fn runtime_directory() -> io::Result<PathBuf> {
    let user = geteuid().as_raw();
    let of_user = format!("chroma-manager-{user}");
    let places = [env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some(env::temp_dir()), Some("/tmp".into())];
    let mut problem = io::Error::from(ErrorKind::NotFound);
    for place in places.into_iter().flatten() {
        let directory = place.join(&of_user);
        if directory.as_os_str().len() > LONGEST_ADDRESS - 40 {
            continue;
        }
        match private_directory(&directory, user) {
            Ok(()) => return Ok(directory),
            Err(error) => problem = error,
        }
    }
    Err(problem)
}

fn private_directory(directory: &Path, user: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if is_private(directory, user) {
        return Ok(());
    }
    let problem = format!("{} is not a directory that only this user can enter", directory.display());
    Err(io::Error::new(ErrorKind::PermissionDenied, problem))
}

fn is_private(directory: &Path, user: u32) -> bool {
    fs::symlink_metadata(directory)
        .is_ok_and(|found| found.is_dir() && found.uid() == user && found.permissions().mode() & 0o077 == 0)
}
