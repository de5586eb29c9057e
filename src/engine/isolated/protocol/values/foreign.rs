//! The app's own classes among the arguments of a call, and the conversions that they support.

use std::rc::Rc;

use hashbrown::HashMap;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyNone, PyString, PyTuple, PyType};

use super::numpy::length_of_vector;

/// The Python module of stand-ins, and the exception that it raises in the place of one that the app keeps.
pub const MODULE: &str = "chroma_manager.worker.stand_ins";
pub const RAISED: &str = "RaisedInAppError";

/// The app's own classes among the arguments of a call, and the exceptions that their conversions have raised.
#[derive(Default)]
pub struct Foreign<'py> {
    classes: HashMap<usize, Rc<Class<'py>>>,
    /// The exceptions that conversions have raised, in the order of their numbers.
    pub raised: Vec<PyErr>,
}

/// The properties of such a class.
#[allow(clippy::struct_excessive_bools)] // one per conversion
pub struct Class<'py> {
    /// Keeps the class alive, so that no other class gets its address.
    _alive: Bound<'py, PyType>,
    /// The name of the module.
    pub module: String,
    /// The qualified name in the module.
    pub qualified_name: String,
    /// The name in the error messages of C functions.
    pub c_name: String,
    /// Whether it defines `__index__`.
    pub has_index: bool,
    /// Whether it defines `__float__`.
    pub has_float: bool,
    /// Whether it is a numpy bool, which the binding accepts as a Python bool.
    pub is_bool: bool,
    /// Whether it is a subclass of `list` or `tuple` that overrides `__iter__`.
    pub iterates_otherwise: bool,
}

impl<'py> Foreign<'py> {
    /// Returns the properties of the class of a value.
    pub fn class_of(&mut self, value: &Bound<'py, PyAny>) -> PyResult<Rc<Class<'py>>> {
        let address = value.get_type().as_ptr() as usize;
        if let Some(class) = self.classes.get(&address) {
            return Ok(Rc::clone(class));
        }
        let class = Rc::new(Class::of(value)?);
        self.classes.insert(address, Rc::clone(&class));
        Ok(class)
    }
}

impl<'py> Class<'py> {
    fn of(value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let class = value.get_type();
        let text = |name: &str| Ok::<_, PyErr>(class.getattr(name)?.str()?.to_string_lossy().into_owned());
        let (module, qualified_name) = (text("__module__")?, text("__qualname__")?);
        let iterates_otherwise = |base: Bound<'py, PyType>| {
            Ok::<_, PyErr>(class.is_subclass(&base)? && !class.getattr("__iter__")?.is(&base.getattr("__iter__")?))
        };
        let py = value.py();
        Ok(Self {
            c_name: c_name(value).unwrap_or_else(|| qualified_name.clone()),
            has_index: class.hasattr(intern!(py, "__index__"))?,
            has_float: class.hasattr(intern!(py, "__float__"))?,
            is_bool: module == "numpy" && matches!(qualified_name.as_str(), "bool" | "bool_"),
            iterates_otherwise: iterates_otherwise(py.get_type::<PyList>())?
                || iterates_otherwise(py.get_type::<PyTuple>())?,
            module,
            qualified_name,
            _alive: class,
        })
    }

    /// Returns whether it is a class of numpy arrays.
    pub fn is_vector_of_numpy(&self) -> bool {
        let (package, name) = (self.module.split('.').next(), self.qualified_name.as_str());
        package == Some("numpy") && matches!(name, "ndarray" | "memmap" | "MaskedArray")
    }
}

/// Returns the name of the class (`tp_name`) that C functions use in error messages; for a class defined in C it
/// includes the module. Only an error message reveals it.
fn c_name(value: &Bound<'_, PyAny>) -> Option<String> {
    let py = value.py();
    let error = PyNone::get(py).get_type().getattr("__bool__").ok()?.call1((value,)).err()?;
    let text = error.value(py).to_string();
    Some(text.strip_suffix('\'')?.rsplit_once('\'')?.1.to_owned())
}

/// Returns whether a value is an instance of a builtin class, and not of a subclass.
pub fn is_plain(value: &Bound<'_, PyAny>) -> bool {
    value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_none()
        || value.is_exact_instance_of::<PyList>()
        || value.is_exact_instance_of::<PyDict>()
        || value.is_exact_instance_of::<PyBool>()
        || value.is_exact_instance_of::<PyTuple>()
        || value.is_exact_instance_of::<PyBytes>()
}

/// Returns whether the value supports the sequence protocol of C.
pub fn is_sequence(value: &Bound<'_, PyAny>) -> bool {
    #[allow(unsafe_code)]
    // SAFETY: the pointer is that of an object, and this thread is attached to the interpreter.
    let is_sequence = unsafe { ffi::PySequence_Check(value.as_ptr()) };
    is_sequence != 0
}

/// Returns whether a numpy array has one dimension and contains numbers, none of which is masked.
pub fn is_vector(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    if length_of_vector(value)?.is_none() {
        return Ok(false);
    }
    let masked = value.py().import("numpy.ma")?.call_method1("is_masked", (value,))?;
    Ok(!masked.is_truthy()?)
}

/// Returns the number of the exception that the app has kept, if this exception was raised in its place.
pub fn number_of_raised(module: &str, name: &str, arguments: &Bound<'_, PyTuple>) -> Option<usize> {
    let is_it = module == MODULE && name == RAISED;
    is_it.then(|| arguments.get_item(0).ok()?.extract().ok()).flatten()
}
