"""Which databases or snapshots a path of the command line names: one, or all under a base path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from chroma_manager.cli.output import DONE, FAILED, complain, printable
from chroma_manager.durability.snapshot import MANIFEST
from chroma_manager.errors import ChromaManagerError
from chroma_manager.storage.paths import DATABASE_FILE, HOME, INDEX_NAME, TEMPORARY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable


class UnsuitablePathError(ChromaManagerError):
    """A command cannot work on a path; the message says why."""


class DatabasePath(NamedTuple):
    """A directory ``base_path/file_id/embedding_type``, absolute, of a database or of its snapshot."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> DatabasePath:
        """That of a path as the user gives it.

        Raises:
            UnsuitablePathError: It is too close to the root to have a key.
        """
        # Links are not followed: the key is what the app calls it.
        database = cls(Path(os.path.abspath(path)))
        if not database.file_id:
            raise UnsuitablePathError(f"{printable(path)} cannot be a database: one is at BASE/FILE_ID/EMBEDDING_TYPE")
        return database

    @property
    def file_id(self) -> str:
        """First half of the key."""
        return self.path.parent.name

    @property
    def embedding_type(self) -> str:
        """Second half of the key."""
        return self.path.name

    @property
    def base_path(self) -> Path:
        """The base path of its manager."""
        return self.path.parent.parent

    @property
    def key(self) -> str:
        """The key, as messages have it."""
        return f"{self.file_id}/{self.embedding_type}"

    @property
    def names(self) -> dict[str, str]:
        """What identifies it in JSON."""
        return {"file_id": self.file_id, "embedding_type": self.embedding_type, "path": str(self.path)}


def find(path: Path, is_one: Callable[[Path], bool]) -> tuple[list[DatabasePath], int]:
    """The databases or snapshots that a path names, sorted by key; and an exit code, whether one may be missing.

    Args:
        path: One of them, or a base path.
        is_one: Tells whether a directory is one: ``is_database`` or ``is_snapshot``.

    Raises:
        UnsuitablePathError: There is none.
    """
    if is_one(path):
        return [DatabasePath.at(path)], DONE
    errors: list[OSError] = []
    parents = _subdirectories(Path(os.path.abspath(path)), errors)
    below = [directory for parent in parents for directory in _subdirectories(parent, errors)]
    found = []
    for directory in below:
        if directory.name.startswith(TEMPORARY_PREFIX):
            continue
        try:
            found += [DatabasePath(directory)] if is_one(directory) else []
        except OSError as error:
            errors.append(error)
    for failure in errors:
        complain(str(failure))
    if not found and not errors:
        what = "snapshot" if is_one is is_snapshot else f"database (FILE_ID/EMBEDDING_TYPE/{DATABASE_FILE})"
        raise UnsuitablePathError(f"there is no {what} in {printable(path)}")
    return found, FAILED if errors else DONE


def _subdirectories(directory: Path, errors: list[OSError]) -> list[Path]:
    try:
        return sorted(entry for entry in directory.iterdir() if entry.is_dir())
    except OSError as error:
        errors.append(error)
        return []


def is_database(directory: Path) -> bool:
    """Whether a directory has the files of a database."""
    # An index alone is a database whose records are lost, which should not be passed over in silence.
    return (directory / DATABASE_FILE).is_file() or any(directory.glob("*/header.bin"))


def is_snapshot(directory: Path) -> bool:
    """Whether a directory is a snapshot."""
    return (directory / MANIFEST).is_file()


def refuse_snapshot(database: DatabasePath) -> None:
    """Raises for a snapshot: opening it would change it, and its checksums would no longer match.

    Raises:
        UnsuitablePathError: It is one.
    """
    if is_snapshot(database.path) and not (database.path / HOME).exists():
        raise UnsuitablePathError(f"{database.path} is a snapshot, which is not opened; restore it somewhere first")


def refuse_foreign(directory: Path) -> None:
    """Raises for a directory with directories of others: a restore would remove them, in a base path all databases.

    Raises:
        UnsuitablePathError: It has such a directory.
    """
    for entry in _subdirectories(directory, []):
        if not entry.name.startswith(".") and not INDEX_NAME.fullmatch(entry.name):
            raise UnsuitablePathError(
                f"{directory} is not the directory of one database: it has {entry.name!r}, which is not an index. Name "
                f"BASE/FILE_ID/EMBEDDING_TYPE"
            )
