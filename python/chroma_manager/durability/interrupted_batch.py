"""What is left of a batch that was interrupted: its journal is read, and compared with the rows of the log.

A row counts as the batch's only if it has the same operation, record, vector and metadata: a row of another writer that
has all of them has done the same. What is done with the rest of a batch is in ``batch_journal.py``; this is imported
where there is a journal, which few openings find.
"""

from __future__ import annotations

import json
import math
import zlib
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager._native import decode_call
from chroma_manager.storage.log import ADD, UPDATE, UPSERT, LogExtent

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = b"CMB1"
HEADER = len(MAGIC) + 8 + 4

OPERATIONS = {"add": ADD, "update": UPDATE, "upsert": UPSERT}

# Chroma's keys for what is not metadata.
DOCUMENT, URI = "chroma:document", "chroma:uri"


class UnusableJournalError(Exception):
    """A journal does not say what is left of its batch; the message says why."""


class Rest(NamedTuple):
    """What is left to be done of a batch.

    Attributes:
        path: Its journal.
        method: The call that wrote it.
        arguments: Those of the call, for the rest of its records.
        collection: The id of its collection.
        records: How many records are left; 0 where all that are missing were changed by other writes since.
    """

    path: Path
    method: str
    arguments: tuple[Any, ...]
    collection: str
    records: int


class Record(NamedTuple):
    """What a row of the log has of a record."""

    id: str
    vector: bytes | None
    metadata: dict[str, Any]


class Progress(NamedTuple):
    """How much of a batch is in the log.

    Attributes:
        done: How many of its records, in their order.
        changed_since: The ids that other writes have added, upserted or deleted after these.
        is_torn: Whether the log has some of its records, but not the first.
    """

    done: int
    changed_since: set[str]
    is_torn: bool


def rest_of(path: Path, sql: sqlite3.Connection, extents: dict[str, LogExtent]) -> Rest | None:
    """What is left of a batch; ``None`` where nothing is, because all or none of it is in the log.

    Args:
        path: The journal.
        sql: The closed database.
        extents: What its log has of each collection.

    Raises:
        UnusableJournalError: The journal is damaged, or the log has changed too much since.
    """
    place, method, arguments = _read(path)
    collection = place["collection"]
    if sql.execute("select 1 from collections where id = ?", (collection,)).fetchone() is None:
        return None
    extent = extents.get(collection, LogExtent(None, 0))
    if extent.rows < place["rows"] or (place["first"] is not None and extent.first != place["first"]):
        raise UnusableJournalError("another Chroma has shortened the log since")
    records = _records(method, arguments)
    progress = _progress(sql, collection, place["rows"], OPERATIONS[method], records)
    if progress.is_torn:
        raise UnusableJournalError("another Chroma has purged its first rows from the log since")
    if progress.done in (0, len(records)):
        return None
    left = [at for at in range(progress.done, len(records)) if records[at].id not in progress.changed_since]
    return Rest(path, method, _selected(arguments, left, len(records)), collection, len(left))


def _read(path: Path) -> tuple[dict[str, Any], str, tuple[Any, ...]]:
    """What a journal says: the place of its batch in the log, the method and its arguments."""
    if path.is_symlink() or not path.is_file():
        raise UnusableJournalError("it is not a file")
    content = path.read_bytes()
    length = int.from_bytes(content[len(MAGIC) : HEADER - 4], "little")
    call, place = content[HEADER : HEADER + length], content[HEADER + length : -4]
    checksums = content[HEADER - 4 : HEADER], content[-4:]
    if content[: len(MAGIC)] != MAGIC or checksums != (_checksum(call), _checksum(place)):
        raise UnusableJournalError("it is damaged")
    try:
        method, arguments = decode_call(call)
        found = json.loads(place)
        is_sound = isinstance(found["collection"], str) and isinstance(found["rows"], int) and found["rows"] >= 0
        is_sound = is_sound and isinstance(found["first"], (int, type(None))) and method in OPERATIONS
        if not is_sound or found["collection"] not in arguments[:2]:
            raise UnusableJournalError("its content makes no sense")
        _records(method, arguments)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UnusableJournalError(f"it is damaged ({error})") from error
    return found, method, arguments


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")


def _records(method: str, arguments: tuple[Any, ...]) -> list[Record]:
    ids, (vectors, metadatas, documents, uris) = arguments[0 if method == "add" else 1], arguments[2:6]
    return [
        Record(
            record,
            None if vectors is None else _bytes(vectors[at]),
            {
                **((metadatas and metadatas[at]) or {}),
                **({DOCUMENT: documents[at]} if documents and documents[at] is not None else {}),
                **({URI: uris[at]} if uris and uris[at] is not None else {}),
            },
        )
        for at, record in enumerate(ids)
    ]


def _bytes(vector: Any) -> bytes:
    return (vector if isinstance(vector, array) else array("f", vector)).tobytes()


def _selected(arguments: tuple[Any, ...], places: list[int], count: int) -> tuple[Any, ...]:
    """The arguments of a call for some of its records."""
    return tuple(
        [argument[at] for at in places] if isinstance(argument, list) and len(argument) == count else argument
        for argument in arguments
    )


def _progress(
    sql: sqlite3.Connection, collection: str, skipped: int, operation: int, records: list[Record]
) -> Progress:
    """Compares a batch with the rows of the log after those that were there before it."""
    rows: Iterator[tuple[int, str, bytes | None, str | None]] = iter(
        sql.execute(
            "select operation, id, vector, metadata from embeddings_queue "
            "where topic like '%/' || ? order by seq_id limit -1 offset ?",
            (collection, skipped),
        )
    )
    done = 0
    changed_since: set[str] = set()
    by_id = {record.id: record for record in records}
    is_torn = False
    for found, record, vector, metadata in rows:
        expected = records[done] if done < len(records) else None
        if expected is not None and found == operation and _is_row_of(expected, record, vector, metadata):
            done += 1
            changed_since = set()
            continue
        if done == 0 and found == operation and record in by_id:
            is_torn |= _is_row_of(by_id[record], record, vector, metadata)
        if found != UPDATE:
            changed_since.add(record)
    return Progress(done, changed_since, is_torn and done == 0)


def _is_row_of(record: Record, found: str, vector: bytes | None, metadata: str | None) -> bool:
    return (found, vector) == (record.id, record.vector) and json.loads(metadata or "{}") == _as_logged(record.metadata)


def _as_logged(value: Any) -> Any:
    """A value of metadata as Chroma writes it to its log, in JSON."""
    if isinstance(value, dict):
        return {key: _as_logged(of_key) for key, of_key in value.items()}
    if isinstance(value, list):
        return [_as_logged(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
