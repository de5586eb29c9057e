//! Whether Chroma would take a batch. If not, the batch is not sliced but given to Chroma whole, which refuses it whole, in
//! its own words and with the place in the caller's batch.
//!
//! Most rules are Chroma's own: it is given the batch for a collection that does not exist, and checks all of it before it
//! looks for the collection. Only what Chroma checks later is checked here.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::chroma::{COLLECTION, EMBEDDINGS, IDS, METADATAS, Method, PER_RECORD};
use crate::python::turn::Turn;

/// How many records are converted between two looks at the time: about a millisecond's worth.
const RECORDS_A_STEP: usize = 250;

/// Chroma reserves the keys of metadata that begin with this, and does not refuse them.
const RESERVED: &str = "chroma:";

/// A call that writes records.
#[derive(Clone, Copy)]
pub struct Batch<'a, 'py> {
    pub method: &'static Method,
    pub function: &'a Bound<'py, PyAny>,
    /// All of them by place.
    pub arguments: &'a Bound<'py, PyTuple>,
    pub count: usize,
    /// Whether every number is finite in the embeddings that arrived as vectors.
    pub is_finite: bool,
}

impl<'py> Batch<'_, 'py> {
    /// Whether it has nothing that Chroma refuses only after it has found the collection. The first record tells whether
    /// the embeddings have the collection's dimension, if all have the same one.
    pub fn looks_sound(&self) -> bool {
        self.is_finite && self.lists_match() && self.check().unwrap_or(false)
    }

    /// The argument of that name; `None` where it was not given, or is `None`.
    pub fn argument(&self, parameter: &str) -> Option<Bound<'py, PyAny>> {
        let argument = self.arguments.get_item(self.method.place_of(parameter)?).ok()?;
        (!argument.is_none()).then_some(argument)
    }

    fn lists_match(&self) -> bool {
        let is_list = |argument: Bound<'_, PyAny>| argument.cast::<PyList>().is_ok_and(|list| list.len() == self.count);
        PER_RECORD.iter().all(|parameter| self.argument(parameter).is_none_or(is_list))
    }

    fn check(&self) -> PyResult<bool> {
        let is_id = |id: &Bound<'_, PyAny>| id.cast::<PyString>().is_ok() && !id.is_empty().unwrap_or(true);
        let Some(ids) = self.argument(IDS) else { return Ok(false) };
        if !self.all(&ids, is_id)? {
            return Ok(false);
        }
        if let Some(embeddings) = self.argument(EMBEDDINGS) {
            let columns = embeddings.get_item(0)?.len()?;
            if !self.all(&embeddings, |row| row.len().is_ok_and(|length| length == columns))? {
                return Ok(false);
            }
        }
        let Some(metadatas) = self.argument(METADATAS) else { return Ok(true) };
        self.all(&metadatas, |metadata| is_plain(metadata).unwrap_or(false))
    }

    fn all(&self, list: &Bound<'py, PyAny>, is_sound: impl Fn(&Bound<'py, PyAny>) -> bool) -> PyResult<bool> {
        let mut turn = Turn::begin();
        for at in 0..self.count {
            if at % RECORDS_A_STEP == 0 {
                turn.share(list.py());
            }
            if !is_sound(&list.get_item(at)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether Chroma finds nothing wrong with it except that the collection does not exist.
    pub fn is_taken(&self) -> PyResult<bool> {
        let py = self.function.py();
        // Embeddings that arrived as vectors were checked above, and would be most of the work.
        let vector = py.import("array")?.getattr("array")?;
        let are_vectors = match self.argument(EMBEDDINGS) {
            Some(embeddings) => self.all(&embeddings, |row| row.is_instance(&vector).unwrap_or(false))?,
            None => false,
        };
        let nowhere = py.import("os")?.call_method1("urandom", (16,))?.call_method0("hex")?;
        let mut turn = Turn::begin();
        for start in (0..self.count).step_by(RECORDS_A_STEP) {
            let end = self.count.min(start + RECORDS_A_STEP);
            let piece = self.arguments.iter().zip(self.method.parameters).map(|(argument, parameter)| {
                if parameter.name == COLLECTION {
                    return Ok(nowhere.clone());
                }
                if parameter.name == EMBEDDINGS && are_vectors {
                    return Ok(PyList::new(py, vec![PyList::new(py, [0.0])?; end - start])?.into_any());
                }
                Ok(slice_of(argument, self.count, start, end))
            });
            let piece = PyTuple::new(py, piece.collect::<PyResult<Vec<_>>>()?)?;
            let Err(error) = self.function.call1(piece) else { return Ok(false) };
            if error.get_type(py).name()? != "NotFoundError" {
                return Ok(false);
            }
            turn.share(py);
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
