//! The encoder: turns Python values into bytes.

use pyo3::exceptions::PyRecursionError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use super::classes::attributes_of;
use super::foreign::{Foreign, is_plain};
use super::limits::{MATRIX_ROW_DEPTH, MAX_ARGUMENT_DEPTH, MAX_DEPTH, Sharing, too_many};
use super::numpy::{FLOATS_PER_STEP, first_row_of_floats, floats_as_they_are, floats_of, is_row, length_of_row};

/// The largest number of rows that one call of numpy converts: each row is checked before.
const ROWS_PER_STEP: usize = 500;

/// Encodes values.
pub struct Encoder<'py> {
    /// The interpreter that this thread is attached to.
    pub py: Python<'py>,
    /// The bytes encoded so far.
    pub bytes: Vec<u8>,
    sharing: Sharing,
    /// The depth of the value that is being encoded.
    pub depth: usize,
    /// The app's own classes among the arguments of a call. `None` for a result, which has none.
    pub foreign: Option<Foreign<'py>>,
}

impl<'py> Encoder<'py> {
    /// Creates an encoder for a result.
    pub fn new(py: Python<'py>) -> Self {
        Self { py, bytes: Vec::with_capacity(256), sharing: Sharing::begin(), depth: 0, foreign: None }
    }

    /// Creates an encoder for a call, whose arguments may have any class.
    pub fn of_call(py: Python<'py>) -> Self {
        Self { foreign: Some(Foreign::default()), ..Self::new(py) }
    }

    /// Returns the encoded call, and the exceptions that conversions of its arguments have raised, in the order of
    /// their numbers.
    pub fn finish_call(self) -> (Vec<u8>, Vec<PyErr>) {
        (self.bytes, self.foreign.map(|foreign| foreign.raised).unwrap_or_default())
    }

    /// Returns the encoded values.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// Appends a text without a tag.
    pub fn name(&mut self, name: &str) -> PyResult<()> {
        self.length(name.len())?;
        self.bytes.extend(name.as_bytes());
        Ok(())
    }

    /// Appends any value.
    pub fn value(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(PyRecursionError::new_err(format!("values nested deeper than {MAX_DEPTH} cannot be sent")));
        }
        self.sharing.count(self.py, 1);
        let is_of_call = self.foreign.is_some();
        if is_of_call && self.depth == MATRIX_ROW_DEPTH && is_row(value)? {
            self.vector(value)?;
        } else if is_of_call && !is_plain(value) {
            self.stand_in(value)?;
        } else if value.is_none() {
            self.bytes.push(b'N');
        } else if let Ok(truth) = value.cast::<PyBool>() {
            self.bytes.push(if truth.is_true() { b'T' } else { b'F' });
        } else if !self.builtin(value)? {
            self.object(value)?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Appends a value as an instance of the builtin class that its class is or inherits. Returns whether there is one.
    pub fn builtin(&mut self, value: &Bound<'py, PyAny>) -> PyResult<bool> {
        if let Ok(text) = value.cast::<PyString>() {
            self.any_text(text)?;
        } else if let Ok(number) = value.cast::<PyFloat>() {
            self.float(number.value());
        } else if value.cast::<PyInt>().is_ok() {
            self.int(value)?;
        } else if let Ok(list) = value.cast::<PyList>() {
            self.list(list)?;
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            self.tuple(tuple)?;
        } else if let Ok(dict) = value.cast::<PyDict>() {
            self.dict(dict)?;
        } else if let Ok(bytes) = value.cast::<PyBytes>() {
            self.some_bytes(b'b', bytes.as_bytes())?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Returns whether the content of a container at the current depth is sent.
    pub fn looks_inside(&self) -> bool {
        self.foreign.is_none() || self.depth < MAX_ARGUMENT_DEPTH
    }

    /// Appends the embeddings of a result as matrices. Chroma made their floats of f32, so no precision is lost.
    pub fn vectors(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        let Ok(rows) = value.cast::<PyList>() else { return self.value(value) };
        let Some(columns) = first_row_of_floats(rows) else {
            // The result of a query: a list of matrices, one for each vector of the query.
            self.count(b'l', rows.len())?;
            return rows.iter().try_for_each(|rows| self.vectors(&rows));
        };
        let start = self.bytes.len();
        self.matrix_header(rows.len(), columns)?;
        for row in rows {
            self.sharing.count(self.py, columns);
            let row = row.cast_into::<PyList>()?;
            if row.len() != columns {
                self.bytes.truncate(start);
                return self.value(value);
            }
            for float in row {
                #[allow(clippy::cast_possible_truncation)] // made of an f32
                self.bytes.extend((float.extract::<f64>()? as f32).to_le_bytes());
            }
        }
        Ok(())
    }

    /// Appends a list.
    pub fn list(&mut self, list: &Bound<'py, PyList>) -> PyResult<()> {
        if self.foreign.is_some() && self.depth + 1 == MATRIX_ROW_DEPTH && self.numpy_rows(list)? {
            return Ok(());
        }
        // By index, and with the current length: another thread may change the list whenever the interpreter is
        // released.
        let start = self.open_list()?;
        let mut count = 0;
        while self.looks_inside() && count < list.len() {
            self.value(&list.get_item(count)?)?;
            count += 1;
        }
        self.close_list(start, count)
    }

    /// Begins a list whose length is not known yet. Returns its start, for [`Self::close_list`].
    pub fn open_list(&mut self) -> PyResult<usize> {
        self.count(b'l', 0)?;
        Ok(self.bytes.len())
    }

    /// Ends a list with the number of its values.
    pub fn close_list(&mut self, start: usize, count: usize) -> PyResult<()> {
        let count = u32::try_from(count).map_err(too_many)?;
        self.bytes[start - 4..start].copy_from_slice(&count.to_le_bytes());
        Ok(())
    }

    /// Appends a tuple.
    pub fn tuple(&mut self, tuple: &Bound<'py, PyTuple>) -> PyResult<()> {
        let count = if self.looks_inside() { tuple.len() } else { 0 };
        self.count(b't', count)?;
        tuple.iter().take(count).try_for_each(|item| self.value(&item))
    }

    /// Appends a list of numpy vectors as a matrix. Returns `false`, and appends nothing, if they do not all have the
    /// same length.
    fn numpy_rows(&mut self, list: &Bound<'py, PyList>) -> PyResult<bool> {
        let Ok(first) = list.get_item(0) else { return Ok(false) };
        let Some(columns) = length_of_row(&first)?.filter(|columns| *columns > 0) else { return Ok(false) };
        let start = self.bytes.len();
        let rows = list.len();
        self.matrix_header(rows, columns)?;
        let step = (FLOATS_PER_STEP / columns).clamp(1, ROWS_PER_STEP);
        let mut at = 0;
        while at < rows {
            let slice = list.get_slice(at, rows.min(at + step));
            let are_rows = || {
                for row in &slice {
                    if length_of_row(&row)? != Some(columns) {
                        return Ok(false);
                    }
                }
                Ok::<_, PyErr>(!slice.is_empty())
            };
            if !are_rows()? {
                self.bytes.truncate(start);
                return Ok(false);
            }
            if !self.rows_as_they_are(&slice, columns)? {
                let floats = floats_of(&slice)?;
                if floats.as_bytes().len() != slice.len() * columns * 4 {
                    // Another thread has changed a vector.
                    self.bytes.truncate(start);
                    return Ok(false);
                }
                self.bytes.extend(floats.as_bytes());
            }
            at += slice.len();
            self.sharing.count(self.py, slice.len() * columns);
        }
        Ok(true)
    }

    /// Appends numpy vectors of f32. Returns `false`, and appends nothing, if there is another one.
    fn rows_as_they_are(&mut self, rows: &Bound<'py, PyList>, columns: usize) -> PyResult<bool> {
        let start = self.bytes.len();
        for row in rows {
            let Some(floats) = floats_as_they_are(&row)?.filter(|floats| floats.as_bytes().len() == columns * 4) else {
                self.bytes.truncate(start);
                return Ok(false);
            };
            self.bytes.extend(floats.as_bytes());
        }
        Ok(true)
    }

    /// Appends a single numpy vector.
    pub fn vector(&mut self, vector: &Bound<'py, PyAny>) -> PyResult<()> {
        let floats = floats_as_they_are(vector)?.map_or_else(|| floats_of(vector), Ok)?;
        self.count(b'V', floats.as_bytes().len() / 4)?;
        self.bytes.extend(floats.as_bytes());
        Ok(())
    }

    /// Appends a dict.
    pub fn dict(&mut self, dict: &Bound<'py, PyDict>) -> PyResult<()> {
        if !self.looks_inside() {
            return self.count(b'm', 0);
        }
        // A copy, because another thread may change the dict whenever the interpreter is released.
        let items = dict.items();
        self.count(b'm', items.len())?;
        for item in items {
            let (key, value): (Bound<'py, PyAny>, Bound<'py, PyAny>) = item.extract()?;
            self.value(&key)?;
            self.value(&value)?;
        }
        Ok(())
    }

    /// Appends an int of any size.
    pub fn int(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        if let Ok(number) = value.extract::<i64>() {
            self.bytes.push(b'i');
            self.bytes.extend(number.to_le_bytes());
            return Ok(());
        }
        // Hexadecimal, because Python limits the number of decimal digits.
        let digits = self.py.get_type::<PyInt>().call_method1(intern!(self.py, "__format__"), (value, "x"))?;
        self.text(b'I', digits.cast::<PyString>()?.to_str()?)
    }

    /// Appends a float.
    pub fn float(&mut self, value: f64) {
        self.bytes.push(b'd');
        self.bytes.extend(value.to_le_bytes());
    }

    /// Appends a text, which may contain lone surrogates.
    pub fn any_text(&mut self, text: &Bound<'py, PyString>) -> PyResult<()> {
        match text.to_str() {
            Ok(text) => self.text(b's', text),
            // Chroma accepts or refuses it.
            Err(_) => self.text_with_surrogates(text),
        }
    }

    /// Appends a tag, a length and bytes.
    pub fn some_bytes(&mut self, tag: u8, bytes: &[u8]) -> PyResult<()> {
        self.count(tag, bytes.len())?;
        self.bytes.extend(bytes);
        Ok(())
    }

    fn object(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        let class = value.get_type();
        let attributes = attributes_of(&class)?;
        self.bytes.push(b'o');
        self.name(class.module()?.to_str()?)?;
        self.name(class.qualname()?.to_str()?)?;
        self.length(attributes.len())?;
        for name in attributes {
            let name = name.cast_into::<PyString>()?;
            let attribute = value.getattr(&name)?;
            self.name(name.to_str()?)?;
            if name == "embeddings" { self.vectors(&attribute)? } else { self.value(&attribute)? }
        }
        Ok(())
    }

    fn matrix_header(&mut self, rows: usize, columns: usize) -> PyResult<()> {
        self.count(b'M', rows)?;
        self.length(columns)?;
        // At once: to grow is to copy, attached. Where there is no room, it is found out when it is needed.
        let _ = self.bytes.try_reserve(rows.saturating_mul(columns).saturating_mul(size_of::<f32>()));
        Ok(())
    }

    fn text(&mut self, tag: u8, text: &str) -> PyResult<()> {
        self.bytes.push(tag);
        self.name(text)
    }

    fn text_with_surrogates(&mut self, text: &Bound<'py, PyString>) -> PyResult<()> {
        // The method of `str`, even if a subclass overrides it.
        let encode = self.py.get_type::<PyString>().getattr(intern!(self.py, "encode"))?;
        let bytes = encode.call1((text, "utf-8", "surrogatepass"))?.cast_into::<PyBytes>()?;
        self.some_bytes(b'u', bytes.as_bytes())
    }

    fn count(&mut self, tag: u8, count: usize) -> PyResult<()> {
        self.bytes.push(tag);
        self.length(count)
    }

    /// Appends a length without a tag.
    pub fn length(&mut self, length: usize) -> PyResult<()> {
        self.bytes.extend(u32::try_from(length).map_err(too_many)?.to_le_bytes());
        Ok(())
    }
}
