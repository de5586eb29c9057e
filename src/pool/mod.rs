//! The instances of a manager, and which thread holds which client of them.
//!
//! It opens, closes and cleans up, whichever engine is in use: it asks the engine to open and to close, and knows no more of
//! it. Called by what Python sees (`manager.rs`, `connection.rs`, `bindings.rs`).
//!
//! | file | what lives there |
//! | --- | --- |
//! | `supervisor.rs` | the instances of a manager: its options, cleanups, the end |
//! | `clients.rs` | how a thread gets a client of its own |
//! | `opening.rs`, `closing.rs` | how databases are opened, and closed |
//! | `in_flight.rs` | a call in flight |
//! | `maintenance.rs` | exclusive maintenance, and deletion |
//! | `registry.rs` | which thread holds which client of which instance |
//! | `permits.rs` | how many databases may be open at once; plain Rust |
//! | `missing.rs` | what becomes of a call for a database that does not exist |
//! | `memory.rs` | memory that the allocator keeps |
//! | `idle.rs` | the thread that closes what nobody uses |
//! | `stats.rs` | what `stats()` returns |
//! | `hooks.rs` | what happens at a fork and at the end of the process |

#[cfg(feature = "python")]
mod clients;
#[cfg(feature = "python")]
mod closing;
#[cfg(feature = "python")]
pub(crate) mod hooks;
#[cfg(feature = "python")]
mod idle;
#[cfg(feature = "python")]
mod in_flight;
#[cfg(feature = "python")]
mod maintenance;
#[cfg(feature = "python")]
mod memory;
#[cfg(feature = "python")]
pub(crate) mod missing;
#[cfg(feature = "python")]
mod opening;
pub mod permits;
#[cfg(feature = "python")]
pub(crate) mod registry;
#[cfg(feature = "python")]
pub(crate) mod stats;
#[cfg(feature = "python")]
pub(crate) mod supervisor;
