//! The interface to the Python interpreter: calling into it, waiting while attached to it, raising exceptions.
//!
//! The classes that Python sees are in `manager.rs`, `connection.rs` and `bindings.rs`. Any module above may call this
//! one.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `gil.rs` | locking and waiting while attached to the interpreter |
//! | `arguments.rs` | the arguments of a call of Chroma's binding, found by what they are called |
//! | `call.rs` | calling Python functions of the package |
//! | `ending.rs` | parking daemon threads once the interpreter is shutting down |
//! | `error.rs` | the error enum, its messages, and its conversion into exceptions |
//! | `exceptions.rs` | the exception classes of the Python half |
//! | `turn.rs` | sharing the interpreter in the middle of long work |

#[cfg(unix)]
pub(crate) mod arguments;
pub(crate) mod call;
pub(crate) mod ending;
pub(crate) mod error;
pub(crate) mod exceptions;
pub(crate) mod gil;
#[cfg(unix)]
pub(crate) mod turn;

/// Python's logger for all messages.
pub(crate) const LOGGER: &str = "chroma_manager";
