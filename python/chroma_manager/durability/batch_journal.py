"""The journals of batches that are written in slices, from which an interrupted batch is completed.

The engine process keeps the call in a file from before its first slice until after its last
(``src/engine/isolated/server/journal.rs``). An opening that finds such a file compares it with the log, while the
database is closed (``interrupted_batch.py``). If all of the batch is there, or nothing, the file is removed. Otherwise
the rest is written in one transaction of Chroma's before any call is answered, but without the records that other
writes have added, upserted or deleted since, because the batch came first.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import sys
import time
from typing import TYPE_CHECKING, Any

from chroma_manager.storage.connection import transaction
from chroma_manager.storage.files import step, sync_directory
from chroma_manager.storage.log import LogExtent, log_extents
from chroma_manager.storage.paths import DAMAGED, DATABASE_FILE, HOME, JOURNAL_NAME, PREPARED

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

    from chroma_manager.durability.interrupted_batch import Rest

# Of each collection, the first row that the log has, and how many.
Extents = dict[str, list["int | None"]]

# A journal that the first slice was not written for: it was interrupted itself.
NOT_BEGUN = re.compile(r"batch-\d+-\d+\.new")

# A batch of which so many completions were begun, and none has ended, would end the next engine process as well.
MOST_ATTEMPTS = 10


class Batches:
    """The journals of one database, whose directory this process owns.

    Attributes:
        has_other_rows: Whether the log was found to have other rows than this process knows of: another program has
            written some, or Chroma did not say how many it wrote. It stays set until somebody resets it.
    """

    def __init__(self, directory: Path) -> None:
        """Touches nothing.

        Args:
            directory: The database's.
        """
        self._directory = directory
        self._home = directory / HOME
        self._extents: dict[str, LogExtent] | None = None
        self.has_other_rows = False
        self._rests: list[Rest] = []
        self._failure: tuple[type[Exception], str] | None = None

    @property
    def has_rest(self) -> bool:
        """Whether part of a batch is in the database, and the rest is not."""
        return bool(self._rests)

    @property
    def are_left(self) -> bool:
        """Whether there are journals. To be asked while no batch is in flight."""
        return bool(self._journals())

    def inspect(self, damaged: Container[str] = ()) -> None:
        """Finds out what is left to be done. Only while the database is closed.

        Args:
            damaged: The ids of collections that take nothing: the journals of their batches are quarantined.
        """
        known, self._rests, self._extents = self._extents, [], None
        database = self._directory / DATABASE_FILE
        if not database.exists() or not database.stat().st_size:
            return
        if (self._home / PREPARED).exists():
            # A restore is about to replace the database that the journals are of.
            self.forget()
        # What is wrong with a database that cannot be read, or is not Chroma's yet, the opening will say.
        with contextlib.suppress(sqlite3.Error), transaction(database) as sql:
            self._extents = log_extents(sql)
            self.has_other_rows |= _has_others(known, self._extents)
            for path in self._journals():
                self._read_journal(path, sql, self._extents, damaged)

    def begin_empty(self) -> None:
        """The database is new: its log has no row."""
        self._extents = {}

    def begin_as(self, extents: Extents) -> None:
        """The database is as it was closed: there are no journals, and of each collection the log has these rows."""
        self._extents = _extents_of(extents)

    def purged(self, before: Extents | None, after: Extents | None) -> None:
        """Rows of the log were purged while no batch was in flight.

        Args:
            before: What it had; ``None`` where that is unknown.
            after: What it has.
        """
        known, self._extents = self._extents, None
        if before is not None and after is not None:
            self.has_other_rows |= _has_others(known, _extents_of(before))
            self.begin_as(after)

    def measure_logs(self) -> None:
        """Counts the rows of the log. Only while the database is closed, if no row is purged before it is opened."""
        self._extents = None
        with contextlib.suppress(sqlite3.Error), transaction(self._directory / DATABASE_FILE) as sql:
            self._extents = log_extents(sql)

    def begin(self, collection: str) -> bytes | None:
        """The place in the log of the next batch, for its journal; ``None`` where it is unknown."""
        if self._extents is None:
            return None
        extent = self._extents.get(collection, LogExtent(None, 0))
        return json.dumps({"collection": collection, "first": extent.first, "rows": extent.rows}).encode()

    def wrote(self, collection: str, rows: int | None) -> None:
        """So many rows were appended to the log of a collection.

        Args:
            collection: Its id.
            rows: How many; ``None`` where Chroma does not say, as some do not for a delete. Then the places of batches
                are unknown until the database is reopened.
        """
        if rows is None:
            self._extents = None
        elif self._extents is not None:
            extent = self._extents.get(collection, LogExtent(None, 0))
            self._extents[collection] = LogExtent(extent.first, extent.rows + rows)

    def complete(self, bindings: Any) -> None:
        """Writes the rest of the interrupted batches.

        Raises:
            BaseException: Chroma has failed. The batch that it was, and those after it, are still to be completed.
        """
        while self._rests:
            rest = self._rests[0]
            attempt = int((JOURNAL_NAME.fullmatch(rest.path.name) or [None, None])[1] or 0) + 1
            if attempt > MOST_ATTEMPTS:
                self._quarantine(rest.path, f"{MOST_ATTEMPTS} attempts to complete it have failed")
                self._rests.pop(0)
                continue
            path = rest.path.rename(rest.path.with_suffix(f".{attempt}"))
            self._rests[0] = rest = rest._replace(path=path)
            step("completion begun")
            if rest.records:
                getattr(bindings, rest.method)(*rest.arguments)
                self.wrote(rest.collection, rest.records)
            step("batch completed")
            self._remove(rest.path)
            self._rests.pop(0)
            _log(f"an interrupted {rest.method}() was completed with its last {rest.records} records")
        self._failure = None

    def refused(self, error: BaseException) -> None:
        """Chroma is sound, and refuses the rest of a batch."""
        rest = self._rests.pop(0)
        self._quarantine(rest.path, f"Chroma refuses the rest of it ({error})")

    def failed(self, error: BaseException) -> None:
        """A batch cannot be completed now."""
        rest = self._rests[0]
        text = (
            f"{rest.method}() was interrupted, and cannot be completed yet; nothing else is written before it is, "
            f"so that no half of it is left: {error}"
        )
        self._failure = (type(error) if isinstance(error, Exception) else RuntimeError, text)
        attempt = int((JOURNAL_NAME.fullmatch(rest.path.name) or [None, None])[1] or 1)
        # The attempt does not count, for the process has survived it. Where the name cannot be changed, it does.
        with contextlib.suppress(OSError):
            self._rests[0] = rest._replace(path=rest.path.rename(rest.path.with_suffix(f".{attempt - 1}")))

    def check(self) -> None:
        """Raises the reason why a batch could not be completed, if there is one."""
        if self._failure is not None:
            # A new exception each time: the traceback of one that is kept would keep the binding open.
            failure, text = self._failure
            raise failure(text)

    def forget(self) -> None:
        """Removes all journals: the database that they are of is replaced."""
        for path in self._journals():
            self._remove(path)
        self._rests = []

    def _journals(self) -> list[Path]:
        if not self._home.is_dir():
            return []
        entries = sorted(self._home.iterdir())
        for path in entries:
            if NOT_BEGUN.fullmatch(path.name) and (path.is_file() or path.is_symlink()):
                path.unlink()
        return [path for path in entries if JOURNAL_NAME.fullmatch(path.name)]

    def _read_journal(
        self, path: Path, sql: sqlite3.Connection, extents: dict[str, LogExtent], damaged: Container[str]
    ) -> None:
        from chroma_manager.durability import interrupted_batch  # noqa: PLC0415 - few openings find a journal

        try:
            rest = interrupted_batch.rest_of(path, sql, extents)
        except interrupted_batch.UnusableJournalError as error:
            self._quarantine(path, str(error))
            return
        if rest is None:
            self._remove(path)
        elif rest.collection in damaged:
            self._quarantine(path, "its collection is damaged")
        else:
            self._rests.append(rest)

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        sync_directory(self._home)

    def _quarantine(self, path: Path, reason: str) -> None:
        kept = path.with_name(f"{DAMAGED}{time.time_ns()}.batch")
        path.rename(kept)
        sync_directory(self._home)
        _log(f"the journal of an interrupted batch was kept as {kept.name}, and is yours to remove: {reason}")


def _log(text: str) -> None:
    print(text, file=sys.stderr)


def _extents_of(extents: Extents) -> dict[str, LogExtent]:
    return {collection: LogExtent(first, rows or 0) for collection, (first, rows) in extents.items()}


def _has_others(known: dict[str, LogExtent] | None, found: dict[str, LogExtent]) -> bool:
    """Whether the log has other rows than are known of. Those of a deleted collection have gone with it."""
    none = LogExtent(None, 0)
    return known is not None and any(known.get(key, none).rows != extent.rows for key, extent in found.items())
