"""The SQLite file of the catalogue: its tables, and connections to it. What they hold is ``catalog``'s business."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TABLES = (
    """
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
    )
    """,
    "create table if not exists workers (worker text primary key, pid integer not null, seen real not null)",
)
# What a catalogue of an earlier version does not have.
_LATER_COLUMNS = {"removals_failed": "integer not null default 0", "remove_after": "real not null default 0"}

_BUSY_SECONDS = 30


def prepare(path: Path) -> None:
    """Creates the file and its tables where there are none. Several workers may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with connected(path) as database:
        _use_wal(database)
        database.execute("begin immediate")
        for table in _TABLES:
            database.execute(table)
        there = {name for _, name, *_ in database.execute("pragma table_info(files)")}
        for name, kind in _LATER_COLUMNS.items():
            if name not in there:
                database.execute(f"alter table files add column {name} {kind}")
        database.execute("commit")


def _use_wal(database: sqlite3.Connection) -> None:
    # SQLite waits for no other worker that does the same.
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            database.execute("pragma journal_mode=wal")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose statements are transactions, for one thread. To make one costs little."""
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        database.execute("pragma synchronous=normal")
        yield database
    finally:
        database.close()
