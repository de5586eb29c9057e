//! The Python module `chroma_manager._native`: registers, nothing else.
//!
//! | module | what lives there |
//! | --- | --- |
//! | `manager` | the Python class under `ChromaDBManager` |
//! | `supervisor` | opens, closes and cleans up instances, whichever engine is under them |
//! | `registry` | which thread holds which client of which instance |
//! | `connection` | what a client's calls go through |
//! | `bindings` | what can be put where Chroma's own binding stands |
//! | `engine` | what an engine can do, and the engines |
//! | `missing` | what becomes of a call for a database that is not there |
//! | `idle` | the thread that closes what nobody uses |
//! | `process` | what happens at a fork and at the end of the process |
//! | `attached` | locking and waiting while attached to the interpreter |
//! | `error` | one error enum, and the Python exceptions it becomes |
//! | [`instance`] | the life of one instance; plain Rust, as are those below |
//! | [`calls`] | the gate that every call passes |
//! | [`lock_file`] | one owner for an instance |
//! | [`owner`] | what a lock file says of it |
//! | [`turns`] | whose turn it is in an engine process |
//! | [`directory`] | an instance's directory: is a database in it, is it still the same |
//! | [`vectors`] | whether a stored vector is the one that was written |
//! | [`places`] | how many databases may be open at once |
//! | [`sync`] | what these lock and wait with |
//! | [`key`] | a key: checked, printed, turned into a path |

pub mod calls;
pub mod directory;
pub mod instance;
pub mod key;
pub mod lock_file;
pub mod owner;
pub mod places;
pub mod sync;
#[cfg(unix)]
pub mod turns;
pub mod vectors;
pub mod wire;

#[cfg(all(test, unix, feature = "explore"))]
mod explored;

#[cfg(feature = "python")]
mod attached;
#[cfg(all(feature = "python", unix))]
mod bindings;
#[cfg(feature = "python")]
mod connection;
#[cfg(feature = "python")]
mod engine;
#[cfg(feature = "python")]
mod error;
#[cfg(feature = "python")]
mod idle;
#[cfg(feature = "python")]
mod manager;
#[cfg(feature = "python")]
mod missing;
#[cfg(feature = "python")]
mod process;
#[cfg(feature = "python")]
mod registry;
#[cfg(feature = "python")]
mod supervisor;

/// Python's logger for all messages.
#[cfg(feature = "python")]
const LOGGER: &str = "chroma_manager";

/// The Rust half of the package; see `_native.pyi`.
#[cfg(feature = "python")]
#[pyo3::pymodule(gil_used = true)]
mod _native {
    use pyo3::prelude::*;

    #[cfg(unix)]
    #[pymodule_export]
    use crate::bindings::Bindings;
    #[pymodule_export]
    use crate::connection::{Connection, Method};
    #[cfg(unix)]
    #[pymodule_export]
    use crate::engine::isolated::inherited::close_inherited;
    #[cfg(unix)]
    #[pymodule_export]
    use crate::engine::isolated::journal::decode_call;
    #[cfg(unix)]
    #[pymodule_export]
    use crate::engine::isolated::serve::serve;
    #[pymodule_export]
    use crate::manager::Manager;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
        Ok(())
    }

    /// Whether a stored vector is the written one.
    #[pyfunction]
    fn is_same_vector(stored: &[u8], length: Option<f32>, written: &[u8]) -> bool {
        crate::vectors::is_same(stored, length, written)
    }

    /// What an app needs and an engine process does not: logging, exceptions, and the hooks at fork and exit.
    #[pyfunction]
    fn install(py: Python<'_>) -> PyResult<()> {
        // Messages are rare; asking Python for the logger's level each time lets an app configure it when it likes.
        pyo3_log::Logger::new(py, pyo3_log::Caching::Nothing)?.install().ok();
        crate::error::load_classes(py)?;
        crate::process::install_hooks(py)
    }
}
