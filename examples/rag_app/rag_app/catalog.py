"""The catalogue: which files there are, and how far each is. A SQLite file, which all workers share.

A worker holds a file while it embeds it, and says from time to time that it lives. What it holds when it has died goes
to another worker. Nothing of this is in a worker's memory.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from rag_app.catalog_file import connected, prepare
from rag_app.errors import DuplicateError

_COLUMNS = "file_id, name, kind, bytes, status, done, total, message"
# The worker of a file has left it, or has died.
_FREE = "(worker is null or worker not in (select worker from workers where seen > ?))"
_CLAIM_TO_EMBED = f"""
update files set worker = ?, status = 'embedding'
where file_id = (
    select file_id from files where status = 'waiting' or (status = 'embedding' and {_FREE}) order by added limit 1
)
returning {_COLUMNS}
"""
_CLAIM_TO_REMOVE = f"""
update files set worker = ?, status = 'deleting', digest = null
where file_id = (
    select file_id from files where status in ('storing', 'deleting') and {_FREE} and remove_after <= ?
    order by remove_after, added limit 1
)
returning {_COLUMNS}
"""
_LONGEST_PAUSE = 300  # seconds


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
        prepare(path)

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
        with connected(self._path) as database:
            # The file that is there must not be deleted before it is named.
            database.execute("begin immediate")
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
            database.execute("commit")
        return file_id

    def stored(self, file_id: str, total: int) -> bool:
        """Notes that its passages are in the bucket, for any worker to embed. False if it was deleted meanwhile."""
        return self._update(
            "status = 'waiting', worker = null, total = ?, done = 0, message = ''",
            "file_id = ? and status in ('storing', 'failed')",
            total,
            file_id,
        )

    def claim_to_embed(self) -> File | None:
        """Takes the next file that waits to be embedded, or whose worker has died; None if there is none."""
        return self._claim(_CLAIM_TO_EMBED, time.time() - self._lease)

    def claim_to_remove(self) -> File | None:
        """Takes a file that is half deleted, or that was never stored and whose worker has died; None if there is none.

        Those whose removal has failed have to wait (``leave``).
        """
        now = time.time()
        return self._claim(_CLAIM_TO_REMOVE, now - self._lease, now)

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
        """Has a worker try a deletion again: after a second, and after twice as long each time that it fails."""
        pause = f"min({_LONGEST_PAUSE}, 1 << min(removals_failed, 9))"
        change = f"worker = null, removals_failed = removals_failed + 1, remove_after = ? + {pause}"
        self._update(change, "file_id = ? and status = 'deleting'", time.time(), file_id)

    def forget(self, file_id: str) -> None:
        """Removes it, when nothing is left of it."""
        with connected(self._path) as database:
            database.execute("delete from files where file_id = ?", (file_id,))

    def embed_again(self, embedding_type: str) -> None:
        """Has the files embedded that were embedded by another model."""
        change = "embedding_type = ?, status = 'waiting', worker = null, done = 0"
        self._update(change, "embedding_type <> ? and status in ('ready', 'failed')", embedding_type, embedding_type)

    def say_alive(self) -> None:
        """Says that this worker lives."""
        now = time.time()
        with connected(self._path) as database:
            database.execute("insert or replace into workers values (?, ?, ?)", (self.worker, os.getpid(), now))
            database.execute("delete from workers where seen <= ?", (now - self._lease,))

    def workers(self) -> int:
        """Returns how many workers live."""
        with connected(self._path) as database:
            seen = (time.time() - self._lease,)
            (count,) = database.execute("select count(*) from workers where seen > ?", seen).fetchone()
        return int(count)

    def say_goodbye(self) -> None:
        """Says that this worker has ended."""
        with connected(self._path) as database:
            database.execute("delete from workers where worker = ?", (self.worker,))

    _mine = "file_id = ? and worker = ? and status = 'embedding'"

    def _claim(self, statement: str, *values: object) -> File | None:
        with connected(self._path) as database:
            row = database.execute(statement, (self.worker, *values)).fetchone()
        return File(*row) if row else None

    def _files(self, condition: str, *values: object) -> list[File]:
        with connected(self._path) as database:
            return [File(*row) for row in database.execute(f"select {_COLUMNS} from files where {condition}", values)]

    def _update(self, change: str, condition: str, *values: object) -> bool:
        with connected(self._path) as database:
            return database.execute(f"update files set {change} where {condition}", values).rowcount > 0


def _duplicate(name: str, there: str, known_as: str) -> DuplicateError:
    same = "" if name == known_as else f", as {known_as}"
    return DuplicateError(f"{name} is here already{same}.", there)
