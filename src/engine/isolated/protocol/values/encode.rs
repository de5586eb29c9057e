//! Turns Python's values into bytes.

use pyo3::exceptions::PyRecursionError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use super::classes::attributes_of;
use super::foreign::{Foreign, is_plain};
use super::limits::{DEEPEST, DEEPEST_ARGUMENT, ROWS, VALUES_A_TURN, give_way, too_many};
use super::numpy::{FLOATS_A_STEP, first_row_of_floats, floats_of, is_row, length_of_row};

/// How many rows at the most, each of which is looked at first.
const ROWS_A_STEP: usize = 500;

/// Turns values into bytes.
pub struct Encoder<'py> {
    pub py: Python<'py>,
    pub bytes: Vec<u8>,
    turn: usize,
    pub depth: usize,
    /// Of a call; a result has no values of the app's.
    pub foreign: Option<Foreign<'py>>,
}

impl<'py> Encoder<'py> {
    pub fn new(py: Python<'py>) -> Self {
        Self { py, bytes: Vec::with_capacity(256), turn: VALUES_A_TURN, depth: 0, foreign: None }
    }

    /// Of a call, whose arguments may be anything.
    pub fn of_call(py: Python<'py>) -> Self {
        Self { foreign: Some(Foreign::default()), ..Self::new(py) }
    }

    /// The call, and the exceptions that its arguments have raised, in the order of their numbers.
    pub fn finish_call(self) -> (Vec<u8>, Vec<PyErr>) {
        (self.bytes, self.foreign.map(|foreign| foreign.raised).unwrap_or_default())
    }

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
        if self.depth > DEEPEST {
            return Err(PyRecursionError::new_err(format!("values nested deeper than {DEEPEST} cannot be sent")));
        }
        give_way(self.py, &mut self.turn, 1);
        let is_of_call = self.foreign.is_some();
        if is_of_call && self.depth == ROWS && is_row(value)? {
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

    /// Appends a value as the builtin that it is, or that its class inherits; tells whether there is one.
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

    /// Whether what is in a container is sent.
    pub fn looks_inside(&self) -> bool {
        self.foreign.is_none() || self.depth < DEEPEST_ARGUMENT
    }

    /// Appends a matrix of Python's floats, which Chroma made of f32: so nothing is lost.
    pub fn vectors(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        let Ok(rows) = value.cast::<PyList>() else { return self.value(value) };
        let Some(columns) = first_row_of_floats(rows) else {
            // Of a query: a list of matrices, one for each of its vectors.
            self.count(b'l', rows.len())?;
            return rows.iter().try_for_each(|rows| self.vectors(&rows));
        };
        let start = self.bytes.len();
        self.matrix_header(rows.len(), columns)?;
        for row in rows {
            give_way(self.py, &mut self.turn, columns);
            let row = row.cast_into::<PyList>()?;
            if row.len() != columns {
                self.bytes.truncate(start);
                return self.value(value);
            }
            for float in row {
                #[allow(clippy::cast_possible_truncation)] // it was an f32 before it was Python's
                self.bytes.extend((float.extract::<f64>()? as f32).to_le_bytes());
            }
        }
        Ok(())
    }

    pub fn list(&mut self, list: &Bound<'py, PyList>) -> PyResult<()> {
        if self.foreign.is_some() && self.depth + 1 == ROWS && self.numpy_rows(list)? {
            return Ok(());
        }
        // By index, and with the length read anew: another thread may change the list while this one gives way.
        let place = self.open_list()?;
        let mut count = 0;
        while self.looks_inside() && count < list.len() {
            self.value(&list.get_item(count)?)?;
            count += 1;
        }
        self.close_list(place, count)
    }

    /// Begins a list of so many values as there will be at its end.
    pub fn open_list(&mut self) -> PyResult<usize> {
        self.count(b'l', 0)?;
        Ok(self.bytes.len())
    }

    pub fn close_list(&mut self, place: usize, count: usize) -> PyResult<()> {
        let count = u32::try_from(count).map_err(too_many)?;
        self.bytes[place - 4..place].copy_from_slice(&count.to_le_bytes());
        Ok(())
    }

    pub fn tuple(&mut self, tuple: &Bound<'py, PyTuple>) -> PyResult<()> {
        let count = if self.looks_inside() { tuple.len() } else { 0 };
        self.count(b't', count)?;
        tuple.iter().take(count).try_for_each(|item| self.value(&item))
    }

    /// Appends a list of numpy vectors as a matrix; tells whether they are one, all of one length.
    fn numpy_rows(&mut self, list: &Bound<'py, PyList>) -> PyResult<bool> {
        let Ok(first) = list.get_item(0) else { return Ok(false) };
        let Some(columns) = length_of_row(&first)?.filter(|columns| *columns > 0) else { return Ok(false) };
        let start = self.bytes.len();
        let rows = list.len();
        self.matrix_header(rows, columns)?;
        let step = (FLOATS_A_STEP / columns).clamp(1, ROWS_A_STEP);
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
            let floats = floats_of(&slice)?;
            if floats.as_bytes().len() != slice.len() * columns * 4 {
                // Another thread has changed one.
                self.bytes.truncate(start);
                return Ok(false);
            }
            self.bytes.extend(floats.as_bytes());
            at += slice.len();
            self.py.detach(|| {});
        }
        Ok(true)
    }

    /// Appends a numpy vector that is not among others of its length.
    pub fn vector(&mut self, vector: &Bound<'py, PyAny>) -> PyResult<()> {
        let floats = floats_of(vector)?;
        self.count(b'V', floats.as_bytes().len() / 4)?;
        self.bytes.extend(floats.as_bytes());
        Ok(())
    }

    pub fn dict(&mut self, dict: &Bound<'py, PyDict>) -> PyResult<()> {
        if !self.looks_inside() {
            return self.count(b'm', 0);
        }
        // A copy of what is in it now: giving way in the middle of an iteration would let others change it.
        let items = dict.items();
        self.count(b'm', items.len())?;
        for item in items {
            let (key, value): (Bound<'py, PyAny>, Bound<'py, PyAny>) = item.extract()?;
            self.value(&key)?;
            self.value(&value)?;
        }
        Ok(())
    }

    pub fn int(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        if let Ok(number) = value.extract::<i64>() {
            self.bytes.push(b'i');
            self.bytes.extend(number.to_le_bytes());
            return Ok(());
        }
        // Of decimal digits Python makes only so many.
        let digits = self.py.get_type::<PyInt>().call_method1(intern!(self.py, "__format__"), (value, "x"))?;
        self.text(b'I', digits.cast::<PyString>()?.to_str()?)
    }

    pub fn float(&mut self, value: f64) {
        self.bytes.push(b'd');
        self.bytes.extend(value.to_le_bytes());
    }

    pub fn any_text(&mut self, text: &Bound<'py, PyString>) -> PyResult<()> {
        match text.to_str() {
            Ok(text) => self.text(b's', text),
            // Whether it is allowed is for Chroma to say.
            Err(_) => self.text_with_surrogates(text),
        }
    }

    pub fn some_bytes(&mut self, tag: u8, bytes: &[u8]) -> PyResult<()> {
        self.count(tag, bytes.len())?;
        self.bytes.extend(bytes);
        Ok(())
    }

    fn object(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        let class = value.get_type();
        let attributes = attributes_of(&class, value)?;
        self.bytes.push(b'o');
        self.name(class.module()?.to_str()?)?;
        self.name(class.qualname()?.to_str()?)?;
        self.length(attributes.len())?;
        for name in attributes {
            let attribute = value.getattr(&name)?;
            self.name(name.to_str()?)?;
            if name == "embeddings" { self.vectors(&attribute)? } else { self.value(&attribute)? }
        }
        Ok(())
    }

    fn matrix_header(&mut self, rows: usize, columns: usize) -> PyResult<()> {
        self.count(b'M', rows)?;
        self.length(columns)
    }

    fn text(&mut self, tag: u8, text: &str) -> PyResult<()> {
        self.bytes.push(tag);
        self.name(text)
    }

    fn text_with_surrogates(&mut self, text: &Bound<'py, PyString>) -> PyResult<()> {
        // Not the method of a class that inherits it.
        let encode = self.py.get_type::<PyString>().getattr(intern!(self.py, "encode"))?;
        let bytes = encode.call1((text, "utf-8", "surrogatepass"))?.cast_into::<PyBytes>()?;
        self.some_bytes(b'u', bytes.as_bytes())
    }

    fn count(&mut self, tag: u8, count: usize) -> PyResult<()> {
        self.bytes.push(tag);
        self.length(count)
    }

    pub fn length(&mut self, length: usize) -> PyResult<()> {
        self.bytes.extend(u32::try_from(length).map_err(too_many)?.to_le_bytes());
        Ok(())
    }
}
