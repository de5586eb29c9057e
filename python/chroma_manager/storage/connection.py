"""Connections of Python's SQLite to the file of a database, only while Chroma has it closed.

Two SQLite libraries in one process must not have a file open at the same time: when one of them closes it, the system
releases the locks of the other.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# For how many milliseconds a transaction waits for that of another program.
PATIENCE = 5_000


class _Shared(NamedTuple):
    """A connection that transactions share, and the file that it has open."""

    connection: sqlite3.Connection
    path: Path
    file: os.stat_result | None


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
    with (
        contextlib.nullcontext(_shared_connection_to(file))
        if _Sharing.is_on
        else contextlib.closing(sqlite3.connect(file)) as sql
    ):
        sql.execute(f"pragma synchronous = {synchronous}")
        sql.execute(f"pragma busy_timeout = {PATIENCE}")
        with sql:
            yield sql


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


def _shared_connection_to(file: Path) -> sqlite3.Connection:
    shared, found = _Sharing.shared, _stat(file)
    if shared is not None and (shared.path != file or not _are_same(shared.file, found)):
        # Another file has taken its place.
        shared.connection.close()
        shared = None
    if shared is None:
        connection = sqlite3.connect(file)
        shared = _Shared(connection, file, _stat(file))
    _Sharing.shared = shared
    return shared.connection


def _stat(file: Path) -> os.stat_result | None:
    try:
        return os.stat(file)
    except FileNotFoundError:
        return None


def _are_same(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    return one is not None and other is not None and os.path.samestat(one, other)
