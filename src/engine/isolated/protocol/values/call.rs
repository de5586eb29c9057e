//! A call as bytes, and back: the name of its method, its arguments by place, and those by name, or `None`.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::decode::{Decoder, Matrices};
use super::encode::Encoder;

/// A call, as an engine process has it.
pub struct DecodedCall<'py> {
    /// The name of the method.
    pub method: String,
    /// The arguments by place.
    pub arguments: Bound<'py, PyTuple>,
    /// The arguments by name.
    pub keywords: Option<Bound<'py, PyDict>>,
    /// Whether every number is finite in the arguments that arrived as vectors.
    pub is_finite: bool,
}

/// Encodes a call. Also returns the exceptions that conversions of its arguments have raised.
pub fn encode_call<'py>(
    method: &str,
    arguments: &Bound<'py, PyTuple>,
    keywords: Option<&Bound<'py, PyDict>>,
) -> PyResult<(Vec<u8>, Vec<PyErr>)> {
    let py = arguments.py();
    let mut encoder = Encoder::of_call(py);
    encoder.name(method)?;
    encoder.value(arguments.as_any())?;
    match keywords {
        Some(keywords) => encoder.value(keywords.as_any())?,
        None => encoder.value(py.None().bind(py))?,
    }
    Ok(encoder.finish_call())
}

/// Decodes what [`encode_call`] has encoded.
pub fn decode_call<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<DecodedCall<'py>> {
    let mut decoder = Decoder::new(py, bytes, Matrices::Rows);
    let method = decoder.text()?.to_owned();
    let arguments = decoder.value()?.cast_into::<PyTuple>()?;
    let keywords = decoder.last_value()?;
    let keywords = if keywords.is_none() { None } else { Some(keywords.cast_into::<PyDict>()?) };
    Ok(DecodedCall { method, arguments, keywords, is_finite: decoder.is_finite })
}
