//! The program of an engine process, as an app starts it, and how it ends.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::process::{Command, ExitStatus};

/// The name that an engine process gives itself.
pub const ENGINE_NAME: &str = "chroma-engine";

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The interpreter, its options, and the script.
    pub command: Vec<OsString>,
    /// The environment variables that differ from the app's; `None` removes one.
    pub environment: BTreeMap<OsString, Option<OsString>>,
    /// The arguments with which it is a host instead (`host.rs`).
    pub host: Vec<OsString>,
}

impl Program {
    /// Returns the command that starts it, without its arguments.
    pub fn command(&self) -> io::Result<Command> {
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

/// How an engine process has ended.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// With this status.
    Status(ExitStatus),
    /// Nobody knows: its host has ended before it.
    Unknown,
}
