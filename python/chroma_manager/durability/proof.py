"""Proves that a copy of index files has what the rows of the log say that are about to be purged.

Chroma's index library does not check whether its writes succeed, so a checkpoint trusts only what was read back. The
records of the copy must be those of the checkpoint before, changed by the rows since. Each vector must be the one in
its row, or, where no row has changed it, that of the checkpoint before. Deleted vectors must be marked, and every link
of the graph must lead to an element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chroma_manager._native import is_same_vector
from chroma_manager.storage.catalog import COSINE, space_of
from chroma_manager.storage.hnsw_files import IndexFiles
from chroma_manager.storage.log import VectorSegment, replay

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path


def problem_with(
    sql: sqlite3.Connection, segment: VectorSegment, files: IndexFiles, before: IndexFiles | None, position_before: int
) -> str | None:
    """What the copy of an index lacks of what the log says; ``None`` where it is proven to have everything.

    Args:
        sql: The database.
        segment: The index's, as it was when the index was copied.
        files: The copy.
        before: The copy of the checkpoint before, which was proven; ``None`` where there was none.
        position_before: The sequence id up to which that copy had applied the log.
    """
    if segment.dimension is None:
        return "its collection has no dimension"
    if files.problems:
        return "; ".join(files.problems)
    if files.unmarked > (before.unmarked if before else 0):
        return f"{files.unmarked} vectors without a record are not marked as deleted"
    return _difference(sql, segment, files, before, position_before)


def _difference(
    sql: sqlite3.Connection, segment: VectorSegment, files: IndexFiles, base: IndexFiles | None, base_position: int
) -> str | None:
    """How index files differ from those of the checkpoint before, changed by the rows of the log since."""
    expected = replay(sql, segment, base.ids if base else set(), base_position, segment.position)
    if expected.ids != files.ids:
        return f"it does not have the records of the log ({_ids_that_differ(expected.ids, files.ids)})"
    stale = stale_vectors(sql, files, expected.sources)
    if stale:
        return f"{len(stale)} vectors are not those of the log, the first that of {stale[0]!r}"
    unchanged = expected.ids - expected.sources.keys()
    changed = list(unchanged) if base is None else files.that_differ(base, unchanged)
    if changed:
        return f"{len(changed)} vectors have changed without a row of the log, the first that of {changed[0]!r}"
    return None


def stale_vectors(sql: sqlite3.Connection, files: IndexFiles, sources: dict[str, int]) -> list[str]:
    """The records whose vector in the index files is not the one in its row of the log.

    Args:
        sql: The database.
        files: The index files, which have a vector of each of the records.
        sources: The sequence id of each record's row.
    """
    if not sources:
        return []
    stale = []
    query = "select id, seq_id, vector from embeddings_queue where seq_id between ? and ?"
    for record, position, vector in sql.execute(query, (min(sources.values()), max(sources.values()))):
        if sources.get(record) == position and not is_same_vector(*files.stored(record), vector):
            stale.append(record)
    return stale


def files_of(sql: sqlite3.Connection, segment: VectorSegment, directory: Path) -> IndexFiles:
    """The index files of a segment in a directory."""
    is_cosine = space_of(sql, segment.collection) == COSINE
    return IndexFiles(directory, segment.dimension or 0, is_cosine, lambda: ())


def _ids_that_differ(expected: set[str], found: set[str]) -> str:
    missing, stray = expected - found, found - expected
    named = sorted(missing or stray)[:1]
    return f"{len(missing)} are missing, {len(stray)} are too many, the first is {named[0]!r}"
