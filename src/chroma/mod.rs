//! What the methods of `chromadb_rust_bindings.Bindings` are: one table says so, for everything that must know.
//!
//! Calls are forwarded by name, so a method or a parameter that is missing there works all the same. Such a method is taken
//! for one that writes, holds the interpreter, and must not be repeated. Whether the table is right is checked against the
//! installed Chroma by `tests/compatibility/test_chroma_table.py`. How an argument of a call is found is in
//! `python/arguments.rs`; what follows from the table is decided by whoever asks. Plain Rust.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `table.rs` | the table |
//! | `method.rs` | what it says of a method |

mod method;
mod table;

use self::table::FILTER;

pub use self::method::{Caller, Method, Repeat, Slices};
pub use self::table::{COLLECTION, EMBEDDINGS, IDS, METADATAS, METHODS, PER_RECORD};

impl Method {
    /// The method of that name, if the table has it.
    pub fn named(name: &str) -> Option<&'static Self> {
        METHODS.binary_search_by_key(&name, |method| method.name).ok().map(|place| &METHODS[place])
    }

    /// At which place it takes an argument.
    pub fn place_of(&self, parameter: &str) -> Option<usize> {
        self.parameters.iter().position(|known| known.name == parameter)
    }

    /// Whether it writes records whose ids are among its arguments.
    pub fn writes_records(&self) -> bool {
        self.writes && self.place_of(IDS).is_some()
    }
}

/// Whether it is a client's call.
pub fn is_of_client(method: &str) -> bool {
    Method::named(method).is_some_and(|method| method.caller == Caller::Client)
}

/// Whether it may change the database.
pub fn writes(method: &str) -> bool {
    Method::named(method).is_none_or(|method| method.writes)
}

/// Whether Chroma releases the interpreter in it. Such a call goes on beside those that write.
pub fn releases_interpreter(method: &str) -> bool {
    Method::named(method).is_some_and(|method| method.releases_interpreter)
}

/// How it is sliced, if it is.
pub fn slices(method: &str) -> Option<Slices> {
    Method::named(method).and_then(|method| method.slices)
}

/// Whether it takes a filter.
pub fn is_filtered(method: &str) -> bool {
    Method::named(method).is_some_and(|method| method.place_of(FILTER).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_found_by_name_and_others_are_taken_for_the_worst() {
        for method in &METHODS {
            assert!(Method::named(method.name).is_some_and(|found| found.name == method.name), "{}", method.name);
        }
        assert!(Method::named("fork_collection").is_none());
        assert!(writes("fork_collection") && !releases_interpreter("fork_collection"));
        assert!(!is_of_client("fork_collection") && slices("fork_collection").is_none());
    }

    #[test]
    fn what_the_table_says_of_arguments_is_among_the_parameters() {
        for method in &METHODS {
            if let Repeat::If(argument) | Repeat::Unless(argument) = method.repeat {
                assert!(method.place_of(argument).is_some(), "{} has no {argument}", method.name);
            }
            let records = PER_RECORD.iter().all(|parameter| method.place_of(parameter).is_some());
            assert_eq!(method.slices.is_some(), records && method.writes_records(), "{}", method.name);
            assert!(!method.writes_records() || method.place_of(COLLECTION).is_some(), "{}", method.name);
        }
    }

    #[test]
    fn reads_may_be_repeated() {
        assert!(METHODS.iter().all(|method| method.writes || method.repeat == Repeat::Always));
    }
}
