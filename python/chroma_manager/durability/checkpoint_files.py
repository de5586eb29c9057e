"""Whether the files of the checkpoints are as they were written, and where a repair quarantines files.

A verification examines them; nothing is decided here.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from chroma_manager.storage.dirty_marker import read_marker
from chroma_manager.storage.files import make_directory, sync_directory
from chroma_manager.storage.manifest import Manifest, fingerprint_of_files, read_manifest
from chroma_manager.storage.paths import CHECKPOINT, DAMAGED, DIRTY_MARKER, HOME
from chroma_manager.storage.sealed import DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

CHUNK = 1 << 20


def problems_with_checkpoints(directory: Path) -> list[str]:
    """What is wrong with the checkpoints of a closed database, in sentences."""
    home = directory / HOME
    manifest, problems = Manifest(), list[str]()
    readers: list[Callable[[], object]] = [
        lambda: manifest.update(read_manifest(home) or {}),
        lambda: read_marker(home),
    ]
    for read in readers:
        try:
            read()
        except DamagedFileError as error:
            problems.append(f"{error}; a repair quarantines it")
    for segment, checkpoint in manifest.items():
        copy, index = home / checkpoint.copy, directory / segment
        if not checkpoint.is_whole(home):
            problems.append(f"the copy {checkpoint.copy} of an index does not have the files that it should have")
        elif fingerprint_of_files(index) == checkpoint.files:
            # Nobody has written the index files since they were copied: one of the two is damaged.
            problems += [
                f"{segment}/{name} is not the same as its copy in {checkpoint.copy}"
                for name in checkpoint.files
                if not _are_same(index / name, copy / name)
            ]
    return problems


def new_repair_name() -> str:
    """A name for one repair, which the names of its files contain."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"


def quarantine_indexes(directory: Path, segments: Iterable[str], repair_name: str) -> Path:
    """Quarantines the index files of some segments of a closed database: moves them to a directory of ours.

    Args:
        directory: The database's.
        segments: The ids of the segments, with or without index files.
        repair_name: The name of this repair.

    Returns:
        The directory.
    """
    kept = directory / HOME / f"{DAMAGED}{repair_name}"
    for name in segments:
        index = directory / name
        if index.is_dir():
            make_directory(kept)
            index.rename(kept / name)
            sync_directory(kept)
    sync_directory(kept.parent)
    sync_directory(directory)
    return kept


def quarantine_checkpoints(directory: Path, target: Path) -> None:
    """Quarantines manifest, dirty marker and copies of a closed database, which starts over without them."""
    home = directory / HOME
    make_directory(target)
    for path in [home / CHECKPOINT, home / DIRTY_MARKER, *home.glob("*@*-*")]:
        if path.exists() or path.is_symlink():
            path.rename(target / path.name)
    sync_directory(target)
    sync_directory(home)


def _are_same(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while True:
            chunk = first.read(CHUNK)
            if chunk != second.read(CHUNK):
                return False
            if not chunk:
                return True
