//! The address of an engine process: its socket, and the file of its log.
//!
//! The socket is in a runtime directory of this user or, in a container, in the database's own directory, where all
//! containers that share it can reach it. If one of these cannot hold a socket, the other is used.
//!
//! Names are random and never reused. A name in a lock file may have been copied along with the directory, or be valid
//! in another container only. It is used only after the peer has proven its identity (`greeting.rs`). What an engine
//! process leaves behind when it is killed, the next owner of the directory removes (`storage/left_behind.rs`).

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{self, SocketAddrUnix};
use rustix::process::geteuid;

use super::peer;
use crate::storage::left_behind::{is_of_this_user, is_private};
use crate::storage::owner::{Owner, random_name, socket_name};
use crate::storage::sockets::{connect, new_socket};

/// The longest path of a socket in bytes. An address has room for 108, on some systems for 104.
const LONGEST_ADDRESS: usize = 100;

/// The environment variable that overrides where sockets are created: `directory` or `runtime`.
const SOCKETS_VARIABLE: &str = "CHROMA_MANAGER_SOCKETS";

/// The pid namespace of Linux outside of all containers (`PROC_PID_INIT_INO` in `proc_ns.h`).
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// The number of connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// The address of the owner of a directory, as its lock file describes it.
#[derive(Clone, Debug, Default)]
pub struct Address {
    /// The directory of the database.
    pub directory: PathBuf,
    /// The owner.
    pub owner: Owner,
}

impl Address {
    /// Returns the address of an owner, or `None` if it has no socket.
    pub fn of(directory: &Path, owner: Owner) -> Option<Self> {
        owner.socket.is_some().then(|| Self { directory: directory.to_path_buf(), owner })
    }

    /// Returns whether both addresses belong to the same owner, which may have bound a new socket in between.
    pub fn is_of_same_owner(&self, other: &Self) -> bool {
        self.owner.secret.is_some() && self.owner.secret == other.owner.secret
    }

    /// Returns whether the socket is in the database's own directory.
    pub fn is_in_directory(&self) -> bool {
        self.owner.socket.as_deref().is_some_and(Path::is_relative)
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> PathBuf {
        self.directory.join(self.owner.socket.as_deref().unwrap_or(Path::new("")))
    }

    /// Connects to an engine process of this user, which sends a greeting when it is ready.
    ///
    /// # Errors
    ///
    /// Returns an error of the kind [`ErrorKind::WouldBlock`] if the backlog is full, and one of the kind
    /// [`ErrorKind::PermissionDenied`] if the process belongs to another user.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let socket = self.owner.socket.as_deref().ok_or(ErrorKind::NotFound)?;
        let stream = connect(&SocketPath::new(&self.directory, socket)?.path)?;
        if peer::is_same_user(stream.as_fd()) {
            Ok(stream)
        } else {
            Err(io::Error::new(ErrorKind::PermissionDenied, "the engine process belongs to another user"))
        }
    }

    /// Removes the socket and the log of an engine process that has ended.
    pub fn forget(&self) {
        if self.is_in_directory() || self.owner.socket.as_deref().is_some_and(is_of_this_user) {
            let _ = fs::remove_file(self.path());
        }
        if let Some(log) = self.owner.log.as_deref().filter(|log| is_of_this_user(log)) {
            let _ = fs::remove_file(log);
        }
    }
}

/// Creates a socket that listens for this user's processes. Also returns its name for the lock file.
pub fn listen(directory: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let random = random_name()?;
    let (first, second) = if prefers_own_directory() {
        (listen_in_own_directory as Listen, listen_in_runtime_directory as Listen)
    } else {
        (listen_in_runtime_directory as Listen, listen_in_own_directory as Listen)
    };
    first(directory, &random).or_else(|error| {
        if !directory.is_dir() || is_independent_of_directory(&error) {
            return Err(error);
        }
        second(directory, &random).map_err(|second| {
            io::Error::new(error.kind(), format!("no place can hold a socket for it: {error}; {second}"))
        })
    })
}

type Listen = fn(&Path, &str) -> io::Result<(OwnedFd, PathBuf)>;

/// Creates a socket in the database's own directory. The file system may not support sockets, be full, or be read-only.
fn listen_in_own_directory(directory: &Path, random: &str) -> io::Result<(OwnedFd, PathBuf)> {
    let name = socket_name(random);
    let listener = SocketPath::new(directory, &name).and_then(|socket| listen_at(&socket.path));
    Ok((listener.map_err(|error| with_path(directory, &error))?, name))
}

/// Creates a socket in a runtime directory.
fn listen_in_runtime_directory(_: &Path, random: &str) -> io::Result<(OwnedFd, PathBuf)> {
    in_runtime_directory(|directory| {
        let path = directory.join(random).with_extension("sock");
        Ok((listen_at(&path)?, path))
    })
}

/// Returns whether to prefer the database's own directory. In a container, that may be all that its users share.
/// Elsewhere a socket there would only disturb programs that copy directories.
fn prefers_own_directory() -> bool {
    match env::var(SOCKETS_VARIABLE).as_deref() {
        Ok("directory") => true,
        Ok("runtime") => false,
        _ => fs::read_link("/proc/self/ns/pid").is_ok_and(|processes| processes != Path::new(FIRST_NAMESPACE)),
    }
}

fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let listener = new_socket()?;
    net::bind(&listener, &SocketAddrUnix::new(path)?)?;
    let listens = || {
        // Before it listens, no process can connect.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        net::listen(&listener, BACKLOG)?;
        let _tried = connect(path)?;
        net::accept(&listener)?;
        rustix::io::ioctl_fionbio(&listener, false)?;
        Ok(())
    };
    match listens() {
        Ok(()) => Ok(listener),
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

/// The path of a socket that fits into an address. If the directory's own path is too long, it leads through a
/// descriptor.
struct SocketPath {
    path: PathBuf,
    _directory: Option<File>,
}

impl SocketPath {
    fn new(directory: &Path, name: &Path) -> io::Result<Self> {
        let path = directory.join(name);
        if path.as_os_str().len() <= LONGEST_ADDRESS || name.is_absolute() {
            return Ok(Self { path, _directory: None });
        }
        let opened = File::open(directory)?;
        let through = Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string());
        // Without /proc, binding or connecting to it fails with `NotFound`.
        Ok(Self { path: through.join(name), _directory: Some(opened) })
    }
}

/// Creates a file for the standard error of an engine process, which holds a lock on it for its life. Also returns its
/// path. If no file can be created, returns `/dev/null` and no path.
pub fn new_log() -> io::Result<(File, Option<PathBuf>)> {
    let create = |directory: &Path| {
        let path = directory.join(random_name()?).with_extension("log");
        let mut log = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path)?;
        // A full file system may have room for an empty file.
        let is_writable = log.write_all(b"\n").and_then(|()| log.set_len(0));
        is_writable.and_then(|()| Ok(log.try_lock()?)).inspect_err(|_| drop(fs::remove_file(&path)))?;
        Ok((log, Some(path)))
    };
    in_runtime_directory(create).or_else(|_| Ok((OpenOptions::new().append(true).open("/dev/null")?, None)))
}

/// Creates something in a directory that only this user can enter: the first where that succeeds.
fn in_runtime_directory<T>(create: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let user = geteuid().as_raw();
    let mut problems = Vec::new();
    let mut kind = ErrorKind::NotFound;
    for directory in runtime_directories(user) {
        match private_directory(&directory, user).and_then(|()| create(&directory)) {
            Err(error) if is_independent_of_directory(&error) => return Err(error),
            Err(error) => {
                kind = error.kind();
                problems.push(with_path(&directory, &error).to_string());
            }
            success => return success,
        }
    }
    Err(io::Error::new(kind, problems.join("; ")))
}

/// Returns the possible runtime directories of a user, without those whose path does not fit into the address of a
/// socket or into a line of a lock file.
fn runtime_directories(user: u32) -> Vec<PathBuf> {
    let configured = [env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some(env::temp_dir())];
    let usual = ["/tmp", &format!("/run/user/{user}"), "/var/tmp", "/dev/shm"].map(PathBuf::from);
    let mut directories = Vec::new();
    for parent in configured.into_iter().flatten().chain(usual) {
        let directory = parent.join(format!("chroma-manager-{user}"));
        let is_fit = directory.to_str().is_some_and(|name| name.len() <= LONGEST_ADDRESS - 40 && !name.contains('\n'));
        if is_fit && directory.is_absolute() && !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    directories
}

/// Adds the path to an error.
fn with_path(directory: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", directory.display()))
}

/// Returns whether the error would be the same in another directory: no descriptors or no memory are left.
fn is_independent_of_directory(error: &io::Error) -> bool {
    let of_process = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| of_process.contains(&error))
}

fn private_directory(directory: &Path, user: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if is_private(directory, user) {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::PermissionDenied, "not a directory that only this user can enter"))
}
