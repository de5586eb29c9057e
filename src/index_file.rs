//! One of the files of a vector index, mapped into memory: what Python would take a second for, because it looks at each of
//! a hundred thousand elements.
//!
//! What the files hold, and what is wrong with them, is in the Python half (`storage/hnsw_files.py`).

use std::fs::File;
use std::io;
use std::path::PathBuf;

use memmap2::Mmap;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::storage::graph::{self, Layout};

/// A file of an index, which nobody writes meanwhile. Without a path, one that is empty.
#[pyclass(frozen, module = "chroma_manager._native")]
pub struct IndexFile(Option<Mmap>);

#[pymethods]
impl IndexFile {
    #[new]
    #[pyo3(signature = (path=None))]
    fn new(py: Python<'_>, path: Option<PathBuf>) -> PyResult<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        py.detach(|| map(&path)).map(Self).map_err(|error| {
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_owned();
            PyOSError::new_err((error.raw_os_error(), text))
        })
    }

    fn __len__(&self) -> usize {
        self.content().len()
    }

    /// Returns as many bytes from `start` on, or as there are.
    fn part<'py>(&self, py: Python<'py>, start: usize, length: usize) -> Bound<'py, PyBytes> {
        let rest = self.content().get(start..).unwrap_or_default();
        PyBytes::new(py, &rest[..length.min(rest.len())])
    }

    fn check_links(&self, py: Python<'_>, layout: Layout) -> PyResult<()> {
        py.detach(|| graph::check_links(self.content(), &layout)).map_err(PyValueError::new_err)
    }

    fn check_levels(&self, py: Python<'_>, layout: Layout) -> PyResult<()> {
        py.detach(|| graph::check_levels(self.content(), &layout)).map_err(PyValueError::new_err)
    }

    fn unreached(&self, py: Python<'_>, layout: Layout) -> PyResult<Vec<usize>> {
        py.detach(|| graph::unreached(self.content(), &layout)).map_err(PyValueError::new_err)
    }

    /// Returns the element of each record of which `labels` has the label, how many of these are marked as deleted, and how
    /// many elements belong to no record and are not marked.
    fn elements<'py>(
        &self,
        py: Python<'py>,
        labels: &Bound<'py, PyDict>,
        layout: Layout,
    ) -> PyResult<(Bound<'py, PyDict>, usize, usize)> {
        let known = py.detach(|| graph::labels(self.content(), &layout));
        let (found, mut deleted) = (PyDict::new(py), 0);
        for (record, label) in labels.iter() {
            let label = label.extract::<u64>().ok();
            if let Some((element, is_deleted)) = label.and_then(|label| known.elements.get(&label)) {
                found.set_item(record, element)?;
                deleted += usize::from(*is_deleted);
            }
        }
        let unmarked = (known.unmarked + deleted).saturating_sub(found.len());
        Ok((found, deleted, unmarked))
    }

    fn differing(&self, py: Python<'_>, other: &Self, starts: Vec<(usize, usize)>, length: usize) -> Vec<usize> {
        py.detach(|| graph::differing(self.content(), other.content(), &starts, length))
    }
}

impl IndexFile {
    fn content(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// `None` where the file is empty: nothing can be mapped.
#[allow(unsafe_code)]
fn map(path: &PathBuf) -> io::Result<Option<Mmap>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    #[cfg(unix)]
    if metadata.is_dir() {
        return Err(rustix::io::Errno::ISDIR.into());
    }
    if metadata.len() == 0 {
        return Ok(None);
    }
    // SAFETY: the file is that of a database whose directory this process owns, and which Chroma has closed, or a copy that
    // nobody writes.
    unsafe { Mmap::map(&file) }.map(Some)
}
