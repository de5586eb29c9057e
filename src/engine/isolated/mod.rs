//! The engine `isolated`: every instance is owned by a small process of its own, reached over a Unix socket.
//!
//! | folder | what lives there |
//! | --- | --- |
//! | `database.rs` | the engine, and an open database: a call, and what is done when the engine process has ended |
//! | `client/` | the app's side: finds or starts an engine process, keeps connections, sends and waits |
//! | `protocol/` | what both sides speak: addresses, greetings, frames, values as bytes |
//! | `server/` | the engine process's side: accepts, schedules, executes |

#[cfg(feature = "python")]
mod client;
#[cfg(feature = "python")]
mod database;
pub mod protocol;
pub mod server;

#[cfg(feature = "python")]
pub use database::{Isolated, forget_inherited};
