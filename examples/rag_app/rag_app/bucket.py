"""Where the files are kept: a bucket of Google Cloud Storage, or a local directory with the same interface.

What is used of it is what ``google.cloud.storage.Bucket`` has, so one takes the place of the other (``gcs_handler``).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, cast

from rag_app.configs import Configs


class Blob(Protocol):
    """An object in a bucket, as ``google.cloud.storage.Blob``."""

    @property
    def name(self) -> str:
        """Its name in the bucket."""

    def upload_from_filename(self, filename: str) -> None:
        """Stores the content of a file, all of it or nothing."""

    def upload_from_string(self, data: bytes) -> None:
        """Stores these bytes, all of them or nothing."""

    def download_as_bytes(self) -> bytes:
        """Returns the content."""

    def delete(self) -> None:
        """Removes it."""


class Bucket(Protocol):
    """A bucket, as ``google.cloud.storage.Bucket``."""

    def blob(self, blob_name: str) -> Blob:
        """Returns a handle of an object, which need not exist."""

    def list_blobs(self, prefix: str | None = None) -> Iterable[Blob]:
        """Returns the objects whose names begin with a prefix."""


def open_bucket(configs: Configs) -> Bucket:
    """Opens the bucket of the configuration. Google's client finds its credentials in the environment."""
    if configs.bucket is None:
        return LocalBucket(configs.data / "bucket")
    from google.cloud import storage  # noqa: PLC0415 - the local bucket does without it

    return cast("Bucket", storage.Client().bucket(configs.bucket))


class LocalBucket:
    """A directory. Its objects are files in it; their names are given by the app, and never by a user."""

    def __init__(self, root: Path) -> None:
        """Creates the directory where there is none."""
        root.mkdir(parents=True, exist_ok=True)
        self._root = root

    def blob(self, blob_name: str) -> Blob:
        """See ``Bucket``."""
        return LocalBlob(self._root, blob_name)

    def list_blobs(self, prefix: str | None = None) -> Iterable[Blob]:
        """See ``Bucket``."""
        names = (path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if path.is_file())
        return [LocalBlob(self._root, name) for name in sorted(names) if name.startswith(prefix or "")]


class LocalBlob:
    """A file of a local bucket."""

    def __init__(self, root: Path, name: str) -> None:
        """Touches nothing."""
        self.name = name
        self._root = root
        self._path = root / name

    def upload_from_filename(self, filename: str) -> None:
        """See ``Blob``."""
        self.upload_from_string(Path(filename).read_bytes())

    def upload_from_string(self, data: bytes) -> None:
        """See ``Blob``."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)

    def download_as_bytes(self) -> bytes:
        """See ``Blob``."""
        return self._path.read_bytes()

    def delete(self) -> None:
        """See ``Blob``."""
        self._path.unlink(missing_ok=True)
        if self._path.parent != self._root and not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()
