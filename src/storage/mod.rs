//! A database's directory as the file system shows it: its owner, its identity, its open files.
//!
//! The content of Chroma's files is the subject of the Python half (`python/chroma_manager/storage/`). Any module above
//! may call this one.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `directory.rs` | whether a directory has a database, and whether it is still the one that was opened |
//! | `claiming.rs` | creating and locking a directory for its owner |
//! | `left_behind.rs` | the socket and the log that a killed owner has left elsewhere |
//! | `removing.rs` | removing a database with its directory |
//! | `lock_file.rs` | the lock that gives a directory one owner |
//! | `owner.rs` | the content of a lock file: its owner |
//! | `sockets.rs` | connecting to a socket without waiting |
//! | `graph.rs` | where the links of an index lead, and which labels its elements have |
//! | `open_files.rs` | whether Chroma has really closed its files |
//! | `vectors.rs` | whether a stored vector equals the one that was written |

pub mod claiming;
pub mod directory;
pub mod graph;
#[cfg(unix)]
pub mod left_behind;
pub mod lock_file;
#[cfg(feature = "python")]
pub(crate) mod open_files;
pub mod owner;
pub mod removing;
#[cfg(unix)]
pub mod sockets;
#[cfg(test)]
mod tests;
pub mod vectors;
