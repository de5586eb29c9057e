"""What a Chroma database that nobody has open holds, and what of its vectors can be saved: read without Chroma.

Chroma keeps the records of a collection in SQLite, its vectors in index files that lag behind, and a log of all writes
up to some rows back, which it applies to both when it next reads. So what there is follows from all three: each has
the position in the log up to which it goes.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from chroma_manager.storage.hnsw_files import IndexFiles
from chroma_manager.storage.log import ADD, DELETE, UPDATE, UPSERT
from chroma_manager.storage.manifest import read_manifest
from chroma_manager.storage.paths import DATABASE_FILE, HOME, METADATA_FILE
from chroma_manager.storage.sealed import DamagedFileError
from chroma_manager.storage.sequence_ids import sequence_id

if TYPE_CHECKING:
    from collections.abc import Iterator


class Row(NamedTuple):
    """A row of the log; the length of its vector in bytes, not the vector."""

    position: int
    operation: int
    record: str
    length: int | None


class Logged(NamedTuple):
    """A vector in the log; whether the row that has it is known to have had an effect."""

    position: int
    is_certain: bool


class Collection(NamedTuple):
    """What SQLite knows of a collection.

    `position` is up to which row of the log the index files go, `applied` up to which one the records do. `records` are
    as of `applied`, each with the row that changed it last; `rows` are those of the log, oldest first.
    """

    id: str
    name: str
    tenant: str
    database: str
    dimension: int | None
    is_cosine: bool
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
        """All ids that SQLite has of it."""
        return {*self.records, *(row.record for row in self.rows)}

    @property
    def misfits(self) -> int:
        """How many rows of its log have a vector of another dimension, which Chroma does not notice."""
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
    """The SQLite file of a database, which has to be there; nothing is written but in a transaction of the caller."""
    path = quote(str((directory / DATABASE_FILE).absolute()))
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None)) as connection:
        connection.execute("pragma synchronous = full")
        yield connection


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
        is_cosine=_space(sql, found) == "cosine",
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


def is_cosine(sql: sqlite3.Connection, collection: str) -> bool:
    """Whether the vectors of a collection are compared by their angle, and so normalized in its index."""
    cursor = sql.execute("select * from collections where id = ?", (collection,))
    names = [name for name, *_ in cursor.description]
    return _space(sql, dict(zip(names, cursor.fetchone(), strict=True))) == "cosine"


def _space(sql: sqlite3.Connection, found: dict[str, Any]) -> str:
    """The distance of a collection, which each Chroma wrote at another place."""
    for text, path in (
        (found.get("schema_str"), ("keys", "#embedding", "float_list", "vector_index", "config", "space")),
        (found.get("config_json_str"), ("hnsw", "space")),
        (found.get("config_json_str"), ("hnsw_configuration", "space")),
    ):
        value: Any = json.loads(text or "{}")
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str):
            return value
    stated = sql.execute(
        "select str_value from collection_metadata where collection_id = ? and key = 'hnsw:space'", (found["id"],)
    ).fetchone()
    return stated[0] if stated else "l2"


class Index(NamedTuple):
    """Index files, and the position in the log up to which they go."""

    position: int
    files: IndexFiles


def present_index(directory: Path, collection: Collection) -> Index | None:
    """The index files of a collection; ``None`` where Chroma has not written any yet, and does not look for them."""
    path = directory / str(collection.vectors_segment)
    if collection.position == 0 and not (path / METADATA_FILE).exists():
        return None
    return Index(collection.position, _files(path, collection))


def copied_indexes(directory: Path, collection: Collection) -> list[Index]:
    """The index files of a collection in its checkpoint; where it cannot be told which those are, in all copies."""
    home, segment = directory / HOME, str(collection.vectors_segment)
    try:
        checkpoint = (read_manifest(home) or {}).get(segment)
    except DamagedFileError:
        copies = {path: path.name.partition("@")[2].partition("-")[0] for path in home.glob(f"{segment}@*-*")}
    else:
        copies = {home / checkpoint.copy: str(checkpoint.position)} if checkpoint else {}
    return [
        Index(int(position), _files(path, collection))
        for path, position in copies.items()
        if position.isdigit() and path.is_dir() and not path.is_symlink()
    ]


def all_indexes(directory: Path, collection: Collection) -> list[Index]:
    """The index files of a collection, where there are any, and those in its checkpoint."""
    present = present_index(directory, collection)
    return ([present] if present else []) + copied_indexes(directory, collection)


def _files(path: Path, collection: Collection) -> IndexFiles:
    return IndexFiles(path, collection.dimension or 0, collection.is_cosine, collection.known_ids)


def find_vectors(collection: Collection, indexes: list[Index]) -> dict[str, Logged | IndexFiles]:
    """Where the newest vector of each record is that can be found.

    The log comes first: it has vectors as they were written. It is read in order, and the vectors of each index are
    looked at where that index ends. A row that adds a record which was there already had no effect; where the log does
    not go back far enough to tell, an index is believed instead of it.
    """
    found: dict[str, Logged | IndexFiles] = {}
    waiting = sorted(indexes, key=lambda index: index.position)
    for row in collection.rows:
        while waiting and waiting[0].position < row.position:
            _look_at(found, waiting.pop(0).files)
        if row.operation == DELETE:
            found.pop(row.record, None)
        elif collection.has_vector(row) and not (row.operation == ADD and row.record in found):
            is_certain = (
                row.operation != ADD
                or row.position > collection.applied
                or row.position == collection.records.get(row.record)
            )
            found[row.record] = Logged(row.position, is_certain)
    for index in waiting:
        _look_at(found, index.files)
    return found


def is_known(record: str, source: Logged | IndexFiles, collection: Collection, indexes: list[Index]) -> bool:
    """Whether the vector that was found of a record is known to be the one written last, and to be all there.

    Args:
        record: Its id.
        source: What ``find_vectors`` says of it.
        collection: Its collection.
        indexes: Those in which it was looked for.
    """
    if isinstance(source, Logged):
        return source.is_certain
    position = next(index.position for index in indexes if index.files is source)
    # In an older copy the vector may have been another one, if the record has changed since.
    is_current = position >= collection.position or collection.records.get(record, position + 1) <= position
    return is_current and source.is_exact(record)


def _look_at(found: dict[str, Logged | IndexFiles], files: IndexFiles) -> None:
    for record in files.ids:
        known = found.get(record)
        if not (isinstance(known, Logged) and known.is_certain) and files.vector(record) is not None:
            found[record] = files


def settled_vectors(collection: Collection) -> dict[str, int]:
    """The row that the vector in the index files must come from, for each record for which the log tells.

    Whether a row of the log had an effect depends on whether its record existed. Where the log does not go back far
    enough to tell, the record itself may: it has the sequence id of the row that changed it last.
    """
    exists: dict[str, bool] = {}
    settled: dict[str, int] = {}
    for row in collection.rows:
        if row.position > collection.position:
            break
        if row.operation == DELETE:
            exists[row.record] = False
            settled.pop(row.record, None)
        elif not collection.has_vector(row):
            continue
        elif row.operation == UPSERT or row.position == collection.records.get(row.record):
            exists[row.record] = True
            settled[row.record] = row.position
        elif row.record not in exists:
            # Either its vector or one from before is in the index.
            settled.pop(row.record, None)
            if row.operation == ADD:
                exists[row.record] = True
        elif exists[row.record] == (row.operation == UPDATE):
            exists[row.record] = True
            settled[row.record] = row.position
    return settled


def replayed_from_nothing(collection: Collection) -> dict[str, int]:
    """Which row's vector each record has when Chroma applies the log to an empty index."""
    vectors: dict[str, int] = {}
    for row in collection.rows:
        if row.operation == DELETE:
            vectors.pop(row.record, None)
        elif row.length is None:
            continue
        elif row.operation == UPSERT or (row.operation == ADD) != (row.record in vectors):
            vectors[row.record] = row.position
    return vectors
