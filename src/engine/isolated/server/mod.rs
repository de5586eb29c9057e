//! The engine process's side: accepts connections, decides whose turn it is, executes calls in Chroma's binding.
//!
//! What is done with the closed database (checkpoints, snapshots) is in the Python half (`worker/`). Started by
//! `python/chroma_manager/worker/engine_process.py`, which calls `executor::serve`.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `executor.rs` | what is done with what an app asks |
//! | `scheduler/` | when calls, exclusive maintenance, checkpoints and the end are due; plain Rust |
//! | `listener.rs` | the engine process's own address |
//! | `slicing.rs` | how a long write lets others have their turn |
//! | `batch_checks.rs` | whether Chroma would take all of a long write |
//! | `journal.rs` | what completes a long write that was interrupted |
//! | `orphans.rs` | what becomes of a long write whose caller has disconnected |
//! | `witness.rs` | whether another program writes to the database |
//! | `stack.rs` | how much stack a call needs |
//! | `stderr.rs` | its log |
//! | `termination.rs` | what SIGTERM has an engine process do |
//! | `inherited.rs` | the descriptors that an engine process closes at its start |

#[cfg(feature = "python")]
mod batch_checks;
#[cfg(feature = "python")]
pub(crate) mod executor;
#[cfg(feature = "python")]
pub(crate) mod inherited;
#[cfg(feature = "python")]
pub(crate) mod journal;
#[cfg(feature = "python")]
mod listener;
#[cfg(feature = "python")]
mod orphans;
pub mod scheduler;
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
