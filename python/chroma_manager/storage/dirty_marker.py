"""The dirty marker: that an engine process has the database open, and what it has to put back when it closes it.

The marker and the database (``pragma user_version``, which Chroma does not use) bear the same generation. So a database
that somebody has put in the place of ours is not taken for the one that was left open.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from chroma_manager.storage.files import remove_tree, sync_directory
from chroma_manager.storage.paths import MARK
from chroma_manager.storage.sealed import read_sealed, write_sealed

# What `pragma user_version` can hold.
LARGEST_GENERATION = 2**31 - 1


class DirtyMarker(NamedTuple):
    """What the marker says.

    Attributes:
        generation: Never 0, which is that of a closed database.
        purge_setting: Chroma's setting as it was found (``chroma_log.purge_setting``).
        boot: Which start of the system it was; empty where that cannot be told.
    """

    generation: int
    purge_setting: str | None
    boot: str

    @classmethod
    def new(cls, purge_setting: str | None) -> DirtyMarker:
        """One with a generation of its own."""
        # Not `secrets`, whose import every engine process would wait for.
        return cls(1 + int.from_bytes(os.urandom(8), "big") % LARGEST_GENERATION, purge_setting, _this_boot())

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the system has run on since: files that were written are as they were, synced or not."""
        return self.boot != "" and self.boot == _this_boot()


def read_marker(home: Path) -> DirtyMarker | None:
    """The marker; ``None`` where there is none.

    Raises:
        DamagedFileError: It is damaged.
    """
    content = read_sealed(home / MARK)
    return None if content is None else DirtyMarker(**content)


def write_marker(home: Path, marker: DirtyMarker) -> None:
    """Writes it durably."""
    write_sealed(home / MARK, marker._asdict())


def remove_marker(home: Path) -> None:
    """Removes it durably, where there is one."""
    remove_tree(home / MARK)
    sync_directory(home)


def _this_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
