//! The app's side of the engine `isolated`: finds or starts the engine process of an instance, and talks to it.
//!
//! What is said is in `protocol/`. Called by `database.rs`.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `launcher.rs` | the engine process of an instance: which it was last, and how another one is found |
//! | `search.rs` | one search for it: found by its lock file, or started |
//! | `child.rs` | engine processes as the system sees them: started, reaped, the tail of their log |
//! | `patience.rs` | how long an owner is waited for that cannot be reached, and what is said of it |
//! | `connections.rs` | the app's sockets, and what a forked child does with them |
//! | `request.rs` | what is said on a socket, and why there was no answer |

pub(crate) mod child;
pub(crate) mod connections;
pub(crate) mod launcher;
pub(crate) mod patience;
pub(crate) mod request;
pub(crate) mod search;
