//! What the methods of `chromadb_rust_bindings.Bindings` are: the one table that says so, for everything that must know.
//!
//! Calls are forwarded by name, so a method or a parameter that is missing here works all the same. Such a method is taken
//! for one that writes, holds the interpreter, and must not be repeated. Whether the table is right is checked against the
//! installed Chroma by `tests/compatibility/test_chroma_table.py`. How an argument of a call is found is in
//! `python/arguments.rs`; what follows from the table is decided by whoever asks. Plain Rust.

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

/// The parameter with the ids of the records that a call writes, or asks for.
pub const IDS: &str = "ids";

/// The parameter with the id of the collection.
pub const COLLECTION: &str = "collection_id";

/// The parameter with one vector for each record.
pub const EMBEDDINGS: &str = "embeddings";

/// The parameter with one dict for each record.
pub const METADATAS: &str = "metadatas";

/// The parameters, besides the ids, that have one value for each record.
pub const PER_RECORD: [&str; 4] = [EMBEDDINGS, METADATAS, "documents", "uris"];

/// The parameter with a filter, which Chroma evaluates recursively.
const FILTER: &str = "where";

/// The first chromadb in which `delete` takes a limit. In older ones the tenant is in that place, so a `delete` whose
/// arguments are given by place is never repeated there.
const LIMITED_DELETES: &str = "1.5.3";

/// A method that reads in the interest of a client, and a base for the entries of the table.
const READ: Method = Method {
    name: "",
    since: None,
    parameters: &[],
    caller: Caller::Client,
    repeat: Repeat::Always,
    writes: false,
    releases_interpreter: false,
    slices: None,
};

/// The same for one that writes.
const WRITE: Method = Method { repeat: Repeat::Never, writes: true, ..READ };

/// All of them, by name.
pub static METHODS: [Method; 24] = [
    Method {
        name: "add",
        parameters: &[
            required(IDS),
            required(COLLECTION),
            required(EMBEDDINGS),
            none(METADATAS),
            none("documents"),
            none("uris"),
            optional("tenant"),
            optional("database"),
        ],
        caller: Caller::Collection,
        repeat: Repeat::Always,
        // Below some fifty records a slice, what Chroma does once for each call begins to show: 1.5 times slower at 50
        // records a slice, 2.5 times at 25 (measured with 1,536 dimensions, as what follows).
        slices: Some(Slices { first: 128, time: Duration::from_millis(80) }),
        ..WRITE
    },
    Method {
        name: "count",
        parameters: &[required(COLLECTION), optional("tenant"), optional("database")],
        caller: Caller::Collection,
        ..READ
    },
    Method { name: "count_collections", parameters: &[required("tenant"), required("database")], ..READ },
    Method {
        name: "create_collection",
        parameters: &[
            required("name"),
            none("configuration_json_str"),
            none("schema_str"),
            none("metadata"),
            optional("get_or_create"),
            optional("tenant"),
            optional("database"),
        ],
        repeat: Repeat::If("get_or_create"),
        ..WRITE
    },
    Method { name: "create_database", parameters: &[required("name"), required("tenant")], ..WRITE },
    Method { name: "create_tenant", parameters: &[required("name")], ..WRITE },
    Method {
        name: "delete",
        parameters: &[
            required(COLLECTION),
            none(IDS),
            optional(FILTER),
            none("where_document"),
            Parameter { since: Some(LIMITED_DELETES), ..none("limit") },
            optional("tenant"),
            optional("database"),
        ],
        caller: Caller::Collection,
        // Of the records that a limit has left, a second `delete` would take others.
        repeat: Repeat::Unless("limit"),
        ..WRITE
    },
    Method {
        name: "delete_collection",
        parameters: &[required("name"), required("tenant"), required("database")],
        ..WRITE
    },
    Method {
        name: "delete_database",
        parameters: &[required("name"), required("tenant")],
        caller: Caller::Either,
        ..WRITE
    },
    Method {
        name: "get",
        parameters: &[
            required(COLLECTION),
            none(IDS),
            optional(FILTER),
            none("limit"),
            optional("offset"),
            none("where_document"),
            optional("include"),
            optional("tenant"),
            optional("database"),
        ],
        caller: Caller::Collection,
        releases_interpreter: true,
        ..READ
    },
    Method {
        name: "get_collection",
        parameters: &[required("name"), required("tenant"), required("database")],
        ..READ
    },
    Method {
        name: "get_collection_by_id",
        since: Some("1.5.7"),
        parameters: &[required(COLLECTION), optional("tenant"), optional("database")],
        ..READ
    },
    Method { name: "get_database", parameters: &[required("name"), required("tenant")], ..READ },
    Method { name: "get_max_batch_size", caller: Caller::Either, ..READ },
    Method { name: "get_tenant", parameters: &[required("name")], ..READ },
    Method { name: "get_version", caller: Caller::Either, ..READ },
    Method { name: "heartbeat", ..READ },
    Method {
        name: "list_collections",
        parameters: &[none("limit"), optional("offset"), optional("tenant"), optional("database")],
        ..READ
    },
    Method { name: "list_databases", parameters: &[none("limit"), none("offset"), optional("tenant")], ..READ },
    Method {
        name: "query",
        parameters: &[
            required(COLLECTION),
            required(IDS),
            required("query_embeddings"),
            required("n_results"),
            optional(FILTER),
            none("where_document"),
            optional("include"),
            optional("tenant"),
            optional("database"),
        ],
        caller: Caller::Collection,
        releases_interpreter: true,
        ..READ
    },
    Method { name: "reset", caller: Caller::Either, ..WRITE },
    Method {
        name: "update",
        parameters: &[
            required(COLLECTION),
            required(IDS),
            none(EMBEDDINGS),
            none(METADATAS),
            none("documents"),
            none("uris"),
            optional("tenant"),
            optional("database"),
        ],
        caller: Caller::Collection,
        repeat: Repeat::Always,
        slices: Some(CHANGES),
        ..WRITE
    },
    Method {
        name: "update_collection",
        parameters: &[required(COLLECTION), none("new_name"), none("new_metadata"), none("new_configuration_json_str")],
        caller: Caller::Collection,
        ..WRITE
    },
    Method {
        name: "upsert",
        parameters: &[
            required(COLLECTION),
            required(IDS),
            required(EMBEDDINGS),
            none(METADATAS),
            none("documents"),
            none("uris"),
            optional("tenant"),
            optional("database"),
        ],
        caller: Caller::Collection,
        repeat: Repeat::Always,
        slices: Some(CHANGES),
        ..WRITE
    },
];

/// The slices of what changes records that exist: one takes 6 ms, because the index is repaired, and a call 45. So a call
/// takes 1.1 times as long with slices of 150 ms, and 1.4 times with 80.
const CHANGES: Slices = Slices { first: 20, time: Duration::from_millis(150) };

const fn required(name: &'static str) -> Parameter {
    Parameter { name, since: None, is_none_by_default: false }
}

/// One that may be left out, which is not the same as `None`.
const fn optional(name: &'static str) -> Parameter {
    required(name)
}

const fn none(name: &'static str) -> Parameter {
    Parameter { is_none_by_default: true, ..required(name) }
}

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
