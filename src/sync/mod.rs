//! What the state machines lock, count and wait with: the standard library's; or, with the feature `explore`, shuttle's,
//! where a test decides at each of these steps which thread goes on (`src/explored/`).

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
