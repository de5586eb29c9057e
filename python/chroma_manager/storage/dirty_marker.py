"""The dirty marker: an engine process has the database open, and puts back what it says when it closes it.

The marker and the database (``pragma user_version``, which Chroma does not use) have the same generation. So another
database in the same place is not taken for the one that was left open.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from chroma_manager.storage.files import remove_tree, sync_directory
from chroma_manager.storage.journal_mode import ROLLBACK_JOURNAL
from chroma_manager.storage.log import PURGES_ROWS
from chroma_manager.storage.paths import DIRTY_MARKER
from chroma_manager.storage.sealed import read_sealed, write_sealed

# What `pragma user_version` can hold.
LARGEST_GENERATION = 2**31 - 1


class DirtyMarker(NamedTuple):
    """What the marker says.

    Attributes:
        generation: Never 0, which is that of a closed database.
        purge_setting: Chroma's setting as it was found (``log.purge_setting``).
        boot: Identifies the boot of the system; empty where that is unknown.
        journal_mode: SQLite's journal mode as it was found.
    """

    generation: int
    purge_setting: str | None
    boot: str
    journal_mode: str = ROLLBACK_JOURNAL

    @classmethod
    def new(cls, purge_setting: str | None, journal_mode: str) -> DirtyMarker:
        """A marker with a new generation."""
        # Not with `secrets`, whose import every engine process would wait for.
        generation = 1 + int.from_bytes(os.urandom(8), "big") % LARGEST_GENERATION
        return cls(generation, purge_setting, _this_boot(), journal_mode)

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the system has not been restarted since: files are as they were written, synced or not."""
        return self.boot != "" and self.boot == _this_boot()


def read_marker(home: Path) -> DirtyMarker | None:
    """The marker; ``None`` where there is none, or a power cut has left it empty.

    Raises:
        DamagedFileError: It is damaged.
    """
    with contextlib.suppress(OSError):
        if os.lstat(home / DIRTY_MARKER).st_size == 0:
            return None
    content = read_sealed(home / DIRTY_MARKER)
    return None if content is None else DirtyMarker(**content)


def write_marker(home: Path, marker: DirtyMarker) -> None:
    """Writes the marker, and durably unless it says what is assumed where it is lost."""
    is_usual = (marker.purge_setting, marker.journal_mode) == (PURGES_ROWS, ROLLBACK_JOURNAL)
    write_sealed(home / DIRTY_MARKER, marker._asdict(), is_durable=not is_usual)


def remove_marker(home: Path) -> None:
    """Removes the marker durably, if there is one."""
    remove_tree(home / DIRTY_MARKER)
    sync_directory(home)


def _this_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
