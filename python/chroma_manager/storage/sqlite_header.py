"""The header of an SQLite file, read and written without SQLite."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Where it is said how the file is written and read, and what is said of a write-ahead log (SQLite's page on its file
# format).
VERSIONS, USER_VERSION = slice(18, 20), slice(60, 64)
WRITE_AHEAD = b"\2\2"
HEADER = 100
PAGE_SIZE, PAGES, FREE_PAGES = slice(16, 18), slice(28, 32), slice(36, 40)


def has_write_ahead_log(file: Path) -> bool:
    """Whether the journal mode of an SQLite file is a write-ahead log."""
    with file.open("rb") as header:
        return header.read(VERSIONS.stop)[VERSIONS] == WRITE_AHEAD


def free_space(file: Path) -> tuple[int, int]:
    """How many bytes of an SQLite file are free pages, and how many it has; of the write-ahead log nothing is known.

    The file must not be open in this process: closing it would release the locks of SQLite.
    """
    with file.open("rb") as opened:
        header = opened.read(HEADER)
    # The largest page does not fit into two bytes, and is stored as 1.
    stored, pages, free = (int.from_bytes(header[part], "big") for part in (PAGE_SIZE, PAGES, FREE_PAGES))
    size = 65_536 if stored == 1 else stored
    return free * size, pages * size


def write_new_database(file: Path, content: bytes, user_version: int) -> None:
    """Writes an SQLite file durably, in a directory that the caller syncs.

    Its journal mode is a write-ahead log, unless the file system cannot map files into shared memory.

    Args:
        file: Its name.
        content: A whole SQLite file.
        user_version: What ``pragma user_version`` is to say.
    """
    header = bytearray(content[:HEADER])
    header[USER_VERSION] = user_version.to_bytes(4, "big")
    with file.open("w+b") as new:
        new.write(content)
        new.flush()
        if _can_be_mapped(new.fileno()):
            header[VERSIONS] = WRITE_AHEAD
        new.seek(0)
        new.write(header)
        new.flush()
        os.fsync(new.fileno())


def _can_be_mapped(descriptor: int) -> bool:
    try:
        mmap.mmap(descriptor, mmap.PAGESIZE).close()
    except OSError:
        return False
    return True
