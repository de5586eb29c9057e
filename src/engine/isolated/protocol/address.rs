//! Where an engine process is reached: a socket in a directory of this user's for things of the moment; or, in a container,
//! in its database's own directory, where all who share that see it. Where the one cannot hold it, the other may.
//!
//! Names are random, so none comes again. A name in a lock file may have been copied from somewhere, or mean something only
//! in another container: it is believed when whoever answers there has proven itself (`proof.rs`), and nothing is removed
//! because a lock file names it, unless it is seen that nobody uses it.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::geteuid;

use super::peer;
use crate::storage::owner::{Owner, is_random_name, random_name, socket_name};

/// A socket's path must fit into 108 bytes of an address, on some systems 104.
const LONGEST_ADDRESS: usize = 100;

/// The environment variable that says where sockets are to be, `directory` or `runtime`, whatever we think.
const PLACE_OF_SOCKETS: &str = "CHROMA_MANAGER_SOCKETS";

/// The pid namespace of a Linux system outside of all containers (`PROC_PID_INIT_INO` in its `proc_ns.h`).
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// How many may wait to be let in.
const BACKLOG: i32 = 1024;

/// Where the owner of a directory says that it can be reached.
#[derive(Clone, Debug, Default)]
pub struct Address {
    /// The database's.
    pub directory: PathBuf,
    pub owner: Owner,
}

impl Address {
    /// `None` where it says that it cannot.
    pub fn of(directory: &Path, owner: Owner) -> Option<Self> {
        owner.socket.is_some().then(|| Self { directory: directory.to_path_buf(), owner })
    }

    /// Whether both are of the same owner, which may have bound its socket anew.
    pub fn is_of_same_owner(&self, other: &Self) -> bool {
        self.owner.secret.is_some() && self.owner.secret == other.owner.secret
    }

    /// Whether all who see the directory see the socket.
    pub fn is_in_directory(&self) -> bool {
        self.owner.socket.as_deref().is_some_and(Path::is_relative)
    }

    /// Where the socket is.
    pub fn path(&self) -> PathBuf {
        self.directory.join(self.owner.socket.as_deref().unwrap_or(Path::new("")))
    }

    /// Connects to an engine process of this user, which greets when it is ready. Where more are waiting to be let in than
    /// can be, that is an error of the kind [`ErrorKind::WouldBlock`].
    pub fn connect(&self) -> io::Result<UnixStream> {
        let socket = self.owner.socket.as_deref().ok_or(ErrorKind::NotFound)?;
        let stream = connect(&Reachable::new(&self.directory, socket)?.path)?;
        if peer::is_same_user(stream.as_fd()) {
            Ok(stream)
        } else {
            Err(io::Error::new(ErrorKind::PermissionDenied, "the engine process belongs to another user"))
        }
    }

    /// Removes what is left of an engine process that has ended.
    pub fn forget(&self) {
        if self.is_in_directory() || self.owner.socket.as_deref().is_some_and(is_of_this_user) {
            let _ = fs::remove_file(self.path());
        }
        if let Some(log) = self.owner.log.as_deref().filter(|log| is_of_this_user(log)) {
            let _ = fs::remove_file(log);
        }
    }
}

/// Removes what an owner that did not live to do so has left outside of its directory: what the lock file names, if nobody
/// uses it, for it may be a copy of another one.
pub fn forget_previous(owner: &Owner) {
    if let Some(socket) = owner.socket.as_deref().filter(|socket| is_of_this_user(socket))
        && fs::symlink_metadata(socket).is_ok_and(|found| found.file_type().is_socket())
        && matches!(connect(socket), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
    {
        let _ = fs::remove_file(socket);
    }
    if let Some(log) = owner.log.as_deref().filter(|log| is_of_this_user(log))
        && let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(log)
        && file.try_lock().is_ok()
    {
        let _ = fs::remove_file(log);
    }
}

/// Whether it is a file with a random name, where only this user can make one.
fn is_of_this_user(file: &Path) -> bool {
    let is_random = file.file_stem().and_then(|stem| stem.to_str()).is_some_and(is_random_name);
    is_random && file.parent().is_some_and(|directory| is_private(directory, geteuid().as_raw()))
}

/// A socket that listens for this user's processes; and how the lock file is to name it.
pub fn listen(directory: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let random = random_name()?;
    let (first, second) = if is_shared_by_directory() {
        (listen_in as Listen, listen_outside as Listen)
    } else {
        (listen_outside as Listen, listen_in as Listen)
    };
    first(directory, &random).or_else(|error| {
        if !directory.is_dir() || is_of_this_process(&error) {
            return Err(error);
        }
        second(directory, &random).map_err(|second| {
            io::Error::new(error.kind(), format!("no place can hold a socket for it: {error}; {second}"))
        })
    })
}

type Listen = fn(&Path, &str) -> io::Result<(OwnedFd, PathBuf)>;

/// For all who share the directory. Some file systems hold no sockets, or hold them and do not lead to them; this one may be
/// full, or not be written.
fn listen_in(directory: &Path, random: &str) -> io::Result<(OwnedFd, PathBuf)> {
    let name = socket_name(random);
    let listener = Reachable::new(directory, &name).and_then(|reachable| listen_at(&reachable.path));
    Ok((listener.map_err(|error| in_place(directory, &error))?, name))
}

/// For all who share the runtime directory.
fn listen_outside(_: &Path, random: &str) -> io::Result<(OwnedFd, PathBuf)> {
    in_runtime_directory(|directory| {
        let path = directory.join(random).with_extension("sock");
        Ok((listen_at(&path)?, path))
    })
}

/// Whether those who use a database share its directory and perhaps nothing else: in a container. Elsewhere its directory is
/// spared the socket, because programs that copy directories stumble over it.
fn is_shared_by_directory() -> bool {
    match env::var(PLACE_OF_SOCKETS).as_deref() {
        Ok("directory") => true,
        Ok("runtime") => false,
        _ => fs::read_link("/proc/self/ns/pid").is_ok_and(|processes| processes != Path::new(FIRST_NAMESPACE)),
    }
}

fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let listener = new_socket()?;
    net::bind(&listener, &SocketAddrUnix::new(path)?)?;
    let listens = || {
        // Until it listens, nobody gets in.
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

fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = new_socket()?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(socket.into())
}

/// It waits for nobody, and no program that is started gets it.
#[cfg(target_os = "linux")]
fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = net::SocketFlags::CLOEXEC | net::SocketFlags::NONBLOCK;
    net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

#[cfg(not(target_os = "linux"))]
fn new_socket() -> Result<OwnedFd, Errno> {
    let socket = net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// A path that fits into an address: where the directory's own is too long, it leads through a descriptor.
struct Reachable {
    path: PathBuf,
    _directory: Option<File>,
}

impl Reachable {
    fn new(directory: &Path, name: &Path) -> io::Result<Self> {
        let path = directory.join(name);
        if path.as_os_str().len() <= LONGEST_ADDRESS || name.is_absolute() {
            return Ok(Self { path, _directory: None });
        }
        let opened = File::open(directory)?;
        let through = Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string());
        // Where there is no /proc, the error is that nothing is found.
        Ok(Self { path: through.join(name), _directory: Some(opened) })
    }
}

/// A file for an engine process's standard error, which the engine process has locked for its life; and where it is. Where
/// none can be made, what it writes is not kept.
pub fn new_log() -> io::Result<(File, Option<PathBuf>)> {
    let create = |directory: &Path| {
        let path = directory.join(random_name()?).with_extension("log");
        let mut log = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path)?;
        // A file system that is full may have room for a name.
        let takes_words = log.write_all(b"\n").and_then(|()| log.set_len(0));
        takes_words.and_then(|()| Ok(log.try_lock()?)).inspect_err(|_| drop(fs::remove_file(&path)))?;
        Ok((log, Some(path)))
    };
    in_runtime_directory(create).or_else(|_| Ok((OpenOptions::new().append(true).open("/dev/null")?, None)))
}

/// Makes something in a directory that only this user can enter: in the first place where that succeeds.
fn in_runtime_directory<T>(make: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let user = geteuid().as_raw();
    let mut problems = Vec::new();
    let mut kind = ErrorKind::NotFound;
    for directory in runtime_directories(user) {
        match private_directory(&directory, user).and_then(|()| make(&directory)) {
            Err(error) if is_of_this_process(&error) => return Err(error),
            Err(error) => {
                kind = error.kind();
                problems.push(in_place(&directory, &error).to_string());
            }
            success => return success,
        }
    }
    Err(io::Error::new(kind, problems.join("; ")))
}

/// Where a user's things of the moment may be, as far as the address of a socket can be there and a lock file can say it.
fn runtime_directories(user: u32) -> Vec<PathBuf> {
    let told = [env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some(env::temp_dir())];
    let usual = ["/tmp", &format!("/run/user/{user}"), "/var/tmp", "/dev/shm"].map(PathBuf::from);
    let mut directories = Vec::new();
    for place in told.into_iter().flatten().chain(usual) {
        let directory = place.join(format!("chroma-manager-{user}"));
        let is_fit = directory.to_str().is_some_and(|name| name.len() <= LONGEST_ADDRESS - 40 && !name.contains('\n'));
        if is_fit && directory.is_absolute() && !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    directories
}

fn in_place(directory: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", directory.display()))
}

/// Whether another place would be no better: the process has no descriptor left, or the system none.
fn is_of_this_process(error: &io::Error) -> bool {
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
    Err(io::Error::new(ErrorKind::PermissionDenied, "it is not a directory that only this user can enter"))
}

fn is_private(directory: &Path, user: u32) -> bool {
    fs::symlink_metadata(directory)
        .is_ok_and(|found| found.is_dir() && found.uid() == user && found.permissions().mode() & 0o077 == 0)
}
