//! The app's side of the engine `isolated`: finds or starts the engine process of an instance, and communicates with
//! it.
//!
//! The protocol is in `protocol/`. Called by `engine.rs` and `database.rs`.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `launcher.rs` | connects to the engine process of an instance, and remembers which that was |
//! | `search.rs` | one search for an engine process, until one greets |
//! | `holder.rs` | who holds the lock of a directory: found by the lock file, or started |
//! | `started.rs` | the engine processes that a search has started, and what became of them |
//! | `child.rs` | engine processes as children: started, reaped, the tail of their log |
//! | `host.rs` | the process that forks them |
//! | `program.rs` | the program that they run |
//! | `patience.rs` | how long to wait for an owner that cannot be reached, and the error after that |
//! | `connections.rs` | the app's sockets: in use by a call, or idle |
//! | `request.rs` | one exchange on a socket, and the reasons why it fails |

pub(crate) mod child;
pub(crate) mod connections;
pub(crate) mod holder;
#[cfg(target_os = "linux")]
pub(crate) mod host;
pub(crate) mod launcher;
pub(crate) mod patience;
pub(crate) mod program;
pub(crate) mod request;
pub(crate) mod search;
pub(crate) mod started;
