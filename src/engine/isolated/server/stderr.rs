//! The log of an engine process, which is its standard error.

use std::fmt;
use std::io::{self, Write};

/// Writes a sentence into the log of this engine process. Where the disk is full, the sentence is lost.
pub fn log_line(sentence: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{sentence}");
}
