"""Recovers index files: from the copies of their checkpoint, and from the log, which Chroma replays from there.

Whatever the index files hold, they are replaced by the copies of the last checkpoint, or removed where there is none.
That is right only where the log has every row since, which ``problems_with`` examines first. Which indexes are to be
recovered is decided by the callers. Most openings recover none, and do not import this.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chroma_manager.durability.copies import remove_unneeded
from chroma_manager.durability.reconnect import Replayed, Vectors
from chroma_manager.storage.catalog import space_of
from chroma_manager.storage.connection import transaction
from chroma_manager.storage.files import (
    copy_directory,
    copy_file,
    empty_directory,
    is_elsewhere,
    remove_tree,
    sorted_files,
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
from chroma_manager.storage.manifest import (
    Checkpoint,
    Manifest,
    fingerprint_of_files,
    positions,
    read_manifest,
    write_manifest,
)
from chroma_manager.storage.paths import DATABASE_FILE, HOME

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from chroma_manager.durability.findings import Findings

ANOTHER_HISTORY = "its log does not begin where the checkpoint ends"

# Bytes of replayed vectors of all collections that are searched for after a recovery, to reconnect those that a query
# cannot reach.
LARGEST_REPLAYED = 64 << 20


def is_purged(sql: sqlite3.Connection) -> bool:
    """Whether another program may have had Chroma purge the log of a database that was left open."""
    return purges(purge_setting(sql))


def problems_with(directory: Path, segments: Iterable[VectorSegment], manifest: Manifest) -> dict[str, str]:
    """Why segments cannot be recovered from their checkpoints and the log, by their id; those that can are left out."""
    with transaction(directory / DATABASE_FILE) as sql:
        problems = {one.id: _problem_with(sql, directory / HOME, one, manifest.get(one.id)) for one in segments}
    return {segment: problem for segment, problem in problems.items() if problem is not None}


def recover(directory: Path, segments: list[VectorSegment], findings: Findings, *, trusts_times: bool = False) -> None:
    """Recovers the indexes of some segments, and notes what Chroma has to replay.

    Args:
        directory: The database's.
        segments: Those with nothing that speaks against it (``problems_with``).
        findings: Where what there is to replay is noted.
        trusts_times: Whether index files with the sizes and times of those that were copied have their content, too.
            After a power cut they may not.
    """
    if not segments:
        return
    home = directory / HOME
    manifest = read_manifest(home) or {}
    remove_unneeded(home, manifest)
    with transaction(directory / DATABASE_FILE) as sql:
        recovered, replayed = _recover_segments(sql, directory, manifest, segments, trusts_times=trusts_times)
    step("positions set back")
    write_manifest(home, recovered)
    collections = {segment.collection for segment in segments}
    findings.replayed = [*(one for one in findings.replayed if one.newest.collection not in collections), *replayed]


def _problem_with(
    sql: sqlite3.Connection, home: Path, segment: VectorSegment, checkpoint: Checkpoint | None
) -> str | None:
    """Why a segment cannot be recovered from its checkpoint and the log; ``None`` where it can."""
    if is_of_another_history(sql, segment, checkpoint):
        return ANOTHER_HISTORY
    if checkpoint is not None and not checkpoint.is_whole(home):
        return f"the copy {checkpoint.copy} of an index is damaged"
    return _problem_with_log(sql, home, segment, checkpoint)


def is_of_another_history(sql: sqlite3.Connection, segment: VectorSegment, checkpoint: Checkpoint | None) -> bool:
    """Whether the checkpoint of a segment is another database's: this log does not have the row at which it ends."""
    row = None if checkpoint is None else checkpoint.row
    return (
        checkpoint is not None
        and row is not None
        and fingerprint_of_row(sql, segment.topic, checkpoint.position) != row
    )


def _problem_with_log(
    sql: sqlite3.Connection, home: Path, segment: VectorSegment, checkpoint: Checkpoint | None
) -> str | None:
    ids, after = set[str](), 0
    if checkpoint is not None:
        from chroma_manager.durability.proof import files_of  # noqa: PLC0415 - needed for a checkpoint only

        files = files_of(sql, segment, home / checkpoint.copy)
        if files.unread is not None:
            raise files.unread
        if files.problems:
            return f"the copy {checkpoint.copy} of an index is damaged ({'; '.join(files.problems)})"
        ids, after = files.ids, checkpoint.position
    missing = records_at_the_end(sql, segment) - replay(sql, segment, ids, after).ids
    return f"of {len(missing)} records neither the checkpoint nor the log has a vector" if missing else None


def _recover_segments(
    sql: sqlite3.Connection,
    directory: Path,
    manifest: Manifest,
    segments: list[VectorSegment],
    *,
    trusts_times: bool,
) -> tuple[Manifest, list[Replayed]]:
    """Puts index files back, and resets the sequence ids from which Chroma replays the log; the caller commits.

    Returns:
        The manifest as it is to be written, and what Chroma will replay.
    """
    rows, room = count_rows(sql, segments, positions(manifest)), LARGEST_REPLAYED
    recovered, replayed = dict(manifest), list[Replayed]()
    for segment in segments:
        index, checkpoint = directory / segment.id, manifest.get(segment.id)
        # Of fewer rows Chroma has written no index, and it reads them from the log at each first read as it is.
        had_index = checkpoint is not None or segment.position > 0
        if checkpoint is None:
            _clear(index)
            sync_directory(directory)
            step("index removed")
        else:
            if not (trusts_times and fingerprint_of_files(index) == checkpoint.files):
                _put_back(directory / HOME / checkpoint.copy, index)
            recovered[segment.id] = checkpoint._replace(files=fingerprint_of_files(index))
        position = None if checkpoint is None else checkpoint.position
        set_position(sql, segment.id, position)
        if rows[segment.topic] and had_index:
            vectors = newest_vectors(sql, segment, position or 0, room)
            room -= sum(map(len, vectors.values()))
            space = space_of(sql, segment.collection)
            newest = Vectors(segment.collection, segment.tenant, segment.database, space, vectors)
            replayed.append(Replayed(newest, segment.id, fingerprint_of_files(index)))
    return recovered, replayed


def _put_back(copy: Path, index: Path) -> None:
    # Removed first: a full disk has no room for both, and these files are not needed any more.
    _clear(index)
    step("index removed")
    if index.is_dir():
        for entry in sorted_files(copy):
            copy_file(Path(entry.path), index / entry.name)
            step("file copied")
        sync_directory(index)
    else:
        copy_directory(copy, index)
    sync_directory(index.parent)
    step("index replaced")


def _clear(index: Path) -> None:
    """Removes an index; of one that its user has put on another disk, all but the link or the mount point."""
    if is_elsewhere(index):
        empty_directory(index)
    else:
        remove_tree(index)
