//! The errors of a call on its way between its caller and an engine, their messages, and their conversion into
//! exceptions.
//!
//! What follows an error is decided in `failure.rs`.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use super::ending;
use super::exceptions::{
    CallTimeoutError, CallTooLargeError, ChromaManagerError, ClientClosedError, EngineCrashedError,
    EngineProtocolError, InstanceCorruptError, InstanceLockedError, InstanceNotFoundError, InstanceOpenError,
    InvalidKeyError, describe,
};
use crate::instance::Instance;
use crate::instance::key::{InvalidKey, Key};
use crate::storage::owner::Owner;

/// An error of a call, an opening, or exclusive maintenance.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    InvalidKey(#[from] InvalidKey),

    #[error("{part} must be a str, not {kind}")]
    NotAString { part: &'static str, kind: String },

    #[error("this client of {instance} was closed: {why}. Call get_client() or get_collection() for a new one")]
    ClientClosed { instance: Box<InstanceName>, why: &'static str },

    #[error("this ChromaDBManager was shut down. Construct ChromaDBManager() for a new one")]
    ManagerShutDown,

    #[error("{instance} is open in {}{}. {}", describe_owner(owner), unreachable(reason.as_deref()), advice(owner))]
    Locked { instance: Box<InstanceName>, owner: Box<Owner>, reason: Option<String> },

    #[error("{instance} is open in another program: {reason}")]
    Shared { instance: Box<InstanceName>, reason: String, pid: Option<i32> },

    #[error("cannot open {instance}: {reason}")]
    CannotOpen { instance: Box<InstanceName>, reason: String, cause: Option<PyErr> },

    #[error("{instance} does not exist: its database was removed, or never created. {advice}")]
    NotFound { instance: Box<InstanceName>, advice: &'static str },

    #[error(
        "{instance} is damaged: {reason}. ChromaDBManager's verify(..., repair=True) rebuilds it from what can be saved, and \
         its restore() puts a snapshot in its place"
    )]
    Corrupt { instance: Box<InstanceName>, reason: String },

    #[error("the engine process of {instance} ended in the middle of {method}(){}", quote(stderr_tail))]
    EngineCrashed { instance: Box<InstanceName>, method: String, stderr_tail: String },

    #[error("the engine process of {instance} answered {method}() with a malformed response: {reason}")]
    Malformed { instance: Box<InstanceName>, method: String, reason: String },

    #[error("{method}() of {instance} takes {size} bytes to send, and the limit is {limit}: make smaller batches")]
    TooLarge { instance: Box<InstanceName>, method: String, size: usize, limit: u32 },

    #[error("{method}() of {instance} did not return within call_timeout={}; it may still take effect", timeout.as_secs_f64())]
    CallTimedOut { instance: Box<InstanceName>, method: String, timeout: Duration },

    /// An exception that is passed through unchanged: one of Chroma's, or Ctrl-C.
    #[error(transparent)]
    Python(#[from] PyErr),
}

/// The name of an instance in messages: its key and its path.
#[derive(Debug, thiserror::Error)]
#[error("{key} ({})", path.display())]
pub struct InstanceName {
    key: Key,
    path: PathBuf,
}

impl InstanceName {
    /// Returns the name of an instance.
    pub fn of<D>(instance: &Instance<D>) -> Self {
        Self { key: instance.key().clone(), path: instance.path().to_path_buf() }
    }

    /// Sets the attributes of an exception that name the instance.
    fn set_attributes(&self, exception: &Bound<'_, PyAny>) -> PyResult<()> {
        exception.setattr("file_id", self.key.file_id())?;
        exception.setattr("embedding_type", self.key.embedding_type())?;
        exception.setattr("path", PyString::new(exception.py(), &self.path.to_string_lossy()))
    }
}

impl Error {
    /// A call of a client that was closed.
    pub fn client_closed<D>(instance: &Instance<D>, why: &'static str) -> Self {
        Self::ClientClosed { instance: Box::new(InstanceName::of(instance)), why }
    }

    /// A database that another owner has open.
    pub fn locked<D>(instance: &Instance<D>, owner: Owner) -> Self {
        Self::Locked { instance: Box::new(InstanceName::of(instance)), owner: Box::new(owner), reason: None }
    }

    /// An owner that should answer calls, but does not.
    #[cfg(unix)]
    pub fn unreachable<D>(instance: &Instance<D>, owner: Owner, reason: String) -> Self {
        Self::Locked { instance: Box::new(InstanceName::of(instance)), owner: Box::new(owner), reason: Some(reason) }
    }

    /// A call of a client whose instance was cleaned up.
    pub fn cleaned_up<D>(instance: &Instance<D>) -> Self {
        Self::client_closed(instance, "its instance was cleaned up")
    }

    /// A call that would wait for its own thread.
    pub fn busy<D>(instance: &Instance<D>) -> Self {
        let reason = "this very thread is in the middle of another call (a signal handler or a finalizer has called the \
                      manager again), and would wait for itself; call from another thread, or later";
        Self::cannot_open(instance, reason.into(), None)
    }

    /// A database that cannot be opened.
    pub fn cannot_open<D>(instance: &Instance<D>, reason: String, cause: Option<PyErr>) -> Self {
        Self::CannotOpen { instance: Box::new(InstanceName::of(instance)), reason, cause }
    }

    /// A database that does not exist, in a call that does not create one.
    pub fn not_found<D>(instance: &Instance<D>) -> Self {
        let advice = "Call get_client() or get_collection(): they follow the option on_missing, which creates it by \
                      default";
        Self::NotFound { instance: Box::new(InstanceName::of(instance)), advice }
    }

    /// A database that does not exist, where `on_missing` is `"error"`.
    pub fn missing<D>(instance: &Instance<D>) -> Self {
        let advice = "It was not created, because on_missing is \"error\": put a database into the directory, or call \
                      get_client() or get_collection() with on_missing=\"create\"";
        Self::NotFound { instance: Box::new(InstanceName::of(instance)), advice }
    }

    /// A database that does not exist, and that the `on_missing` callable has not provided.
    pub fn not_provided<D>(instance: &Instance<D>) -> Self {
        let advice = "on_missing was called for it, and put no chroma.sqlite3 into the directory that it was given";
        Self::NotFound { instance: Box::new(InstanceName::of(instance)), advice }
    }

    /// An engine process that ended during a call.
    pub fn engine_crashed<D>(instance: &Instance<D>, method: &str, stderr_tail: String) -> Self {
        Self::EngineCrashed { instance: Box::new(InstanceName::of(instance)), method: method.into(), stderr_tail }
    }

    /// A malformed response of an engine process.
    pub fn malformed<D>(instance: &Instance<D>, method: &str, reason: String) -> Self {
        Self::Malformed { instance: Box::new(InstanceName::of(instance)), method: method.into(), reason }
    }

    /// A call that is larger than a frame may be.
    pub fn too_large<D>(instance: &Instance<D>, method: &str, size: usize, limit: u32) -> Self {
        Self::TooLarge { instance: Box::new(InstanceName::of(instance)), method: method.into(), size, limit }
    }

    /// Returns the error with the method name of the call that it was raised in.
    pub fn in_call(mut self, called: &str) -> Self {
        if let Self::CallTimedOut { method, .. } = &mut self {
            called.clone_into(method);
        }
        self
    }

    /// A call that has run out of time.
    pub fn call_timed_out<D>(instance: &Instance<D>, method: &str, timeout: Duration) -> Self {
        Self::CallTimedOut { instance: Box::new(InstanceName::of(instance)), method: method.into(), timeout }
    }

    /// Converts an exception that was raised while opening. One that is not an error of the opening (Ctrl-C) stays as
    /// it is; the others become the cause of an error of ours.
    pub fn while_opening<D>(py: Python<'_>, instance: &Instance<D>, cause: PyErr) -> Self {
        if cause.is_instance_of::<InstanceCorruptError>(py) {
            return Self::Corrupt {
                instance: Box::new(InstanceName::of(instance)),
                reason: cause.value(py).to_string(),
            };
        }
        if cause.is_instance_of::<InstanceLockedError>(py) {
            return Self::shared(py, instance, &cause);
        }
        // Chroma's binding panics when it runs out of descriptors. PyO3's class of panics differs between libraries.
        let is_panic = cause.get_type(py).name().is_ok_and(|name| name == "PanicException");
        if is_panic || cause.is_instance_of::<PyException>(py) {
            Self::cannot_open(instance, describe(py, &cause), Some(cause))
        } else {
            Self::Python(cause)
        }
    }

    /// Converts an exception that the owner has raised in exclusive maintenance, without knowing the key.
    #[cfg(unix)]
    pub fn while_managing<D>(py: Python<'_>, instance: &Instance<D>, cause: PyErr) -> Self {
        if cause.is_instance_of::<InstanceLockedError>(py) {
            Self::shared(py, instance, &cause)
        } else {
            Self::Python(cause)
        }
    }

    fn shared<D>(py: Python<'_>, instance: &Instance<D>, cause: &PyErr) -> Self {
        let value = cause.value(py);
        let pid = value.getattr("pid").and_then(|pid| pid.extract()).unwrap_or(None);
        Self::Shared { instance: Box::new(InstanceName::of(instance)), reason: value.to_string(), pid }
    }

    fn class<'py>(&self, py: Python<'py>) -> Bound<'py, PyType> {
        match self {
            Self::InvalidKey(_) | Self::NotAString { .. } => py.get_type::<InvalidKeyError>(),
            Self::ClientClosed { .. } | Self::ManagerShutDown => py.get_type::<ClientClosedError>(),
            Self::Locked { .. } | Self::Shared { .. } => py.get_type::<InstanceLockedError>(),
            Self::CannotOpen { .. } => py.get_type::<InstanceOpenError>(),
            Self::NotFound { .. } => py.get_type::<InstanceNotFoundError>(),
            Self::Corrupt { .. } => py.get_type::<InstanceCorruptError>(),
            Self::EngineCrashed { .. } => py.get_type::<EngineCrashedError>(),
            Self::Malformed { .. } => py.get_type::<EngineProtocolError>(),
            Self::TooLarge { .. } => py.get_type::<CallTooLargeError>(),
            Self::CallTimedOut { .. } => py.get_type::<CallTimeoutError>(),
            Self::Python(_) => unreachable!("it is an exception already"),
        }
    }

    fn into_exception(self, py: Python<'_>) -> PyResult<PyErr> {
        // Not `new_err`: that is normalized later, which panics once the interpreter has begun to end.
        let exception = self.class(py).call1((self.to_string(),))?;
        if let Self::ClientClosed { instance, .. }
        | Self::Locked { instance, .. }
        | Self::Shared { instance, .. }
        | Self::CannotOpen { instance, .. }
        | Self::NotFound { instance, .. }
        | Self::Corrupt { instance, .. }
        | Self::EngineCrashed { instance, .. }
        | Self::Malformed { instance, .. }
        | Self::TooLarge { instance, .. }
        | Self::CallTimedOut { instance, .. } = &self
        {
            instance.set_attributes(&exception)?;
        }
        if let Self::Locked { owner, .. } = &self {
            exception.setattr("pid", owner.pid)?;
        }
        if let Self::Shared { pid, .. } = &self {
            exception.setattr("pid", pid)?;
        }
        let exception = PyErr::from_value(exception);
        if let Self::CannotOpen { cause, .. } = self {
            exception.set_cause(py, cause);
        }
        Ok(exception)
    }
}

/// Adds the key and the path to an exception of ours that the owner of the instance has raised without knowing its key.
pub fn name_instance<D>(py: Python<'_>, instance: &Instance<D>, error: &PyErr) -> PyResult<()> {
    if error.is_instance_of::<ChromaManagerError>(py) {
        InstanceName::of(instance).set_attributes(error.value(py))?;
    }
    Ok(())
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Python(exception) => exception,
            error => Python::attach(|py| {
                ending::park_daemon_thread_at_exit(py);
                error.into_exception(py).unwrap_or_else(|broken| broken)
            }),
        }
    }
}

fn describe_owner(owner: &Owner) -> String {
    match owner.pid {
        Some(_) if owner.is_this_process() => "this process already, under another name".into(),
        Some(pid) if owner.sees_our_processes() => format!("another process (pid {pid})"),
        Some(pid) => format!("another process (pid {pid} in another pid namespace, such as another container's)"),
        None => "another process (which has not written its pid)".into(),
    }
}

fn unreachable(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(", which cannot be reached: {reason}"))
}

fn advice(owner: &Owner) -> &'static str {
    if owner.is_this_process() {
        "Use one spelling of its file_id and embedding_type, and one base_path"
    } else {
        "End that process, have it call cleanup_instance(), or set the lock_timeout option to wait for it"
    }
}

/// Quotes the tail of an engine process's standard error, as a part of a sentence.
pub fn quote(stderr_tail: &str) -> String {
    if stderr_tail.is_empty() { " and wrote nothing to its log".into() } else { format!(" ({stderr_tail})") }
}
