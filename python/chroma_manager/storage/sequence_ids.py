"""The sequence ids of segments: how each Chroma has stored them, and how the installed one can read them.

A segment has a sequence id up to which it has applied the log. Chroma 1.0 and later store a number. Before, it was
eight bytes (big-endian), which a migration turns into a number; up to 0.5.5 that of an index was in its pickle. Tools
that write to databases have left texts, and bytes where a number should be, which Chroma cannot read, or takes for
another number. In SQLite any number is less than any text, and any text less than any bytes: a sequence id has to be a
number before it is compared with one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chroma_manager.errors import InstanceOpenError
from chroma_manager.storage.paths import DATABASE_FILE, METADATA_FILE

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

Stored = int | float | bytes | str | None

# The segments of a local Chroma. Nothing here knows what others contain, or what they need.
KNOWN_TYPES = {
    "urn:chroma:segment/metadata/sqlite",
    "urn:chroma:segment/vector/hnsw-local-memory",
    "urn:chroma:segment/vector/hnsw-local-persisted",
}

# SQLite's largest number.
LARGEST = 2**63 - 1


def sequence_id(value: Stored) -> int:
    """A sequence id as a number, however it was stored; 0 where there is none.

    Raises:
        ValueError: It is not a sequence id.
    """
    if isinstance(value, bytes):
        # Digits are the bytes of a text; as a number they would be beyond any log.
        number = int(value) if value.isdigit() else int.from_bytes(value or b"\xff" * 9, "big")
    elif isinstance(value, str):
        number = int(value)
    else:
        number = int(value or 0)
    if not 0 <= number <= LARGEST or (isinstance(value, float) and value != number):
        raise ValueError(f"{value!r} is not a sequence id")
    return number


def refuse_unknown_segments(sql: sqlite3.Connection) -> None:
    """Raises where the database was written by a Chroma that stores its data in another way.

    Raises:
        InstanceOpenError: It has segments of a type that is not known here.
    """
    unknown = sorted({str(found) for (found,) in sql.execute("select type from segments")} - KNOWN_TYPES)
    if unknown:
        raise InstanceOpenError(
            f"{DATABASE_FILE} has segments of a type that this chroma-manager does not know ({', '.join(unknown)}): a "
            "newer Chroma has written it. Nothing was changed; install a chroma-manager that supports that Chroma"
        )


def normalize_sequence_ids(sql: sqlite3.Connection, directory: Path) -> None:
    """Stores each sequence id as the installed Chroma reads it; writes nothing where all are stored so.

    Args:
        sql: The closed database; the caller commits.
        directory: Of the database.

    Raises:
        InstanceOpenError: A sequence id is not a number.
    """
    kinds = {name: kind for _, name, kind, *_ in sql.execute("pragma table_info(max_seq_id)")}
    is_migrated = kinds.get("seq_id") == "INTEGER"
    (last,) = sql.execute("select coalesce(max(seq_id), 0) from embeddings_queue").fetchone()
    for segment, value in sql.execute("select segment_id, seq_id from max_seq_id").fetchall():
        try:
            position = _untwisted(sql, sequence_id(value), last)
        except ValueError as error:
            raise InstanceOpenError(
                f"the position of segment {segment} in the log is not a number ({error}). restore() a snapshot, or "
                f"delete its row of max_seq_id in {DATABASE_FILE}, so that Chroma applies the log from its beginning"
            ) from error
        stored = position if is_migrated else position.to_bytes(8, "big")
        if (type(stored), stored) != (type(value), value):
            sql.execute("update max_seq_id set seq_id = ? where segment_id = ?", (stored, segment))
    for segment, position in _positions_in_pickles(sql, directory):
        stored = position if is_migrated else position.to_bytes(8, "big")
        sql.execute("insert into max_seq_id (segment_id, seq_id) values (?, ?)", (segment, stored))


def _untwisted(sql: sqlite3.Connection, position: int, last: int) -> int:
    """A sequence id, as it was before Chroma's migration took the characters of a text for the bytes of a number.

    None is beyond the last row of the log. Where that row is purged, the newest record tells how far the log has gone.
    """
    digits = position.to_bytes(8, "big").lstrip(b"\0")
    if position <= last or len(digits) < 2 or not digits.isdigit():
        return position
    if not last:
        (newest,) = sql.execute("select max(seq_id) from embeddings").fetchone()
        if not sequence_id(newest) <= int(digits) < position:
            return position
    return int(digits)


def _positions_in_pickles(sql: sqlite3.Connection, directory: Path) -> list[tuple[str, int]]:
    """The sequence ids of indexes that have one in their pickle only, where Chroma itself looks for it."""
    segments = sql.execute(
        "select id from segments where scope = 'VECTOR' and id not in (select segment_id from max_seq_id)"
    ).fetchall()
    found = []
    for (segment,) in segments:
        file = directory / segment / METADATA_FILE
        if file.is_file():
            from chroma_manager.storage.index_pickle import position_in  # noqa: PLC0415 - seldom needed

            position = position_in(file)
            if position is not None:
                found.append((segment, position))
    return found
