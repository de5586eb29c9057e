"""Replaces a closed database by another one: all of it or nothing, even if the process is killed in between.

The files of the other database are prepared in a directory beside. Renaming that directory commits the change. Whoever
opens the database next completes a change that was interrupted; as files are only moved, that needs no space.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chroma_manager.storage.dirty_marker import remove_marker
from chroma_manager.storage.files import (
    copy_file,
    empty_directory,
    is_elsewhere,
    make_directory,
    move,
    remove_tree,
    sorted_entries,
    sorted_files,
    step,
    sync_directory,
)
from chroma_manager.storage.paths import (
    CHECKPOINT,
    DAMAGED,
    DATABASE_FILE,
    HOME,
    INDEX_NAME,
    JOURNAL_ENDINGS,
    PREPARED,
    TRASH,
)
from chroma_manager.storage.sealed import DamagedFileError, read_sealed, write_sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# In the prepared directory: which indexes the other database has.
CONTENTS = "restoring.json"


def restore(
    directory: Path, copy: Callable[[Path], None], *, kept: Iterable[str] = (), fills_links: bool = False
) -> None:
    """Replaces the closed database by another one.

    Args:
        directory: The database's, which exists.
        copy: Creates a directory with the files of the other one, durably, or raises.
        kept: The names of present indexes that the other database has, too, and that stay where they are.
        fills_links: Whether an index that its user has put on another disk is replaced there, behind the link.
    """
    home = directory / HOME
    make_directory(home)
    new = home / f"{PREPARED}.new"
    remove_tree(new)
    copy(new)
    indexes = [*kept, *(entry.name for entry in sorted_entries(new) if entry.is_dir())]
    write_sealed(new / CONTENTS, {"indexes": indexes, "fills_links": fills_links})
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
    contents = _contents(prepared)
    if contents is None:
        # Somebody else made it: it is quarantined, because it may be of use.
        prepared.rename(home / f"{DAMAGED}{PREPARED}-{os.urandom(4).hex()}")
        sync_directory(home)
        return False
    # The marker and the copies belong to the replaced database.
    (home / CHECKPOINT).unlink(missing_ok=True)
    remove_marker(home)
    for suffix in JOURNAL_ENDINGS:
        (directory / f"{DATABASE_FILE}{suffix}").unlink(missing_ok=True)
    _replace_indexes(directory, home, prepared, contents)
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


def _contents(prepared: Path) -> dict[str, Any] | None:
    try:
        content = None if prepared.is_symlink() else read_sealed(prepared / CONTENTS)
    except DamagedFileError:
        return None
    return content


def _replace_indexes(directory: Path, home: Path, prepared: Path, contents: dict[str, Any]) -> None:
    indexes, fills_links = contents["indexes"], contents.get("fills_links", False)
    for entry in sorted_entries(directory):
        # A directory with another name is not an index, and is left alone.
        is_index = INDEX_NAME.fullmatch(entry.name) and entry.is_dir()
        is_in_place = entry.name in indexes and not (prepared / entry.name).exists()
        if is_index and not is_in_place:
            _discard(Path(entry.path), home, fills_links=fills_links)
    sync_directory(directory)
    step("indexes removed")
    for name in indexes:
        if (prepared / name).exists():
            _put(prepared / name, directory / name)
            step("index replaced by a restore")
    sync_directory(prepared)
    sync_directory(directory)
    step("indexes replaced")


def _put(prepared: Path, index: Path) -> None:
    if not is_elsewhere(index):
        move(prepared, index)
        return
    # On another disk: the files are copied, and an opening that finds the change unfinished copies them again.
    for entry in sorted_files(prepared):
        copy_file(Path(entry.path), index / entry.name)
    sync_directory(index)
    step("linked index filled")


def _discard(index: Path, home: Path, *, fills_links: bool) -> None:
    if fills_links and is_elsewhere(index):
        empty_directory(index)
        return
    if index.is_symlink():
        index.unlink()
        return
    trash = home / f"{index.name}-{os.urandom(4).hex()}{TRASH}"
    move(index, trash)
    remove_tree(trash)
