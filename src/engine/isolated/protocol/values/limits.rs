//! The limits on the depth and the size of converted values, and how a conversion shares the interpreter.

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;

use crate::python::turn::Turn;

/// The number of values that are converted between two looks at the time. They take a few tenths of a millisecond.
const VALUES_PER_LOOK: usize = 2_000;

/// The deepest nesting of values.
pub const MAX_DEPTH: usize = 100;

/// The depth of the rows of a matrix: in a list, which is one of the arguments of a call.
pub const MATRIX_ROW_DEPTH: usize = 3;

/// The depth from which the containers in arguments are sent empty. The binding looks at six levels only.
pub const MAX_ARGUMENT_DEPTH: usize = 8;

/// How a conversion shares the interpreter with other threads.
pub struct Sharing {
    turn: Turn,
    left: usize,
}

impl Sharing {
    /// Begins now.
    pub fn begin() -> Self {
        Self { turn: Turn::begin(), left: VALUES_PER_LOOK }
    }

    /// So many values are converted next. Lets other threads have the interpreter now and then.
    pub fn count(&mut self, py: Python<'_>, values: usize) {
        if let Some(left) = self.left.checked_sub(values) {
            self.left = left;
        } else {
            self.left = VALUES_PER_LOOK;
            self.turn.share(py);
        }
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
