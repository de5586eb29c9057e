"""Batches that are written in slices: what completes one that a kill or a failure has interrupted.

``journal.rs`` keeps the call in a file from before its first slice until after its last. Here is what an opening does
with a file that is left: it looks in the log, while the database is closed, how many of the batch's records are there.
If all of them are, or none, nothing is left to be done. Otherwise the rest is written, in one transaction of Chroma's,
before anybody's call is answered; but not what somebody has added, upserted or deleted since, because the batch came
first.

A row counts as the batch's only if it has the same operation, record, vector and metadata: a row of somebody else that
has all of it has done the same.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sqlite3
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager.durability.restore import PREPARED
from chroma_manager.storage.files import step, sync_directory
from chroma_manager.storage.paths import DAMAGED, DATABASE_FILE, HOME, JOURNAL_NAME

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from pathlib import Path

MAGIC = b"CMB1"
HEADER = len(MAGIC) + 8 + 4

NOT_BEGUN = re.compile(r"batch-\d+-\d+\.new")

# A batch that has ended so many engine processes, or attempts of them, would end the next one too.
MOST_ATTEMPTS = 10

# Chroma's codes.
OPERATIONS = {"add": 0, "update": 1, "upsert": 2}
ADD, UPDATE, UPSERT, DELETE = range(4)

# Chroma's keys for what is not metadata.
DOCUMENT, URI = "chroma:document", "chroma:uri"


class DamagedJournalError(Exception):
    """A file that is no journal of a batch."""


class Rest(NamedTuple):
    """What is left to be done of a batch."""

    path: Path
    method: str
    arguments: tuple[Any, ...]
    collection: str
    records: int


class Log(NamedTuple):
    """The rows that the log has of a collection: the first one's number, where that is known, and how many."""

    first: int | None
    rows: int


class Batches:
    """The journals of one database, whose directory this process owns.

    Attributes:
        has_other_rows: Whether the log had, when it was looked at, other rows than the time before and those that were
            told of since: another program has written some, or this one does not know all of its own. It stays so until
            it is set back.
    """

    def __init__(self, directory: Path) -> None:
        """Touches nothing.

        Args:
            directory: Of the database.
        """
        self._directory = directory
        self._home = directory / HOME
        self._logs: dict[str, Log] | None = None
        self.has_other_rows = False
        self._rests: list[Rest] = []
        self._failure: tuple[type[Exception], str] | None = None

    @property
    def has_rest(self) -> bool:
        """Whether part of a batch is in the database, and the rest is not."""
        return bool(self._rests)

    @property
    def are_left(self) -> bool:
        """Whether there are journals; to be asked while no batch is in flight."""
        return bool(self._journals())

    def look(self, damaged: Container[str] = ()) -> None:
        """Finds out what is left to be done. Only while the database is closed.

        Args:
            damaged: The ids of collections that take nothing: the journals of their batches are set aside.
        """
        known, self._rests, self._logs = self._logs, [], None
        database = self._directory / DATABASE_FILE
        if not database.exists() or not database.stat().st_size:
            return
        if (self._home / PREPARED).exists():
            # Another database is about to take the place of the one that this was for.
            self.forget()
        # A database that cannot be read, or that is not Chroma's yet, is for the opening to judge.
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database)) as sql:
            self._logs = _read_logs(sql)
            self.has_other_rows |= known is not None and _counts(known) != _counts(self._logs)
            for path in self._journals():
                rest = self._rest_of(path, sql)
                if rest is not None and rest.collection in damaged:
                    self._set_aside(rest.path, "its collection is damaged")
                elif rest is not None:
                    self._rests.append(rest)

    def measure_logs(self) -> None:
        """Counts the rows anew. Only while the database is closed, and when none is purged before it is opened."""
        self._logs = None
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(self._directory / DATABASE_FILE)) as sql,
        ):
            self._logs = _read_logs(sql)

    def begin(self, collection: str) -> bytes | None:
        """What a journal is to say of the place of its batch in the log; ``None`` where that is not known."""
        if self._logs is None:
            return None
        log = self._logs.get(collection, Log(None, 0))
        return json.dumps({"collection": collection, "first": log.first, "rows": log.rows}).encode()

    def wrote(self, collection: str, rows: int | None) -> None:
        """So many rows were appended to the log of a collection.

        ``None`` where Chroma does not tell, as some do not of a delete: then the places of batches are not known any
        more, until the database is opened anew.
        """
        if rows is None:
            self._logs = None
        elif self._logs is not None:
            log = self._logs.get(collection, Log(None, 0))
            self._logs[collection] = Log(log.first, log.rows + rows)

    def complete(self, bindings: Any) -> None:
        """Writes the rest of what was interrupted.

        Raises:
            BaseException: Chroma has failed. What is not complete is not complete yet.
        """
        while self._rests:
            rest = self._rests[0]
            attempt = int((JOURNAL_NAME.fullmatch(rest.path.name) or [None, None])[1] or 0) + 1
            if attempt > MOST_ATTEMPTS:
                self._set_aside(rest.path, f"{MOST_ATTEMPTS} attempts to complete it have failed")
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
            self._say(f"an interrupted {rest.method}() was completed with its last {rest.records} records")
        self._failure = None

    def refused(self, error: BaseException) -> None:
        """Chroma has not failed to complete a batch, but does not want it."""
        rest = self._rests.pop(0)
        self._set_aside(rest.path, f"Chroma refuses the rest of it ({error})")

    def failed(self, error: BaseException) -> None:
        """A batch cannot be completed now."""
        rest = self._rests[0]
        text = (
            f"{rest.method}() was interrupted, and cannot be completed yet; nothing else is written before it is, "
            f"so that no half of it is left: {error}"
        )
        self._failure = (type(error) if isinstance(error, Exception) else RuntimeError, text)
        attempt = int((JOURNAL_NAME.fullmatch(rest.path.name) or [None, None])[1] or 1)
        # This process knows that it was not the batch's fault. Where the name cannot be changed, that is no worse.
        with contextlib.suppress(OSError):
            self._rests[0] = rest._replace(path=rest.path.rename(rest.path.with_suffix(f".{attempt - 1}")))

    def check(self) -> None:
        """Raises the reason why a batch could not be completed, if there is one."""
        if self._failure is not None:
            # Made anew each time: the traceback of one that is kept would keep the binding open.
            failure, text = self._failure
            raise failure(text)

    def forget(self) -> None:
        """Removes all journals: what they were for is no more."""
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

    def _rest_of(self, path: Path, sql: sqlite3.Connection) -> Rest | None:
        try:
            place, method, arguments = _read(path)
        except DamagedJournalError as error:
            self._set_aside(path, str(error))
            return None
        collection = place["collection"]
        if sql.execute("select 1 from collections where id = ?", (collection,)).fetchone() is None:
            self._remove(path)
            return None
        log = (self._logs or {}).get(collection, Log(None, 0))
        if log.rows < place["rows"] or (place["first"] is not None and log.first != place["first"]):
            self._set_aside(path, "another Chroma has shortened the log since")
            return None
        records = _records(method, arguments)
        done, since, is_torn = _look_up(sql, collection, place["rows"], OPERATIONS[method], records)
        if is_torn:
            self._set_aside(path, "another Chroma has purged its first rows from the log since")
            return None
        if done in (0, len(records)):
            self._remove(path)
            return None
        left = [at for at in range(done, len(records)) if records[at].id not in since]
        return Rest(path, method, _selected(arguments, left, len(records)), collection, len(left))

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        sync_directory(self._home)

    def _set_aside(self, path: Path, reason: str) -> None:
        aside = path.with_name(f"{DAMAGED}{time.time_ns()}.batch")
        path.rename(aside)
        sync_directory(self._home)
        self._say(f"the journal of an interrupted batch was kept as {aside.name}, and is yours to remove: {reason}")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr)


class Record(NamedTuple):
    """What a row of the log has of a record."""

    id: str
    vector: bytes | None
    metadata: dict[str, Any]


def _read(path: Path) -> tuple[dict[str, Any], str, tuple[Any, ...]]:
    """What a journal says: the place of its batch in the log, and the call."""
    from chroma_manager._native import decode_call  # noqa: PLC0415 - seldom needed

    if path.is_symlink() or not path.is_file():
        raise DamagedJournalError("it is not a file")
    content = path.read_bytes()
    length = int.from_bytes(content[len(MAGIC) : HEADER - 4], "little")
    call, place = content[HEADER : HEADER + length], content[HEADER + length : -4]
    checksums = content[HEADER - 4 : HEADER], content[-4:]
    if content[: len(MAGIC)] != MAGIC or checksums != (_checksum(call), _checksum(place)):
        raise DamagedJournalError("it is damaged")
    try:
        method, arguments = decode_call(call)
        found = json.loads(place)
        is_sound = isinstance(found["collection"], str) and isinstance(found["rows"], int) and found["rows"] >= 0
        is_sound = is_sound and isinstance(found["first"], (int, type(None))) and method in OPERATIONS
        if not is_sound or found["collection"] not in arguments[:2]:
            raise DamagedJournalError("it says nothing that makes sense")
        _records(method, arguments)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DamagedJournalError(f"it is damaged ({error})") from error
    return found, method, arguments


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")


def _records(method: str, arguments: tuple[Any, ...]) -> list[Record]:
    ids, (vectors, metadatas, documents, uris) = arguments[0 if method == "add" else 1], arguments[2:6]
    return [
        Record(
            record,
            None if vectors is None else _bytes(vectors[at]),
            {
                **((metadatas and metadatas[at]) or {}),
                **({DOCUMENT: documents[at]} if documents and documents[at] is not None else {}),
                **({URI: uris[at]} if uris and uris[at] is not None else {}),
            },
        )
        for at, record in enumerate(ids)
    ]


def _bytes(vector: Any) -> bytes:
    from array import array  # noqa: PLC0415 - seldom needed

    return (vector if isinstance(vector, array) else array("f", vector)).tobytes()


def _selected(arguments: tuple[Any, ...], places: list[int], count: int) -> tuple[Any, ...]:
    """The arguments of a call for some of its records."""
    return tuple(
        [argument[at] for at in places] if isinstance(argument, list) and len(argument) == count else argument
        for argument in arguments
    )


def _read_logs(sql: sqlite3.Connection) -> dict[str, Log]:
    rows = sql.execute("select topic, min(seq_id), count(*) from embeddings_queue group by topic")
    return {topic.rpartition("/")[2]: Log(first, count) for topic, first, count in rows}


def _counts(logs: dict[str, Log]) -> dict[str, int]:
    return {collection: log.rows for collection, log in logs.items() if log.rows}


def _look_up(
    sql: sqlite3.Connection, collection: str, skipped: int, operation: int, records: list[Record]
) -> tuple[int, set[str], bool]:
    """How many of the records the log has, in order; what others have added, upserted or deleted after these.

    And whether it has some of them, but not the first.
    """
    rows: Iterator[tuple[int, str, bytes | None, str | None]] = iter(
        sql.execute(
            "select operation, id, vector, metadata from embeddings_queue "
            "where topic like '%/' || ? order by seq_id limit -1 offset ?",
            (collection, skipped),
        )
    )
    done = 0
    since: set[str] = set()
    by_id = {record.id: record for record in records}
    is_torn = False
    for found, record, vector, metadata in rows:
        expected = records[done] if done < len(records) else None
        if expected is not None and found == operation and _is_row_of(expected, record, vector, metadata):
            done += 1
            since = set()
            continue
        if done == 0 and found == operation and record in by_id:
            is_torn |= _is_row_of(by_id[record], record, vector, metadata)
        if found != UPDATE:
            since.add(record)
    return done, since, is_torn and done == 0


def _is_row_of(record: Record, found: str, vector: bytes | None, metadata: str | None) -> bool:
    return (found, vector) == (record.id, record.vector) and json.loads(metadata or "{}") == _as_logged(record.metadata)


def _as_logged(value: Any) -> Any:
    """A value of metadata as JSON of Chroma's has it."""
    if isinstance(value, dict):
        return {key: _as_logged(of_key) for key, of_key in value.items()}
    if isinstance(value, list):
        return [_as_logged(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
