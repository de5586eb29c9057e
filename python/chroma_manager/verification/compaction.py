"""Compacts a closed database: makes a copy whose indexes have no deleted vectors, and whose file has no free pages.

The database itself is only read; whoever calls this puts the copy in its place (``durability/restore.py``). Chroma
never shrinks the files of an index, and only marks what is deleted. So it is made to build a new index from the log, as
for a repair. The vectors that the log no longer has are in the index files, and are written to the log of the copy:

1. SQLite's file is copied. In the copy, the log of each collection whose index is rebuilt gets the vector of each
   record, and loses the rows that the records have applied, but not its last one. What they have not applied yet stays.
2. Chroma, in a process of its own, applies that log to an empty index. Vectors that a query cannot reach are written
   again (``durability/reconnect.py``).
3. The rows that the new index has are purged. Where Chroma is set to purge nothing, the log gets its old rows back.
4. SQLite writes the copy without free pages (``vacuum into``, which needs no temporary file and no journal).
5. Index files and log of the copy are compared with those of the database, vector by vector, and synced.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager._native import is_same_vector
from chroma_manager.errors import InstanceCorruptError
from chroma_manager.storage.catalog import (
    Collection,
    connection_to,
    immediate_transaction,
    integrity,
    read_collections,
)
from chroma_manager.storage.files import copy_file, remove_tree, step, sync_tree
from chroma_manager.storage.hnsw_files import IndexFiles
from chroma_manager.storage.journal_mode import change_journal_mode, journal_mode
from chroma_manager.storage.log import UPSERT, purge_rows, purges, set_position, vector_segments
from chroma_manager.storage.paths import DATABASE_FILE, WRITE_AHEAD_ENDINGS
from chroma_manager.storage.sequence_ids import normalize_sequence_ids
from chroma_manager.storage.shortage import shortage_in
from chroma_manager.storage.vector_sources import Logged, present_index, sources_of
from chroma_manager.verification.probing import NO_INTERPRETER, arguments_for, probe
from chroma_manager.verification.repair import ROWS_AT_ONCE, append_rows, found_purge_setting, last_position
from chroma_manager.verification.verify import inspect, report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VACUUMED = f"{DATABASE_FILE}.vacuumed"

ROW = "seq_id, created_at, operation, topic, id, vector, encoding, metadata"


class Plan(NamedTuple):
    """What a compaction does.

    Attributes:
        rebuilt: The collections whose indexes are rebuilt.
        deleted: How many deleted vectors these have.
        kept: The names of the other indexes.
    """

    rebuilt: list[Collection]
    deleted: int
    kept: list[str]


def plan(directory: Path, arguments: dict[str, Any], least: float) -> Plan:
    """Examines a closed database, and decides which of its indexes are rebuilt.

    Args:
        directory: The database's.
        arguments: What an engine process is told (``engine.isolated.prepare``).
        least: An index is rebuilt if more than this part of its vectors, from 0 to 1, is deleted.

    Raises:
        InstanceCorruptError: The database is damaged.
        OSError: There is no interpreter on which Chroma could build an index, or a file cannot be read.
    """
    if arguments["python"] is None:
        raise OSError(NO_INTERPRETER)
    sqlite, findings, problems = inspect(directory, arguments, thorough=False)
    said = report(directory, sqlite, findings, problems)
    if not said["ok"]:
        raise InstanceCorruptError(f"it is damaged: {'; '.join(said['problems'])}. verify(..., repair=True) saves it")
    rebuilt, deleted = list[Collection](), 0
    for finding in findings:
        index = present_index(directory, finding.collection)
        if index is None:
            continue
        # What the log deletes is deleted, too, as soon as Chroma applies it.
        of_index = index.files.elements - len(finding.indexed & finding.vectors)
        if of_index > least * index.files.elements:
            rebuilt.append(finding.collection)
            deleted += of_index
    segments = {one.vectors_segment for one in rebuilt}
    with connection_to(directory) as sql:
        kept = [one.id for one in vector_segments(sql) if one.id not in segments and (directory / one.id).is_dir()]
    return Plan(rebuilt, deleted, kept)


def build(directory: Path, arguments: dict[str, Any], planned: Plan, new: Path) -> None:
    """Makes the compacted copy of a closed database, durably and without the indexes that are kept.

    Args:
        directory: The database's.
        arguments: What an engine process is told (``engine.isolated.prepare``).
        planned: What is to be done.
        new: The directory of the copy. After an error nothing is left of it.

    Raises:
        OSError: Space or descriptors are short, or the copy does not have what the database has.
        sqlite3.Error: Likewise.
    """
    remove_tree(new)
    try:
        new.mkdir()
        copy_file(directory / DATABASE_FILE, new / DATABASE_FILE)
        step("database copied")
        if planned.rebuilt:
            _prepare_log(directory, new, planned.rebuilt)
            step("log written")
            _apply_log(new.absolute(), arguments, planned.rebuilt)
            step("indexes rebuilt")
        _shrink(directory, new, planned.rebuilt)
        step("file shrunk")
        _check(directory, new, planned.rebuilt)
        for entry in new.iterdir():
            if entry.is_dir():
                sync_tree(entry)
        sync_tree(new)
        step("copy checked")
    except BaseException:
        with contextlib.suppress(OSError):
            remove_tree(new)
        raise


@contextlib.contextmanager
def _copy(new: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the file of the copy, which is synced once, at the end."""
    with connection_to(new) as sql:
        sql.execute("pragma synchronous = off")
        yield sql


def _prepare_log(directory: Path, new: Path, rebuilt: list[Collection]) -> None:
    """Has the log of the copy fill an empty index for each of these collections."""
    with _copy(new) as sql, immediate_transaction(sql):
        position = last_position(sql)
        for collection in rebuilt:
            before, position = position, _append_vectors(sql, directory, collection, position)
            # Its last row stays: were all rows after it removed, a new one would get a number that is applied already.
            sql.execute(
                "delete from embeddings_queue where substr(topic, -36) = ? and seq_id <= ? and seq_id < "
                "(select max(seq_id) from embeddings_queue where substr(topic, -36) = ?)",
                (collection.id, collection.applied, collection.id),
            )
            if position > before and not _has_unapplied_rows(collection):
                # The rows that were appended change no record.
                set_position(sql, str(collection.records_segment), position)
            set_position(sql, str(collection.vectors_segment), None)
        normalize_sequence_ids(sql, new)


def _append_vectors(sql: sqlite3.Connection, directory: Path, collection: Collection, position: int) -> int:
    rows: list[tuple[int, str, bytes | None]] = []
    for record, vector in _vectors(sql, directory, collection):
        rows.append((UPSERT, record, vector))
        if len(rows) >= ROWS_AT_ONCE:
            position = append_rows(sql, collection, rows, position)
            rows = []
    return append_rows(sql, collection, rows, position)


def _vectors(sql: sqlite3.Connection, directory: Path, collection: Collection) -> Iterator[tuple[str, bytes | None]]:
    """The vector of each record, as it was written.

    Args:
        sql: A connection to the log that is in the directory, or to a copy of it.
        directory: That of the index files.
        collection: The collection.
    """
    sources = sources_of(directory, collection)
    query = "select vector from embeddings_queue where seq_id = ?"
    for record in sorted(collection.records_at_the_end()):
        source = sources.get(record)
        if isinstance(source, Logged):
            yield record, sql.execute(query, (source.position,)).fetchone()[0]
        else:
            yield record, None if source is None else source.vector(record)


def _apply_log(new: Path, arguments: dict[str, Any], rebuilt: list[Collection]) -> None:
    problems = probe(new, arguments_for(new, arguments), rebuilt, reconnects=True)
    if problems:
        names = {one.id: one.name for one in rebuilt}
        said = "; ".join(f"the index of '{names[key]}': {problem}" for key, problem in problems.items())
        raise OSError(shortage_in(new) or said)


def _shrink(directory: Path, new: Path, rebuilt: list[Collection]) -> None:
    """Purges what the new indexes have, and writes the file without free pages."""
    with _copy(new) as sql:
        segments = {one.vectors_segment for one in rebuilt}
        with connection_to(directory) as old:
            keeps_rows = not purges(found_purge_setting(old))
        purge_rows(sql, {one.id: one.position for one in vector_segments(sql) if one.id in segments})
        if keeps_rows:
            sql.execute("attach database ? as old", (str(directory.absolute() / DATABASE_FILE),))
            sql.execute(f"insert or ignore into embeddings_queue ({ROW}) select {ROW} from old.embeddings_queue")
            sql.execute("detach database old")
        with contextlib.suppress(sqlite3.OperationalError):  # this SQLite may have no full-text search
            sql.execute("insert into embedding_fulltext_search (embedding_fulltext_search) values ('optimize')")
        mode = journal_mode(sql)
        sql.execute("vacuum into ?", (str(new / VACUUMED),))
    for ending in ("", *WRITE_AHEAD_ENDINGS):
        (new / f"{DATABASE_FILE}{ending}").unlink(missing_ok=True)
    os.replace(new / VACUUMED, new / DATABASE_FILE)
    change_journal_mode(new / DATABASE_FILE, mode)


def _check(directory: Path, new: Path, rebuilt: list[Collection]) -> None:
    """Raises unless the copy has what the database has.

    Raises:
        OSError: It has not.
    """
    with connection_to(directory) as old, connection_to(new) as sql:
        said = integrity(sql)
        if said != "ok":
            raise OSError(f"the compacted file is damaged ({said})")
        for table in ("collections", "segments", "embeddings", "embedding_metadata"):
            counts = {one.execute(f"select count(*) from {table}").fetchone() for one in (old, sql)}
            if len(counts) > 1 and not any(_has_unapplied_rows(one) for one in rebuilt):
                raise OSError(f"the compacted file does not have all rows of {table}")
        found = {one.id: one for one in read_collections(sql)}
        for collection in rebuilt:
            problem = _difference(directory, new, (old, collection), (sql, found[collection.id]))
            if problem:
                raise OSError(f"the new index of '{collection.name}' is not what it should be: {problem}")


def _has_unapplied_rows(collection: Collection) -> bool:
    return any(row.position > collection.applied for row in collection.rows)


def _difference(
    directory: Path,
    new: Path,
    before: tuple[sqlite3.Connection, Collection],
    after: tuple[sqlite3.Connection, Collection],
) -> str | None:
    """What the copy of a collection does not have as it is in the database."""
    collection = after[1]
    index = present_index(new, collection)
    if index is not None and (index.files.problems or index.files.unmarked):
        return "; ".join(index.files.problems) or f"{index.files.unmarked} vectors have no record"
    if collection.records_at_the_end() != before[1].records_at_the_end():
        return "it does not have the same records"
    sources = sources_of(new, collection)
    if not collection.records_at_the_end() <= sources.keys():
        return "not every record has a vector"
    query = "select vector from embeddings_queue where seq_id = ?"
    for record, vector in _vectors(before[0], directory, before[1]):
        source = sources[record]
        if isinstance(source, IndexFiles):
            stored: tuple[bytes, float | None] = source.stored(record)
        else:
            logged = after[0].execute(query, (source.position,)).fetchone()[0]
            # What was written again was read from the index, where a cosine space has it to within rounding.
            stored = logged, 1.0 if collection.is_cosine else None
        if vector is None or not is_same_vector(*stored, vector):
            return f"the vector of {record!r} is another one"
    return None
