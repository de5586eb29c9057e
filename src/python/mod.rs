//! What touches the interpreter: waiting while attached to it, and the exceptions that errors become.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `gil.rs` | locking and waiting while attached to the interpreter |
//! | `arguments.rs` | the arguments of a call of Chroma's binding, found by what they are called |
//! | `call.rs` | calling Python functions of the package |
//! | `ending.rs` | what threads do once the interpreter has begun to end |
//! | `error.rs` | one error enum, its messages, and the exceptions that it becomes |
//! | `exceptions.rs` | the exception classes of the Python half |

pub(crate) mod arguments;
pub(crate) mod call;
pub(crate) mod ending;
pub(crate) mod error;
pub(crate) mod exceptions;
pub(crate) mod gil;

/// Python's logger for all messages.
pub(crate) const LOGGER: &str = "chroma_manager";
