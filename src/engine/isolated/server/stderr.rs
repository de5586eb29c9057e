//! The log of an engine process, which is its standard error.

use std::fmt;
use std::io::{self, Write};

/// Writes a sentence into the log of this engine process; it may be on a disk that is full.
pub fn say(sentence: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{sentence}");
}
