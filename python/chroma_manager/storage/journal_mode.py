"""SQLite's journal mode, a property of the SQLite file: whether it has a write-ahead log or a rollback journal."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING

from chroma_manager.storage.connection import release_shared_connection, transaction

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# As SQLite says them. The second is Chroma's default.
WRITE_AHEAD_LOG, ROLLBACK_JOURNAL = "wal", "delete"


# For how long another program may have the file open. One that lists databases reads it for a moment.
PATIENCE = 0.5
PAUSE = 0.02


def journal_mode(sql: sqlite3.Connection) -> str:
    """The journal mode of a database."""
    return str(sql.execute("pragma journal_mode").fetchone()[0])


def change_journal_mode(file: Path, mode: str) -> bool:
    """Changes the journal mode, unless it is that already.

    A power cut may undo the change, until the next transaction. It loses nothing: the change is made in one sector of
    the file, SQLite reads a write-ahead log that it finds in either mode, and the next transaction syncs the directory.

    Args:
        file: The SQLite file of a closed database.
        mode: The new one. From a write-ahead log to another mode, all that is in the log gets into the file first.

    Returns:
        Whether that is the mode now. It cannot be changed while another program has the file open, nor to a write-ahead
        log where the file system cannot map a file into shared memory.
    """
    ends = time.monotonic() + PATIENCE
    while (changed := _try_to_change(file, mode)) is None and time.monotonic() < ends:
        time.sleep(PAUSE)
    return changed == mode


def _try_to_change(file: Path, mode: str) -> str | None:
    """Changes the journal mode; the one that there is then, or ``None`` where another program has the file open."""
    try:
        with transaction(file, synchronous="full") as sql, _waiting_for_nobody(sql):
            if mode != WRITE_AHEAD_LOG:
                sql.execute("pragma wal_checkpoint(truncate)")
            sql.execute("pragma synchronous = off")
            changed = str(sql.execute(f"pragma journal_mode = {mode}").fetchone()[0])
            sql.execute("pragma synchronous = full")
            # The log's shared index is mapped by the first transaction.
            sql.execute("select count(*) from sqlite_master")
            return changed
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return None
        if mode != WRITE_AHEAD_LOG:
            raise
        return _change_alone(file, ROLLBACK_JOURNAL)


@contextlib.contextmanager
def _waiting_for_nobody(sql: sqlite3.Connection) -> Iterator[None]:
    """Has SQLite not wait for the locks of others."""
    (usual,) = sql.execute("pragma busy_timeout").fetchone()
    sql.execute("pragma busy_timeout = 0")
    try:
        yield
    finally:
        sql.execute(f"pragma busy_timeout = {usual}")


def _change_alone(file: Path, mode: str) -> str:
    """Changes the journal mode where the index of a write-ahead log can be in this process's memory only."""
    release_shared_connection()
    with contextlib.closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:
        # Before anything that reads the file.
        connection.execute("pragma locking_mode = exclusive")
        connection.execute("pragma synchronous = extra")
        return str(connection.execute(f"pragma journal_mode = {mode}").fetchone()[0])
