"""Nothing lost: what an engine process does to a database before Chroma opens it, and while Chroma has it closed.

Chroma rewrites its index files in place and then deletes the rows of its log (a table of its SQLite file) that could
rebuild them. Here the log keeps its rows until the index files that contain them have been copied:

- While the database is open there is a *mark*, and Chroma is told to delete no rows of the log.
- A *checkpoint* is a copy of the index files, with the position in the log that they stand for, named in a manifest.
  Only then the rows before that position are deleted.
- A mark that is there at the opening was left by a process that did not close the database. Then the index files are
  replaced by those of the checkpoint, or removed where there is none, the positions are set back, and Chroma replays
  the log when it is next read.

Everything here runs while Chroma has the database closed: two SQLite libraries in one process must not have a file open
at the same time. It runs in the engine process, which loads no more than it needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

DATABASE_FILE = "chroma.sqlite3"
HOME = ".chroma_manager"

# Rows of the log after which a checkpoint is due, if it is not for the time that they took (``serve.rs``); for a large
# database, a part of its records.
SHORTEST_LOG = 20_000
PART_OF_RECORDS = 4

# Rows that Chroma's index files do not contain, and so no checkpoint: it rewrites them every so many records.
ROWS_IN_NO_INDEX = 1_000

# Rows that are deleted in one transaction: its journal is a copy of them.
ROWS_A_TRANSACTION = 2_000

# The last is missing where an older Chroma has made the database.
TABLES = {"embeddings", "embeddings_queue", "max_seq_id", "segments", "embeddings_queue_config"}


class Checkpoints:
    """The checkpoint, the log and the mark of one database, whose directory this process owns."""

    DATABASE_ERRORS = sqlite3.Error

    def __init__(self, directory: Path) -> None:
        """Touches nothing."""
        self._directory = directory
        self._database = directory / DATABASE_FILE
        self._home = directory / HOME
        self._mark = self._home / "open"
        self._manifest = self._home / "checkpoint.json"

    @property
    def is_new(self) -> bool:
        """Whether Chroma has not created the tables that are needed here: then it is to open the database first."""
        if not self._database.exists() or self._database.stat().st_size == 0:
            return True
        with self._sql() as sql:
            tables = {row[0] for row in sql.execute("select name from sqlite_master where type = 'table'")}
        return not tables >= TABLES

    def before_opening(self) -> None:
        """Recovers where the last owner did not close the database, and sees to it that the log keeps its rows."""
        self._home.mkdir(exist_ok=True)
        if self._mark.exists():
            self._recover()
        elif self._indexes() != {segment: _state_of(checkpoint) for segment, checkpoint in self._taken().items()}:
            # Changed by another Chroma, which deletes rows as it likes: what is there now is where we begin.
            self.take()
        _write_durably(self._mark, "")
        step("marked")
        with self._sql() as sql:
            _set_purging(sql, False)
        step("log kept")

    def log_length(self) -> int:
        """How many rows of the log a checkpoint could make needless, when Chroma has taken them into its indexes."""
        with self._sql() as sql:
            lengths = sql.execute("select count(*) from embeddings_queue group by topic").fetchall()
        return sum(max(0, length - ROWS_IN_NO_INDEX) for (length,) in lengths)

    def after_closing(self) -> None:
        """Takes a checkpoint and leaves the database as any Chroma finds it."""
        self.take()
        with self._sql() as sql:
            _set_purging(sql, True)
        step("log not kept")
        self._mark.unlink()
        _sync_directory(self._home)
        step("unmarked")

    def take(self) -> int:
        """Takes a checkpoint of the indexes that have changed, and deletes the rows of the log that it makes needless.

        Returns:
            How many records may be written before the next one.
        """
        known, taken = self._taken(), {}
        for segment, found in self._indexes().items():
            if segment in known and _state_of(known[segment]) == found:
                taken[segment] = known[segment]
                continue
            # A name of its own: until the manifest is written, the copy before is what a recovery takes.
            taken[segment] = {**found, "copy": f"{segment}@{found['position']}-{os.urandom(4).hex()}"}
            _copy_directory(self._directory / segment, self._home / taken[segment]["copy"])
            step("copied")
        _write_durably(self._manifest, json.dumps(taken))
        step("manifest written")
        self._remove_needless(taken)
        with self._sql() as sql:
            records = sql.execute("select count(*) from embeddings").fetchone()[0]
            _delete_needless_rows(sql)
        step("log shortened")
        return int(max(SHORTEST_LOG, records // PART_OF_RECORDS))

    def _recover(self) -> None:
        taken = self._taken()
        with self._sql() as sql:
            segments = [row[0] for row in sql.execute("select id from segments where scope = 'VECTOR'")]
            for segment in segments:
                index = self._directory / segment
                checkpoint = taken.get(segment)
                if checkpoint is None:
                    _remove_directory(index)
                    step("index removed")
                    sql.execute("delete from max_seq_id where segment_id = ?", (segment,))
                    continue
                if _fingerprint(index) != checkpoint["files"]:
                    restored = self._home / f"{segment}.restored"
                    _copy_directory(self._home / checkpoint["copy"], restored)
                    step("checkpoint copied")
                    _remove_directory(index)
                    restored.rename(index)
                    _sync_directory(self._directory)
                    step("index replaced")
                sql.execute(
                    "insert or replace into max_seq_id (segment_id, seq_id) values (?, ?)",
                    (segment, checkpoint["position"]),
                )
        step("positions set back")
        self._write_fingerprints(taken)

    def _write_fingerprints(self, taken: dict[str, Any]) -> None:
        """After a recovery: the files are the checkpoint's, with other times."""
        for segment, checkpoint in taken.items():
            index = self._directory / segment
            if index.is_dir():
                checkpoint["files"] = _fingerprint(index)
        _write_durably(self._manifest, json.dumps(taken))

    def _indexes(self) -> dict[str, Any]:
        """The vector indexes that have files: up to which row of the log these go, and what tells them from others."""
        with self._sql() as sql:
            positions = sql.execute(
                "select segments.id, max_seq_id.seq_id from segments "
                "join max_seq_id on max_seq_id.segment_id = segments.id where segments.scope = 'VECTOR'"
            ).fetchall()
        return {
            segment: {"position": position, "files": _fingerprint(self._directory / segment)}
            for segment, position in positions
            if (self._directory / segment).is_dir()
        }

    def _taken(self) -> dict[str, Any]:
        try:
            taken: dict[str, Any] = json.loads(self._manifest.read_text())
        except FileNotFoundError:
            return {}
        return taken

    def _remove_needless(self, taken: dict[str, Any]) -> None:
        needed = {checkpoint["copy"] for checkpoint in taken.values()}
        for entry in self._home.iterdir():
            if entry.is_dir() and entry.name not in needed:
                _remove_directory(entry)

    @contextlib.contextmanager
    def _sql(self) -> Iterator[sqlite3.Connection]:
        """A transaction on the database."""
        with contextlib.closing(sqlite3.connect(self._database)) as connection:
            connection.execute("pragma synchronous = full")
            with connection:
                yield connection


def step(name: str) -> None:
    """A place at which a test has the process killed."""
    if os.environ.get("CHROMA_MANAGER_KILL_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


def _state_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the index that it is a copy of."""
    return {"position": checkpoint["position"], "files": checkpoint["files"]}


def _set_purging(sql: sqlite3.Connection, purges: bool) -> None:
    """Whether Chroma deletes the rows of its log that its index files contain."""
    config = {"automatically_purge": purges, "_type": "EmbeddingsQueueConfigurationInternal"}
    text = json.dumps(config, separators=(",", ":"))
    if sql.execute("select config_json_str from embeddings_queue_config where id = 1").fetchone() != (text,):
        sql.execute("insert or replace into embeddings_queue_config (id, config_json_str) values (1, ?)", (text,))


def _delete_needless_rows(sql: sqlite3.Connection) -> None:
    """Deletes the rows that all segments of their collection have taken, as Chroma itself would; the last one stays."""
    positions = dict(
        sql.execute(
            "select segments.collection, min(coalesce(max_seq_id.seq_id, 0)) from segments "
            "left join max_seq_id on max_seq_id.segment_id = segments.id group by segments.collection"
        )
    )
    for (topic,) in sql.execute("select distinct topic from embeddings_queue").fetchall():
        # The log of a collection that is gone is needed by nobody.
        position = positions.get(topic.rpartition("/")[2])
        before = sql.execute("select max(seq_id) from embeddings_queue").fetchone()[0] if position is None else position
        while True:
            deleted = sql.execute(
                "delete from embeddings_queue where seq_id in "
                "(select seq_id from embeddings_queue where topic = ? and seq_id < ? limit ?)",
                (topic, before, ROWS_A_TRANSACTION),
            ).rowcount
            sql.commit()
            if deleted < ROWS_A_TRANSACTION:
                break


def _fingerprint(directory: Path) -> dict[str, list[int]]:
    """What tells the files of a directory from later ones: sizes and times."""
    if not directory.is_dir():
        return {}
    return {entry.name: [entry.stat().st_size, entry.stat().st_mtime_ns] for entry in sorted_entries(directory)}


def sorted_entries(directory: Path) -> list[os.DirEntry[str]]:
    """The entries of a directory by name."""
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _copy_directory(source: Path, target: Path) -> None:
    """Copies the files of a directory durably; what is at the target is replaced."""
    _remove_directory(target)
    target.mkdir()
    for entry in sorted_entries(source):
        _copy_file(Path(entry.path), target / entry.name)
    _sync_directory(target)


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        done = 0
        while done < size:
            done += _copy_some(reader.fileno(), writer.fileno(), size - done)
        os.fsync(writer.fileno())


def _copy_some(source: int, target: int, count: int) -> int:
    """Copies at most `count` bytes; where the file system can, it shares them."""
    if hasattr(os, "copy_file_range"):
        with contextlib.suppress(OSError):
            copied = os.copy_file_range(source, target, count)
            if copied:
                return copied
    data = os.read(source, min(count, 1 << 20))
    if not data:
        raise OSError(f"a file became shorter while it was copied ({count} bytes are missing)")
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    return len(data)


def _remove_directory(directory: Path) -> None:
    if not directory.is_dir():
        return
    for entry in sorted_entries(directory):
        os.unlink(entry.path)
    directory.rmdir()


def _write_durably(file: Path, text: str) -> None:
    """Replaces a file by another one, whole."""
    new = file.with_name(file.name + ".new")
    with new.open("w") as writer:
        writer.write(text)
        writer.flush()
        os.fsync(writer.fileno())
    new.rename(file)
    _sync_directory(file.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
