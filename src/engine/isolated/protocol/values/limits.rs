//! How deep and how long what is converted may be, and when a conversion gives up the interpreter.

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;

/// How many values are converted before others get a turn: a few tenths of a millisecond.
pub const VALUES_A_TURN: usize = 2_000;

/// How deep values are nested at the most.
pub const DEEPEST: usize = 100;

/// At which depth the rows of a matrix are: in a list, which is one of a call's arguments.
pub const ROWS: usize = 3;

/// How deep arguments are sent. The binding looks no deeper than six levels, so what is nested deeper is sent empty.
pub const DEEPEST_ARGUMENT: usize = 8;

/// Lets other threads have the interpreter once in so many values.
pub fn give_way(py: Python<'_>, turn: &mut usize, values: usize) {
    if let Some(left) = turn.checked_sub(values) {
        *turn = left;
    } else {
        *turn = VALUES_A_TURN;
        py.detach(|| {});
    }
}

/// What was counted does not fit the protocol.
pub fn too_many<E>(_: E) -> PyErr {
    PyOverflowError::new_err("a list of more than 4,294,967,295 values, or a text of as many bytes, cannot be sent")
}

/// The other end has sent what it should not.
pub fn damaged() -> PyErr {
    PyValueError::new_err("a damaged message between an app and its engine process")
}
