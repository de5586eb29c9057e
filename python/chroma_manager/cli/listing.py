"""What ``chroma-manager list`` does: it reads what there is, opens no database, and changes nothing."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from chroma_manager.cli.output import DONE, Result, counted, megabytes, print_result, printable
from chroma_manager.cli.paths import find, is_database
from chroma_manager.storage.paths import DATABASE_FILE, LOCK_FILE, WRITE_AHEAD_ENDINGS
from chroma_manager.storage.reclaimable import of_database
from chroma_manager.storage.sqlite_header import has_write_ahead_log

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from pathlib import Path

# How long to wait for a writer before the number of records is not known.
COUNT_SECONDS = 1.0


def list_databases(path: Path, *, as_json: bool) -> int:
    """Prints the databases of a path; returns the exit code."""
    databases, code = find(path, is_database)
    width = max((len(printable(database.key)) for database in databases), default=0)
    for database in databases:
        records, size, (is_open, pid) = _records(database.path), _size(database.path), _owner(database.path)
        deleted, reclaimable = of_database(database.path)
        where = {None: "open or not: unknown", False: "closed", True: f"open in process {'?' if pid is None else pid}"}
        parts = [
            f"{printable(database.key):<{width}}",
            counted(records, "record"),
            megabytes(size),
            f"{megabytes(reclaimable)} reclaimable",
            where[is_open],
        ]
        space = {"size": size, "deleted_vectors": deleted, "reclaimable": reclaimable}
        values = {"records": records, **space, "open": is_open, "pid": pid}
        print_result(database.names, Result(DONE, "  ".join(parts), values), as_json)
    return code


def _records(directory: Path) -> int | None:
    """How many records all collections have; ``None`` where it cannot be read now."""
    file = directory / DATABASE_FILE
    statement = (
        "select count(*) from embeddings where segment_id in "
        "(select segments.id from segments join collections on collections.id = segments.collection)"
    )
    try:
        # Where they are missing even a reader creates them.
        if has_write_ahead_log(file) and not all(os.path.exists(f"{file}{end}") for end in WRITE_AHEAD_ENDINGS):
            return None
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=COUNT_SECONDS)) as sql:
            return int(sql.execute(statement).fetchone()[0])
    except (sqlite3.Error, OSError):
        return None


def _size(directory: Path) -> int:
    """Bytes of all files that can be seen."""
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            # It may be gone meanwhile, where an app is running.
            with suppress(OSError):
                size += os.lstat(os.path.join(folder, name)).st_size
    return size


def _owner(directory: Path) -> tuple[bool | None, int | None]:
    """Whether a process has a database open (``None``: unknown), and its pid, where the lock file says so."""
    try:
        with open(directory / LOCK_FILE, "rb", opener=_open_at_once) as file:
            # An empty lock file is not locked here, not even for a moment: an app may be about to open the database.
            if not file.read(1) or not _is_locked(file.fileno()):
                return False, None
            file.seek(0)
            pid, _, _ = file.read(4096).partition(b"\n")
            return True, int(pid) if pid.isdigit() else None
    except FileNotFoundError:
        return False, None
    except OSError:
        # On Windows a locked file cannot be read.
        return True if sys.platform == "win32" else None, None


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file without waiting: in its place may be a link, or a FIFO that nobody writes to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _is_locked(descriptor: int) -> bool:
    if sys.platform == "win32":
        return False
    try:
        # Shared, and for a moment: the pid may be that of an owner that was killed.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
