"""The URLs that name a repository of snapshots, or one snapshot in it, and the names of the objects below a URL.

URL/FILE_ID/EMBEDDING_TYPE/snapshots/TIME-RANDOM.json    a snapshot: its manifest, which is written last
URL/FILE_ID/EMBEDDING_TYPE/files/SHA256-RANDOM           a file of one or more snapshots, never overwritten

Everything else below the URL is somebody else's: it is neither listed nor removed.
"""

from __future__ import annotations

import os
import re
from datetime import datetime, timedelta, timezone
from typing import NamedTuple
from urllib.parse import quote, unquote

from chroma_manager.errors import SnapshotError
from chroma_manager.options import BUCKET_URL, URL, names_bucket

_MANIFEST = re.compile(r"(?P<repository>.+)/(?P<key>[^/]+/[^/]+)/snapshots/(?P<name>[^/]+)\.json")

_SNAPSHOT = re.compile(r"(?P<time>[0-9]{8}T[0-9]{6}\.[0-9]{6})Z-[0-9a-f]{8}")

_OBJECT = re.compile(r"[0-9a-f]{64}-[0-9a-f]{8}")

_TIME = "%Y%m%dT%H%M%S.%f"


class Address(NamedTuple):
    """What a URL names: a repository, and one snapshot in it by the key of its instance and its name, or none."""

    repository: str
    key: str | None = None
    snapshot: str | None = None


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place for a snapshot is a URL, and not a directory."""
    return isinstance(place, str) and URL.match(place) is not None


def address_of(url: str) -> Address:
    """What a URL names.

    Raises:
        SnapshotError: It is of another scheme, or names nothing.
    """
    if not names_bucket(url):
        raise SnapshotError(f"{url}: {BUCKET_URL}")
    found = _MANIFEST.fullmatch(url)
    return Address(url.rstrip("/")) if found is None else Address(found["repository"], found["key"], found["name"])


def key_of(file_id: str, embedding_type: str) -> str:
    """The prefix of the objects of an instance, below the URL: its names, percent-encoded where they need it."""
    return f"{_encoded(file_id)}/{_encoded(embedding_type)}"


def instance_of(key: str) -> tuple[str, str]:
    """The names of the instance with a prefix."""
    file_id, _, embedding_type = key.partition("/")
    return unquote(file_id), unquote(embedding_type)


def _encoded(name: str) -> str:
    # Letters and digits of all scripts stay: encoded, a long name would be too long for a key.
    return re.sub(r"[^\w.-]", lambda found: quote(found[0], safe=""), name)


def manifest_of(key: str, snapshot: str) -> str:
    """The name of the object with a snapshot's manifest."""
    return f"{key}/snapshots/{snapshot}.json"


def snapshot_of(manifest: str) -> str:
    """The name of a snapshot, for that of its manifest."""
    return manifest.rpartition("/")[2].removesuffix(".json")


def is_manifest(name: str) -> bool:
    """Whether an object that is directly below `snapshots/` has the name of a manifest."""
    return name.endswith(".json") and _time_of(snapshot_of(name)) is not None


def is_file(name: str) -> bool:
    """Whether an object, by the last part of its name, can be a file of a snapshot."""
    return _OBJECT.fullmatch(name) is not None


def is_part(name: str) -> bool:
    """Whether a file of a directory, by its name, is a part of one of these objects: obstore adds a number."""
    whole, _, number = name.rpartition("#")
    return number.isdecimal() and (is_file(whole) or is_manifest(whole))


def new_snapshot(newest: str | None) -> str:
    """A name for a snapshot that is taken now. Names are in the order of time.

    Args:
        newest: The name of the newest one that there is. The new one is later, even if the clock of the machine that
            took the other one is fast.

    Raises:
        OverflowError: No time is later than that of the newest one.
    """
    now = datetime.now(timezone.utc)
    last = None if newest is None else _time_of(newest)
    if last is not None:
        now = max(now, last + timedelta(microseconds=1))
    return f"{now.strftime(_TIME)}Z-{os.urandom(4).hex()}"


def _time_of(snapshot: str) -> datetime | None:
    """The time in the name of a snapshot; ``None`` for a name that none has."""
    found = _SNAPSHOT.fullmatch(snapshot)
    try:
        return None if found is None else datetime.strptime(found["time"], _TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
