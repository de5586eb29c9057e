"""What a checkpoint does with a database that another process, the engine process, has open.

While index files are copied, and while rows are purged, that process lets nobody write. The copies are synced and
proven while it goes on: the log keeps every row, so what it had then can be read later. The manifest is left to that
process.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from chroma_manager.durability.copies import DeletedError, UnprovenError, copy_index, indexed_segments, proven
from chroma_manager.storage.connection import transaction
from chroma_manager.storage.files import step, sync_directory, sync_tree
from chroma_manager.storage.log import LogExtent, log_extents, purge_rows, vector_segments
from chroma_manager.storage.manifest import (
    Checkpoint,
    Manifest,
    fingerprint_of_files,
    proven_positions,
    read_manifest,
)
from chroma_manager.storage.paths import DATABASE_FILE, HOME

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

    from chroma_manager.storage.log import VectorSegment


class OpenCheckpoint:
    """A checkpoint of one database."""

    def __init__(self, directory: Path) -> None:
        """Touches nothing.

        Args:
            directory: The database's.
        """
        self._directory = directory
        self._home = directory / HOME
        self._known: Manifest = {}
        self._copied: list[tuple[VectorSegment, Checkpoint]] = []

    def copy(self, damaged: Container[str]) -> None:
        """Copies the indexes that have changed since their checkpoint. Nobody writes to the database meanwhile.

        Args:
            damaged: The ids of the collections that have no checkpoint.

        Raises:
            UnprovenError: An index has changed nevertheless.
        """
        self._known = read_manifest(self._home) or {}
        for segment in indexed_segments(self._directory):
            index, known = self._directory / segment.id, self._known.get(segment.id)
            is_known = known is not None and known.stands_for(segment.position, fingerprint_of_files(index))
            if segment.collection in damaged or is_known:
                continue
            copied = copy_index(self._directory, segment, durably=False)
            self._copied.append((segment, copied))
            if fingerprint_of_files(index) != copied.files:
                raise UnprovenError("it has changed while it was copied")

    def prove(self) -> tuple[Manifest, list[str]]:
        """Syncs and proves the copies.

        Returns:
            Those of the indexes that are there still; and the ids of all segments that are.

        Raises:
            UnprovenError: A copy does not hold what the log says.
        """
        for _, copied in self._copied:
            sync_tree(self._home / copied.copy)
        sync_directory(self._home)
        checkpoints: Manifest = {}
        for segment, copied in self._copied:
            with contextlib.suppress(DeletedError):
                checkpoints[segment.id] = proven(self._directory, segment, copied, self._known.get(segment.id))
        with transaction(self._directory / DATABASE_FILE) as sql:
            return checkpoints, [segment.id for segment in vector_segments(sql)]

    def purge(self) -> tuple[dict[str, LogExtent], dict[str, LogExtent]]:
        """Purges the rows of the log that the checkpoints in the manifest have. Nobody writes meanwhile.

        Returns:
            What the log had of each collection before, and what it has afterwards, by its id.
        """
        manifest = read_manifest(self._home) or {}
        # A purge that is lost is repeated; and the write-ahead log is written back by Chroma alone.
        with transaction(self._directory / DATABASE_FILE, synchronous="normal") as sql:
            sql.execute("pragma wal_autocheckpoint = 0")
            before = log_extents(sql)
            purge_rows(sql, proven_positions(manifest))
            step("log shortened in the background")
            return before, log_extents(sql)
