//! The instances of a manager, and the clients that threads hold of them.
//!
//! Opens, closes and cleans up databases through the traits of an engine (`engine/contract.rs`), whichever engine is in
//! use. Called by the classes that Python sees (`manager.rs`, `connection.rs`, `bindings.rs`).
//!
//! | file | what lives there |
//! | --- | --- |
//! | `supervisor.rs` | a manager's options, counters, cleanups and shutdown |
//! | `clients.rs` | creating a client for a thread |
//! | `opening.rs`, `closing.rs` | opening and closing databases |
//! | `in_flight.rs` | a call in flight |
//! | `maintenance.rs` | exclusive maintenance, and deletion |
//! | `registry.rs` | which thread holds which client of which instance |
//! | `permits.rs` | the limit on open databases; plain Rust |
//! | `missing.rs` | the options `on_missing` and `restore_from` |
//! | `staging.rs` | where a missing database is put together |
//! | `memory.rs` | the memory of engine processes, and returning the allocator's |
//! | `budget.rs` | the option `max_memory` |
//! | `idle.rs` | the thread that closes idle databases |
//! | `stats.rs` | the result of `stats()` |
//! | `hooks.rs` | the hooks at a fork and at exit |

#[cfg(feature = "python")]
mod budget;
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
pub mod staging;
#[cfg(feature = "python")]
pub(crate) mod stats;
#[cfg(feature = "python")]
pub(crate) mod supervisor;
