//! The table of Chroma's methods, and what those of their parameters are called that others must know.

use std::time::Duration;

use super::method::{Caller, Changes, Method, Parameter, Repeat, Slices};

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
pub(super) const FILTER: &str = "where";

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
    changes_catalogue: Changes::Never,
    releases_interpreter: false,
    slices: None,
};

/// The same for one that writes.
const WRITE: Method = Method { repeat: Repeat::Never, writes: true, ..READ };

/// The same for one that changes the catalogue.
const CHANGE: Method = Method { changes_catalogue: Changes::Always, ..WRITE };

/// One that the table does not have: nothing is known of its arguments.
pub(super) static UNKNOWN: Method = Method { caller: Caller::Either, ..CHANGE };

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
        changes_catalogue: Changes::IfItWrites,
        ..WRITE
    },
    Method { name: "create_database", parameters: &[required("name"), required("tenant")], ..CHANGE },
    Method { name: "create_tenant", parameters: &[required("name")], ..CHANGE },
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
        ..CHANGE
    },
    Method {
        name: "delete_database",
        parameters: &[required("name"), required("tenant")],
        caller: Caller::Either,
        ..CHANGE
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
    Method { name: "reset", caller: Caller::Either, ..CHANGE },
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
        ..CHANGE
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
