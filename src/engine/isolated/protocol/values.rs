//! What a call's arguments and results are while they cross: Python's values as bytes, and back.
//!
//! | tag | value | bytes behind the tag |
//! | --- | --- | --- |
//! | `N` `T` `F` | `None`, `True`, `False` | none |
//! | `i` `I` | an int that fits 64 bits; one that does not | 8; its hexadecimal digits as a text |
//! | `d` | a float | 8 |
//! | `s` `u` `b` | a str, one with lone surrogates, bytes | length, UTF-8 (with surrogates) or bytes |
//! | `l` `t` | a list, a tuple | count, values |
//! | `m` | a dict | count, keys and values |
//! | `M` | a list of vectors of one length | rows, columns, f32 row by row |
//! | `V` | a vector | columns, f32 |
//! | `o` | any other object of a result | module and name of its class (texts), count, names and values of its attributes |
//! | `x` | any other argument, also one whose class inherits one of these | see `stand_ins.rs` |
//!
//! Counts and lengths are u32, all numbers are little-endian. Converting gives up the interpreter every few thousand
//! values, so that a large batch stalls nobody; the containers of the caller are read by index, never by an iterator that
//! another thread could pull the floor from under.

use pyo3::exceptions::{
    PyAttributeError, PyException, PyOverflowError, PyRecursionError, PyRuntimeError, PyValueError,
};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple, PyType};

use super::stand_ins::Foreign;

use super::stand_ins::is_plain;

use super::stand_ins::number_of_raised;

/// How many values are converted before others get a turn: a few tenths of a millisecond.
const VALUES_A_TURN: usize = 2_000;

/// How many floats of a matrix go through one call of numpy.
const FLOATS_A_STEP: usize = 256 * 1024;

/// How many rows at the most, each of which is looked at first.
const ROWS_A_STEP: usize = 500;

const DEEPEST: usize = 100;

/// At which depth the rows of a matrix are: in a list, which is one of a call's arguments.
pub const ROWS: usize = 3;

/// How deep arguments are sent. The binding looks no deeper than six levels, so what is nested deeper is sent empty.
const DEEPEST_ARGUMENT: usize = 8;

/// What a matrix becomes where it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrices {
    /// In the app: a numpy array of float64, as chromadb makes of the lists that it gets otherwise.
    Numpy,
    /// In the engine process, which has no numpy: a list of arrays of f32 (`stand_ins.Vector`).
    Rows,
}

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
            Matrices::Numpy => self.numpy(floats, rows, columns),
            Matrices::Rows => self.rows(floats, rows, columns),
        }
    }

    /// A matrix of the one vector.
    fn vector(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let columns = self.length()?;
        let floats = self.take(columns.checked_mul(4).ok_or_else(damaged)?)?;
        match self.matrices {
            Matrices::Numpy => self.numpy(floats, 1, columns),
            Matrices::Rows => self.rows(floats, 1, columns),
        }
    }

    fn numpy(&self, floats: &[u8], rows: usize, columns: usize) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        let numpy = py.import("numpy")?;
        let matrix = numpy.call_method1("empty", ((rows, columns), intern!(py, "<f8")))?;
        let step = (FLOATS_A_STEP / columns.max(1)).max(1);
        for start in (0..rows).step_by(step) {
            let end = rows.min(start + step);
            let bytes = PyBytes::new(py, &floats[start * columns * 4..end * columns * 4]);
            let part = numpy.call_method1("frombuffer", (bytes, intern!(py, "<f4")))?;
            let part = part.call_method1("reshape", ((end - start, columns),))?;
            matrix.set_item(pyo3::types::PySlice::new(py, start.cast_signed(), end.cast_signed(), 1), part)?;
            py.detach(|| {});
        }
        Ok(matrix)
    }

    fn rows(&mut self, floats: &[u8], rows: usize, columns: usize) -> PyResult<Bound<'py, PyAny>> {
        self.is_finite &= self.py.detach(|| are_finite(floats));
        let vector = self.py.import("chroma_manager.worker.stand_ins")?.getattr("Vector")?;
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

/// The name at the beginning of what was encoded, if it has one; without Python.
pub fn name_of(bytes: &[u8]) -> Option<&str> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    std::str::from_utf8(rest.get(..length)?).ok()
}

/// How many items the list at that place of a call's arguments has, as far as that can be told without Python.
pub fn items_at(bytes: &[u8], place: usize) -> Option<usize> {
    let count = |bytes: &[u8], tag: u8| {
        let (count, rest) = bytes.strip_prefix(&[tag])?.split_first_chunk()?;
        Some((u32::from_le_bytes(*count) as usize, rest.len()))
    };
    let after = |left: usize| bytes.get(bytes.len() - left..);
    let (_, left) = count(bytes.get(4 + name_of(bytes)?.len()..)?, b't')?;
    let mut rest = after(left)?;
    for _ in 0..place {
        let (length, left) = count(rest, b's')?;
        rest = after(left.checked_sub(length)?)?;
    }
    Some(count(rest, b'l')?.0)
}

/// An exception, as it crosses: its class, its arguments and its text.
pub fn encode_exception(py: Python<'_>, error: &PyErr) -> Vec<u8> {
    let encode = || {
        let mut encoder = Encoder::new(py);
        let class = error.get_type(py);
        encoder.name(class.module()?.to_str()?)?;
        encoder.name(class.qualname()?.to_str()?)?;
        encoder.value(&error.value(py).getattr("args")?)?;
        Ok::<_, PyErr>(encoder.finish())
    };
    encode().unwrap_or_else(|_| {
        let mut encoder = Encoder::new(py);
        let text = PyTuple::new(py, [error.to_string()]).expect("a tuple of one text");
        encoder.name("builtins").and_then(|()| encoder.name("RuntimeError")).expect("short texts");
        encoder.value(text.as_any()).expect("a tuple of one text");
        encoder.finish()
    })
}

/// The exception that crossed; of the same class, if there is that class of exceptions here. Or the one of those that the
/// arguments of the call have raised which it stands for.
pub fn decode_exception(py: Python<'_>, bytes: &[u8], raised: &[PyErr]) -> PyResult<PyErr> {
    let mut decoder = Decoder::new(py, bytes, Matrices::Numpy);
    let (module, name) = (decoder.text()?, decoder.text()?);
    let arguments = decoder.last_value()?.cast_into::<PyTuple>().map_err(|_| damaged())?;
    if let Some(number) = number_of_raised(module, name, &arguments) {
        return raised.get(number).map(|error| error.clone_ref(py)).ok_or_else(damaged);
    }
    // A panic of the binding: where it is in the process, PyO3 makes of it what no `except Exception` catches.
    let (module, name) = if name == "PanicException" { ("chromadb.errors", "InternalError") } else { (module, name) };
    let made = class_named(py, module, name).and_then(|class| {
        if class.is_subclass_of::<PyException>()? { class.call1(&arguments) } else { Err(damaged()) }
    });
    Ok(match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(_) => PyRuntimeError::new_err(format!("{module}.{name}: {arguments}")),
    })
}

/// A class of a module that is loaded, or is Chroma's: no other is loaded because somebody names it.
fn class_named<'py>(py: Python<'py>, module: &str, name: &str) -> PyResult<Bound<'py, PyType>> {
    let loaded = py.import("sys")?.getattr("modules")?.call_method1("get", (module,))?;
    let module =
        if loaded.is_none() && module.starts_with("chromadb.") { py.import(module)?.into_any() } else { loaded };
    let class = name.split('.').try_fold(module, |parent, name| parent.getattr(name))?;
    Ok(class.cast_into()?)
}

/// An object with these attributes: of its own class where that is a data class of chromadb's, otherwise (a result of the
/// binding, whose classes cannot be made from Python) a plain namespace.
fn make_object<'py>(
    py: Python<'py>,
    module: &str,
    name: &str,
    attributes: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    match (module, name) {
        ("uuid", "UUID") => class_named(py, module, name)?.call((), Some(attributes)),
        _ if module.starts_with("chromadb.") => class_named(py, module, name)?.call((), Some(attributes)),
        _ => py.import("types")?.getattr("SimpleNamespace")?.call((), Some(attributes)),
    }
}

/// The names of the attributes that make up an object.
fn attributes_of<'py>(class: &Bound<'py, PyType>, value: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyString>>> {
    let py = value.py();
    if class.qualname()? == "UUID" {
        return Ok(vec![intern!(py, "hex").clone()]);
    }
    if let Ok(fields) = class.getattr("__dataclass_fields__") {
        return fields.call_method0("keys")?.try_iter()?.map(|name| Ok(name?.cast_into()?)).collect();
    }
    let names: Vec<Bound<'py, PyString>> = class.dir()?.extract()?;
    let mut attributes = Vec::new();
    for name in names {
        let is_data = || Ok::<_, PyErr>(class.getattr(&name)?.get_type().name()? == "getset_descriptor");
        if !name.to_str()?.starts_with('_') && is_data()? {
            attributes.push(name);
        }
    }
    if attributes.is_empty() {
        let class = class.name()?;
        return Err(PyAttributeError::new_err(format!(
            "an object of type {class} cannot be sent to an engine process"
        )));
    }
    Ok(attributes)
}

/// Whether it is a numpy vector of numbers, and of no class that inherits that one.
fn is_row(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(length_of_row(value)?.is_some())
}

fn length_of_row(value: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
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
fn floats_of<'py>(arrays: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
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
fn first_row_of_floats(rows: &Bound<'_, PyList>) -> Option<usize> {
    let first = rows.get_item(0).ok()?.cast_into::<PyList>().ok()?;
    let begins_with_float = first.get_item(0).is_ok_and(|float| float.is_instance_of::<PyFloat>());
    begins_with_float.then(|| first.len())
}

fn give_way(py: Python<'_>, turn: &mut usize, values: usize) {
    if let Some(left) = turn.checked_sub(values) {
        *turn = left;
    } else {
        *turn = VALUES_A_TURN;
        py.detach(|| {});
    }
}

/// Whether bytes are f32 that are all numbers.
fn are_finite(floats: &[u8]) -> bool {
    floats.as_chunks().0.iter().all(|float| f32::from_le_bytes(*float).is_finite())
}

fn too_many<E>(_: E) -> PyErr {
    PyOverflowError::new_err("a list of more than 4,294,967,295 values, or a text of as many bytes, cannot be sent")
}

pub fn damaged() -> PyErr {
    PyValueError::new_err("a damaged message between an app and its engine process")
}
