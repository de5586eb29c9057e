//! What the app and an engine process speak.
//!
//! Nothing here starts, waits for or executes anything. Called by `client/` and `server/`.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `frame.rs` | frames, without what is in them; plain Rust |
//! | `values/` | Python's values as bytes, and back |
//! | `address.rs` | where an engine process is reached |
//! | `greeting.rs` | what a greeting proves |
//! | `peer.rs` | who is at the other end of a socket |

#[cfg(feature = "python")]
pub(crate) mod address;
pub mod frame;
#[cfg(feature = "python")]
pub(crate) mod greeting;
#[cfg(feature = "python")]
pub(crate) mod peer;
#[cfg(feature = "python")]
pub(crate) mod values;
