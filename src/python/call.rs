//! Calling Python functions of the package, and waiting for the pass that all work in this process needs
//! (`sync/fork_gate.rs`).

use pyo3::call::PyCallArgs;
use pyo3::prelude::*;

use super::gil::{self, SIGNAL_POLL};
use crate::sync::fork_gate::{self, Pass, Work};

/// Imports a module and calls one of its functions. A fork waits until the call returns: a child that inherits an
/// unfinished import would wait for it forever.
pub fn call_python<'py, A>(py: Python<'py>, module: &str, function: &str, arguments: A) -> PyResult<Bound<'py, PyAny>>
where
    A: PyCallArgs<'py>,
{
    let _pass = pass(py, Work::Here)?;
    py.import(module)?.call_method1(function, arguments)
}

/// Returns a pass for a call. While a fork stops calls, waits for it.
pub fn pass(py: Python<'_>, work: Work) -> PyResult<Pass> {
    loop {
        if let Some(pass) = Pass::try_new(work) {
            return Ok(pass);
        }
        gil::wait(py, || fork_gate::wait_for_gate(SIGNAL_POLL))?;
    }
}
