"""Whether a database was left open, and what its log keeps while it is open.

While an engine process has a database open there is a dirty marker, Chroma is told to purge nothing, and SQLite uses a
write-ahead log: a transaction is durable after one sync, instead of three and one of the directory. When the database
is closed the marker is removed, and both settings are put back. The marker's file is ``storage/dirty_marker.py``. Only
for a database that Chroma has closed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from chroma_manager.storage.connection import transaction
from chroma_manager.storage.dirty_marker import DirtyMarker, read_marker, remove_marker, write_marker
from chroma_manager.storage.files import move, step, sync_directory
from chroma_manager.storage.journal_mode import (
    ROLLBACK_JOURNAL,
    WRITE_AHEAD_LOG,
    begin_write_ahead_log,
    change_journal_mode,
    journal_mode,
)
from chroma_manager.storage.log import KEEPS_ROWS, PURGES_ROWS, purge_setting, purges, set_purge_setting
from chroma_manager.storage.paths import DATABASE_FILE, HOME, REPAIR
from chroma_manager.storage.sealed import DamagedFileError, read_sealed
from chroma_manager.storage.sqlite_header import write_new_database

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from chroma_manager.durability.findings import Findings


class DirtyState:
    """The dirty marker and the purge setting of one database.

    Attributes:
        marker: The marker under which this process has the database open; ``None`` where it has not.
    """

    def __init__(self, directory: Path, findings: Findings) -> None:
        """Touches nothing.

        Args:
            directory: The database's.
            findings: Where a damaged marker is reported.
        """
        self._database = directory / DATABASE_FILE
        self._home = directory / HOME
        self._findings = findings
        self.marker: DirtyMarker | None = None

    @property
    def may_purge(self) -> bool:
        """Whether rows of the log are purged after a checkpoint: Chroma was found to do so."""
        return self.marker is None or purges(self.marker.purge_setting)

    def generation(self) -> int:
        """That of the marker under which the database was left open; 0 where it was closed, or there is none."""
        if not self._database.exists():
            return 0
        with transaction(self._database) as sql:
            return int(sql.execute("pragma user_version").fetchone()[0])

    def original_purge_setting(self, generation: int) -> str | None:
        """Chroma's setting for purging, as it was before an engine process opened the database.

        Args:
            generation: That of the database.
        """
        if self.marker is not None:
            return self.marker.purge_setting
        with contextlib.suppress(DamagedFileError):
            repair = read_sealed(self._home / REPAIR)
            if repair is not None:
                interrupted: str | None = repair["purge_setting"]
                return interrupted
        with transaction(self._database) as sql:
            setting = purge_setting(sql)
        # The marker that would say so is lost: this is Chroma's default.
        return PURGES_ROWS if generation and setting == KEEPS_ROWS else setting

    def mark(self, generation: int) -> None:
        """Marks the database as open, and has the log keep its rows.

        Args:
            generation: That of the database.
        """
        marker = DirtyMarker.new(self.original_purge_setting(generation), self._original_journal_mode(generation))
        self._write_marker(marker)
        self._mark(marker)

    def mark_closed(self, purge_setting: str | None) -> None:
        """The same for a database that was closed with a rollback journal, and turns SQLite's write-ahead log on.

        Nothing is synced before Chroma's first write: until then there is nothing to be recovered.

        Args:
            purge_setting: Chroma's setting for purging.
        """
        marker = DirtyMarker.new(purge_setting, ROLLBACK_JOURNAL)
        self._write_marker(marker)
        if begin_write_ahead_log(self._database, lambda sql: self._note_marker(sql, marker)):
            self._take_over(marker)
            step("log kept")
            step("write-ahead log on")
        else:
            self._mark(marker)
            self.use_write_ahead_log()

    def _mark(self, marker: DirtyMarker) -> None:
        # The directory is synced with the first write, before which nothing is there to be lost.
        with transaction(self._database, synchronous="full") as sql:
            self._note_marker(sql, marker)
        self._take_over(marker)
        step("log kept")

    def _write_marker(self, marker: DirtyMarker) -> None:
        write_marker(self._home, marker)
        step("marked")

    def _take_over(self, marker: DirtyMarker) -> None:
        """From now on the marker says what the setting was, because the database has its generation."""
        self.marker = marker
        (self._home / REPAIR).unlink(missing_ok=True)

    @staticmethod
    def _note_marker(sql: sqlite3.Connection, marker: DirtyMarker) -> None:
        set_purge_setting(sql, KEEPS_ROWS)
        sql.execute(f"pragma user_version = {marker.generation}")

    def create(self, content: bytes) -> None:
        """Creates the database, marked as open, and with a write-ahead log where that can be.

        Args:
            content: An empty database of Chroma's, whose log keeps its rows.
        """
        marker = DirtyMarker.new(PURGES_ROWS, ROLLBACK_JOURNAL)
        write_marker(self._home, marker)
        step("marked")
        new = self._home / f"{DATABASE_FILE}.new"
        write_new_database(new, content, marker.generation)
        move(new, self._database)
        sync_directory(self._database.parent)
        self.marker = marker
        step("created")

    def unmark(self) -> None:
        """Marks the database as closed, and puts Chroma's setting back."""
        original = self.original_purge_setting(self.generation())
        with transaction(self._database) as sql:
            set_purge_setting(sql, original)
            sql.execute("pragma user_version = 0")
        step("log not kept")
        remove_marker(self._home)
        self.marker = None
        step("unmarked")

    def use_write_ahead_log(self) -> None:
        """Turns SQLite's write-ahead log on, where that can be: otherwise the journal mode stays as it is.

        To be called last: a connection that reads creates a write-ahead log, and removes it at its end.
        """
        change_journal_mode(self._database, WRITE_AHEAD_LOG)
        step("write-ahead log on")

    def use_original_journal_mode(self) -> None:
        """Puts SQLite's journal mode back. To be called while the database is marked as open."""
        generation = self.generation() if self.marker is None else self.marker.generation
        change_journal_mode(self._database, self._original_journal_mode(generation))
        step("write-ahead log off")

    def marker_of(self, generation: int) -> DirtyMarker | None:
        """The marker with that generation; ``None`` where it is lost, damaged, or another database's."""
        try:
            marker = read_marker(self._home)
        except DamagedFileError as error:
            self._findings.log(f"{error}; the log and the checkpoints tell as much")
            return None
        return marker if marker is not None and marker.generation == generation else None

    def adopt(self, marker: DirtyMarker | None, generation: int) -> DirtyMarker:
        """Takes over a database that was left open: its marker, or, where that is lost, one in its place."""
        if marker is None:
            found = self.original_purge_setting(generation), self._original_journal_mode(generation)
            marker = DirtyMarker.new(*found)._replace(generation=generation, boot="")
            write_marker(self._home, marker)
        self._take_over(marker)
        return marker

    def _original_journal_mode(self, generation: int) -> str:
        """SQLite's journal mode, as it was before an engine process opened the database of that generation."""
        if self.marker is not None:
            return self.marker.journal_mode
        if generation:
            # The marker that would say so is lost: this is Chroma's default.
            return ROLLBACK_JOURNAL
        with contextlib.suppress(DamagedFileError):
            # Of an opening that did not get as far as to mark the database, or a closing just before its end.
            left = read_marker(self._home)
            if left is not None:
                return left.journal_mode
        with transaction(self._database) as sql:
            return journal_mode(sql)
