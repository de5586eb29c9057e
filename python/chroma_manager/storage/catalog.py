"""The collections of a closed database, read from its SQLite file without Chroma: records, log, and where they are.

Chroma keeps the records of a collection in SQLite, its vectors in index files that lag behind, and a log of the newest
writes, which it applies to both when it next reads. So the content follows from all three; records and index files each
have a sequence id up to which they have applied the log. Where vectors are found is in ``vector_sources.py``.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from chroma_manager.storage.connection import keep_deleted_content
from chroma_manager.storage.log import ADD, DELETE, UPSERT
from chroma_manager.storage.paths import DATABASE_FILE
from chroma_manager.storage.sequence_ids import sequence_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


L2, COSINE, INNER_PRODUCT = "l2", "cosine", "ip"

# What Chroma writes for an index of which nothing is configured.
DEFAULT_CONFIGURATION = {
    "space": L2,
    "ef_construction": 100,
    "ef_search": 100,
    "max_neighbors": 16,
    "resize_factor": 1.2,
    "sync_threshold": 1000,
}


class Row(NamedTuple):
    """A row of the log, with the length of its vector in bytes instead of the vector."""

    position: int
    operation: int
    record: str
    length: int | None


class Collection(NamedTuple):
    """What SQLite knows of a collection.

    `position` is the sequence id up to which the index files have applied the log, `applied` that of the records.
    `records` are as of `applied`, each with the row that changed it last; `rows` are those of the log, oldest first.
    """

    id: str
    name: str
    tenant: str
    database: str
    dimension: int | None
    space: str
    vectors_segment: str | None
    records_segment: str | None
    position: int
    applied: int
    records: dict[str, int]
    rows: list[Row]

    def records_at_the_end(self) -> set[str]:
        """The ids of its records, once the whole log is applied."""
        records = set(self.records)
        for row in self.rows:
            if row.position > self.applied:
                _apply(records, row)
        return records

    def vectors_at_the_end(self, indexed: set[str]) -> set[str]:
        """The ids that have a vector once the log after the index is applied to it."""
        vectors = set(indexed)
        for row in self.rows:
            if row.position > self.position:
                _apply(vectors, row)
        return vectors

    def known_ids(self) -> set[str]:
        """All ids that SQLite has for the collection."""
        return {*self.records, *(row.record for row in self.rows)}

    @property
    def is_cosine(self) -> bool:
        """Whether its vectors are compared by their angle, and are therefore normalized in its index."""
        return self.space == COSINE

    @property
    def misfits(self) -> int:
        """How many rows of its log have a vector of the wrong dimension, which Chroma does not notice."""
        return sum(row.length is not None and not self.has_vector(row) for row in self.rows)

    def has_vector(self, row: Row) -> bool:
        """Whether a row of the log has a vector of the right dimension."""
        return row.length is not None and row.length == 4 * (self.dimension or 0)


def _apply(ids: set[str], row: Row) -> None:
    if row.operation in (ADD, UPSERT):
        ids.add(row.record)
    elif row.operation == DELETE:
        ids.discard(row.record)


@contextlib.contextmanager
def connection_to(directory: Path) -> Iterator[sqlite3.Connection]:
    """Opens the SQLite file of a database, which has to exist. Writes need a transaction of the caller's."""
    path = quote(str((directory / DATABASE_FILE).absolute()))
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None)) as connection:
        connection.execute("pragma synchronous = full")
        keep_deleted_content(connection)
        yield connection


@contextlib.contextmanager
def immediate_transaction(sql: sqlite3.Connection) -> Iterator[None]:
    """A transaction on such a connection, rolled back where something is raised."""
    sql.execute("begin immediate")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite itself may have rolled it back
            sql.execute("rollback")
        raise
    sql.execute("commit")


def integrity(sql: sqlite3.Connection) -> str:
    """What SQLite's integrity check says of the whole file: "ok", or what is wrong with it."""
    return "\n".join(str(row[0]) for row in sql.execute("pragma integrity_check(10)"))


def read_collections(sql: sqlite3.Connection) -> list[Collection]:
    """The collections of a database, by tenant, database and name."""
    rows = _read_log(sql)
    positions = {
        segment: sequence_id(position) for segment, position in sql.execute("select segment_id, seq_id from max_seq_id")
    }
    segments = {
        (collection, scope): segment
        for segment, scope, collection in sql.execute("select id, scope, collection from segments")
    }
    return [
        _read_collection(sql, found, segments, positions, rows)
        for found in sql.execute(
            "select collections.*, databases.name as database, tenant_id as tenant from collections "
            "join databases on databases.id = database_id order by tenant, database, collections.name"
        ).fetchall()
        for found in [dict(zip(_names(sql), found, strict=True))]
    ]


def _names(sql: sqlite3.Connection) -> list[str]:
    columns = [name for _, name, *_ in sql.execute("pragma table_info(collections)")]
    return [*columns, "database", "tenant"]


def _read_collection(
    sql: sqlite3.Connection,
    found: dict[str, Any],
    segments: dict[tuple[str, str], str],
    positions: dict[str, int],
    rows: dict[str, list[Row]],
) -> Collection:
    key = found["id"]
    vectors, records = segments.get((key, "VECTOR")), segments.get((key, "METADATA"))
    ids = sql.execute("select embedding_id, seq_id from embeddings where segment_id = ?", (records,))
    return Collection(
        id=key,
        name=found["name"],
        tenant=found["tenant"],
        database=found["database"],
        dimension=found["dimension"],
        space=_space(sql, found),
        vectors_segment=vectors,
        records_segment=records,
        position=positions.get(vectors or "", 0),
        applied=positions.get(records or "", 0),
        records={record: sequence_id(position) for record, position in ids},
        rows=rows.get(key, []),
    )


def _read_log(sql: sqlite3.Connection) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    query = "select topic, seq_id, operation, id, length(vector) from embeddings_queue order by seq_id"
    for topic, *row in sql.execute(query):
        rows.setdefault(topic.rpartition("/")[2], []).append(Row(*row))
    return rows


def space_of(sql: sqlite3.Connection, collection: str) -> str:
    """The distance function of a collection: "l2", "cosine" or "ip"."""
    cursor = sql.execute("select * from collections where id = ?", (collection,))
    names = [name for name, *_ in cursor.description]
    return _space(sql, dict(zip(names, cursor.fetchone(), strict=True)))


def _space(sql: sqlite3.Connection, found: dict[str, Any]) -> str:
    """The space of a collection, found as Chroma finds it.

    Chroma from 1.3 on writes it to the schema, from 1.0 on to the configuration. One before wrote it to the metadata of
    the segment alone, with a configuration of another form that says "l2". Chroma does not read that form, and prefers
    the metadata to a configuration that is the default in everything. It never reads the metadata of the collection,
    which a user can replace.
    """
    schema = _part(found.get("schema_str"), "keys", "#embedding", "float_list", "vector_index", "config", "space")
    if isinstance(schema, str):
        return schema
    indexes = _part(found.get("config_json_str"), "vector_index")
    configured = next(iter(indexes.values()), None) if isinstance(indexes, dict) else None  # of "hnsw" or "spann"
    if isinstance(configured, dict) and not configured.items() <= DEFAULT_CONFIGURATION.items():
        return str(configured.get("space", L2))
    stated = sql.execute(
        "select str_value from segment_metadata join segments on segments.id = segment_id "
        "where collection = ? and scope = 'VECTOR' and key = 'hnsw:space'",
        (found["id"],),
    ).fetchone()
    return stated[0] if stated else L2


def _part(text: str | None, *path: str) -> Any:
    """What a JSON text has at a path; ``None`` where it has nothing."""
    value: Any = json.loads(text or "{}")
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
