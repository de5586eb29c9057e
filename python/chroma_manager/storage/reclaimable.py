"""What a compaction would give back: deleted vectors, which stay in the files of an index, and free pages of SQLite.

It is read from the headers of files, without SQLite and without Chroma.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from chroma_manager.storage.files import sorted_entries
from chroma_manager.storage.hnsw_graph import HEADER, IMPOSSIBLE_ROOM
from chroma_manager.storage.index_pickle import labels_in
from chroma_manager.storage.manifest import fingerprint_of_files, read_manifest
from chroma_manager.storage.paths import DATABASE_FILE, HOME, INDEX_NAME, METADATA_FILE
from chroma_manager.storage.sealed import DamagedFileError
from chroma_manager.storage.sqlite_header import free_space

if TYPE_CHECKING:
    from pathlib import Path

    from chroma_manager.storage.hnsw_files import IndexFiles

# Where less would be given back, a closing does not compact a database of itself.
LEAST = 1 << 20


class Reclaimable(NamedTuple):
    """What a compaction would give back.

    Attributes:
        vectors: How many deleted vectors there are.
        size: How many bytes, approximately; without those of the checkpoint's copies.
    """

    vectors: int = 0
    size: int = 0


def of_index(index: Path) -> Reclaimable:
    """What the files of an index would give back; nothing where they are damaged, which a verification finds."""
    return _of_index(index)[0]


def of_files(index: Path, files: IndexFiles) -> Reclaimable:
    """The same of files that have been read."""
    return _part(files.elements, len(files.ids), _size_of_files(index))


def of_database(directory: Path) -> Reclaimable:
    """What a closed database, or one that another process has open, would give back."""
    found = [of_index(index) for index in _indexes(directory)]
    return _sum([*found, Reclaimable(0, _free_space(directory)[0])])


def at_checkpoint(directory: Path) -> Reclaimable | None:
    """What a database would give back that another process has open, as of its last checkpoint.

    ``None`` where there is none.
    """
    try:
        manifest = read_manifest(directory / HOME)
    except (DamagedFileError, OSError):
        return None
    if manifest is None:
        return None
    found = [Reclaimable(*checkpoint.reclaimable) for checkpoint in manifest.values()]
    return _sum([*found, Reclaimable(0, _free_space(directory)[0])])


def size_of(directory: Path) -> int:
    """Bytes of Chroma's own files: SQLite's, and those of the indexes."""
    files = [*fingerprint_of_files(directory).items()]
    indexes = [_size_of_files(index) for index in _indexes(directory)]
    return sum(indexes) + sum(size for name, (size, _) in files if name.startswith(DATABASE_FILE))


def is_mostly_dead(directory: Path) -> bool:
    """Whether more than half of an index of a closed database, or of its SQLite file, would be given back."""
    parts = [(found.size, whole) for found, whole in map(_of_index, _indexes(directory))]
    return any(size > LEAST and 2 * size > whole for size, whole in [*parts, _free_space(directory)])


def _of_index(index: Path) -> tuple[Reclaimable, int]:
    """What the files of an index would give back, and their size."""
    whole = _size_of_files(index)
    with contextlib.suppress(Exception):  # a damaged pickle raises anything
        elements = HEADER.unpack((index / "header.bin").read_bytes())[3]
        return _part(elements, len(labels_in((index / METADATA_FILE).read_bytes())), whole), whole
    return Reclaimable(), whole


def _part(elements: int, records: int, whole: int) -> Reclaimable:
    """What of index files with so many bytes belongs to elements without a record."""
    deleted = elements - records
    if 0 < deleted <= elements < IMPOSSIBLE_ROOM:
        return Reclaimable(deleted, whole * deleted // elements)
    return Reclaimable()


def _size_of_files(index: Path) -> int:
    return sum(size for size, _ in fingerprint_of_files(index).values())


def _indexes(directory: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [directory / entry.name for entry in sorted_entries(directory) if INDEX_NAME.fullmatch(entry.name)]
    return []


def _free_space(directory: Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        return free_space(directory / DATABASE_FILE)
    return 0, 0


def _sum(found: list[Reclaimable]) -> Reclaimable:
    return Reclaimable(sum(one.vectors for one in found), sum(one.size for one in found))
