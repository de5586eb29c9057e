//! The protocol between the app and an engine process.
//!
//! Encodes, decodes and checks; starting processes, waiting and executing calls is elsewhere. Called by `client/` and
//! `server/`.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `frame.rs` | frames, without their content; plain Rust |
//! | `values/` | encoding and decoding of Python values |
//! | `address.rs` | the address of an engine process: its socket and its log |
//! | `greeting.rs` | the proof in a greeting |
//! | `page.rs` | the page of memory that is passed with a greeting; plain Rust |
//! | `peer.rs` | the credentials of the process at the other end of a socket |

#[cfg(feature = "python")]
pub(crate) mod address;
pub mod frame;
#[cfg(feature = "python")]
pub(crate) mod greeting;
pub mod page;
#[cfg(feature = "python")]
pub(crate) mod peer;
#[cfg(feature = "python")]
pub(crate) mod values;
