"""What is done with a database before Chroma opens it, and after Chroma has closed it, so that nothing is lost.

While the database is open there is a dirty marker, and its log keeps every row (``dirty_state.py``). When it is closed,
a checkpoint is taken (``checkpoint.py``). A marker at the opening was left by a process that did not close the
database, which is then recovered (``crash_recovery.py``). A database that cannot be recovered, or that another Chroma
had open, is examined (``examination.py``).

All of it runs while Chroma has the database closed: two SQLite libraries in one process must not have a file open at
the same time. What few openings need is imported where it is needed.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any

from chroma_manager.durability import restore
from chroma_manager.durability.checkpoint import Checkpoints
from chroma_manager.durability.closing_note import ClosingNote, write_note
from chroma_manager.durability.copies import indexed_segments
from chroma_manager.durability.dirty_state import DirtyState
from chroma_manager.durability.findings import Findings
from chroma_manager.durability.foreign_writers import ForeignWriters
from chroma_manager.errors import InstanceCorruptError
from chroma_manager.storage.connection import shared_connection, transaction
from chroma_manager.storage.files import make_directory, remove_tree, step, sync_directory
from chroma_manager.storage.journal_mode import ROLLBACK_JOURNAL, journal_mode
from chroma_manager.storage.log import log_extents, purge_setting
from chroma_manager.storage.migrations import are_outdated, newest_migrations, refuse_newer
from chroma_manager.storage.paths import CHECKPOINT, DATABASE_FILE, DIRTY_MARKER, HOME, JOURNAL_ENDINGS, REPAIR
from chroma_manager.storage.sealed import DamagedFileError
from chroma_manager.storage.sequence_ids import normalize_sequence_ids, refuse_unknown_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from chroma_manager.durability.repair_outcome import RepairOutcome

# An older Chroma makes databases without the last one.
TABLES = {"embeddings", "embeddings_queue", "max_seq_id", "segments", "embeddings_queue_config"}

TABLES_OF_SEQUENCE_IDS = {"embeddings_queue", "max_seq_id", "segments"}


class Lifecycle:
    """The openings and closings of one database, whose directory this process owns.

    Attributes:
        checkpoints: Its checkpoints.
        findings: What was found in it.
        writers: The other programs that have it open.
        is_outdated: Whether Chroma migrates it when it opens it next.
    """

    def __init__(
        self,
        directory: Path,
        installed: Callable[[], Mapping[str, int]],
        examine: Callable[[], dict[str, Any]],
        repair: Callable[[], RepairOutcome] | None,
    ) -> None:
        """Touches nothing.

        Args:
            directory: The database's.
            installed: Says which migrations the installed Chroma applies to a new database.
            examine: Reports what is wrong with the closed database (``verification.verify.examine``).
            repair: Repairs it (``verification.safe_repair``); ``None`` where damage is to be refused.
        """
        self._directory = directory
        self._database = directory / DATABASE_FILE
        self._home = directory / HOME
        self._installed, self._examine, self._repair = installed, examine, repair
        self.findings = Findings()
        self._dirty = DirtyState(directory, self.findings)
        self.checkpoints = Checkpoints(directory, self._dirty, self.findings)
        self.writers = ForeignWriters(directory)
        self.is_outdated = False

    @staticmethod
    def refuse_damaged(error: sqlite3.Error) -> None:
        """Raises where SQLite has found its file damaged, or not to be a database.

        Raises:
            InstanceCorruptError: It has.
        """
        # Errors with other reasons (no space, no permission) are of classes derived from it.
        if type(error) is sqlite3.DatabaseError:
            raise InstanceCorruptError(f"{DATABASE_FILE} is damaged ({error})") from error

    @property
    def has_database(self) -> bool:
        """Whether the database is there, and was not removed."""
        return self._database.exists()

    @property
    def is_new(self) -> bool:
        """Whether Chroma has yet to create the tables that are needed here: then it opens the database first."""
        return not self._tables() >= TABLES

    def indexes(self) -> list[str]:
        """Names of the directories of the vector indexes that have files."""
        return [segment.id for segment in indexed_segments(self._directory)]

    def settle(self) -> None:
        """To be called first: completes a restore, and rewrites sequence ids that this Chroma would misread.

        Raises:
            InconsistentVersionError: A newer Chroma has written to the database.
            InstanceLockedError: Another program that has written to the database still has it open.
            InstanceOpenError: It has segments of a type that is not known here.
        """
        if self.writers.have_written:
            self.writers.refuse()
            # What that program has left is recovered: the database was left open here.
            self._dirty.marker = None
            self.writers.forget()
        if restore.finish(self._directory):
            self._dirty.marker = None
        tables = self._tables()
        if "migrations" in tables:
            with transaction(self._database) as sql:
                found = newest_migrations(sql)
            self._judge_migrations(found)
        if tables >= TABLES_OF_SEQUENCE_IDS:
            with transaction(self._database) as sql:
                refuse_unknown_segments(sql)
                normalize_sequence_ids(sql, self._directory)

    def forget_removed(self) -> None:
        """Removes what is left of a database whose file was removed. SQLite would apply its journal to the next one."""
        ours = [self._home / name for name in (CHECKPOINT, DIRTY_MARKER, REPAIR)]
        journals = [self._directory / f"{DATABASE_FILE}{ending}" for ending in JOURNAL_ENDINGS]
        left = [path for path in (*ours, *journals) if os.path.lexists(path)]
        for path in left:
            remove_tree(path)
        for parent in {path.parent for path in left}:
            sync_directory(parent)

    def create(self, content: bytes) -> None:
        """Creates the database, which is not there.

        Args:
            content: An empty database of Chroma's, whose log keeps its rows.
        """
        make_directory(self._home)
        self._dirty.create(content)

    def before_opening(self, *, suspects: bool = False) -> bool:
        """Recovers the database where its last owner did not close it, and has the log keep its rows.

        Args:
            suspects: Whether the index files are not to be trusted, because Chroma has died of something.

        Returns:
            Whether the log may have changed.

        Raises:
            InstanceCorruptError: It is damaged, and cannot be recovered or repaired.
        """
        make_directory(self._home)
        self.findings.damaged = {}
        generation = self._dirty.generation()
        if not generation and not suspects and not self.checkpoints.are_outdated():
            self._dirty.mark(generation)
            return False
        unrecovered = self._recover(generation, suspects=suspects) if generation else None
        if unrecovered == [] and not suspects:
            return True
        self.examine(unrecovered)
        self.checkpoints.adopt(generation)
        self._dirty.mark(generation)
        return True

    def reopen(self, note: ClosingNote) -> None:
        """Does all of that for a database that is as it was closed: what `settle` would look for is known.

        Raises:
            InconsistentVersionError: A newer Chroma has written to the database.
        """
        self._judge_migrations(note.migrations)
        self.findings.damaged = {}
        self._dirty.mark_closed(note.purge_setting)

    def after_reset(self) -> None:
        """Has the log keep its rows again, after Chroma has emptied the open database, and with it this setting."""
        self._dirty.mark(self._dirty.generation())

    def use_write_ahead_log(self) -> None:
        """To be called last before Chroma opens the database: from now on SQLite syncs less for each transaction."""
        self._dirty.use_write_ahead_log()

    def after_closing(self) -> None:
        """Takes a checkpoint, and leaves the database as any Chroma finds it."""
        self._dirty.use_original_journal_mode()
        self.checkpoints.take(is_last=True)
        self._dirty.unmark()

    def note_closing(self) -> None:
        """Notes what is known of the closed database, for the next opening. A failure to do so is its loss only."""
        with contextlib.suppress(OSError, sqlite3.Error, DamagedFileError):
            with shared_connection():
                self.forget_deleted()
                note = None if self.findings.damaged or self.checkpoints.are_outdated() else self._closing_note()
            if note is not None:
                write_note(self._directory, note)
                step("closing noted")

    def leave_clean(self, *, suspects: bool = False) -> None:
        """Leaves the closed database as any Chroma finds it, whoever had it open last.

        Args:
            suspects: Whether the index files are not to be trusted, because Chroma has failed.

        Raises:
            InstanceCorruptError: It was left open, is damaged, and cannot be recovered.
        """
        self.settle()
        generation = self._dirty.generation()
        if not generation:
            return
        make_directory(self._home)
        if self._dirty.marker is not None and not suspects:
            self.after_closing()
            return
        unrecovered = self._recover(generation)
        if unrecovered:
            self.examine(unrecovered)
        self._dirty.use_original_journal_mode()
        self._dirty.unmark()

    def forget_deleted(self) -> None:
        """Forgets the damage of collections that were deleted since. Only for a closed database."""
        damaged = self.findings.damaged
        if damaged:
            with transaction(self._database) as sql:
                there = {key for (key,) in sql.execute("select id from collections")}
            for key in damaged.keys() - there:
                del damaged[key]

    def restore(self, copy: Callable[[Path], None], *, kept: Iterable[str] = (), fills_links: bool = False) -> None:
        """Replaces the database by another one, as ``restore.restore`` does."""
        restore.restore(self._directory, copy, kept=kept, fills_links=fills_links)
        self._dirty.marker = None

    def examine(self, unrecovered: list[str] | None = None) -> None:
        """Examines the closed database, and has damage repaired.

        Args:
            unrecovered: Of a database that was left open, why it could not be recovered; ``None`` where it was closed.

        Raises:
            InstanceCorruptError: It is damaged, and is not to be repaired, or cannot be.
        """
        from chroma_manager.durability.examination import examine_and_repair  # noqa: PLC0415 - seldom needed

        examine_and_repair(self._directory, self.findings, self._examine, self._repair, unrecovered)

    def _recover(self, generation: int, *, suspects: bool = False) -> list[str]:
        """Recovers a database that was left open; what could not be recovered, and why."""
        from chroma_manager.durability.crash_recovery import recover_left_open  # noqa: PLC0415 - seldom needed

        return recover_left_open(self._directory, self._dirty, self.findings, generation, suspects=suspects)

    def _closing_note(self) -> ClosingNote | None:
        """What is known; ``None`` where SQLite's journal mode is not the usual one."""
        with transaction(self._database) as sql:
            if journal_mode(sql) != ROLLBACK_JOURNAL:
                return None
            extents = {collection: [*extent] for collection, extent in log_extents(sql).items()}
            known = newest_migrations(sql), extents, purge_setting(sql)
        return ClosingNote(*known, self.checkpoints.log_length())

    def _judge_migrations(self, found: Mapping[str, int]) -> None:
        refuse_newer(found, self._installed)
        self.is_outdated = are_outdated(found, self._installed)

    def _tables(self) -> set[str]:
        if not self._database.exists() or self._database.stat().st_size == 0:
            return set()
        with transaction(self._database) as sql:
            return {row[0] for row in sql.execute("select name from sqlite_master where type = 'table'")}
