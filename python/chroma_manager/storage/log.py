"""Chroma's write-ahead log, a table of its SQLite file, and what each segment has applied of it.

Every write is a row with a sequence id. A collection has two segments: one of records (in SQLite, too) and one of
vectors (the index files). Each has applied the rows up to the sequence id that ``max_seq_id`` keeps for it. Rows that
both segments have applied can be purged, and Chroma does so while its setting says so.

Only for a database that Chroma has closed: two SQLite libraries in one process must not have a file open at once.
"""

from __future__ import annotations

import json
import math
import sqlite3
import zlib
from typing import TYPE_CHECKING, NamedTuple

from chroma_manager.storage.sequence_ids import sequence_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ADD, UPDATE, UPSERT, DELETE = range(4)

# How many rows are purged in one transaction, so that its journal stays small.
ROWS_A_TRANSACTION = 2_000

# As Chroma stores its setting; the second is its default for a new database.
KEEPS_ROWS, PURGES_ROWS = (
    f'{{"automatically_purge":{purges},"_type":"EmbeddingsQueueConfigurationInternal"}}' for purges in ("false", "true")
)


class VectorSegment(NamedTuple):
    """The vector segment of a collection.

    Attributes:
        id: Also the name of the directory of its index files.
        collection: Id of the collection.
        tenant: The collection's.
        database: The collection's.
        dimension: Of the vectors; ``None`` before the first.
        position: Sequence id up to which the index files have applied the log.
        records_segment: Id of the collection's other segment.
        applied: Sequence id up to which that segment has applied the log.
        topic: Identifies the collection's rows in the log.
    """

    id: str
    collection: str
    tenant: str
    database: str
    dimension: int | None
    position: int
    records_segment: str | None
    applied: int
    topic: str


def vector_segments(sql: sqlite3.Connection) -> list[VectorSegment]:
    """The vector segments of all collections."""
    positions = {
        segment: sequence_id(value) for segment, value in sql.execute("select segment_id, seq_id from max_seq_id")
    }
    others = dict(sql.execute("select collection, id from segments where scope = 'METADATA'"))
    topics = {
        topic.rpartition("/")[2]: topic for (topic,) in sql.execute("select distinct topic from embeddings_queue")
    }
    return [
        VectorSegment(
            id=segment,
            collection=collection,
            tenant=tenant,
            database=database,
            dimension=dimension,
            position=positions.get(segment, 0),
            records_segment=others.get(collection),
            applied=positions.get(others.get(collection, ""), 0),
            topic=topics.get(collection, f"persistent://default/default/{collection}"),
        )
        for segment, collection, tenant, database, dimension in sql.execute(
            "select segments.id, collections.id, databases.tenant_id, databases.name, collections.dimension "
            "from segments join collections on collections.id = segments.collection "
            "join databases on databases.id = collections.database_id where segments.scope = 'VECTOR'"
        )
    ]


def set_position(sql: sqlite3.Connection, segment: str, position: int | None) -> None:
    """Has Chroma apply the log to a segment from a sequence id on, or from the beginning (``None``)."""
    if position is None:
        sql.execute("delete from max_seq_id where segment_id = ?", (segment,))
    else:
        sql.execute("insert or replace into max_seq_id (segment_id, seq_id) values (?, ?)", (segment, position))


def purge_setting(sql: sqlite3.Connection) -> str | None:
    """Chroma's setting of whether it purges rows, as it stores it; ``None`` where there is none."""
    row = sql.execute("select config_json_str from embeddings_queue_config where id = 1").fetchone()
    return row[0] if row else None


def set_purge_setting(sql: sqlite3.Connection, setting: str | None) -> None:
    """Changes the setting, unless it is that already."""
    if purge_setting(sql) == setting:
        return
    if setting is None:
        sql.execute("delete from embeddings_queue_config where id = 1")
    else:
        sql.execute("insert or replace into embeddings_queue_config (id, config_json_str) values (1, ?)", (setting,))


def purges(setting: str | None) -> bool:
    """Whether Chroma would purge rows with that setting."""
    try:
        return bool(json.loads(setting or "{}").get("automatically_purge"))
    except (ValueError, AttributeError):
        return False


def fingerprint_of_row(sql: sqlite3.Connection, topic: str, position: int) -> int | None:
    """A fingerprint that distinguishes a row from one of another history; ``None`` where it was purged."""
    row = sql.execute(
        "select topic, seq_id, operation, id, vector, metadata, created_at from embeddings_queue "
        "where seq_id = ? and topic = ?",
        (position, topic),
    ).fetchone()
    return None if row is None else zlib.crc32(repr(row).encode("utf-8", "surrogatepass"))


def count_rows(sql: sqlite3.Connection, segments: Iterable[VectorSegment], proven: Mapping[str, int]) -> dict[str, int]:
    """How many rows of the log are in no checkpoint, by topic.

    All are counted at once, because Chroma's table has no index by topic.

    Args:
        sql: The database.
        segments: Those of which rows are counted.
        proven: For each segment that has a checkpoint, the sequence id up to which that has applied the log.
    """
    positions = {segment.topic: proven.get(segment.id, 0) for segment in segments}
    counts = dict.fromkeys(positions, 0)
    for topic, position in sql.execute("select topic, seq_id from embeddings_queue"):
        if position > positions.get(topic, math.inf):
            counts[topic] += 1
    return counts


def purge_rows(sql: sqlite3.Connection, proven: dict[str, int]) -> None:
    """Purges the rows that both segments of a collection have applied, as Chroma itself would, except the last one.

    Args:
        sql: The database.
        proven: For each vector segment, the sequence id up to which a checkpoint has applied the log.
    """
    positions = {
        segment.collection: min(segment.applied, proven.get(segment.id, 0)) for segment in vector_segments(sql)
    }
    collections = {key for (key,) in sql.execute("select id from collections")}
    (last,) = sql.execute("select max(seq_id) from embeddings_queue").fetchone()
    for (topic,) in sql.execute("select distinct topic from embeddings_queue").fetchall():
        collection = topic.rpartition("/")[2]
        # Nobody needs the log of a deleted collection.
        _purge(sql, topic, positions.get(collection, 0) if collection in collections else last)


def _purge(sql: sqlite3.Connection, topic: str, before: int) -> None:
    while True:
        purged = sql.execute(
            "delete from embeddings_queue where seq_id in "
            "(select seq_id from embeddings_queue where topic = ? and seq_id < ? limit ?)",
            (topic, before, ROWS_A_TRANSACTION),
        ).rowcount
        sql.commit()
        if purged < ROWS_A_TRANSACTION:
            return


def newest_vectors(sql: sqlite3.Connection, segment: VectorSegment, after: int, room: int) -> dict[str, bytes]:
    """The newest vector of each record in the rows after a sequence id, of as many records as fit into `room` bytes."""
    vectors: dict[str, bytes] = {}
    for record, vector in sql.execute(
        "select id, vector from embeddings_queue where seq_id > ? and topic = ? and vector is not null "
        "order by seq_id desc",
        (after, segment.topic),
    ):
        if record not in vectors:
            room -= len(vector)
            if room < 0:
                break
            vectors[record] = vector
    return vectors


class LogExtent(NamedTuple):
    """The rows that the log has of a collection.

    Attributes:
        first: Sequence id of the first one; ``None`` where that is unknown, or there is none.
        rows: How many.
    """

    first: int | None
    rows: int


def log_extents(sql: sqlite3.Connection) -> dict[str, LogExtent]:
    """What the log has of each collection that there is, by its id."""
    rows = sql.execute("select topic, min(seq_id), count(*) from embeddings_queue group by topic").fetchall()
    found = {topic.rpartition("/")[2]: LogExtent(first, count) for topic, first, count in rows}
    return {key: found.get(key, LogExtent(None, 0)) for (key,) in sql.execute("select id from collections")}


class Replay(NamedTuple):
    """What an index has after rows of the log were applied to it.

    Attributes:
        ids: The records that have a vector afterwards.
        sources: For those whose vector is in these rows, the sequence id of the row.
    """

    ids: set[str]
    sources: dict[str, int]


def replay(
    sql: sqlite3.Connection, segment: VectorSegment, ids: set[str], after: int, until: int | None = None
) -> Replay:
    """Applies rows of the log to the ids of an index, by Chroma's rules (``LocalHnswSegmentWriter::apply_log_chunk``).

    Args:
        sql: The database.
        segment: The one whose rows are applied.
        ids: The records that have a vector in the index.
        after: The sequence id up to which the index has applied the log.
        until: The last one to apply. By default all are applied.
    """
    ids, sources = set(ids), dict[str, int]()
    for position, operation, record, has_vector in sql.execute(
        "select seq_id, operation, id, vector is not null from embeddings_queue "
        "where seq_id > ? and seq_id <= ? and topic = ? order by seq_id",
        (after, (1 << 62) if until is None else until, segment.topic),
    ):
        if operation == DELETE:
            ids.discard(record)
            sources.pop(record, None)
        elif has_vector and (operation == UPSERT or (operation == ADD) != (record in ids)):
            ids.add(record)
            sources[record] = position
    return Replay(ids, sources)


def records_at_the_end(sql: sqlite3.Connection, segment: VectorSegment) -> set[str]:
    """The ids of the records of a segment's collection, once the whole log is applied."""
    query = "select embedding_id from embeddings where segment_id = ?"
    records = {record for (record,) in sql.execute(query, (segment.records_segment,))}
    query = "select operation, id from embeddings_queue where seq_id > ? and topic = ? order by seq_id"
    for operation, record in sql.execute(query, (segment.applied, segment.topic)):
        if operation == DELETE:
            records.discard(record)
        elif operation != UPDATE:
            records.add(record)
    return records
