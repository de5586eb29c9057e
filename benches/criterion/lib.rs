//! What the benches share: an interpreter, and what an app hands over.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// The arguments of Chroma's `add`, as its binding has them: `dimension` numbers in each of `count` vectors.
const ADD: &std::ffi::CStr = c"
import numpy

rows = numpy.random.default_rng(0).random((count, dimension), dtype=numpy.float32)
arguments = (
    [str(i) for i in range(count)],
    '6b1cf6a4-5f0a-4a3e-8f0e-0f6f0a3a9a11',
    list(rows) if as_arrays else rows.tolist(),
    [{'page': i, 'source': 'a.pdf'} for i in range(count)],
    ['of the page that this vector is of ' * 10] * count,
    None,
    'default_tenant',
    'default_database',
)
";

/// Runs `body` in this process's interpreter, which finds modules as `PYTHONPATH` says.
///
/// # Panics
///
/// Panics if it raises an exception.
pub fn with_python(body: impl for<'py> FnOnce(Python<'py>) -> PyResult<()>) {
    Python::initialize();
    Python::attach(|py| body(py).inspect_err(|error| error.print(py))).expect("no exception");
}

/// Returns the arguments of an `add` of vectors that are numpy arrays, or lists of floats.
///
/// # Errors
///
/// Returns an error where there is no numpy.
pub fn arguments_of_add(
    py: Python<'_>,
    count: usize,
    dimension: usize,
    as_arrays: bool,
) -> PyResult<Bound<'_, PyTuple>> {
    let names = PyDict::new(py);
    names.set_item("count", count)?;
    names.set_item("dimension", dimension)?;
    names.set_item("as_arrays", as_arrays)?;
    py.run(ADD, Some(&names), None)?;
    Ok(names.as_any().get_item("arguments")?.cast_into::<PyTuple>()?)
}
