"""The manifests in a bucket: that of a snapshot (`durability/snapshot.py`), which also says which object has each file.

Whoever can write to the bucket can write anything into it, so all that is used is checked.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager.bucket.addresses import is_file, is_manifest, is_part, manifest_of, snapshot_of
from chroma_manager.durability.snapshot import parse_manifest
from chroma_manager.errors import SnapshotError
from chroma_manager.results import Snapshot

if TYPE_CHECKING:
    from chroma_manager.bucket.store import Entry, Store

_LARGEST = 64 << 20

# A time that every system can print, in seconds since 1970.
_LATEST = 1e11


class Stored(NamedTuple):
    """A snapshot in a bucket."""

    name: str
    content: dict[str, Any]

    @property
    def objects(self) -> set[str]:
        """The names of the objects that have its files, without the prefix."""
        return {file["object"] for file in self.content["files"].values()}

    def result(self, url: str, sent: int | None = None) -> Snapshot:
        """What a caller is told of it."""
        return Snapshot.of(f"{url}/{self.name}", self.content, sent)


async def manifests(store: Store, key: str) -> list[Entry]:
    """The manifests of an instance, from the oldest to the newest."""
    found = await store.entries(f"{key}/snapshots")
    return sorted(entry for entry in found if is_manifest(entry.name))


async def files(store: Store, key: str) -> list[Entry]:
    """The files that the snapshots of an instance have, or had, or that one being taken has sent."""
    return [entry for entry in await store.entries(f"{key}/files") if is_file(entry.name.rpartition("/")[2])]


def parts(store: Store, key: str) -> list[Entry]:
    """What interrupted snapshots have left of an object, where the bucket is a directory."""
    found = store.parts(f"{key}/snapshots") + store.parts(f"{key}/files")
    return [entry for entry in found if is_part(entry.name.rpartition("/")[2])]


async def newest_snapshot(store: Store, key: str) -> str | None:
    """The name of the newest snapshot of an instance; ``None`` where it has none."""
    found = await manifests(store, key)
    return snapshot_of(found[-1].name) if found else None


async def read(store: Store, key: str, snapshot: str) -> Stored:
    """A snapshot in a bucket.

    Raises:
        SnapshotError: There is none of that name, or its manifest is damaged.
    """
    name = manifest_of(key, snapshot)
    content = parse_manifest(await store.read(name, _LARGEST), f"the snapshot {store.url}/{name}")
    is_sound = _is_time(content.get("created_at")) and isinstance(content.get("records"), int)
    for file in content["files"].values():
        named = file.get("object")
        is_sound = is_sound and isinstance(named, str) and is_file(named)
        is_sound = is_sound and file["size"] >= 0 and named.startswith(f"{file['sha256']}-")
    if not is_sound:
        raise SnapshotError(f"the snapshot {store.url}/{name} is damaged, or of a later version")
    return Stored(name, content)


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < _LATEST


async def write(store: Store, key: str, snapshot: str, content: dict[str, Any]) -> Stored:
    """Writes a manifest, with which a snapshot begins to exist."""
    stored = Stored(manifest_of(key, snapshot), content)
    await store.create(stored.name, json.dumps(content, indent=1).encode())
    return stored
