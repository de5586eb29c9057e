"""Sends a snapshot to a bucket: the files that the bucket does not have, and then the manifest.

A file that the bucket has is used again if the newest snapshot has it too, or if it was written within `HOLD`: an
interrupted snapshot leaves such files. No other file is relied on, because it may be about to be pruned (`pruning.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

from chroma_manager.bucket import manifest
from chroma_manager.bucket.addresses import new_snapshot, snapshot_of
from chroma_manager.bucket.running import at_once
from chroma_manager.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chroma_manager.bucket.store import Store
    from chroma_manager.results import Snapshot

# Seconds for which nothing is pruned that a snapshot may rely on, and in half of which it is complete or has failed.
# Half a day is left for clocks that differ.
HOLD = 24 * 3600.0

_CHUNK = 1 << 20


async def upload(store: Store, key: str, directory: Path, content: dict[str, Any], hold: float = HOLD) -> Snapshot:
    """Sends a snapshot.

    Args:
        store: The repository.
        key: The prefix of the instance in it.
        directory: The snapshot's.
        content: Its manifest.
        hold: See `HOLD`.

    Raises:
        SnapshotError: It is not complete. What was sent by then will be used by the next one.
    """
    began = _clocks()
    newest, known = await _reusable(store, key, hold)
    files: dict[str, Any] = content["files"]
    missing = {file["sha256"]: name for name, file in files.items() if (file["sha256"], file["size"]) not in known}
    objects = {checksum: f"{checksum}-{os.urandom(4).hex()}" for checksum in missing}
    await at_once(
        store.send(f"{key}/files/{objects[checksum]}", files[name]["size"], _read(directory / name, checksum))
        for checksum, name in missing.items()
    )
    late = SnapshotError(f"the snapshot to {store.url}/{key} took longer than {hold / 7200:.0f} hours; take it again")
    if _since(began) > hold / 2:
        raise late
    named = {
        name: {**file, "object": objects.get(file["sha256"]) or known[file["sha256"], file["size"]]}
        for name, file in files.items()
    }
    stored = await manifest.write(store, key, _name_after(store, key, newest), {**content, "files": named})
    if _since(began) > hold / 2:
        # The process was paused in between, and files may be gone by now.
        await store.remove([stored.name])
        raise late
    return stored.result(store.url, sent=sum(files[name]["size"] for name in missing.values()))


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.time()


def _since(began: tuple[float, float]) -> float:
    """Seconds, by the clock that has gone on further: one stands still while the machine sleeps, one may be set."""
    return max(now - then for now, then in zip(_clocks(), began, strict=True))


def _name_after(store: Store, key: str, newest: str | None) -> str:
    try:
        return new_snapshot(newest)
    except OverflowError as error:
        last = f"{store.url}/{key}/snapshots/{newest}.json"
        raise SnapshotError(f"{last} has the last time that a name can have, so none is newer: remove it") from error


async def _reusable(store: Store, key: str, hold: float) -> tuple[str | None, dict[tuple[str, int], str]]:
    """The newest snapshot, and the objects that may be used again by checksum and size."""
    found = await manifest.manifests(store, key)
    newest = snapshot_of(found[-1].name) if found else None
    relied: set[str] = set()
    if newest is not None:
        # Where it cannot be read, everything is sent.
        with contextlib.suppress(SnapshotError):
            relied = (await manifest.read(store, key, newest)).objects
    known = {}
    for entry in await manifest.files(store, key):
        name = entry.name.rpartition("/")[2]
        if name in relied or time.time() - entry.modified < hold:
            known[name.partition("-")[0], entry.size] = name
    return newest, known


async def _read(file: Path, expected: str) -> AsyncIterator[bytes]:
    """The content of a file, which fails at the end if it is not what the manifest says: nothing is stored then."""
    checksum = hashlib.sha256()
    with file.open("rb") as reader:
        while chunk := reader.read(_CHUNK):
            checksum.update(chunk)
            yield chunk
            await asyncio.sleep(0)
    if checksum.hexdigest() != expected:
        raise SnapshotError(f"{file} cannot be sent: its checksum does not match")
