//! The program of an engine process, as an app starts it, and how it ends.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// The names that an engine process, a process that takes a checkpoint for it, and a host give themselves.
pub const ENGINE_NAME: &str = "chroma-engine";
pub const CHECKPOINT_NAME: &str = "chroma-copy";
pub const HOST_NAME: &str = "chroma-host";

/// Returns the name of a process, and what `/proc` says after it: its state, its parent and more. `None` where there is none.
pub fn name_and_rest(process: &Path) -> Option<(String, String)> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    Some((name.to_owned(), rest.trim_start().to_owned()))
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The interpreter, its options, and the script.
    pub command: Vec<OsString>,
    /// The environment variables that differ from the app's; `None` removes one.
    pub changes: BTreeMap<OsString, Option<OsString>>,
    /// The arguments with which it is a host instead (`host.rs`).
    pub host: Vec<OsString>,
}

/// The environment variables of a process.
pub type Environment = BTreeMap<OsString, OsString>;

impl Program {
    /// Returns the environment in which it is to run. To be called while attached to the interpreter: otherwise Python
    /// could change the app's environment meanwhile.
    pub fn environment(&self) -> Environment {
        let mut environment: Environment = env::vars_os().collect();
        for (name, value) in &self.changes {
            match value {
                Some(value) => environment.insert(name.clone(), value.clone()),
                None => environment.remove(name),
            };
        }
        environment
    }

    /// Returns the command that starts it, without its arguments.
    pub fn command(&self, environment: &Environment) -> io::Result<Command> {
        let (python, arguments) = self.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(python);
        command.args(arguments).env_clear().envs(environment);
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
