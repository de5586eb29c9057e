//! The engine process's side: accepts connections, schedules what is asked, executes calls in Chroma's binding.
//!
//! What is done with the closed database (checkpoints, snapshots) is in the Python half (`worker/`). Started by
//! `python/chroma_manager/worker/engine_process.py`, which calls `process::serve`. From the top down:
//!
//! | file | what lives there |
//! | --- | --- |
//! | `process.rs` | the life of an engine process: opens, serves, closes |
//! | `acceptor.rs` | accepts connections |
//! | `session.rs` | the conversation on a connection |
//! | `executor.rs` | executes calls |
//! | `slicing.rs` | how a long write lets other calls in between |
//! | `group.rs` | how short writes of several connections become one call |
//! | `batch_checks.rs` | whether Chroma would take all of a long write |
//! | `maintenance.rs` | exclusive maintenance: checkpoints, and what an app asks for |
//! | `background.rs` | a checkpoint while calls go on |
//! | `engine.rs` | what all connections share |
//! | `binding.rs` | Chroma's binding: opened, closed, reopened |
//! | `witness.rs` | whether another program writes to the database |
//! | `index_files.rs` | whether Chroma has rewritten its index files |
//! | `place.rs` | whether the directory is still the one that was opened |
//! | `scheduler/` | when calls, exclusive maintenance, checkpoints and the end are due; plain Rust |
//! | `listener.rs` | the engine process's own address |
//! | `journal.rs` | what completes a long write that was interrupted |
//! | `catalogue.rs` | what changes the catalogue, counted for the apps |
//! | `orphans.rs` | what becomes of a long write whose caller has disconnected |
//! | `stack.rs` | how much stack a call needs |
//! | `stderr.rs` | its log |
//! | `termination.rs` | what SIGTERM has an engine process do |
//! | `inherited.rs` | the descriptors that an engine process closes at its start |

#[cfg(feature = "python")]
mod acceptor;
#[cfg(feature = "python")]
mod background;
#[cfg(feature = "python")]
mod batch_checks;
#[cfg(feature = "python")]
mod binding;
#[cfg(feature = "python")]
mod catalogue;
#[cfg(feature = "python")]
mod engine;
#[cfg(feature = "python")]
mod executor;
#[cfg(feature = "python")]
mod group;
#[cfg(any(feature = "python", all(test, not(feature = "explore"))))]
mod index_files;
#[cfg(feature = "python")]
pub(crate) mod inherited;
#[cfg(feature = "python")]
pub(crate) mod journal;
#[cfg(feature = "python")]
mod listener;
#[cfg(feature = "python")]
mod maintenance;
#[cfg(feature = "python")]
mod orphans;
#[cfg(feature = "python")]
mod place;
#[cfg(feature = "python")]
pub(crate) mod process;
pub mod scheduler;
#[cfg(feature = "python")]
mod session;
#[cfg(feature = "python")]
mod slicing;
#[cfg(feature = "python")]
mod stack;
#[cfg(feature = "python")]
mod stderr;
#[cfg(feature = "python")]
mod termination;
#[cfg(feature = "python")]
mod witness;
