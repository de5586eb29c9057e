//! The Python module `chroma_manager._native`. This file only registers it.
//!
//! | module | what lives there |
//! | --- | --- |
//! | `manager` | the native base class of `ChromaDBManager` |
//! | `connection` | the connection that a client's calls go through |
//! | `bindings` | a replacement for Chroma's own binding |
//! | `index_file` | a file of a vector index |
//! | [`pool`] | the instances of a manager, and the clients that threads hold of them |
//! | [`engine`] | the traits of an engine, and the engines |
//! | `failure` | what a failure means: another attempt, reopening, or an error |
//! | `python` | the interface to the interpreter: calls, waits, exceptions |
//! | [`instance`] | the life of one instance, and its key; plain Rust |
//! | [`chroma`] | what Chroma's methods are; plain Rust |
//! | [`storage`] | a database's directory: its owner, its identity, its open files |
//! | [`sync`] | the synchronization primitives, and the gate for forks; plain Rust |

pub mod chroma;
pub mod engine;
pub mod instance;
pub mod pool;
pub mod storage;
pub mod sync;

#[cfg(all(test, unix, feature = "explore"))]
mod explored;

#[cfg(all(feature = "python", unix))]
mod bindings;
#[cfg(feature = "python")]
mod connection;
#[cfg(feature = "python")]
mod failure;
#[cfg(feature = "python")]
mod index_file;
#[cfg(feature = "python")]
mod manager;
#[cfg(feature = "python")]
mod python;

#[cfg(feature = "python")]
pub(crate) use python::LOGGER;

/// What `benches/criterion` measures by itself.
#[cfg(all(feature = "bench", unix))]
#[doc(hidden)]
pub mod bench {
    pub use crate::engine::isolated::protocol::frame::{Incoming, Kind, write_frame};
    pub use crate::engine::isolated::protocol::values::{decode_call, encode_call};
    pub use crate::instance::key::{ClientKey, ClientKeyRef, Key};
    pub use crate::pool::registry::Registry;
}

/// The Rust half of the package; see `_native.pyi`.
#[cfg(feature = "python")]
#[pyo3::pymodule(gil_used = true)]
mod _native {
    use pyo3::prelude::*;

    #[cfg(unix)]
    #[pymodule_export]
    use crate::bindings::Bindings;
    #[pymodule_export]
    use crate::connection::{Catalogue, Connection, Method};
    #[cfg(unix)]
    #[pymodule_export]
    use crate::engine::isolated::server::inherited::close_inherited;
    #[cfg(unix)]
    #[pymodule_export]
    use crate::engine::isolated::server::journal::decode_call;
    #[cfg(unix)]
    #[pymodule_export]
    use crate::engine::isolated::server::process::serve;
    #[pymodule_export]
    use crate::index_file::IndexFile;
    #[pymodule_export]
    use crate::manager::Manager;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
        Ok(())
    }

    /// Returns whether a stored vector equals the written one.
    #[pyfunction]
    fn is_same_vector(stored: &[u8], length: Option<f32>, written: &[u8]) -> bool {
        crate::storage::vectors::is_same(stored, length, written)
    }

    /// The table of Chroma's methods, so that a test can compare it with the installed Chroma: of each its name, the first
    /// chromadb that has it, its parameters (name, first chromadb, whether it is `None` by default), whether it writes,
    /// whether Chroma releases the interpreter in it, and whether it may change the catalogue.
    #[pyfunction]
    #[allow(clippy::type_complexity)] // a row of a table
    fn chroma_methods()
    -> Vec<(&'static str, Option<&'static str>, Vec<(&'static str, Option<&'static str>, bool)>, bool, bool, bool)>
    {
        let parameters = |method: &crate::chroma::Method| {
            method.parameters.iter().map(|known| (known.name, known.since, known.is_none_by_default)).collect()
        };
        let row = |method: &crate::chroma::Method| {
            let changes_catalogue = method.changes_catalogue != crate::chroma::Changes::Never;
            let is = (method.writes, method.releases_interpreter, changes_catalogue);
            (method.name, method.since, parameters(method), is.0, is.1, is.2)
        };
        crate::chroma::METHODS.iter().map(row).collect()
    }

    /// Installs what an app needs and an engine process does not: logging, exceptions, and the hooks at fork and exit.
    #[pyfunction]
    fn install(py: Python<'_>) -> PyResult<()> {
        // Not cached: messages are rare, and the app may change the level of the logger at any time.
        pyo3_log::Logger::new(py, pyo3_log::Caching::Nothing)?.install().ok();
        crate::python::exceptions::import_classes(py)?;
        crate::pool::hooks::install_hooks(py)
    }
}
