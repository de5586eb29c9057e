"""The catalogue: which files there are, and how far each is. A SQLite file, which all workers share.

A worker holds a file while it embeds it, and says from time to time that it lives. What it holds when it has died goes
to another worker. Nothing of this is in a worker's memory.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rag_app.errors import DuplicateError

_SCHEMA = """
create table if not exists files (
    file_id text primary key,
    name text not null,
    kind text not null,
    bytes integer not null,
    digest text unique,
    embedding_type text not null,
    status text not null,
    done integer not null default 0,
    total integer not null default 0,
    message text not null default '',
    added real not null,
    worker text
);
create table if not exists workers (worker text primary key, pid integer not null, seen real not null);
"""

_COLUMNS = "file_id, name, kind, bytes, status, done, total, message"

_CLAIM = f"""
update files
set worker = ?, status = case when status in ('waiting', 'embedding') then 'embedding' else 'deleting' end
where file_id = (
    select file_id from files
    where status = 'waiting' or (
        status in ('storing', 'embedding', 'deleting')
        and (worker is null or worker not in (select worker from workers where seen > ?))
    )
    order by added limit 1
)
returning {_COLUMNS}
"""


class File(NamedTuple):
    """A file as the page shows it.

    Attributes:
        file_id: Random, so it is safe as the name of a directory, and is never used again.
        name: What its user calls it. It is shown, and is no path.
        kind: One of ``kinds.KINDS``.
        bytes: Its size.
        status: ``storing``, ``waiting``, ``embedding``, ``ready``, ``failed`` or ``deleting``.
        done: How many passages are embedded.
        total: How many there are.
        message: Why it failed.
    """

    file_id: str
    name: str
    kind: str
    bytes: int
    status: str
    done: int
    total: int
    message: str


class Catalog:
    """The catalogue, for one worker. Any thread may use it."""

    def __init__(self, path: Path, lease_seconds: float) -> None:
        """Creates it where there is none."""
        self.worker = uuid.uuid4().hex
        self._path = path
        self._lease = lease_seconds
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            database.execute("pragma journal_mode=wal")
            database.executescript(_SCHEMA)

    def files(self) -> list[File]:
        """Returns all files, the newest first; not those that are being deleted."""
        return self._files("status <> 'deleting' order by added desc, file_id")

    def find(self, file_id: str) -> File | None:
        """Returns a file, or None."""
        return next(iter(self._files("file_id = ?", file_id)), None)

    def check_is_new(self, name: str, digest: str) -> None:
        """Looks before the work of reading a file; ``add`` decides.

        Raises:
            DuplicateError: A file with that content is there.
        """
        for file in self._files("digest = ?", digest):
            raise _duplicate(name, file.file_id, file.name)

    def add(self, name: str, kind: str, size: int, digest: str, embedding_type: str) -> str:
        """Adds a file, which this worker holds while it stores it.

        Args:
            name: See ``File``.
            kind: See ``File``.
            size: In bytes.
            digest: Of the content.
            embedding_type: Of the model that will embed it.

        Returns:
            Its new file_id.

        Raises:
            DuplicateError: A file with that content is there.
        """
        file_id = uuid.uuid4().hex
        values = (file_id, name, kind, size, digest, embedding_type, "storing", time.time(), self.worker)
        with self._transaction() as database:
            try:
                database.execute(
                    "insert into files (file_id, name, kind, bytes, digest, embedding_type, status, added, worker) "
                    "values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    values,
                )
            except sqlite3.IntegrityError:
                there, known_as = database.execute(
                    "select file_id, name from files where digest = ?", (digest,)
                ).fetchone()
                raise _duplicate(name, there, known_as) from None
        return file_id

    def stored(self, file_id: str, total: int) -> bool:
        """Notes that its passages are in the bucket, for any worker to embed. False if it was deleted meanwhile."""
        return self._update(
            "status = 'waiting', worker = null, total = ?, done = 0, message = ''",
            "file_id = ? and status in ('storing', 'failed')",
            total,
            file_id,
        )

    def claim(self) -> File | None:
        """Takes the next file that waits for a worker, or whose worker has died; None if there is none.

        Its status is ``embedding``. One that was never stored, or is half deleted, is ``deleting``: finish that.
        """
        with self._transaction() as database:
            row = database.execute(_CLAIM, (self.worker, time.time() - self._lease)).fetchone()
        return File(*row) if row else None

    def progress(self, file_id: str, done: int) -> bool:
        """Notes how many passages are embedded. False if this worker is to stop: it is deleted, or another's."""
        return self._update("done = ?", self._mine, done, file_id, self.worker)

    def ready(self, file_id: str, embedding_type: str) -> bool:
        """Notes that it can be asked, and which model has embedded it. False as from ``progress``."""
        change = "status = 'ready', worker = null, embedding_type = ?"
        return self._update(change, self._mine, embedding_type, file_id, self.worker)

    def failed(self, file_id: str, message: str) -> bool:
        """Notes why it cannot be asked. False as from ``progress``."""
        return self._update("status = 'failed', worker = null, message = ?", self._mine, message, file_id, self.worker)

    def release(self, file_id: str) -> bool:
        """Gives it to the next worker, at the end of this one. False as from ``progress``."""
        return self._update("status = 'waiting', worker = null", self._mine, file_id, self.worker)

    def delete(self, file_id: str) -> bool:
        """Hides it, before its parts are removed: its content may be uploaded again. False if there is none."""
        change = "status = 'deleting', digest = null, worker = ?"
        return self._update(change, "file_id = ? and status <> 'deleting'", self.worker, file_id)

    def is_gone(self, file_id: str) -> bool:
        """Whether it is deleted, or being deleted."""
        file = self.find(file_id)
        return file is None or file.status == "deleting"

    def leave(self, file_id: str) -> None:
        """Has another worker, or this one later, finish a deletion."""
        self._update("worker = null", "file_id = ? and status = 'deleting'", file_id)

    def forget(self, file_id: str) -> None:
        """Removes it, when nothing is left of it."""
        with self._transaction() as database:
            database.execute("delete from files where file_id = ?", (file_id,))

    def embed_again(self, embedding_type: str) -> None:
        """Has the files embedded that were embedded by another model."""
        change = "embedding_type = ?, status = 'waiting', worker = null, done = 0"
        self._update(change, "embedding_type <> ? and status in ('ready', 'failed')", embedding_type, embedding_type)

    def say_alive(self) -> None:
        """Says that this worker lives."""
        now = time.time()
        with self._transaction() as database:
            database.execute("insert or replace into workers values (?, ?, ?)", (self.worker, os.getpid(), now))
            database.execute("delete from workers where seen <= ?", (now - self._lease,))

    def workers(self) -> int:
        """Returns how many workers live."""
        with self._transaction() as database:
            seen = (time.time() - self._lease,)
            (count,) = database.execute("select count(*) from workers where seen > ?", seen).fetchone()
        return int(count)

    def say_goodbye(self) -> None:
        """Says that this worker has ended."""
        with self._transaction() as database:
            database.execute("delete from workers where worker = ?", (self.worker,))

    _mine = "file_id = ? and worker = ? and status = 'embedding'"

    def _files(self, condition: str, *values: object) -> list[File]:
        with self._transaction() as database:
            return [File(*row) for row in database.execute(f"select {_COLUMNS} from files where {condition}", values)]

    def _update(self, change: str, condition: str, *values: object) -> bool:
        with self._transaction() as database:
            return database.execute(f"update files set {change} where {condition}", values).rowcount > 0

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # A connection of its own for each: it costs little, and belongs to no thread.
        database = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        try:
            database.execute("pragma synchronous=normal")
            yield database
        finally:
            database.close()


def _duplicate(name: str, there: str, known_as: str) -> DuplicateError:
    same = "" if name == known_as else f", as {known_as}"
    return DuplicateError(f"{name} is here already{same}.", there)
