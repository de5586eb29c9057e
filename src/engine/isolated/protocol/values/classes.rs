//! The classes of objects in results, and their attributes.

use pyo3::exceptions::PyAttributeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};

/// Returns a class by its name. Imports modules of Chroma only; any other module must be loaded already, because the
/// peer chooses the name.
pub fn class_named<'py>(py: Python<'py>, module: &str, name: &str) -> PyResult<Bound<'py, PyType>> {
    let loaded = py.import("sys")?.getattr("modules")?.call_method1("get", (module,))?;
    let module =
        if loaded.is_none() && module.starts_with("chromadb.") { py.import(module)?.into_any() } else { loaded };
    let class = name.split('.').try_fold(module, |parent, name| parent.getattr(name))?;
    Ok(class.cast_into()?)
}

/// Creates an object with these attributes. A data class of chromadb is instantiated. Any other object (a result of the
/// binding, whose classes cannot be instantiated from Python) becomes a `SimpleNamespace`.
pub fn make_object<'py>(
    py: Python<'py>,
    module: &str,
    name: &str,
    attributes: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    match (module, name) {
        ("uuid", "UUID") => class_named(py, module, name)?.call((), Some(attributes)),
        _ if module.starts_with("chromadb.") => class_named(py, module, name)?.call((), Some(attributes)),
        _ => {
            static NAMESPACE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
            NAMESPACE.import(py, "types", "SimpleNamespace")?.call((), Some(attributes))
        }
    }
}

/// Returns the names of the attributes that make up an object of a class: Chroma's, of which there are few. To find them
/// takes longer than to encode an answer, so they are kept.
pub fn attributes_of<'py>(class: &Bound<'py, PyType>) -> PyResult<Bound<'py, PyTuple>> {
    static KNOWN: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let py = class.py();
    let known = KNOWN.get_or_init(py, || PyDict::new(py).unbind()).bind(py);
    if let Some(names) = known.get_item(class)? {
        return Ok(names.cast_into()?);
    }
    let names = PyTuple::new(py, find_attributes(class)?)?;
    known.set_item(class, &names)?;
    Ok(names)
}

fn find_attributes<'py>(class: &Bound<'py, PyType>) -> PyResult<Vec<Bound<'py, PyString>>> {
    let py = class.py();
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
