//! Exceptions as bytes, and back.

use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::classes::class_named;
use super::decode::{Decoder, Matrices};
use super::encode::Encoder;
use super::foreign::number_of_raised;
use super::limits::damaged;

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
