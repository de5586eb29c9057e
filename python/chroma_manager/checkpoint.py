"""Nothing lost: what an engine process does to a database before Chroma opens it, and while Chroma has it closed.

Chroma rewrites its index files in place and then deletes the rows of its log (a table of its SQLite file) that could
rebuild them. Here the log keeps its rows until the index files that contain them have been copied:

- While the database is open there is a *mark*, and Chroma is told to delete no rows of the log. Mark and database bear
  the same stamp: a database that somebody has put in the place of ours is not to be recovered with what was ours.
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
import secrets
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chroma_manager import restoring
from chroma_manager.durable import (
    copy_directory,
    remove_directory,
    sorted_entries,
    step,
    sync_directory,
    write_durably,
)
from chroma_manager.errors import InstanceCorruptError
from chroma_manager.layout import CHECKPOINT, DAMAGED, DATABASE_FILE, HOME, MARK
from chroma_manager.recall import Replayed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Rows of the log after which a checkpoint is due, if it is not for the time that they took (``serve.rs``); for a large
# database, a part of its records.
SHORTEST_LOG = 20_000
PART_OF_RECORDS = 4

# Rows that Chroma's index files do not contain, and so no checkpoint: it rewrites them every so many records.
ROWS_IN_NO_INDEX = 1_000

# Bytes of replayed vectors that are looked for after a recovery.
LARGEST_REPLAYED = 64 << 20

# Rows that are deleted in one transaction: its journal is a copy of them.
ROWS_A_TRANSACTION = 2_000

# What `pragma user_version`, which Chroma does not use, can hold.
LARGEST_STAMP = 2**31 - 1

# The last is missing where an older Chroma has made the database.
TABLES = {"embeddings", "embeddings_queue", "max_seq_id", "segments", "embeddings_queue_config"}


class Checkpoints:
    """The checkpoint, the log and the mark of one database, whose directory this process owns."""

    DATABASE_ERRORS = sqlite3.Error

    def __init__(self, directory: Path, examine: Callable[[], list[str]]) -> None:
        """Touches nothing.

        Args:
            directory: Of the database.
            examine: Tells what is wrong with the closed database, in sentences.
        """
        self._directory = directory
        self._examine = examine
        self._database = directory / DATABASE_FILE
        self._home = directory / HOME
        self._mark = self._home / MARK
        self._manifest = self._home / CHECKPOINT
        self._is_open = False
        self.replayed: list[Replayed] = []

    @staticmethod
    def refuse_damaged(error: sqlite3.Error) -> None:
        """Raises ``InstanceCorruptError`` where SQLite has found its file damaged, or none of its own."""
        # What has other reasons (no space, no permission) is of classes derived from it.
        if type(error) is sqlite3.DatabaseError:
            raise InstanceCorruptError(f"{DATABASE_FILE} is damaged ({error})") from error

    @property
    def has_database(self) -> bool:
        """Whether it has not been removed."""
        return self._database.exists()

    @property
    def is_new(self) -> bool:
        """Whether Chroma has not created the tables that are needed here: then it is to open the database first."""
        if not self._database.exists() or self._database.stat().st_size == 0:
            return True
        with self._sql() as sql:
            tables = {row[0] for row in sql.execute("select name from sqlite_master where type = 'table'")}
        return not tables >= TABLES

    def before_opening(self) -> None:
        """Recovers where the last owner did not close the database, and sees to it that the log keeps its rows.

        Raises:
            InstanceCorruptError: Somebody else had it open last, and has left it damaged.
        """
        self._home.mkdir(exist_ok=True)
        self._finish_restoring()
        if self._is_left_open():
            self._recover()
        else:
            if self._is_foreign():
                self._adopt()
            self._set_mark()
        self._is_open = True

    def _set_mark(self) -> None:
        stamp = 1 + secrets.randbelow(LARGEST_STAMP)
        write_durably(self._mark, str(stamp))
        step("marked")
        with self._sql() as sql:
            set_purging(sql, False)
            sql.execute(f"pragma user_version = {stamp}")
        step("log kept")

    def log_length(self) -> int:
        """How many rows of the log a checkpoint could make needless, when Chroma has taken them into its indexes."""
        with self._sql() as sql:
            lengths = sql.execute("select count(*) from embeddings_queue group by topic").fetchall()
        return sum(max(0, length - ROWS_IN_NO_INDEX) for (length,) in lengths)

    def after_closing(self) -> None:
        """Takes a checkpoint and leaves the database as any Chroma finds it."""
        self.take()
        self._unmark()

    def leave(self) -> None:
        """Leaves the closed database as any Chroma finds it, whoever had it open last."""
        self._finish_restoring()
        if self._is_open:
            self.after_closing()
        elif self._is_left_open():
            self._recover()
            self._unmark()

    def _unmark(self) -> None:
        with self._sql() as sql:
            set_purging(sql, True)
            sql.execute("pragma user_version = 0")
        step("log not kept")
        self._mark.unlink()
        sync_directory(self._home)
        self._is_open = False
        step("unmarked")

    def restore(self, copy: Callable[[Path], None]) -> None:
        """Puts another database in the place of this one, as `restoring.restore` does."""
        restoring.restore(self._directory, copy)
        self._is_open = False

    def _finish_restoring(self) -> None:
        if restoring.finish(self._directory):
            self._is_open = False

    @property
    def indexes(self) -> list[str]:
        """Names of the directories of the vector indexes that have files."""
        return list(self._indexes())

    @property
    def records(self) -> int:
        """How many records there are, in all collections."""
        with self._sql() as sql:
            return int(sql.execute("select count(*) from embeddings").fetchone()[0])

    def take(self) -> int:
        """Takes a checkpoint of the indexes that have changed, and deletes the rows of the log that it makes needless.

        Returns:
            How many records may be written before the next one.
        """
        try:
            self._remove_needless()
            self._copy_changed()
        finally:
            # Where a copy failed, its parts too: they may be the space that is missing.
            self._remove_needless()
        with self._sql() as sql:
            _delete_needless_rows(sql)
        step("log shortened")
        return max(SHORTEST_LOG, self.records // PART_OF_RECORDS)

    def _copy_changed(self) -> None:
        known, taken = self._taken(), {}
        for segment, found in self._indexes().items():
            if segment in known and _state_of(known[segment]) == found:
                taken[segment] = known[segment]
                continue
            # A name of its own: until the manifest is written, the copy before is what a recovery takes.
            taken[segment] = {**found, "copy": f"{segment}@{found['position']}-{os.urandom(4).hex()}"}
            copy_directory(self._directory / segment, self._home / taken[segment]["copy"])
            step("copied")
        write_durably(self._manifest, json.dumps(taken))
        step("manifest written")

    def _is_left_open(self) -> bool:
        """Whether whoever had this very database open did not close it."""
        if not self._mark.exists():
            return False
        with self._sql() as sql:
            return bool(self._mark.read_text() == str(sql.execute("pragma user_version").fetchone()[0]))

    def _is_foreign(self) -> bool:
        """Whether another Chroma has made or changed the database since the last checkpoint."""
        if self._indexes() != {segment: _state_of(checkpoint) for segment, checkpoint in self._taken().items()}:
            return True
        with self._sql() as sql:
            return not self._manifest.exists() and sql.execute("select 1 from segments").fetchone() is not None

    def _adopt(self) -> None:
        """Begins with what another Chroma, which deletes rows of its log as it likes, has left, if that is sound."""
        problems = self._examine()
        if problems and self._is_at_checkpoint():
            # Nothing was written: it is the files that have suffered, and their copies are as good.
            self._recover()
            problems = self._examine()
        if problems:
            raise InstanceCorruptError("; ".join(problems))
        self.take()

    def _is_at_checkpoint(self) -> bool:
        taken = self._taken()
        with self._sql() as sql:
            positions = sql.execute(
                "select max_seq_id.segment_id, max_seq_id.seq_id from max_seq_id "
                "join segments on segments.id = max_seq_id.segment_id where segments.scope = 'VECTOR'"
            ).fetchall()
        return dict(positions) == {segment: checkpoint["position"] for segment, checkpoint in taken.items()}

    def _recover(self) -> None:
        self._remove_needless()
        taken = self._taken()
        with self._sql() as sql:
            segments = [row[0] for row in sql.execute("select id from segments where scope = 'VECTOR'")]
            for segment in segments:
                index = self._directory / segment
                checkpoint = taken.get(segment)
                if checkpoint is None:
                    remove_directory(index)
                    step("index removed")
                    sql.execute("delete from max_seq_id where segment_id = ?", (segment,))
                    continue
                if _fingerprint(index) != checkpoint["files"]:
                    # Removed first: on a full disk there is no room for both, and what stands here is worth nothing.
                    remove_directory(index)
                    step("index removed")
                    copy_directory(self._home / checkpoint["copy"], index)
                    sync_directory(self._directory)
                    step("index replaced")
                sql.execute(
                    "insert or replace into max_seq_id (segment_id, seq_id) values (?, ?)",
                    (segment, checkpoint["position"]),
                )
        step("positions set back")
        self._write_fingerprints(taken)
        self.replayed = self._to_be_replayed()

    def _to_be_replayed(self) -> list[Replayed]:
        with self._sql() as sql:
            ends = sql.execute("select topic, max(seq_id) from embeddings_queue group by topic").fetchall()
            topics = {topic.rpartition("/")[2]: (topic, end) for topic, end in ends}
            replayed = []
            for collection, tenant, database, position in sql.execute(
                "select collections.id, databases.tenant_id, databases.name, coalesce(max_seq_id.seq_id, 0) "
                "from segments join collections on collections.id = segments.collection "
                "join databases on databases.id = collections.database_id "
                "left join max_seq_id on max_seq_id.segment_id = segments.id where segments.scope = 'VECTOR'"
            ).fetchall():
                topic, end = topics.get(collection, (None, 0))
                if end <= position:
                    continue
                rows = sql.execute(
                    "select id, vector from embeddings_queue "
                    "where topic = ? and seq_id > ? and vector is not null order by seq_id desc",
                    (topic, position),
                )
                replayed.append(Replayed(collection, tenant, database, _newest(rows)))
        return replayed

    def _write_fingerprints(self, taken: dict[str, Any]) -> None:
        """After a recovery: the files are the checkpoint's, with other times."""
        for segment, checkpoint in taken.items():
            index = self._directory / segment
            if index.is_dir():
                checkpoint["files"] = _fingerprint(index)
        write_durably(self._manifest, json.dumps(taken))

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

    def _remove_needless(self) -> None:
        """Removes what the manifest does not name: copies before, and what a kill or a full disk left of new ones."""
        needed = {checkpoint["copy"] for checkpoint in self._taken().values()}
        for entry in self._home.iterdir():
            if entry.is_dir() and entry.name not in needed and not entry.name.startswith(DAMAGED):
                remove_directory(entry)
            elif entry.suffix == ".new":
                entry.unlink()

    @contextlib.contextmanager
    def _sql(self) -> Iterator[sqlite3.Connection]:
        """A transaction on the database."""
        with contextlib.closing(sqlite3.connect(self._database)) as connection:
            connection.execute("pragma synchronous = full")
            with connection:
                yield connection


def _newest(rows: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """The first vector of each record, as long as there is room for them."""
    vectors: dict[str, bytes] = {}
    room = LARGEST_REPLAYED
    for record, vector in rows:
        if record not in vectors:
            room -= len(vector)
            if room < 0:
                break
            vectors[record] = vector
    return vectors


def _state_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the index that it is a copy of."""
    return {"position": checkpoint["position"], "files": checkpoint["files"]}


def set_purging(sql: sqlite3.Connection, purges: bool) -> None:
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
