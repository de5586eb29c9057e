//! The decoder: turns bytes into Python values.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyType};

use super::classes::make_object;
use super::foreign::MODULE;
use super::limits::{MAX_DEPTH, Sharing, damaged};
use super::numpy::{are_finite, matrix_of};

/// The representation of a decoded matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrices {
    /// In the app: a numpy array of float64, which chromadb makes of the lists that its binding returns.
    Numpy,
    /// In the engine process, which has no numpy: a list of arrays of f32 (`stand_ins.Vector`).
    Rows,
}

/// So many bytes are looked through while other threads have the interpreter.
const LONG: usize = 64 * 1024;

/// Decodes values.
pub struct Decoder<'a, 'py> {
    /// The interpreter that this thread is attached to.
    pub py: Python<'py>,
    rest: &'a [u8],
    matrices: Matrices,
    sharing: Sharing,
    depth: usize,
    /// Whether all numbers in the vectors for Chroma were finite.
    pub is_finite: bool,
}

impl<'a, 'py> Decoder<'a, 'py> {
    /// Creates a decoder.
    pub fn new(py: Python<'py>, bytes: &'a [u8], matrices: Matrices) -> Self {
        Self { py, rest: bytes, matrices, sharing: Sharing::begin(), depth: 0, is_finite: true }
    }

    /// Decodes the next value.
    pub fn value(&mut self) -> PyResult<Bound<'py, PyAny>> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(damaged());
        }
        self.sharing.count(self.py, 1);
        let py = self.py;
        let value = match self.take(1)?[0] {
            b'N' => py.None().into_bound(py),
            b'T' => PyBool::new(py, true).to_owned().into_any(),
            b'F' => PyBool::new(py, false).to_owned().into_any(),
            b'i' => i64::from_le_bytes(self.array()?).into_pyobject(py)?.into_any(),
            b'd' => PyFloat::new(py, f64::from_le_bytes(self.array()?)).into_any(),
            b's' => PyString::new(py, self.text()?).into_any(),
            b'u' => {
                let length = self.length()?;
                PyBytes::new(py, self.take(length)?).call_method1("decode", ("utf-8", "surrogatepass"))?
            }
            b'I' => py.get_type::<PyInt>().call1((self.text()?, 16))?,
            b'b' => {
                let length = self.length()?;
                PyBytes::new(py, self.take(length)?).into_any()
            }
            b'l' => self.list()?.into_any(),
            b't' => self.list()?.to_tuple().into_any(),
            b'm' => self.dict()?.into_any(),
            b'M' => self.matrix()?,
            b'V' => self.vector()?.get_item(0)?,
            b'o' => self.object()?,
            b'x' if self.matrices == Matrices::Rows => self.stand_in()?,
            _ => return Err(damaged()),
        };
        self.depth -= 1;
        Ok(value)
    }

    /// Decodes the last value. Bytes after it are an error.
    pub fn last_value(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let value = self.value()?;
        if self.rest.is_empty() { Ok(value) } else { Err(damaged()) }
    }

    /// Decodes a text without a tag.
    pub fn text(&mut self) -> PyResult<&'a str> {
        let length = self.length()?;
        std::str::from_utf8(self.take(length)?).map_err(|_| damaged())
    }

    fn list(&mut self) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(self.py);
        for _ in 0..self.length()? {
            list.append(self.value()?)?;
        }
        Ok(list)
    }

    fn dict(&mut self) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(self.py);
        for _ in 0..self.length()? {
            let key = self.value()?;
            dict.set_item(key, self.value()?)?;
        }
        Ok(dict)
    }

    fn matrix(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let (rows, columns) = (self.length()?, self.length()?);
        if columns == 0 {
            // Refused: any number of empty rows would fit into a few bytes.
            return Err(damaged());
        }
        let bytes = rows.checked_mul(columns).and_then(|floats| floats.checked_mul(4)).ok_or_else(damaged)?;
        let floats = self.take(bytes)?;
        match self.matrices {
            Matrices::Numpy => matrix_of(self.py, floats, rows, columns, &mut self.sharing),
            Matrices::Rows => self.rows(floats, rows, columns),
        }
    }

    /// Decodes a vector as a matrix of one row.
    fn vector(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let columns = self.length()?;
        let floats = self.take(columns.checked_mul(4).ok_or_else(damaged)?)?;
        match self.matrices {
            Matrices::Numpy => matrix_of(self.py, floats, 1, columns, &mut self.sharing),
            Matrices::Rows => self.rows(floats, 1, columns),
        }
    }

    fn rows(&mut self, floats: &[u8], rows: usize, columns: usize) -> PyResult<Bound<'py, PyAny>> {
        static VECTOR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        self.is_finite &= if floats.len() < LONG { are_finite(floats) } else { self.py.detach(|| are_finite(floats)) };
        let vector = VECTOR.import(self.py, MODULE, "Vector")?;
        let list = PyList::empty(self.py);
        for row in 0..rows {
            self.sharing.count(self.py, columns);
            let bytes = PyBytes::new(self.py, &floats[row * columns * 4..(row + 1) * columns * 4]);
            list.append(vector.call1((intern!(self.py, "f"), bytes))?)?;
        }
        Ok(list.into_any())
    }

    fn object(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let (module, name) = (self.text()?, self.text()?);
        let attributes = PyDict::new(self.py);
        for _ in 0..self.length()? {
            let attribute = self.text()?;
            attributes.set_item(attribute, self.value()?)?;
        }
        make_object(self.py, module, name, &attributes)
    }

    /// Decodes a length without a tag.
    pub fn length(&mut self) -> PyResult<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    /// Takes the next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> PyResult<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("`take` returns as many bytes as asked for"))
    }

    /// Takes the next `count` bytes.
    pub fn take(&mut self, count: usize) -> PyResult<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(damaged)?;
        self.rest = rest;
        Ok(taken)
    }
}
