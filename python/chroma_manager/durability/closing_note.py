"""The closing note: what a closing knew about the database, so that the next opening need not find it out again.

It holds while the files are as they were left: the SQLite file, the index files and our own. Otherwise, and where there
is no note, an opening looks for itself. The note is not synced. After a power cut it may be missing, or be that of an
earlier closing, which the files do not match.

Only for a database that Chroma has closed, and whose file no connection of this process has open.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager.storage.connection import release_shared_connection
from chroma_manager.storage.files import sorted_entries
from chroma_manager.storage.manifest import fingerprint_of_files
from chroma_manager.storage.paths import CLOSED, CRASHES, DATABASE_FILE, HOME, INDEX_NAME
from chroma_manager.storage.sealed import DamagedFileError, read_sealed, write_sealed
from chroma_manager.storage.sqlite_header import HEADER

if TYPE_CHECKING:
    from pathlib import Path

# It changes with what an opening finds out.
FORMAT = 1

# A note of crashes is written while an engine process runs, and asked for itself.
NOT_COMPARED = (CLOSED, CLOSED + ".new", CRASHES)


class ClosingNote(NamedTuple):
    """What was known.

    Attributes:
        migrations: The newest of each of Chroma's schemas (``migrations.newest_migrations``).
        extents: The rows of the log of each collection: the first sequence id, and how many (``log.log_extents``).
        purge_setting: Chroma's setting (``log.purge_setting``).
        log_length: As ``Checkpoints.log_length`` says.
    """

    migrations: dict[str, int]
    extents: dict[str, list[int | None]]
    purge_setting: str | None
    log_length: int


def read_note(directory: Path) -> ClosingNote | None:
    """The note of a database that is as it was closed; ``None`` where it is not, or there is no note."""
    with contextlib.suppress(DamagedFileError, OSError, KeyError, TypeError):
        content = read_sealed(directory / HOME / CLOSED)
        if content is not None and content["files"] == _files(directory):
            return ClosingNote(**content["known"])
    return None


def write_note(directory: Path, note: ClosingNote) -> None:
    """Notes what is known of a database that is closed for good. Where that fails there is no note."""
    release_shared_connection()
    with contextlib.suppress(OSError):
        content = {"files": _files(directory), "known": note._asdict()}
        write_sealed(directory / HOME / CLOSED, content, is_durable=False)


def _files(directory: Path) -> dict[str, Any]:
    """What distinguishes the files of a database from later ones."""
    with (directory / DATABASE_FILE).open("rb") as file:
        header, status = file.read(HEADER).hex(), os.fstat(file.fileno())
    sqlite = [header, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    names = [entry.name for entry in sorted_entries(directory)]
    # A journal of SQLite's has rows that are not in its file.
    beside = [name for name in names if name.startswith(f"{DATABASE_FILE}-")]
    indexes = {name: fingerprint_of_files(directory / name) for name in names if INDEX_NAME.fullmatch(name)}
    entries = [entry for entry in sorted_entries(directory / HOME) if entry.name not in NOT_COMPARED]
    ours = {entry.name: [] if entry.is_dir() else _size_and_time(entry.stat()) for entry in entries}
    return {"format": FORMAT, "sqlite": sqlite, "beside": beside, "indexes": indexes, "ours": ours}


def _size_and_time(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns]
