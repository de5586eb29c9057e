"""Recovers a database that was left open, as far as its checkpoints and its log are complete.

How an index is recovered is in ``recovery.py``. Here is whether the manifest, the dirty marker and the log belong to
each other, without which no index can be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chroma_manager.durability import recovery
from chroma_manager.storage.connection import transaction
from chroma_manager.storage.log import vector_segments
from chroma_manager.storage.manifest import read_manifest
from chroma_manager.storage.paths import DATABASE_FILE, HOME
from chroma_manager.storage.sealed import DamagedFileError

if TYPE_CHECKING:
    from pathlib import Path

    from chroma_manager.durability.dirty_state import DirtyState
    from chroma_manager.durability.findings import Findings


def recover_left_open(
    directory: Path, dirty: DirtyState, findings: Findings, generation: int, *, suspects: bool = False
) -> list[str]:
    """Recovers the indexes of a closed database that was left open.

    Args:
        directory: The database's.
        dirty: Its dirty marker, which this process takes over.
        findings: What was found in it.
        generation: That of the dirty marker under which it was left open.
        suspects: Whether the index files are not to be trusted, because Chroma has died of something.

    Returns:
        Why an index, or the whole database, could not be recovered; empty where all indexes are.
    """
    home = directory / HOME
    try:
        manifest = read_manifest(home) or {}
        marker = dirty.marker_of(generation)
    except DamagedFileError as error:
        return [str(error)]
    with transaction(directory / DATABASE_FILE) as sql:
        segments, is_purged = vector_segments(sql), recovery.is_purged(sql)
        is_another = any(recovery.is_of_another_history(sql, one, manifest.get(one.id)) for one in segments)
    if is_purged:
        return ["another program has purged its log"]
    if is_another:
        return [recovery.ANOTHER_HISTORY]
    if marker is None and any(checkpoint.row is None for checkpoint in manifest.values()):
        return ["nothing tells whether its checkpoints are of this database"]
    problems = recovery.problems_with(directory, segments, manifest)
    # Which of the copies are of this database the rows of the log tell. All else the marker has to.
    marker = dirty.adopt(marker, generation)
    recoverable = [segment for segment in segments if segment.id not in problems]
    recovery.recover(directory, recoverable, findings, trusts_times=marker.is_of_this_boot and not suspects)
    return list(problems.values())
