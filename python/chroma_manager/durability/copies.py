"""Copies of index files: taken and proven for a checkpoint, removed when the manifest no longer names them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from chroma_manager.storage.connection import transaction
from chroma_manager.storage.files import copy_directory, remove_tree, step, sync_directory, sync_tree
from chroma_manager.storage.log import VectorSegment, fingerprint_of_row, vector_segments
from chroma_manager.storage.manifest import Checkpoint, Manifest, fingerprint_of_files, read_manifest
from chroma_manager.storage.paths import DAMAGED, DATABASE_FILE, HOME, SCRATCH, TRASH

if TYPE_CHECKING:
    from collections.abc import Iterator


class UnprovenError(OSError):
    """The index files of a segment are not proven to hold what the log says."""


class DeletedError(UnprovenError):
    """The collection of an index was deleted while the index was copied, or its copy proven."""


def indexed_segments(directory: Path) -> list[VectorSegment]:
    """The vector segments of a database that have index files."""
    with transaction(directory / DATABASE_FILE) as sql:
        return [one for one in vector_segments(sql) if one.position and (directory / one.id).is_dir()]


def copy_changed(
    directory: Path, manifest: Manifest, segments: list[VectorSegment], *, is_last: bool
) -> tuple[Manifest, list[tuple[VectorSegment, str]]]:
    """Copies the indexes that have changed since their checkpoint.

    Args:
        directory: The database's.
        manifest: The present checkpoints.
        segments: Those whose indexes are to have one.
        is_last: Whether the database is closed for good afterwards. Then the index files are synced. Otherwise the
            copies alone are, because a recovery takes these, and calls wait.

    Returns:
        The new checkpoints; and the segments whose copy is not proven, with the reason. These keep the checkpoint that
        they had.
    """
    copied, unproven = dict[str, Checkpoint](), list[tuple[VectorSegment, str]]()
    for segment in segments:
        known = manifest.get(segment.id)
        if known is not None:
            copied[segment.id] = known
        try:
            if is_last:
                sync_index(directory, segment)
            if known is None or not known.stands_for(segment.position, fingerprint_of_files(directory / segment.id)):
                copied[segment.id] = proven(directory, segment, copy_index(directory, segment), known)
        except UnprovenError as error:
            unproven.append((segment, str(error)))
    return copied, unproven


def proven(directory: Path, segment: VectorSegment, copied: Checkpoint, known: Checkpoint | None) -> Checkpoint:
    """A copy that is proven to hold what the log says, with what it would give back.

    Args:
        directory: The database's.
        segment: The index's, as it was when it was copied.
        copied: The copy, which is synced.
        known: The checkpoint that it had before.

    Raises:
        DeletedError: The collection is not there any more.
        UnprovenError: The copy does not hold what the log says.
    """
    from chroma_manager.durability.proof import files_of, problem_with  # noqa: PLC0415 - an opening does not need it
    from chroma_manager.storage.reclaimable import of_files  # noqa: PLC0415 - likewise

    home = directory / HOME
    with transaction(directory / DATABASE_FILE) as sql:
        # All is read as of one moment: the collection of an open database may be deleted meanwhile.
        sql.execute("begin")
        if sql.execute("select 1 from collections where id = ?", (segment.collection,)).fetchone() is None:
            raise DeletedError("its collection was deleted")
        files = files_of(sql, segment, home / copied.copy)
        before = None if known is None else files_of(sql, segment, home / known.copy)
        problem = problem_with(sql, segment, files, before, known.position if known else 0)
    if problem is not None:
        raise UnprovenError(problem)
    return copied._replace(reclaimable=of_files(home / copied.copy, files))


def sync_index(directory: Path, segment: VectorSegment) -> None:
    """Syncs the index files of a segment, which Chroma does not.

    Raises:
        UnprovenError: They cannot be synced.
    """
    try:
        sync_tree(directory / segment.id)
    except OSError as error:
        # Not to be retried: the system considers the pages clean now, and the next sync would succeed.
        raise UnprovenError(f"its files cannot be synced ({error.strerror})") from error
    sync_directory(directory)


def copy_index(directory: Path, segment: VectorSegment, *, durably: bool = True) -> Checkpoint:
    """Copies the index files of a segment.

    Args:
        directory: The database's.
        segment: It.
        durably: Whether the copy is synced.

    Returns:
        The copy, of which is not known yet what it would give back.
    """
    index, home = directory / segment.id, directory / HOME
    with transaction(directory / DATABASE_FILE) as sql:
        row = fingerprint_of_row(sql, segment.topic, segment.position)
    # A new name: until the manifest is written, a recovery takes the previous copy.
    name = f"{segment.id}@{segment.position}-{os.urandom(4).hex()}"
    copied = Checkpoint(segment.position, row, fingerprint_of_files(index), name)
    copy_directory(index, home / name, durably=durably)
    if durably:
        sync_directory(home)
    step("copied")
    return copied


@contextlib.contextmanager
def only_named_copies(home: Path) -> Iterator[None]:
    """Removes copies that the manifest does not name, before and after."""
    remove_unneeded(home, read_manifest(home) or {})
    try:
        yield
    finally:
        # A copy that failed may have taken the last space.
        remove_unneeded(home, read_manifest(home) or {})


def remove_unneeded(home: Path, manifest: Manifest) -> None:
    """Removes copies that a manifest does not name, and what a kill or a full disk has left of other files.

    Only for a closed database.
    """
    remove_unnamed(home, manifest)
    for path in home.iterdir():
        # A link is not ours, and neither is what it leads to.
        is_link = path.is_symlink() and not path.name.startswith(DAMAGED)
        if is_link or path.name.endswith((".new", TRASH)) or path.name == SCRATCH:
            remove_tree(path)


def remove_unnamed(home: Path, manifest: Manifest) -> None:
    """Removes copies that a manifest does not name: older ones, and what a kill or a full disk has left of new ones."""
    named = {checkpoint.copy for checkpoint in manifest.values()}
    for path in home.iterdir():
        if "@" in path.name and path.name not in named:
            remove_tree(path)
