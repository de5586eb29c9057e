"""Puts another database in the place of the one in a directory: all of it, or nothing, whatever is killed in between.

The files of the other one are prepared beside. From the moment that these have their name the change is decided, and
whoever opens the directory next makes it, from the beginning where it was interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chroma_manager.durable import (
    copy_directory,
    copy_file,
    remove_directory,
    sorted_entries,
    step,
    sync_directory,
)
from chroma_manager.layout import CHECKPOINT, DATABASE_FILE, HOME, INDEX_NAME, MARK

if TYPE_CHECKING:
    from collections.abc import Callable

PREPARED = "restoring"


def restore(directory: Path, copy: Callable[[Path], None]) -> None:
    """Puts another database in the place of the closed one.

    Args:
        directory: Of the database, existing.
        copy: Makes a directory with the files of the other one, durably, or raises.
    """
    home = directory / HOME
    home.mkdir(exist_ok=True)
    new = home / f"{PREPARED}.new"
    copy(new)
    step("restore prepared")
    new.rename(home / PREPARED)
    sync_directory(home)
    step("restore decided")
    finish(directory)


def finish(directory: Path) -> bool:
    """Makes a change that is decided; tells whether there was one."""
    home, prepared = directory / HOME, directory / HOME / PREPARED
    if not prepared.exists():
        return False
    # What is here of the database before goes first: its log and its copies are not of this one.
    for left in (MARK, CHECKPOINT):
        (home / left).unlink(missing_ok=True)
    sync_directory(home)
    for suffix in ("-journal", "-wal", "-shm"):
        (directory / f"{DATABASE_FILE}{suffix}").unlink(missing_ok=True)
    # At no moment there is no database, which would be taken for a removed one.
    new = home / f"{DATABASE_FILE}.new"
    copy_file(prepared / DATABASE_FILE, new)
    new.rename(directory / DATABASE_FILE)
    step("database replaced")
    for entry in sorted_entries(directory):
        # What has another name is not an index, and not ours.
        if entry.is_dir(follow_symlinks=False) and INDEX_NAME.fullmatch(entry.name):
            remove_directory(Path(entry.path))
    step("indexes removed")
    for entry in sorted_entries(prepared):
        if entry.is_dir():
            copy_directory(Path(entry.path), directory / entry.name)
    sync_directory(directory)
    step("indexes replaced")
    remove_directory(prepared)
    return True
