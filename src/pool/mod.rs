//! The instances of a manager, and which thread holds which client of them.
//!
//! It opens, closes and cleans up, whichever engine is in use: it asks the engine to open and to close, and knows no more of
//! it. Called by what Python sees (`manager.rs`, `connection.rs`, `bindings.rs`).
//!
//! | file | what lives there |
//! | --- | --- |
//! | `supervisor.rs` | opens, closes and cleans up instances |
//! | `registry.rs` | which thread holds which client of which instance |
//! | `permits.rs` | how many databases may be open at once; plain Rust |
//! | `missing.rs` | what becomes of a call for a database that does not exist |
//! | `idle.rs` | the thread that closes what nobody uses |
//! | `stats.rs` | what `stats()` returns |
//! | `hooks.rs` | what happens at a fork and at the end of the process |

#[cfg(feature = "python")]
pub(crate) mod hooks;
#[cfg(feature = "python")]
mod idle;
#[cfg(feature = "python")]
pub(crate) mod missing;
pub mod permits;
#[cfg(feature = "python")]
pub(crate) mod registry;
#[cfg(feature = "python")]
pub(crate) mod stats;
#[cfg(feature = "python")]
pub(crate) mod supervisor;
