"""Checkpoints: copies of the index files that are proven to hold what the log says, after which its rows are purged.

Chroma rewrites its index files in place, without a sync and without examining the result, and then purges the rows of
its log that could rebuild them. Here the log keeps its rows until a checkpoint has them:

- A checkpoint is a copy of the index files with the sequence id up to which they have applied the log. A manifest names
  it.
- The copy is synced, read back, and compared with the log (``proof.py``). Only then are the rows before that sequence
  id purged. An index that does not pass is recovered. The index files themselves are synced at closing.

When checkpoints are taken, the serve loop and ``lifecycle.py`` decide. Only for a database that Chroma has closed.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from chroma_manager.durability.copies import (
    copy_changed,
    copy_index,
    indexed_segments,
    only_named_copies,
    sync_index,
)
from chroma_manager.storage.connection import transaction
from chroma_manager.storage.files import step
from chroma_manager.storage.log import VectorSegment, count_rows, purge_rows, purges, vector_segments
from chroma_manager.storage.manifest import (
    Checkpoint,
    Manifest,
    fingerprint_of_files,
    positions,
    proven_positions,
    read_manifest,
    write_manifest,
)
from chroma_manager.storage.paths import CHECKPOINT, DAMAGED, DATABASE_FILE, HOME, JOURNAL_NAME
from chroma_manager.storage.sealed import DamagedFileError

if TYPE_CHECKING:
    from pathlib import Path

    from chroma_manager.durability.dirty_state import DirtyState
    from chroma_manager.durability.findings import Findings

# A checkpoint is due after so many rows of the log, unless they took so long that it was due before (Rust's
# ``scheduler.rs``); for a large database, after a part of its records.
SHORTEST_LOG = 20_000
PART_OF_RECORDS = 4

# Rows that are not in Chroma's index files, and so in no checkpoint: it rewrites the files every so many records.
ROWS_IN_NO_INDEX = 1_000


class Checkpoints:
    """The checkpoints of one database, whose directory this process owns."""

    def __init__(self, directory: Path, dirty: DirtyState, findings: Findings) -> None:
        """Touches nothing.

        Args:
            directory: The database's.
            dirty: Its dirty marker, which says whether rows may be purged.
            findings: What was found in it: damaged collections have no checkpoint.
        """
        self._directory = directory
        self._database = directory / DATABASE_FILE
        self._home = directory / HOME
        self._dirty = dirty
        self._findings = findings
        self._recovered: set[str] = set()

    @property
    def records(self) -> int:
        """How many records all collections have."""
        with transaction(self._database) as sql:
            return int(sql.execute("select count(*) from embeddings").fetchone()[0])

    @property
    def may_purge(self) -> bool:
        """Whether rows of the log may be purged.

        Not while a batch is not complete: the log tells how much of the batch there is.
        """
        return self._dirty.may_purge and not any(JOURNAL_NAME.fullmatch(path.name) for path in self._home.iterdir())

    def log_length(self) -> int:
        """How many rows of the log the next checkpoint could make purgeable."""
        manifest: Manifest = {}
        with contextlib.suppress(DamagedFileError):
            manifest = read_manifest(self._home) or {}
        with transaction(self._database) as sql:
            sound = [one for one in vector_segments(sql) if one.collection not in self._findings.damaged]
            lengths = count_rows(sql, sound, positions(manifest))
        return sum(max(0, length - ROWS_IN_NO_INDEX) for length in lengths.values())

    def take(self, *, is_last: bool = False) -> int:
        """Takes a checkpoint of the indexes that have changed, and purges the rows of the log that it makes purgeable.

        Where the copy of an index is not proven to hold what its rows say, the index is recovered, and the rows stay.

        Args:
            is_last: Whether the database is closed for good afterwards.

        Returns:
            How many records may be written before the next one.
        """
        manifest = read_manifest(self._home) or {}
        with only_named_copies(self._home):
            copied, unproven = copy_changed(self._directory, manifest, self._sound_segments(), is_last=is_last)
            write_manifest(self._home, {**copied, **self._copies_of_damaged(manifest)})
            step("manifest written")
        for segment, problem in unproven:
            self._findings.log(
                f"the index {segment.id} was not what the log says ({problem}), and is recovered from it"
            )
        self._recover([segment for segment, _ in unproven], is_last=is_last)
        self._purge()
        return max(SHORTEST_LOG, self.records // PART_OF_RECORDS)

    def adopt(self, generation: int) -> None:
        """Starts with index files of another Chroma, which purges its log as it likes, and which were found sound.

        Args:
            generation: That of the dirty marker under which the database was left open; 0 where it was closed.
        """
        self._quarantine_damaged_manifest()
        known = read_manifest(self._home) or {}
        with only_named_copies(self._home):
            manifest = {segment.id: self._adopt_index(segment) for segment in self._sound_segments()}
            manifest |= self._copies_of_damaged(known)
            write_manifest(self._home, manifest)
            step("manifest written")
        if purges(self._dirty.original_purge_setting(generation)):
            self._purge()

    def are_outdated(self) -> bool:
        """Whether another Chroma has made or changed the closed database since the last checkpoint."""
        try:
            manifest = read_manifest(self._home)
        except DamagedFileError:
            return True
        if manifest is None:
            with transaction(self._database) as sql:
                return bool(vector_segments(sql))
        indexed = indexed_segments(self._directory)
        return {segment.id for segment in indexed} != manifest.keys() or not all(
            manifest[one.id].stands_for(one.position, fingerprint_of_files(self._directory / one.id)) for one in indexed
        )

    def _adopt_index(self, segment: VectorSegment) -> Checkpoint:
        from chroma_manager.storage.reclaimable import of_index  # noqa: PLC0415 - most openings do not need it

        sync_index(self._directory, segment)
        copied = copy_index(self._directory, segment)
        return copied._replace(reclaimable=of_index(self._directory / segment.id))

    def _sound_segments(self) -> list[VectorSegment]:
        """The segments that have index files, without those of collections that remain damaged."""
        return [one for one in indexed_segments(self._directory) if one.collection not in self._findings.damaged]

    def _copies_of_damaged(self, manifest: Manifest) -> Manifest:
        """The copies of indexes that remain damaged, without index files: vectors may be saved from them."""
        with transaction(self._database) as sql:
            damaged = {one.id for one in vector_segments(sql) if one.collection in self._findings.damaged}
        return {key: copy._replace(files={}) for key, copy in manifest.items() if key in damaged}

    def _recover(self, unproven: list[VectorSegment], *, is_last: bool) -> None:
        """Recovers indexes that are not proven. While the database is open only once: another time would not help."""
        segments = [segment for segment in unproven if is_last or segment.id not in self._recovered]
        self._recovered |= {segment.id for segment in unproven}
        if not segments:
            return
        from chroma_manager.durability import recovery  # noqa: PLC0415 - most openings do not need it

        problems = recovery.problems_with(self._directory, segments, read_manifest(self._home) or {})
        for problem in problems.values():
            self._findings.log(f"an index cannot be recovered ({problem}); no row of the log is purged")
        recovery.recover(self._directory, [one for one in segments if one.id not in problems], self._findings)

    def _purge(self) -> None:
        """Purges the rows that both checkpoints and records have applied, where Chroma was found to purge rows."""
        if self.may_purge:
            manifest = read_manifest(self._home) or {}
            with transaction(self._database) as sql:
                purge_rows(sql, proven_positions(manifest))
        step("log shortened")

    def _quarantine_damaged_manifest(self) -> None:
        try:
            read_manifest(self._home)
        except DamagedFileError as error:
            self._findings.log(f"{error}; the database was found sound, and begins with a new one")
            error.file.rename(self._home / f"{DAMAGED}{os.urandom(4).hex()}-{CHECKPOINT}")
