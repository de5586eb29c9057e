"""Removes old snapshots from a bucket, and the files that no other snapshot has.

Snapshots may be taken meanwhile, by processes that know nothing of this one. Two rules keep a file from being removed
that one of them relies on, whichever of the two is paused, for however long:

- A snapshot relies on the files of the newest snapshot that it found, on files written within `HOLD` before it began,
  and on those it writes. It is complete within half of `HOLD`, or fails. No object is written twice: its name is partly
  random.
- Nothing is removed that is younger than `HOLD`, and no snapshot unless a newer one is older than that. So when a
  snapshot is removed that was the newest for somebody, he has finished long ago, and his own is seen to use the files.
  A file without a snapshot is removed at twice that age.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from chroma_manager.bucket import manifest
from chroma_manager.bucket.addresses import snapshot_of
from chroma_manager.bucket.store import MissingObjectError
from chroma_manager.bucket.upload import HOLD
from chroma_manager.results import Pruned

if TYPE_CHECKING:
    from chroma_manager.bucket.store import Store


async def prune(store: Store, key: str, keep: int, keep_for: float, hold: float = HOLD) -> Pruned:
    """Removes the snapshots of an instance that are to be kept no longer.

    Args:
        store: The repository.
        key: The prefix of the instance in it.
        keep: How many of those older than `hold` are kept, the newest of them; 1 or more.
        keep_for: Seconds for which every snapshot is kept.
        hold: See `HOLD`.

    Raises:
        SnapshotError: The bucket cannot be reached, or a manifest is damaged, and it cannot be told which files are in
            use.
    """
    now = time.time()
    found = await manifest.manifests(store, key)
    settled = [entry for entry in reversed(found) if now - entry.modified > hold]
    expired = {entry.name for entry in settled[keep:] if now - entry.modified > keep_for}
    used: set[str] = set()
    for entry in found:
        if entry.name not in expired:
            # Somebody else has removed it meanwhile.
            with contextlib.suppress(MissingObjectError):
                used |= (await manifest.read(store, key, snapshot_of(entry.name))).objects
    files = [
        entry
        for entry in await manifest.files(store, key)
        if now - entry.modified > 2 * hold and entry.name.rpartition("/")[2] not in used
    ]
    # Snapshots first: if this is interrupted, none is without a file of its own.
    await store.remove(expired)
    await store.remove(entry.name for entry in files)
    return Pruned(len(expired), len(files), sum(entry.size for entry in files))


async def remove_all(store: Store, key: str) -> Pruned:
    """Removes all snapshots of an instance, whatever their age."""
    found = await manifest.manifests(store, key)
    files = await manifest.files(store, key)
    await store.remove(entry.name for entry in found)
    await store.remove(entry.name for entry in files)
    return Pruned(len(found), len(files), sum(entry.size for entry in files))
