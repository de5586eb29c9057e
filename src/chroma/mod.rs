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

use self::table::{FILTER, UNKNOWN};

pub use self::method::{Caller, Changes, Method, Repeat, Slices};
pub use self::table::{COLLECTION, EMBEDDINGS, IDS, METADATAS, METHODS, PER_RECORD};

impl Method {
    /// The method of that name. One that the table does not have is taken for the worst.
    pub fn named(name: &str) -> &'static Self {
        METHODS.binary_search_by_key(&name, |method| method.name).map_or(&UNKNOWN, |place| &METHODS[place])
    }

    /// At which place it takes an argument.
    pub fn place_of(&self, parameter: &str) -> Option<usize> {
        self.parameters.iter().position(|known| known.name == parameter)
    }

    /// Whether it writes records whose ids are among its arguments.
    pub fn writes_records(&self) -> bool {
        self.writes && self.place_of(IDS).is_some()
    }

    /// Whether it takes a filter.
    pub fn is_filtered(&self) -> bool {
        self.place_of(FILTER).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_found_by_name_and_others_are_taken_for_the_worst() {
        for method in &METHODS {
            assert_eq!(Method::named(method.name).name, method.name);
        }
        let unknown = Method::named("fork_collection");
        assert!(unknown.writes && !unknown.releases_interpreter && unknown.repeat == Repeat::Never);
        assert_eq!(unknown.changes_catalogue, Changes::Always);
        assert!(unknown.caller != Caller::Client && unknown.slices.is_none() && !unknown.writes_records());
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
