//! What the table says of a method.

use std::time::Duration;

/// A method of the binding.
#[derive(Debug)]
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// The first chromadb that has it; `None` where the lowest that is supported has it.
    pub since: Option<&'static str>,
    /// In the order in which the newest supported chromadb takes them.
    pub parameters: &'static [Parameter],
    /// Who calls it.
    pub caller: Caller,
    /// Whether it may be repeated on a new engine process, where it is not known whether it was executed.
    pub repeat: Repeat,
    /// Whether it changes the database.
    pub writes: bool,
    /// Whether it changes the catalogue: which collections there are, and what is known of each besides its records.
    pub changes_catalogue: Changes,
    /// Whether Chroma releases the interpreter while it works.
    pub releases_interpreter: bool,
    /// How a call with many records is sliced.
    pub slices: Option<Slices>,
}

/// A parameter of a method.
#[derive(Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// The first chromadb that has it; `None` where the lowest that is supported has it.
    pub since: Option<&'static str>,
    /// Whether leaving it out is the same as passing `None`.
    pub is_none_by_default: bool,
}

/// Whose call it is. A client's call may create a database that was removed since; no other call brings one back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A client's.
    Client,
    /// A collection's.
    Collection,
    /// A call of either that asks for nothing in the database, or only deletes.
    Either,
}

/// When a call changes the catalogue. The first records of a collection, and those with metadata that no other has, change
/// what is known of it as well: its dimension and its schema. That depends on the records, and is not in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Never.
    Never,
    /// Always.
    Always,
    /// If it writes to the database: it creates what is not there, and otherwise only reads.
    IfItWrites,
}

/// When a call may be repeated: where executing it twice gives the same as executing it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Always.
    Always,
    /// Never.
    Never,
    /// If this argument is `True`.
    If(&'static str),
    /// Unless this argument is given.
    Unless(&'static str),
}

/// How a write with many records is sliced, so that others need not wait for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slices {
    /// How many records the first slice has, before it is known how long a record takes.
    pub first: usize,
    /// How long a slice should take: what a reader may have to wait.
    pub time: Duration,
}
