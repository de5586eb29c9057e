//! The limits on the depth and the size of converted values, and how a conversion shares the interpreter.

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;

/// The number of values converted before the interpreter is released. They take a few tenths of a millisecond.
pub const VALUES_PER_SLICE: usize = 2_000;

/// The deepest nesting of values.
pub const MAX_DEPTH: usize = 100;

/// The depth of the rows of a matrix: in a list, which is one of the arguments of a call.
pub const MATRIX_ROW_DEPTH: usize = 3;

/// The depth from which the containers in arguments are sent empty. The binding looks at six levels only.
pub const MAX_ARGUMENT_DEPTH: usize = 8;

/// Counts `values` against the current slice, and lets other threads have the interpreter when the slice is used up.
pub fn count_values(py: Python<'_>, slice: &mut usize, values: usize) {
    if let Some(left) = slice.checked_sub(values) {
        *slice = left;
    } else {
        *slice = VALUES_PER_SLICE;
        py.detach(|| {});
    }
}

/// Returns the error for a count that does not fit into the protocol.
pub fn too_many<E>(_: E) -> PyErr {
    PyOverflowError::new_err("a list of more than 4,294,967,295 values, or a text of as many bytes, cannot be sent")
}

/// Returns the error for a malformed body.
pub fn damaged() -> PyErr {
    PyValueError::new_err("a damaged message between an app and its engine process")
}
