//! Arguments of classes that the engine process does not have. It receives the names of the class and the outcomes of
//! all conversions, and makes an object that Chroma's binding treats as it would treat the original
//! (`worker/stand_ins.py`).
//!
//! The tag `x` is followed by the module of the class, its qualified name, and its name in C (texts); the value as an
//! instance of the builtin class that it inherits, or `N`; the number of conversions; and for each conversion its name
//! (a text) and its outcome:
//!
//! | tag | outcome | bytes after the tag |
//! | --- | --- | --- |
//! | `=` | a value | the value |
//! | `T` | a `TypeError`, for which the binding has its own message | its text |
//! | `R` | any other exception, which the app keeps | its number, 8 bytes |
//! | `E` | items | a list or a vector of them, and the end of the iteration: `=` and `N`, or an exception |

use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt};

use super::decode::Decoder;
use super::encode::Encoder;
use super::foreign::{Class, MODULE, RAISED, is_sequence, is_vector};
use super::limits::{MATRIX_ROW_DEPTH, damaged};

impl<'py> Encoder<'py> {
    /// Appends the stand-in for a value that is not plain.
    pub fn stand_in(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        let class = self.foreign.get_or_insert_default().class_of(value)?;
        self.bytes.push(b'x');
        self.name(&class.module)?;
        self.name(&class.qualified_name)?;
        self.name(&class.c_name)?;
        let inherits = self.builtin(value)?;
        if !inherits {
            self.bytes.push(b'N');
        }
        let (is_int, is_float) = (value.is_instance_of::<PyInt>(), value.is_instance_of::<PyFloat>());
        let converts_to_index = class.has_index && !is_int;
        let converts_to_float = class.has_float && !is_float;
        let has_items = if inherits { class.iterates_otherwise } else { is_sequence(value) };
        let count = [converts_to_index, converts_to_float, class.is_bool, has_items];
        self.length(count.into_iter().filter(|converts| *converts).count())?;
        if converts_to_index {
            self.name("index")?;
            self.outcome(self.py.import("operator")?.call_method1("index", (value,)))?;
        }
        if converts_to_float {
            self.name("float")?;
            // Not Python's `float()`, which would also parse a text.
            let number = value.extract::<f64>().map(|number| PyFloat::new(self.py, number).into_any());
            self.outcome(number)?;
        }
        if class.is_bool {
            self.name("bool")?;
            let truth = value.is_truthy().map(|truth| PyBool::new(self.py, truth).to_owned().into_any());
            self.outcome(truth)?;
        }
        if has_items {
            self.name("items")?;
            self.items(value, &class)?;
        }
        Ok(())
    }

    fn outcome(&mut self, outcome: PyResult<Bound<'py, PyAny>>) -> PyResult<()> {
        match outcome {
            Ok(number) => {
                self.bytes.push(b'=');
                // Its class may be a subclass of `int`.
                if number.cast::<PyInt>().is_ok() && !number.is_instance_of::<PyBool>() {
                    self.int(&number)
                } else {
                    self.value(&number)
                }
            }
            Err(error) => self.raised(error),
        }
    }

    /// Appends an exception that a conversion has raised. One that is not an `Exception` (Ctrl-C) is raised at once.
    fn raised(&mut self, error: PyErr) -> PyResult<()> {
        if !error.is_instance_of::<PyException>(self.py) {
            return Err(error);
        }
        if error.get_type(self.py).is(self.py.get_type::<PyTypeError>()) {
            self.bytes.push(b'T');
            return self.any_text(&error.value(self.py).str()?);
        }
        let raised = &mut self.foreign.get_or_insert_default().raised;
        self.bytes.push(b'R');
        self.bytes.extend((raised.len() as u64).to_le_bytes());
        raised.push(error);
        Ok(())
    }

    fn items(&mut self, value: &Bound<'py, PyAny>, class: &Class<'py>) -> PyResult<()> {
        self.bytes.push(b'E');
        if self.depth == MATRIX_ROW_DEPTH && class.is_vector_of_numpy() && is_vector(value)? {
            self.vector(value)?;
            return self.outcome(Ok(self.py.None().into_bound(self.py)));
        }
        let start = self.open_list()?;
        let (mut count, mut end) = (0, None);
        if self.looks_inside() {
            match value.try_iter() {
                Ok(items) => {
                    for item in items {
                        match item {
                            Ok(item) => self.value(&item)?,
                            Err(error) => {
                                end = Some(error);
                                break;
                            }
                        }
                        count += 1;
                    }
                }
                Err(error) => end = Some(error),
            }
        }
        self.close_list(start, count)?;
        match end {
            Some(error) => self.raised(error),
            None => self.outcome(Ok(self.py.None().into_bound(self.py))),
        }
    }
}

impl<'py> Decoder<'_, 'py> {
    /// Decodes a stand-in.
    pub fn stand_in(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let names = (self.text()?, self.text()?, self.text()?);
        let base = self.value()?;
        let conversions = PyDict::new(self.py);
        for _ in 0..self.length()? {
            let name = self.text()?;
            let outcome = match (name, self.take(1)?[0]) {
                ("items", b'E') => (self.value()?, self.outcome()?).into_pyobject(self.py)?.into_any(),
                ("index" | "float" | "bool", tag) => self.outcome_of(tag)?,
                _ => return Err(damaged()),
            };
            conversions.set_item(name, outcome)?;
        }
        self.py.import(MODULE)?.call_method1("make", (names, base, conversions))
    }

    fn outcome(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let tag = self.take(1)?[0];
        self.outcome_of(tag)
    }

    fn outcome_of(&mut self, tag: u8) -> PyResult<Bound<'py, PyAny>> {
        match tag {
            b'=' => self.value(),
            b'T' => self.py.get_type::<PyTypeError>().call1((self.value()?,)),
            b'R' => self.py.import(MODULE)?.getattr(RAISED)?.call1((u64::from_le_bytes(self.array()?),)),
            _ => Err(damaged()),
        }
    }
}
