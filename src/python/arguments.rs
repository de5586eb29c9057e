//! The arguments of a call of Chroma's binding, found by what they are called: whether they were given by place or by name.
//!
//! At which place a method takes an argument is in `chroma/`.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple};

use crate::chroma::{IDS, Method, Repeat};

/// The arguments of a call.
#[derive(Clone, Copy)]
pub struct Arguments<'a, 'py> {
    method: &'static Method,
    positional: &'a Bound<'py, PyTuple>,
    keywords: Option<&'a Bound<'py, PyDict>>,
}

impl<'a, 'py> Arguments<'a, 'py> {
    /// Those of a call of that method.
    pub fn of(
        method: &'static Method,
        positional: &'a Bound<'py, PyTuple>,
        keywords: Option<&'a Bound<'py, PyDict>>,
    ) -> Arguments<'a, 'py> {
        Arguments { method, positional, keywords }
    }

    /// The argument of that name, if it was given.
    pub fn get(&self, parameter: &str) -> Option<Bound<'py, PyAny>> {
        let by_place = self.method.place_of(parameter).and_then(|place| self.positional.get_item(place).ok());
        by_place.or_else(|| self.keyword(parameter))
    }

    /// Calls the method with them, as they were given.
    pub fn call(&self, function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        function.call(self.positional, self.keywords)
    }

    /// The ids of the records that the call writes, or `None` where a filter says which; nothing where it writes none.
    pub fn ids_written(&self) -> Option<Bound<'py, PyAny>> {
        let py = self.positional.py();
        self.method.writes_records().then(|| self.get(IDS).unwrap_or_else(|| py.None().into_bound(py)))
    }

    /// Whether executing the call twice gives the same as executing it once.
    pub fn are_safe_to_repeat(&self) -> bool {
        match self.method.repeat {
            Repeat::Always => true,
            Repeat::Never => false,
            Repeat::If(parameter) => {
                self.get(parameter).is_some_and(|value| value.is(PyBool::new(self.positional.py(), true)))
            }
            Repeat::Unless(parameter) => self.get(parameter).is_none_or(|value| value.is_none()),
        }
    }

    /// The same arguments, all of them by place; `None` where that is not possible, or where Chroma refuses them for how
    /// they were given. Parameters that were left out and are `None` by default are passed as `None`.
    pub fn by_place(&self) -> Option<Bound<'py, PyTuple>> {
        let py = self.positional.py();
        let mut values: Vec<_> = self.positional.iter().collect();
        let (by_place, rest) = self.method.parameters.split_at_checked(values.len())?;
        if by_place.iter().any(|parameter| self.keyword(parameter.name).is_some()) {
            return None;
        }
        let mut unused = self.keywords.map_or(0, PyDictMethods::len);
        for parameter in rest {
            match self.keyword(parameter.name) {
                Some(value) => {
                    values.push(value);
                    unused -= 1;
                }
                None if parameter.is_none_by_default => values.push(py.None().into_bound(py)),
                None => break,
            }
        }
        (unused == 0).then(|| PyTuple::new(py, values).ok()).flatten()
    }

    fn keyword(&self, parameter: &str) -> Option<Bound<'py, PyAny>> {
        self.keywords?.get_item(parameter).ok().flatten()
    }
}
