//! Arrays of numpy's as f32, in both directions.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyFloat, PyList, PySlice, PyString};

/// How many floats of a matrix go through one call of numpy.
pub const FLOATS_A_STEP: usize = 256 * 1024;

/// Whether it is a numpy vector of numbers, and of no class that inherits that one.
pub fn is_row(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(length_of_row(value)?.is_some())
}

/// The length of such a vector.
pub fn length_of_row(value: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    let class = value.get_type();
    if class.name()? != "ndarray" || class.module()? != "numpy" {
        return Ok(None);
    }
    length_of_vector(value)
}

/// The length of an array of numpy's, if it is one of numbers and of one dimension.
pub fn length_of_vector(value: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    let shape: Vec<usize> = value.getattr(intern!(value.py(), "shape"))?.extract()?;
    let kind = value.getattr(intern!(value.py(), "dtype"))?.getattr(intern!(value.py(), "kind"))?;
    let kind = kind.cast::<PyString>()?.to_str()?;
    Ok((shape.len() == 1 && matches!(kind, "f" | "i" | "u")).then(|| shape[0]))
}

/// The f32 of an array of numpy's, or of a list of them, as Chroma makes them: of f64.
pub fn floats_of<'py>(arrays: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = arrays.py();
    let numpy = py.import("numpy")?;
    // What is too large is infinite, and for Chroma to judge.
    let quiet = PyDict::new(py);
    quiet.set_item("over", "ignore")?;
    let quiet = numpy.getattr("errstate")?.call((), Some(&quiet))?;
    quiet.call_method0("__enter__")?;
    let floats = numpy.call_method1("asarray", (arrays,)).and_then(|array| {
        let dtype = array.getattr("dtype")?;
        let is_f64_or_less =
            dtype.getattr("kind")?.cast::<PyString>()? == "f" && dtype.getattr("itemsize")?.extract::<usize>()? <= 8;
        let array = if is_f64_or_less { array } else { array.call_method1("astype", (intern!(py, "<f8"),))? };
        array.call_method1("astype", (intern!(py, "<f4"),))?.call_method0("tobytes")
    });
    quiet.call_method1("__exit__", (py.None(), py.None(), py.None()))?;
    Ok(floats?.cast_into()?)
}

/// The length of the rows, if the list begins with a list of floats.
pub fn first_row_of_floats(rows: &Bound<'_, PyList>) -> Option<usize> {
    let first = rows.get_item(0).ok()?.cast_into::<PyList>().ok()?;
    let begins_with_float = first.get_item(0).is_ok_and(|float| float.is_instance_of::<PyFloat>());
    begins_with_float.then(|| first.len())
}

/// Whether bytes are f32 that are all numbers.
pub fn are_finite(floats: &[u8]) -> bool {
    floats.as_chunks().0.iter().all(|float| f32::from_le_bytes(*float).is_finite())
}

/// A matrix of f64, as chromadb makes of the lists that it gets otherwise.
pub fn matrix_of<'py>(py: Python<'py>, floats: &[u8], rows: usize, columns: usize) -> PyResult<Bound<'py, PyAny>> {
    let numpy = py.import("numpy")?;
    let matrix = numpy.call_method1("empty", ((rows, columns), intern!(py, "<f8")))?;
    let step = (FLOATS_A_STEP / columns.max(1)).max(1);
    for start in (0..rows).step_by(step) {
        let end = rows.min(start + step);
        let bytes = PyBytes::new(py, &floats[start * columns * 4..end * columns * 4]);
        let part = numpy.call_method1("frombuffer", (bytes, intern!(py, "<f4")))?;
        let part = part.call_method1("reshape", ((end - start, columns),))?;
        matrix.set_item(PySlice::new(py, start.cast_signed(), end.cast_signed(), 1), part)?;
        py.detach(|| {});
    }
    Ok(matrix)
}
