//! The engines, which open databases and execute calls.
//!
//! The modules above use the traits of `contract.rs`, and do not depend on which engine is behind them.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `contract.rs` | the traits of an engine and of an open database, and the terms of an opening |
//! | `embedded.rs` | the engine `embedded`: Chroma in this process |
//! | `isolated/` | the engine `isolated`: a process for each instance |
//! | `server.rs` | the engine `server`: a Chroma server |

#[cfg(feature = "python")]
mod contract;
#[cfg(feature = "python")]
mod embedded;
#[cfg(unix)]
pub mod isolated;
#[cfg(feature = "python")]
mod server;

#[cfg(feature = "python")]
pub use contract::{Catalogue, Database, Engine, Instance, Opening, Request, Task};
#[cfg(feature = "python")]
pub use embedded::Embedded;
#[cfg(all(feature = "python", unix))]
pub use isolated::{Isolated, forget_inherited};
#[cfg(feature = "python")]
pub use server::Server;
