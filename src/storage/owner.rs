//! The content of a lock file: which process holds it, where that can be reached, and the secret that identifies it
//! there.
//!
//! Plain Rust. Any program may have written the file, so nothing in it is trusted: an address is used only after the
//! process that answers there has proven that it owns the directory (`engine/isolated/protocol/greeting.rs`).

use std::fmt::{self, Write};
use std::io;
use std::path::{Component, Path, PathBuf};

/// Takes the place of the socket's name while the owner is a momentary one: it holds the lock until its engine process
/// has a socket, or until the directory is removed. Others wait for it.
pub const MOMENTARY: &str = "momentary";

/// The prefix and the suffix of the name of a socket in a database's own directory.
const SOCKET_PREFIX: &str = ".chroma_manager.";
const SOCKET_SUFFIX: &str = ".sock";

/// The number of random bytes in a random name.
const NAME_BYTES: usize = 8;

/// A random value that identifies an owner. It is not a password: the credentials that the kernel reports for a peer
/// decide who may connect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; Secret::LENGTH]);

impl Secret {
    /// The number of bytes.
    pub const LENGTH: usize = 16;

    /// Generates a new secret.
    pub fn new() -> io::Result<Self> {
        let mut bytes = [0; Self::LENGTH];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Returns the bytes that are sent over a socket.
    pub fn bytes(&self) -> [u8; Self::LENGTH] {
        self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; Self::LENGTH];
        let is_hex = text.len() == 2 * Self::LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        for (i, byte) in bytes.iter_mut().enumerate().filter(|_| is_hex) {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
        }
        is_hex.then_some(Self(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// The pid namespace and the mount namespace of a process, empty where they are not known. A pid, or a path to a
/// runtime directory, has a meaning only within the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    processes: String,
    files: String,
}

impl Namespaces {
    /// Returns the namespaces of this process.
    pub fn here() -> Self {
        let name = |file: &str| {
            let link = std::fs::read_link(Path::new("/proc/self/ns").join(file)).unwrap_or_default();
            link.to_str().filter(|name| !name.contains(char::is_whitespace)).unwrap_or_default().to_owned()
        };
        Self { processes: name("pid"), files: name("mnt") }
    }
}

/// The process that holds a lock file, as the file describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The process id, where it could be read.
    pub pid: Option<u32>,
    /// The socket: a name in the directory, or an absolute path. An engine process has one; an app that has opened the
    /// database in its own process does not.
    pub socket: Option<PathBuf>,
    /// The secret that identifies the owner at its socket.
    pub secret: Option<Secret>,
    /// The namespaces of the pid and of the paths.
    pub namespaces: Namespaces,
    /// The file that receives the standard error of the process.
    pub log: Option<PathBuf>,
}

impl Owner {
    /// Describes this process, with a new secret.
    pub fn new(socket: Option<&Path>) -> io::Result<Self> {
        Ok(Self {
            pid: Some(std::process::id()),
            socket: socket.map(Path::to_path_buf),
            secret: Some(Secret::new()?),
            namespaces: Namespaces::here(),
            log: None,
        })
    }

    /// Returns whether the owner is about to release the lock, or to hand it over.
    pub fn is_momentary(&self) -> bool {
        self.socket.as_deref() == Some(Path::new(MOMENTARY))
    }

    /// Returns whether the owner is this process.
    pub fn is_this_process(&self) -> bool {
        self.pid == Some(std::process::id()) && self.sees_our_processes()
    }

    /// Returns whether the owner's pid is valid in this process's namespace, as far as is known.
    pub fn sees_our_processes(&self) -> bool {
        are_same(&self.namespaces.processes, &Namespaces::here().processes)
    }

    /// Returns whether the owner's absolute paths are valid in this process's namespace, as far as is known.
    pub fn sees_our_files(&self) -> bool {
        are_same(&self.namespaces.files, &Namespaces::here().files)
    }

    /// Returns the content of the lock file: one line per field. `cli/listing.py` reads the first one, too.
    pub fn to_text(&self) -> String {
        let path = |path: &Option<PathBuf>| path.as_ref().map_or_else(String::new, |path| path.display().to_string());
        let mut text = self.pid.map_or_else(String::new, |pid| pid.to_string());
        text.push('\n');
        text.push_str(&path(&self.socket));
        text.push('\n');
        for byte in self.secret.iter().flat_map(Secret::bytes) {
            let _ = write!(text, "{byte:02x}");
        }
        let _ = write!(text, "\n{} {}\n{}\n", self.namespaces.processes, self.namespaces.files, path(&self.log));
        text
    }

    /// Parses the content of a lock file. Returns `None` if it does not begin with a pid.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(text).ok()?.lines();
        let pid = lines.next()?.parse().ok()?;
        let socket = lines.next().map(PathBuf::from).filter(|socket| is_address(socket));
        let secret = lines.next().and_then(Secret::parse);
        let (processes, files) = lines.next().and_then(|line| line.split_once(' ')).unwrap_or_default();
        let namespaces = Namespaces { processes: processes.into(), files: files.into() };
        let log = lines.next().map(PathBuf::from).filter(|log| log.is_absolute());
        Some(Self { pid: Some(pid), socket, secret, namespaces, log })
    }
}

fn are_same(theirs: &str, ours: &str) -> bool {
    theirs.is_empty() || ours.is_empty() || theirs == ours
}

/// Returns whether a lock file may name this socket.
fn is_address(socket: &Path) -> bool {
    socket.is_absolute() || socket == Path::new(MOMENTARY) || is_socket_name(socket)
}

/// Returns whether `name` is that of an engine process's socket in a database's own directory.
pub fn is_socket_name(name: &Path) -> bool {
    let mut parts = name.components();
    let (Some(Component::Normal(name)), None) = (parts.next(), parts.next()) else { return false };
    let random = name
        .to_str()
        .and_then(|name| name.strip_prefix(SOCKET_PREFIX))
        .and_then(|name| name.strip_suffix(SOCKET_SUFFIX));
    random.is_some_and(is_random_name)
}

/// Returns the name of a socket in a database's own directory.
pub fn socket_name(random: &str) -> PathBuf {
    format!("{SOCKET_PREFIX}{random}{SOCKET_SUFFIX}").into()
}

/// Generates a unique name.
pub fn random_name() -> io::Result<String> {
    let mut bytes = [0; NAME_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().fold(String::new(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    }))
}

/// Returns whether [`random_name`] may have generated `name`.
pub fn is_random_name(name: &str) -> bool {
    name.len() == 2 * NAME_BYTES && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_owner_survives_a_round_trip() {
        let mut owner = Owner::new(Some(&socket_name(&random_name().unwrap()))).unwrap();
        assert_eq!(Owner::parse(owner.to_text().as_bytes()), Some(owner.clone()));
        owner.log = Some("/run/user/7.log".into());
        owner.socket = None;
        assert_eq!(Owner::parse(owner.to_text().as_bytes()), Some(owner));
        assert_ne!(Secret::new().unwrap(), Secret::new().unwrap());
    }

    #[test]
    fn a_lock_file_of_an_earlier_version_names_an_owner_without_a_secret() {
        let owner = Owner::parse(b"7\n/tmp/chroma-manager-0/1-0.sock\n").unwrap();
        assert_eq!((owner.pid, owner.secret), (Some(7), None));
        assert_eq!(owner.socket.as_deref(), Some(Path::new("/tmp/chroma-manager-0/1-0.sock")));
        assert!(owner.sees_our_files() && owner.sees_our_processes());
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_not_an_address() {
        for name in ["../.chroma_manager.0123456789abcdef.sock", "x/y", "chroma.sqlite3", "", ".chroma_manager.lock"] {
            let text = format!("7\n{name}\n");
            assert_eq!(Owner::parse(text.as_bytes()).unwrap().socket, None, "{name}");
        }
        assert!(is_socket_name(Path::new(".chroma_manager.0123456789abcdef.sock")));
    }

    #[test]
    fn a_pid_in_another_namespace_is_not_this_process() {
        let mut owner = Owner::new(None).unwrap();
        assert!(owner.is_this_process());
        owner.namespaces = Namespaces { processes: "pid:[1]".into(), files: "mnt:[1]".into() };
        let is_known = !Namespaces::here().processes.is_empty();
        assert_eq!((owner.is_this_process(), owner.sees_our_files()), (!is_known, !is_known));
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Owner::parse(&bytes);
            let _ = Owner::parse(&[b"7\n", &bytes[..]].concat());
        }
    }
}
