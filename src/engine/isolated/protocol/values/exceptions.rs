//! Encoding and decoding of exceptions.

use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::classes::class_named;
use super::decode::{Decoder, Matrices};
use super::encode::Encoder;
use super::foreign::number_of_raised;
use super::limits::damaged;

/// Encodes an exception: its module, its class and its arguments. One that cannot be encoded becomes a `RuntimeError`
/// with its text.
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

/// Decodes an exception. It has the same class, if this process has that class of exceptions; otherwise it is a
/// `RuntimeError`. An exception that stands for one of `raised`, which conversions of the call's arguments have raised,
/// becomes that one.
pub fn decode_exception(py: Python<'_>, bytes: &[u8], raised: &[PyErr]) -> PyResult<PyErr> {
    let mut decoder = Decoder::new(py, bytes, Matrices::Numpy);
    let (module, name) = (decoder.text()?, decoder.text()?);
    let arguments = decoder.last_value()?.cast_into::<PyTuple>().map_err(|_| damaged())?;
    if let Some(number) = number_of_raised(module, name, &arguments) {
        return raised.get(number).map(|error| error.clone_ref(py)).ok_or_else(damaged);
    }
    // A panic of the binding. With the binding in this process, PyO3 would raise a class that `except Exception` does
    // not catch.
    let (module, name) = if name == "PanicException" { ("chromadb.errors", "InternalError") } else { (module, name) };
    let made = class_named(py, module, name).and_then(|class| {
        if !class.is_subclass_of::<PyException>()? {
            return Err(damaged());
        }
        // Some take other arguments than they have.
        class.call1(&arguments).or_else(|_| class.call_method1("__new__", (&class, arguments.clone())))
    });
    Ok(match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(_) => PyRuntimeError::new_err(format!("{module}.{name}: {arguments}")),
    })
}
