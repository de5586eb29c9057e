"""A directory for a snapshot on its way to or from a bucket, removed at the end whatever happens.

It is on the file system of the databases: that has space for them, which a temporary directory in memory may not have,
and a copy shares the content of files there, where the file system can do that.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from chroma_manager.errors import SnapshotError
from chroma_manager.storage.files import remove_tree
from chroma_manager.storage.paths import TEMPORARY_PREFIX
from chroma_manager.storage.temporary import locked, remove_abandoned

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUFFIX = ".transfer"
_REMOVAL_RACES = 100


@contextlib.contextmanager
def workspace(near: Path) -> Iterator[Path]:
    """Yields the name of a directory that does not exist yet, and removes that at the end.

    Args:
        near: The directory of a database, which need not exist. The new one is in the nearest directory around it.

    Raises:
        SnapshotError: No directory can be created there.
    """
    try:
        home, lock = _new_home(near)
    except OSError as error:
        raise SnapshotError(f"no temporary directory can be created near {near} ({error.strerror})") from error
    try:
        # Two levels down, where nothing that looks for databases below `parent` takes it for one.
        yield home / "snapshot" / "files"
    finally:
        with contextlib.suppress(OSError):
            remove_tree(home)
        if lock is not None:
            os.close(lock)


def _new_home(near: Path) -> tuple[Path, int | None]:
    remove_abandoned(_nearest_directory(near), _SUFFIX)
    for _ in range(_REMOVAL_RACES):
        home = _nearest_directory(near) / f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}{_SUFFIX}"
        # Another process may remove a directory that it created, or take this one for abandoned before it is locked.
        with contextlib.suppress(FileNotFoundError):
            home.mkdir(mode=0o700)
            lock = locked(home, wait=True)
            if home.exists():
                return home, lock
            if lock is not None:
                os.close(lock)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(near))


def _nearest_directory(near: Path) -> Path:
    return next(path for path in near.parents if path.is_dir())
