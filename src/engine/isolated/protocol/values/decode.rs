//! Turns bytes into Python's values.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString};

use super::classes::make_object;
use super::foreign::MODULE;
use super::limits::{DEEPEST, VALUES_A_TURN, damaged, give_way};
use super::numpy::{are_finite, matrix_of};

/// What a matrix becomes where it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrices {
    /// In the app: a numpy array of float64, as chromadb makes of the lists that it gets otherwise.
    Numpy,
    /// In the engine process, which has no numpy: a list of arrays of f32 (`stand_ins.Vector`).
    Rows,
}

/// Turns bytes into values.
pub struct Decoder<'a, 'py> {
    pub py: Python<'py>,
    rest: &'a [u8],
    matrices: Matrices,
    turn: usize,
    depth: usize,
    /// No vector for Chroma had a number that is infinite, or none.
    pub is_finite: bool,
}

impl<'a, 'py> Decoder<'a, 'py> {
    pub fn new(py: Python<'py>, bytes: &'a [u8], matrices: Matrices) -> Self {
        Self { py, rest: bytes, matrices, turn: VALUES_A_TURN, depth: 0, is_finite: true }
    }

    /// The next value.
    pub fn value(&mut self) -> PyResult<Bound<'py, PyAny>> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(damaged());
        }
        give_way(self.py, &mut self.turn, 1);
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

    /// The last value: nothing may be left behind it.
    pub fn last_value(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let value = self.value()?;
        if self.rest.is_empty() { Ok(value) } else { Err(damaged()) }
    }

    /// A text without a tag.
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
            // Rows without bytes would cost the sender nothing, however many they are.
            return Err(damaged());
        }
        let bytes = rows.checked_mul(columns).and_then(|floats| floats.checked_mul(4)).ok_or_else(damaged)?;
        let floats = self.take(bytes)?;
        match self.matrices {
            Matrices::Numpy => matrix_of(self.py, floats, rows, columns),
            Matrices::Rows => self.rows(floats, rows, columns),
        }
    }

    /// A matrix of the one vector.
    fn vector(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let columns = self.length()?;
        let floats = self.take(columns.checked_mul(4).ok_or_else(damaged)?)?;
        match self.matrices {
            Matrices::Numpy => matrix_of(self.py, floats, 1, columns),
            Matrices::Rows => self.rows(floats, 1, columns),
        }
    }

    fn rows(&mut self, floats: &[u8], rows: usize, columns: usize) -> PyResult<Bound<'py, PyAny>> {
        self.is_finite &= self.py.detach(|| are_finite(floats));
        let vector = self.py.import(MODULE)?.getattr("Vector")?;
        let list = PyList::empty(self.py);
        for row in 0..rows {
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

    pub fn length(&mut self) -> PyResult<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    pub fn array<const N: usize>(&mut self) -> PyResult<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("it is as long as it was asked for"))
    }

    pub fn take(&mut self, count: usize) -> PyResult<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(damaged)?;
        self.rest = rest;
        Ok(taken)
    }
}
