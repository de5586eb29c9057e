//! The engine `isolated`: each instance is owned by a small process of its own, reached over a Unix socket.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `engine.rs` | the engine: opens, maintains and deletes databases |
//! | `catalogue.rs` | what tells an app whether a catalogue has changed |
//! | `database.rs` | an open database: makes the attempts of calls |
//! | `client/` | the app's side: finds or starts an engine process, keeps connections, sends and waits |
//! | `protocol/` | the protocol of both sides: addresses, greetings, frames, encoded values |
//! | `server/` | the engine process's side: accepts, schedules, executes |

#[cfg(feature = "python")]
mod catalogue;
#[cfg(feature = "python")]
mod client;
#[cfg(feature = "python")]
mod database;
#[cfg(feature = "python")]
mod engine;
pub mod protocol;
pub mod server;

#[cfg(feature = "python")]
pub use engine::{Isolated, forget_inherited};
