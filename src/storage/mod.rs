//! A database's directory as the system sees it: who owns it, whether it is still the one that was opened, which of its files
//! are open.
//!
//! What is in Chroma's files is known to the Python half (`python/chroma_manager/storage/`). Everybody above may call it.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `directory.rs` | how a directory is created, owned and removed, and whether it was replaced |
//! | `lock_file.rs` | one owner for a directory |
//! | `owner.rs` | what a lock file says of its owner |
//! | `open_files.rs` | whether Chroma has really closed its files |
//! | `vectors.rs` | whether a stored vector is the one that was written |

pub mod directory;
pub mod lock_file;
#[cfg(feature = "python")]
pub(crate) mod open_files;
pub mod owner;
pub mod vectors;
