"""Removes old snapshots from a bucket, and the files that no other snapshot has.

Snapshots may be taken and pruned meanwhile, by processes that know nothing of this one. These rules keep every snapshot
from losing a file:

- A snapshot has files of the newest snapshot that it found, files that were younger than `HOLD` when it looked, and
  files that it has written. From its first request to its manifest it takes half of `HOLD` at most, or it fails. No
  object is written twice: its name is partly random.
- A pruning reads the clock, and then lists the manifests. It removes no snapshot that is younger than `HOLD`, and none
  unless a newer one is older than that. Before it removes a file, it has read all other manifests of its list. Where
  one has gone, it begins anew: the files may be those of a snapshot that the list does not have.
- It removes a file that none of these manifests has, and that is older than twice `HOLD`.

So no snapshot comes to have a file that is being removed. It could have found the file in the newest snapshot only if
that one is removed, and before the newer one was there; or it found the file young. Both were `HOLD` before the clock
was read, so the snapshot was complete by then, and its manifest is among those that were read. This holds for any
number of prunings, each of them paused at any point for however long, because none reads the clock again.

A snapshot that is paused fails, with one exception: between its last look at the clock and the arrival of its manifest.
It looks again afterwards, and removes the manifest if that came too late. In between it may be without a file, and for
ever if its process is killed just there.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from chroma_manager.bucket import manifest
from chroma_manager.bucket.addresses import snapshot_of
from chroma_manager.bucket.store import MissingObjectError
from chroma_manager.bucket.upload import HOLD
from chroma_manager.errors import SnapshotError
from chroma_manager.results import Pruned

if TYPE_CHECKING:
    from chroma_manager.bucket.store import Entry, Store

# How often the bucket is looked at, if other prunings remove snapshots meanwhile that this one was to keep.
_ATTEMPTS = 10


async def prune(store: Store, key: str, keep: int, keep_for: float, hold: float = HOLD) -> Pruned:
    """Removes the snapshots of an instance that are to be kept no longer.

    Args:
        store: The repository.
        key: The prefix of the instance in it.
        keep: How many of those older than `hold` are kept, the newest of them; 1 or more.
        keep_for: Seconds for which every snapshot is kept.
        hold: See `HOLD`.

    Raises:
        SnapshotError: The bucket cannot be reached; or a manifest is damaged, or others remove snapshots all the time,
            and it cannot be told which files are in use.
    """
    for _ in range(_ATTEMPTS):
        found = await _removable(store, key, keep, keep_for, hold)
        if found is not None:
            snapshots, files = found
            # Snapshots first: if this is interrupted, none is without a file of its own.
            await store.remove(snapshots)
            await store.remove(entry.name for entry in files)
            return Pruned(len(snapshots), len(files), sum(entry.size for entry in files))
    raise SnapshotError(f"{store.url}/{key} has snapshots that others remove all the time: prune it when they are done")


async def _removable(
    store: Store, key: str, keep: int, keep_for: float, hold: float
) -> tuple[list[str], list[Entry]] | None:
    """The manifests and the files to remove; ``None`` where a snapshot that was to stay has gone since the list."""
    now = time.time()
    found = await manifest.manifests(store, key)
    settled = [entry for entry in reversed(found) if now - entry.modified > hold]
    expired = {entry.name for entry in settled[keep:] if now - entry.modified > keep_for}
    used: set[str] = set()
    try:
        for entry in found:
            if entry.name not in expired:
                used |= (await manifest.read(store, key, snapshot_of(entry.name))).objects
    except MissingObjectError:
        return None
    files = [
        entry
        for entry in await manifest.files(store, key) + manifest.parts(store, key)
        if now - entry.modified > 2 * hold and entry.name.rpartition("/")[2] not in used
    ]
    return sorted(expired), files


async def remove_all(store: Store, key: str) -> Pruned:
    """Removes all snapshots of an instance, whatever their age."""
    found = await manifest.manifests(store, key)
    files = await manifest.files(store, key) + manifest.parts(store, key)
    await store.remove(entry.name for entry in found)
    await store.remove(entry.name for entry in files)
    return Pruned(len(found), len(files), sum(entry.size for entry in files))
