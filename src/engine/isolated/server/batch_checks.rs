//! Whether Chroma would take a batch: if not, it is not sliced but given to Chroma whole, which refuses it whole, with its
//! own words and the place in the caller's batch.
//!
//! Most rules are Chroma's own: it is given the batch for a collection that does not exist, and looks at all of it before
//! it finds that out. Here is what it does not look at until it has the collection.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

/// How many records are converted before others get the interpreter: a millisecond of them.
const RECORDS_A_STEP: usize = 250;

/// Which arguments have one value for each record, besides the ids.
const EMBEDDINGS: usize = 2;
const METADATAS: usize = 3;
const LAST: usize = 5;

/// Keys of metadata with this in front are Chroma's, and not refused by it.
const RESERVED: &str = "chroma:";

/// The arguments of a call that writes records.
pub struct Batch<'a, 'py> {
    pub function: &'a Bound<'py, PyAny>,
    pub arguments: &'a Bound<'py, PyTuple>,
    /// Which argument is the collection's id.
    pub collection: usize,
    pub count: usize,
    /// No vector that came as one has a number that is none.
    pub is_finite: bool,
}

impl<'py> Batch<'_, 'py> {
    /// Whether nothing can be seen in it that Chroma refuses after it has found the collection. The first record tells
    /// whether the vectors are of the collection's dimension, if they are all of one.
    pub fn looks_sound(&self) -> bool {
        self.is_finite && self.lists_match() && self.check().unwrap_or(false)
    }

    fn lists_match(&self) -> bool {
        let is_list = |place| {
            self.arguments.get_item(place).is_ok_and(|argument| {
                argument.is_none() || argument.cast::<PyList>().is_ok_and(|list| list.len() == self.count)
            })
        };
        (EMBEDDINGS..=LAST).all(is_list)
    }

    fn check(&self) -> PyResult<bool> {
        let ids = self.arguments.get_item(1 - self.collection)?;
        if !self.all(&ids, |id| id.cast::<PyString>().is_ok() && !id.is_empty().unwrap_or(true))? {
            return Ok(false);
        }
        let embeddings = self.arguments.get_item(EMBEDDINGS)?;
        if !embeddings.is_none() {
            let columns = embeddings.get_item(0)?.len()?;
            if !self.all(&embeddings, |row| row.len().is_ok_and(|length| length == columns))? {
                return Ok(false);
            }
        }
        let metadatas = self.arguments.get_item(METADATAS)?;
        Ok(metadatas.is_none() || self.all(&metadatas, |metadata| is_plain(metadata).unwrap_or(false))?)
    }

    fn all(&self, list: &Bound<'py, PyAny>, is_sound: impl Fn(&Bound<'py, PyAny>) -> bool) -> PyResult<bool> {
        for at in 0..self.count {
            if at % RECORDS_A_STEP == 0 {
                list.py().detach(|| {});
            }
            if !is_sound(&list.get_item(at)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether Chroma finds nothing wrong with it but that there is no such collection.
    pub fn is_taken(&self) -> PyResult<bool> {
        let py = self.function.py();
        // Vectors that came as such have been looked at, and are most of the work.
        let embeddings = self.arguments.get_item(EMBEDDINGS)?;
        let vector = py.import("array")?.getattr("array")?;
        let are_vectors =
            !embeddings.is_none() && self.all(&embeddings, |row| row.is_instance(&vector).unwrap_or(false))?;
        let nowhere = py.import("os")?.call_method1("urandom", (16,))?.call_method0("hex")?;
        for start in (0..self.count).step_by(RECORDS_A_STEP) {
            let end = self.count.min(start + RECORDS_A_STEP);
            let piece = self.arguments.iter().enumerate().map(|(place, argument)| {
                if place == self.collection {
                    return Ok(nowhere.clone());
                }
                if place == EMBEDDINGS && are_vectors {
                    return Ok(PyList::new(py, vec![PyList::new(py, [0.0])?; end - start])?.into_any());
                }
                Ok(slice_of(argument, self.count, start, end))
            });
            let piece = PyTuple::new(py, piece.collect::<PyResult<Vec<_>>>()?)?;
            let Err(error) = self.function.call1(piece) else { return Ok(false) };
            if error.get_type(py).name()? != "NotFoundError" {
                return Ok(false);
            }
            py.detach(|| {});
        }
        Ok(true)
    }
}

/// A slice of an argument that has one value for each record; any other one as it is.
pub fn slice_of(argument: Bound<'_, PyAny>, count: usize, start: usize, end: usize) -> Bound<'_, PyAny> {
    match argument.cast::<PyList>() {
        Ok(list) if list.len() == count => list.get_slice(start, end).into_any(),
        _ => argument,
    }
}

/// Whether metadata has only what a local Chroma can store: no sparse vectors, and no keys of its own.
fn is_plain(metadata: &Bound<'_, PyAny>) -> PyResult<bool> {
    if metadata.is_none() {
        return Ok(true);
    }
    for (key, value) in metadata.cast::<PyDict>()? {
        let is_plain = value.is_none()
            || value.is_instance_of::<PyString>()
            || value.is_instance_of::<PyBool>()
            || value.is_instance_of::<PyInt>()
            || value.is_instance_of::<PyFloat>()
            || value.is_instance_of::<PyList>();
        if !is_plain || key.cast::<PyString>()?.to_str()?.starts_with(RESERVED) {
            return Ok(false);
        }
    }
    Ok(true)
}
