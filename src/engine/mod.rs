//! The engines. What one can do is in `contract.rs`; nothing above knows which one it is.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `contract.rs` | the traits of an engine and of an open database, and how one is opened |
//! | `embedded.rs` | Chroma in this process |
//! | `isolated/` | a process for each instance |

#[cfg(feature = "python")]
mod contract;
#[cfg(feature = "python")]
mod embedded;
#[cfg(unix)]
pub mod isolated;

#[cfg(feature = "python")]
pub use contract::{Database, Engine, Instance, Opening, Request, Task};
#[cfg(feature = "python")]
pub use embedded::Embedded;
#[cfg(all(feature = "python", unix))]
pub use isolated::{Isolated, forget_inherited};
