"""SQLite's journal mode, a property of the SQLite file: whether it has a write-ahead log or a rollback journal."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import time
from typing import TYPE_CHECKING

from chroma_manager.storage.connection import release_shared_connection, transaction

try:
    import fcntl
except ImportError:  # there is none on Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# As SQLite says them. The second is Chroma's default.
WRITE_AHEAD_LOG, ROLLBACK_JOURNAL = "wal", "delete"


# For how long another program may have the file open. One that lists databases reads it for a moment.
PATIENCE = 0.5
PAUSE = 0.02

# For how long one may read what was there before the last transactions, in milliseconds.
LONGEST_READING = 1_000


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


def write_back(file: Path) -> bool:
    """Has SQLite write all of a write-ahead log into the file, so that a copy of the file is one of the database.

    Args:
        file: The SQLite file of a closed database.

    Returns:
        Whether the file has all of it. It has not while another program reads the database as it was before the last
        transactions, or writes to it; such a program is waited for, but not for long.
    """
    try:
        with transaction(file) as sql, _waiting(sql, LONGEST_READING):
            is_held_back, *_ = sql.execute("pragma wal_checkpoint(full)").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return False
        raise
    return not is_held_back


def begin_write_ahead_log(file: Path, change: Callable[[sqlite3.Connection], None]) -> bool:
    """Turns the write-ahead log on, with a transaction in it that is not synced.

    It is durable as soon as any later transaction is, because these sync all of the log.

    Args:
        file: The SQLite file of a closed database.
        change: Makes the transaction.

    Returns:
        Whether that could be done. Otherwise the transaction was not made.
    """
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return False
    release_shared_connection()
    try:
        _begin_write_ahead_log(file, change)
    except (sqlite3.OperationalError, OSError) as error:
        if "locked" not in str(error):
            # A log cannot be mapped here, say.
            _change_alone(file, ROLLBACK_JOURNAL)
        return False
    return True


def _begin_write_ahead_log(file: Path, change: Callable[[sqlite3.Connection], None]) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as sql:
            sql.execute("pragma synchronous = off")
            sql.execute("pragma journal_mode = wal")
            _keep_write_ahead_log(descriptor)
            sql.execute("begin immediate")
            change(sql)
            sql.execute("commit")
    finally:
        # Not before SQLite has closed the file: its own locks in this process would be released.
        os.close(descriptor)


def _keep_write_ahead_log(descriptor: int) -> None:
    """Has SQLite keep the log when its last connection is closed, as long as this descriptor is open.

    It would copy the log into the file, without a sync, and remove it. For that it needs the file for itself, and does
    not get it: its bytes for readers are locked here (``SHARED_FIRST`` and ``SHARED_SIZE`` of SQLite's ``os.h``). The
    lock belongs to the descriptor, so it counts in this process, too.
    """
    lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0x40000002, 510, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)


def _try_to_change(file: Path, mode: str) -> str | None:
    """Changes the journal mode; the one that there is then, or ``None`` where another program has the file open."""
    try:
        with transaction(file, synchronous="full") as sql, _waiting(sql, 0):
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
def _waiting(sql: sqlite3.Connection, milliseconds: int) -> Iterator[None]:
    """Has SQLite wait for the locks of others for that long."""
    (usual,) = sql.execute("pragma busy_timeout").fetchone()
    sql.execute(f"pragma busy_timeout = {milliseconds}")
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
