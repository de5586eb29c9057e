//! The exception classes of `chroma_manager/errors.py`, and the description of an exception.

use std::fmt::Write;

use pyo3::import_exception;
use pyo3::prelude::*;

import_exception!(chroma_manager.errors, ChromaManagerError);
import_exception!(chroma_manager.errors, CallTimeoutError);
import_exception!(chroma_manager.errors, CallTooLargeError);
import_exception!(chroma_manager.errors, ClientClosedError);
import_exception!(chroma_manager.errors, EngineCrashedError);
import_exception!(chroma_manager.errors, EngineProtocolError);
import_exception!(chroma_manager.errors, InstanceCorruptError);
import_exception!(chroma_manager.errors, InstanceLockedError);
import_exception!(chroma_manager.errors, InstanceNotFoundError);
import_exception!(chroma_manager.errors, InstanceOpenError);
import_exception!(chroma_manager.errors, InvalidKeyError);

/// Imports the classes in advance: the last exceptions may be raised when imports no longer work.
pub fn import_classes(py: Python<'_>) -> PyResult<()> {
    // An import that fails raises here; at the first use of a class it would panic.
    py.import("chroma_manager.errors")?;
    py.get_type::<ChromaManagerError>();
    py.get_type::<CallTimeoutError>();
    py.get_type::<CallTooLargeError>();
    py.get_type::<ClientClosedError>();
    py.get_type::<EngineCrashedError>();
    py.get_type::<EngineProtocolError>();
    py.get_type::<InstanceCorruptError>();
    py.get_type::<InstanceLockedError>();
    py.get_type::<InstanceNotFoundError>();
    py.get_type::<InstanceOpenError>();
    py.get_type::<InvalidKeyError>();
    Ok(())
}

/// Returns the class and the message of an exception.
pub fn describe(py: Python<'_>, error: &PyErr) -> String {
    let mut text = String::new();
    if let Ok(name) = error.get_type(py).name() {
        let _ = write!(text, "{name}: ");
    }
    let _ = write!(text, "{}", error.value(py));
    text
}
