"""The manifest of the checkpoints: which copies of the index files there are, and what each stands for."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple

from chroma_manager.storage.files import sorted_files
from chroma_manager.storage.paths import CHECKPOINT
from chroma_manager.storage.sealed import DamagedFileError, read_sealed, write_sealed


class Checkpoint(NamedTuple):
    """A copy of the index files of one segment.

    Attributes:
        position: Sequence id up to which they have applied the log.
        row: Fingerprint of the row of the log with that id (``log.fingerprint_of_row``), which distinguishes it from a
            row of another history; ``None`` where there was no such row.
        files: Size and time of modification (ns) of each of the files that were copied.
        copy: Name of the copy's directory, in ours.
        reclaimable: How many deleted vectors they have, and how many bytes a compaction would give back.
    """

    position: int
    row: int | None
    files: dict[str, list[int]]
    copy: str
    reclaimable: tuple[int, int] = (0, 0)

    def stands_for(self, position: int, files: dict[str, list[int]]) -> bool:
        """Whether these index files are the ones that were copied, judging by sizes and times."""
        return (self.position, self.files) == (position, files)

    def is_whole(self, home: Path) -> bool:
        """Whether the copy has all of its files, with their sizes."""
        copy = home / self.copy
        if copy.is_symlink() or not copy.is_dir():
            return False
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in sorted_files(copy)}
        return all(stat.S_ISREG(status.st_mode) for status in found.values()) and (
            {name: status.st_size for name, status in found.items()}
            == {name: size for name, (size, _) in self.files.items()}
        )


Manifest = dict[str, Checkpoint]


def read_manifest(home: Path) -> Manifest | None:
    """The checkpoints by the id of their segment; ``None`` where there is no manifest.

    Raises:
        DamagedFileError: It is damaged.
    """
    file = home / CHECKPOINT
    content = read_sealed(file)
    if content is None:
        return None
    try:
        return {segment: Checkpoint(**fields) for segment, fields in content.items()}
    except TypeError as error:
        raise DamagedFileError(file, "it does not have the fields that are expected") from error


def write_manifest(home: Path, manifest: Manifest) -> None:
    """Replaces the manifest durably and as a whole."""
    write_sealed(home / CHECKPOINT, {segment: checkpoint._asdict() for segment, checkpoint in manifest.items()})


def positions(manifest: Manifest) -> dict[str, int]:
    """Up to which sequence id each copy has applied the log."""
    return {segment: checkpoint.position for segment, checkpoint in manifest.items()}


def proven_positions(manifest: Manifest) -> dict[str, int]:
    """Up to which sequence id each index has applied the log. A copy without files is of one that remains damaged."""
    return {segment: checkpoint.position for segment, checkpoint in manifest.items() if checkpoint.files}


def fingerprint_of_files(directory: Path) -> dict[str, list[int]]:
    """Size and time of modification (ns) of each file, which distinguish the files from later ones."""
    if not directory.is_dir():
        return {}
    entries = [(entry.name, entry.stat()) for entry in sorted_files(directory)]
    return {name: [status.st_size, status.st_mtime_ns] for name, status in entries}
