"""Which index files the engine `embedded` has examined, or has closed itself, and need not examine again.

Only for a database that Chroma has closed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from chroma_manager.storage.connection import transaction
from chroma_manager.storage.files import make_directory
from chroma_manager.storage.log import vector_segments
from chroma_manager.storage.manifest import fingerprint_of_files
from chroma_manager.storage.paths import DATABASE_FILE, EXAMINED, HOME
from chroma_manager.storage.sealed import DamagedFileError, read_sealed, write_sealed

if TYPE_CHECKING:
    from pathlib import Path


def is_known(directory: Path) -> bool:
    """Whether the index files of a database are known to be sound, or there are none."""
    found = _indexes(directory)
    with contextlib.suppress(DamagedFileError):
        return not found or read_sealed(directory / HOME / EXAMINED) == {"sound": True, "indexes": found}
    return False


def note(directory: Path, *, sound: bool) -> None:
    """Notes that the index files of a database were examined, and whether all are sound."""
    if found := _indexes(directory):
        make_directory(directory / HOME)
        write_sealed(directory / HOME / EXAMINED, {"sound": sound, "indexes": found})


def note_closed(directory: Path) -> None:
    """Notes that Chroma has closed a database: it leaves files as sound as those that it found."""
    known = None
    with contextlib.suppress(DamagedFileError):
        known = read_sealed(directory / HOME / EXAMINED)
    if known is None or known["sound"]:
        note(directory, sound=True)


def _indexes(directory: Path) -> dict[str, Any]:
    """What distinguishes index files from later ones, by the id of their segment."""
    with transaction(directory / DATABASE_FILE) as sql:
        segments = vector_segments(sql)
    return {one.id: [one.position, fingerprint_of_files(directory / one.id)] for one in segments if one.position}
