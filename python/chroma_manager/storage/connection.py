"""Connections of Python's SQLite to the file of a database, only while Chroma has it closed.

Two SQLite libraries in one process must not have a file open at the same time: when one of them closes it, the system
releases the locks of the other.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class _Shared:
    """A connection that transactions share.

    Attributes:
        connection: It.
        path: The file that it has open, as it was named.
        file: That file.
        synchronous: How it makes transactions durable.
    """

    connection: sqlite3.Connection
    path: Path
    file: os.stat_result | None
    synchronous: str = ""


class _Sharing:
    """Whether transactions of this process share a connection, and which."""

    is_on = False
    shared: _Shared | None = None


@contextlib.contextmanager
def transaction(file: Path, *, synchronous: str = "extra") -> Iterator[sqlite3.Connection]:
    """A durable transaction on the SQLite file of a database.

    Args:
        file: The SQLite file.
        synchronous: How SQLite makes it durable. ``"extra"`` also syncs the directory from which the rollback journal
            was removed. Otherwise a power cut could bring the journal back, and with it roll the transaction back.
    """
    if _Sharing.is_on:
        shared = _shared_connection_to(file)
        if shared.synchronous != synchronous:
            shared.connection.execute(f"pragma synchronous = {synchronous}")
            shared.synchronous = synchronous
        with shared.connection:
            yield shared.connection
        return
    with contextlib.closing(_connect(file)) as connection, connection:
        connection.execute(f"pragma synchronous = {synchronous}")
        yield connection


@contextlib.contextmanager
def shared_connection() -> Iterator[None]:
    """Has transactions share a connection, because each new one reads the schema: to the end, or to the next release.

    For a process with one database, and one thread that works on it.
    """
    _Sharing.is_on = True
    try:
        yield
    finally:
        release_shared_connection()


def release_shared_connection() -> None:
    """Closes the connection, before Chroma or somebody else opens the file."""
    shared, _Sharing.shared, _Sharing.is_on = _Sharing.shared, None, False
    if shared is not None:
        shared.connection.close()


def keep_deleted_content(connection: sqlite3.Connection) -> None:
    """Has SQLite leave what it deletes in its free pages, as Chroma's SQLite does.

    The SQLite of some systems, Debian's for one, is built to overwrite it, which takes nine times as long for rows of
    the log: each has its vector in pages of its own.
    """
    connection.execute("pragma secure_delete = off")


def _connect(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file)
    keep_deleted_content(connection)
    return connection


def _shared_connection_to(file: Path) -> _Shared:
    shared, found = _Sharing.shared, _stat(file)
    if shared is not None and (shared.path != file or not _are_same(shared.file, found)):
        # Another file has taken its place.
        shared.connection.close()
        shared = None
    if shared is None:
        connection = _connect(file)
        shared = _Shared(connection, file, _stat(file))
    _Sharing.shared = shared
    return shared


def _stat(file: Path) -> os.stat_result | None:
    try:
        return os.stat(file)
    except FileNotFoundError:
        return None


def _are_same(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    return one is not None and other is not None and os.path.samestat(one, other)
