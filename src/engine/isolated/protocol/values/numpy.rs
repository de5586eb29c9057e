//! Conversion of numpy arrays to f32 and back.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyFloat, PyList, PySlice, PyString, PyType};

use super::limits::Sharing;

/// The number of floats of a matrix that one call of numpy converts.
pub const FLOATS_PER_STEP: usize = 256 * 1024;

/// Returns whether a value is a numpy vector of numbers, and not an instance of a subclass of `numpy.ndarray`.
pub fn is_row(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(length_of_row(value)?.is_some())
}

/// Returns the length of such a vector, or `None` for any other value.
pub fn length_of_row(value: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    if is_array(value)? { length_of_vector(value) } else { Ok(None) }
}

/// Returns whether a value is a numpy array, and not an instance of a subclass.
fn is_array(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    static ARRAY: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = value.py();
    Ok(value.get_type().is(ARRAY.import(py, "numpy", "ndarray")?))
}

/// Returns whether an array has f32 in the order of this machine: numpy has one object for them.
fn has_f32(array: &Bound<'_, PyAny>) -> PyResult<bool> {
    static F32: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = array.py();
    let find = || py.import("numpy")?.call_method1("dtype", ("<f4",)).map(Bound::unbind);
    Ok(array.getattr(intern!(py, "dtype"))?.is(F32.get_or_try_init(py, find)?))
}

/// Returns the bytes of a numpy array of f32; `None` for any other value.
pub fn floats_as_they_are<'py>(array: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyBytes>>> {
    if !is_array(array)? || !has_f32(array)? {
        return Ok(None);
    }
    Ok(Some(array.call_method0(intern!(array.py(), "tobytes"))?.cast_into()?))
}

/// Returns the length of a numpy array if it has one dimension and contains numbers.
pub fn length_of_vector(value: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    if value.getattr(intern!(value.py(), "ndim"))?.extract::<usize>()? != 1 {
        return Ok(None);
    }
    let kind = value.getattr(intern!(value.py(), "dtype"))?.getattr(intern!(value.py(), "kind"))?;
    let kind = kind.cast::<PyString>()?.to_str()?;
    if matches!(kind, "f" | "i" | "u") { value.len().map(Some) } else { Ok(None) }
}

/// Returns a numpy array, or a list of them, as f32. Converts integers by way of f64, as Chroma does.
pub fn floats_of<'py>(arrays: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = arrays.py();
    let numpy = py.import("numpy")?;
    // A number that is too large becomes infinite, which Chroma accepts or refuses.
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

/// Returns the length of the first row, if that is a list that begins with a float.
pub fn first_row_of_floats(rows: &Bound<'_, PyList>) -> Option<usize> {
    let first = rows.get_item(0).ok()?.cast_into::<PyList>().ok()?;
    let begins_with_float = first.get_item(0).is_ok_and(|float| float.is_instance_of::<PyFloat>());
    begins_with_float.then(|| first.len())
}

/// Returns whether all f32 in the bytes are finite.
pub fn are_finite(floats: &[u8]) -> bool {
    floats.as_chunks().0.iter().all(|float| f32::from_le_bytes(*float).is_finite())
}

/// Creates a matrix of f64, which chromadb makes of the lists that its binding returns.
pub fn matrix_of<'py>(
    py: Python<'py>,
    floats: &[u8],
    rows: usize,
    columns: usize,
    sharing: &mut Sharing,
) -> PyResult<Bound<'py, PyAny>> {
    let numpy = py.import("numpy")?;
    let matrix = numpy.call_method1("empty", ((rows, columns), intern!(py, "<f8")))?;
    let step = (FLOATS_PER_STEP / columns.max(1)).max(1);
    for start in (0..rows).step_by(step) {
        let end = rows.min(start + step);
        let bytes = PyBytes::new(py, &floats[start * columns * 4..end * columns * 4]);
        let part = numpy.call_method1("frombuffer", (bytes, intern!(py, "<f4")))?;
        let part = part.call_method1("reshape", ((end - start, columns),))?;
        matrix.set_item(PySlice::new(py, start.cast_signed(), end.cast_signed(), 1), part)?;
        sharing.count(py, (end - start) * columns);
    }
    Ok(matrix)
}
