"""The directories in which a database, or a snapshot, is put together on its way from elsewhere.

Whoever fills one has it locked (``staging.rs``, ``bucket/workspace.py``): one that is not locked was left by a process
that was killed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from chroma_manager.storage.files import remove_tree
from chroma_manager.storage.paths import TEMPORARY_PREFIX

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from pathlib import Path


def remove_abandoned(parent: Path, suffix: str = "") -> None:
    """Removes those in a directory that nobody has locked.

    Args:
        parent: The directory.
        suffix: How their names end.
    """
    for home in parent.glob(f"{TEMPORARY_PREFIX}*{suffix}"):
        lock = locked(home)
        if lock is not None:
            with contextlib.suppress(OSError):
                remove_tree(home)
            os.close(lock)


def locked(home: Path, *, wait: bool = False) -> int | None:
    """The descriptor of a directory that is locked now; ``None`` where it cannot be locked.

    Args:
        home: The directory.
        wait: Whether to wait for whoever has it locked.
    """
    if sys.platform == "win32":
        return None
    with contextlib.suppress(OSError):
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(descriptor)
        else:
            return descriptor
    return None
