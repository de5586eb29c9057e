"""Fetches a snapshot from a bucket into a directory, and compares every file with its size and checksum."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from chroma_manager.bucket.running import at_once
from chroma_manager.durability.snapshot import MANIFEST
from chroma_manager.errors import SnapshotError
from chroma_manager.storage.files import step, sync_directory

if TYPE_CHECKING:
    from pathlib import Path

    from chroma_manager.bucket.manifest import Stored
    from chroma_manager.bucket.store import Store


async def download(store: Store, key: str, stored: Stored, directory: Path) -> None:
    """Writes the files of a snapshot durably.

    Args:
        store: The repository.
        key: The prefix of the instance in it.
        stored: The snapshot.
        directory: Where they go; it is empty, or does not exist.

    Raises:
        SnapshotError: A file is missing or damaged, or cannot be fetched or written.
    """
    files: dict[str, Any] = stored.content["files"]
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
    await at_once(
        _fetch(store, f"{key}/files/{file['object']}", file, directory / name) for name, file in files.items()
    )
    for parent in {(directory / name).parent for name in files} | {directory}:
        sync_directory(parent)


def write_manifest(stored: Stored, directory: Path) -> None:
    """Writes what makes the files a snapshot, which can be restored."""
    (directory / MANIFEST).write_text(json.dumps(stored.content))


async def _fetch(store: Store, name: str, file: dict[str, Any], target: Path) -> None:
    size, chunks = await store.open(name)
    if size != file["size"]:
        raise SnapshotError(f"{store.url}/{name} is damaged: it has {size} bytes, and the snapshot {file['size']}")
    checksum = hashlib.sha256()
    with target.open("xb") as writer:
        async for chunk in chunks:
            checksum.update(chunk)
            writer.write(chunk)
            step("part of a file fetched")
        writer.flush()
        os.fsync(writer.fileno())
    if checksum.hexdigest() != file["sha256"]:
        raise SnapshotError(f"{store.url}/{name} is damaged: its checksum does not match")
