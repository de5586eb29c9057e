//! Calling Python functions of the package, and the pass that every piece of work in this process needs (`sync/fork_gate.rs`).

use pyo3::call::PyCallArgs;
use pyo3::prelude::*;

use super::gil::{self, SIGNAL_POLL};
use crate::sync::fork_gate::{self, Pass, Work};

/// Calls a function of a module, imported for it. A fork waits until it returns: a child that inherits an import which
/// nobody ends waits for it for ever.
pub fn call_python<'py, A>(py: Python<'py>, module: &str, function: &str, arguments: A) -> PyResult<Bound<'py, PyAny>>
where
    A: PyCallArgs<'py>,
{
    let _pass = pass(py, Work::Here)?;
    py.import(module)?.call_method1(function, arguments)
}

/// A pass for a call. While calls are stopped for a fork, it waits.
pub fn pass(py: Python<'_>, work: Work) -> PyResult<Pass> {
    loop {
        if let Some(pass) = Pass::try_new(work) {
            return Ok(pass);
        }
        gil::wait(py, || fork_gate::wait_for_gate(SIGNAL_POLL))?;
    }
}
