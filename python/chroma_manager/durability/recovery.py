"""Recovers a database that was left open: index files from their checkpoint, the rest from the log.

Whatever the index files hold then, they are replaced by the copies of the last checkpoint (or removed, where there is
none), and Chroma applies the log from there. That is right only where the log has every row since, which
``why_not`` looks at first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from chroma_manager.durability.reconnect import Replayed
from chroma_manager.storage.files import (
    copy_directory,
    copy_file,
    empty_directory,
    remove_tree,
    sorted_entries,
    step,
    sync_directory,
)
from chroma_manager.storage.log import (
    VectorSegment,
    count_rows,
    fingerprint_of_row,
    newest_vectors,
    purge_setting,
    purges,
    records_at_the_end,
    replay,
    set_position,
)
from chroma_manager.storage.manifest import Checkpoint, Manifest, fingerprint_of_files

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

ANOTHER_HISTORY = "its log does not begin where the checkpoint ends"

# Bytes of replayed vectors that are looked for after a recovery.
LARGEST_REPLAYED = 64 << 20


def is_purged(sql: sqlite3.Connection) -> bool:
    """Whether another program has had Chroma purge the log of a database that was left open, or may have."""
    return purges(purge_setting(sql))


def why_not(sql: sqlite3.Connection, home: Path, segment: VectorSegment, checkpoint: Checkpoint | None) -> str | None:
    """Why a segment cannot be recovered from its checkpoint and its log; ``None`` where it can.

    Args:
        sql: The database.
        home: Our directory in it.
        segment: Which one.
        checkpoint: Its checkpoint; ``None`` where there is none.
    """
    if is_of_another_history(sql, segment, checkpoint):
        return ANOTHER_HISTORY
    if checkpoint is not None and not checkpoint.is_whole(home):
        return f"the copy {checkpoint.copy} of an index is damaged"
    return _problem_with_log(sql, home, segment, checkpoint)


def is_of_another_history(sql: sqlite3.Connection, segment: VectorSegment, checkpoint: Checkpoint | None) -> bool:
    """Whether the checkpoint of a segment is not of this very database: its log has not the row at which it ends."""
    row = None if checkpoint is None else checkpoint.row
    return (
        checkpoint is not None
        and row is not None
        and fingerprint_of_row(sql, segment.topic, checkpoint.position) != row
    )


def _problem_with_log(
    sql: sqlite3.Connection, home: Path, segment: VectorSegment, checkpoint: Checkpoint | None
) -> str | None:
    from chroma_manager.durability.proof import files_of  # noqa: PLC0415 - only a recovery needs what reads index files

    ids, after = set[str](), 0
    if checkpoint is not None:
        files = files_of(sql, segment, home / checkpoint.copy)
        if files.unread is not None:
            raise files.unread
        if files.problems:
            return f"the copy {checkpoint.copy} of an index is damaged ({'; '.join(files.problems)})"
        ids, after = files.ids, checkpoint.position
    missing = records_at_the_end(sql, segment) - replay(sql, segment, ids, after).ids
    return f"of {len(missing)} records neither the checkpoint nor the log has a vector" if missing else None


def recover(
    sql: sqlite3.Connection,
    directory: Path,
    home: Path,
    manifest: Manifest,
    segments: Iterable[VectorSegment],
    *,
    trusts_times: bool,
) -> tuple[Manifest, list[Replayed]]:
    """Puts index files back to what their checkpoints have, and has Chroma apply the log from there.

    Args:
        sql: The database; the caller commits.
        directory: Of the database.
        home: Our directory in it.
        manifest: The checkpoints.
        segments: Those to recover.
        trusts_times: Whether index files with the sizes and times of those that were copied have their content, too.
            After a power cut they may not.

    Returns:
        The manifest as it is to be written, and what Chroma will replay.
    """
    recovered, replayed = dict(manifest), list[Replayed]()
    for segment in segments:
        index, checkpoint = directory / segment.id, manifest.get(segment.id)
        if checkpoint is None:
            _clear(index)
            sync_directory(directory)
            step("index removed")
        else:
            if not (trusts_times and fingerprint_of_files(index) == checkpoint.files):
                _put_back(home / checkpoint.copy, index)
            recovered[segment.id] = checkpoint._replace(files=fingerprint_of_files(index))
        position = None if checkpoint is None else checkpoint.position
        set_position(sql, segment.id, position)
        vectors = newest_vectors(sql, segment, position or 0, LARGEST_REPLAYED)
        if count_rows(sql, segment, position or 0):
            replayed.append(Replayed(segment.collection, segment.tenant, segment.database, vectors))
    return recovered, replayed


def _put_back(copy: Path, index: Path) -> None:
    # Removed first: on a full disk there is no room for both, and what stands here is worth nothing.
    _clear(index)
    step("index removed")
    if index.is_dir():
        for entry in sorted_entries(copy):
            copy_file(Path(entry.path), index / entry.name)
            step("file copied")
        sync_directory(index)
    else:
        copy_directory(copy, index)
    sync_directory(index.parent)
    step("index replaced")


def _clear(index: Path) -> None:
    """Removes an index; of one that its user has put on another disk, all but the link or the mount point."""
    if index.is_dir() and (index.is_symlink() or os.path.ismount(index)):
        empty_directory(index)
    else:
        remove_tree(index)
