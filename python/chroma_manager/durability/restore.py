"""Replaces a closed database by another one: all of it or nothing, even if the process is killed in between.

The files of the other database are prepared in a directory beside. Renaming that directory commits the change. Whoever
opens the database next completes a change that was interrupted; as files are only moved, that needs no space.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from chroma_manager.storage.dirty_marker import remove_marker
from chroma_manager.storage.files import make_directory, move, remove_tree, sorted_entries, step, sync_directory
from chroma_manager.storage.paths import (
    CHECKPOINT,
    DAMAGED,
    DATABASE_FILE,
    HOME,
    INDEX_NAME,
    TRASH,
    WRITE_AHEAD_ENDINGS,
)
from chroma_manager.storage.sealed import DamagedFileError, read_sealed, write_sealed

if TYPE_CHECKING:
    from collections.abc import Callable

PREPARED = "restoring"

# In the prepared directory: which indexes the other database has.
CONTENTS = "restoring.json"


def restore(directory: Path, copy: Callable[[Path], None]) -> None:
    """Replaces the closed database by another one.

    Args:
        directory: The database's, which exists.
        copy: Creates a directory with the files of the other one, durably, or raises.
    """
    home = directory / HOME
    make_directory(home)
    new = home / f"{PREPARED}.new"
    copy(new)
    write_sealed(new / CONTENTS, {"indexes": [entry.name for entry in sorted_entries(new) if entry.is_dir()]})
    step("restore prepared")
    new.rename(home / PREPARED)
    sync_directory(home)
    step("restore decided")
    finish(directory)


def finish(directory: Path) -> bool:
    """Completes a committed change; whether there was one."""
    home, prepared = directory / HOME, directory / HOME / PREPARED
    if not os.path.lexists(prepared):
        return False
    indexes = _contents(prepared)
    if indexes is None:
        # Somebody else made it: it is quarantined, because it may be of use.
        prepared.rename(home / f"{DAMAGED}{PREPARED}-{os.urandom(4).hex()}")
        sync_directory(home)
        return False
    # The marker and the copies belong to the replaced database.
    (home / CHECKPOINT).unlink(missing_ok=True)
    remove_marker(home)
    for suffix in ("-journal", *WRITE_AHEAD_ENDINGS):
        (directory / f"{DATABASE_FILE}{suffix}").unlink(missing_ok=True)
    _replace_indexes(directory, home, prepared, indexes)
    # Last, so that there always is a database: a missing one would count as removed.
    if (prepared / DATABASE_FILE).exists():
        move(prepared / DATABASE_FILE, directory / DATABASE_FILE)
        sync_directory(prepared)
        sync_directory(directory)
    step("database replaced")
    # Renamed first: an interrupted removal would otherwise look like a committed change.
    trash = home / f"{PREPARED}-{os.urandom(4).hex()}{TRASH}"
    prepared.rename(trash)
    sync_directory(home)
    step("restore finished")
    remove_tree(trash)
    return True


def _contents(prepared: Path) -> list[str] | None:
    try:
        content = None if prepared.is_symlink() else read_sealed(prepared / CONTENTS)
    except DamagedFileError:
        return None
    return None if content is None else list(content["indexes"])


def _replace_indexes(directory: Path, home: Path, prepared: Path, indexes: list[str]) -> None:
    for entry in sorted_entries(directory):
        # A directory with another name is not an index, and is left alone.
        is_index = INDEX_NAME.fullmatch(entry.name) and entry.is_dir()
        is_in_place = entry.name in indexes and not (prepared / entry.name).exists()
        if is_index and not is_in_place:
            _discard(Path(entry.path), home)
    sync_directory(directory)
    step("indexes removed")
    for name in indexes:
        if (prepared / name).exists():
            move(prepared / name, directory / name)
            step("index replaced by a restore")
    sync_directory(prepared)
    sync_directory(directory)
    step("indexes replaced")


def _discard(index: Path, home: Path) -> None:
    if index.is_symlink():
        index.unlink()
        return
    trash = home / f"{index.name}-{os.urandom(4).hex()}{TRASH}"
    move(index, trash)
    remove_tree(trash)
