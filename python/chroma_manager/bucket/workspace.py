"""A directory for a snapshot on its way to or from a bucket, removed at the end whatever happens.

It is on the file system of the databases: that has space for them, which a temporary directory in memory may not have,
and a copy shares the content of files there, where the file system can do that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chroma_manager.errors import SnapshotError
from chroma_manager.storage.files import remove_tree
from chroma_manager.storage.paths import TEMPORARY_PREFIX

if sys.platform != "win32":
    import fcntl

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
    _remove_abandoned(_nearest_directory(near))
    for _ in range(_REMOVAL_RACES):
        home = _nearest_directory(near) / f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}{_SUFFIX}"
        # Another process may remove a directory that it created, or take this one for abandoned before it is locked.
        with contextlib.suppress(FileNotFoundError):
            home.mkdir(mode=0o700)
            lock = _locked(home, wait=True)
            if home.exists():
                return home, lock
            if lock is not None:
                os.close(lock)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(near))


def _nearest_directory(near: Path) -> Path:
    return next(path for path in near.parents if path.is_dir())


def _remove_abandoned(parent: Path) -> None:
    """Removes what processes have left that were killed: nobody has it locked."""
    for home in parent.glob(f"{TEMPORARY_PREFIX}*{_SUFFIX}"):
        lock = _locked(home)
        if lock is not None:
            with contextlib.suppress(OSError):
                remove_tree(home)
            os.close(lock)


def _locked(home: Path, *, wait: bool = False) -> int | None:
    """The descriptor of a directory that is locked now; ``None`` where it cannot be locked."""
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
