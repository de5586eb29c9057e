//! The synchronization primitives of the state machines, and the gate for forks.
//!
//! The primitives are the standard library's. With the feature `explore` they are shuttle's, and a test chooses at each
//! of their operations which thread runs next (`src/explored/`).
//!
//! | file | what lives there |
//! | --- | --- |
//! | `fork_gate.rs` | the gate that every call passes, so that a fork and process exit can wait for calls |
//! | `explored.rs` | what shuttle lacks: time |

#[cfg(feature = "explore")]
mod explored;
pub mod fork_gate;

#[cfg(not(feature = "explore"))]
pub use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread, thread_local,
    time::Instant,
};

#[cfg(feature = "explore")]
pub use self::explored::{CellKey, Condvar, Instant, thread, time};
#[cfg(feature = "explore")]
pub use shuttle::{
    sync::{Mutex, MutexGuard, atomic},
    thread_local,
};
