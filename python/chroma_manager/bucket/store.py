"""A bucket, or the part of it below a URL, as obstore reaches it; and what its failures are to us.

Every failure is a `SnapshotError` that names the URL, and comes within a bounded time: a request is repeated for a
minute at most, and a server that says nothing for half a minute has failed.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager.bucket.library import loaded
from chroma_manager.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

_RETRIES = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}

# Of a request as a whole there is no limit: how long it takes depends on the size of the file.
_TIMEOUTS = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "7d"}

# obstore takes these apart from the others, and where it is given any of them it reads none from the environment.
_CLIENT_OPTIONS = (
    *("allow_http", "allow_invalid_certificates", "connect_timeout", "http1_only", "http2_only"),
    *("pool_idle_timeout", "proxy_ca_certificate", "proxy_excludes", "proxy_url", "read_timeout"),
    *("root_certificate", "timeout", "user_agent"),
)

_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}

# A file is sent in parts of this size, or in more than this many larger ones; at most two of a file are in memory.
_PART, _MOST_PARTS, _PARTS_AT_ONCE = 8 << 20, 9_000, 2

_LONGEST_REASON = 600


class MissingObjectError(SnapshotError):
    """There is no such object, or no such bucket."""


class InvalidNameError(SnapshotError):
    """There is an object whose name obstore does not take. No snapshot has any, and nothing beside it can be listed."""


class Entry(NamedTuple):
    """An object in a list: its name below the URL, its size in bytes, and when it was written (seconds since 1970)."""

    name: str
    size: int
    modified: float


class Store:
    """What is below a URL."""

    def __init__(self, url: str, options: Mapping[str, str], *, writes: bool = False) -> None:
        """Takes options of obstore beside those in the environment; with `writes`, creates a directory of `file://`."""
        self.url = url
        self._obstore = loaded()
        scheme = url.partition("://")[0]
        with self._failures():
            self._store = self._obstore.store.from_url(
                url, **({"mkdir": writes} if scheme == "file" else _settings(_VARIABLES[scheme], options))
            )

    async def entries(self, prefix: str) -> list[Entry]:
        """The objects directly below a prefix, with no further slash in their names."""
        with self._failures(prefix):
            found = await self._obstore.list_with_delimiter_async(self._store, prefix)
        return [Entry(one["path"], one["size"], one["last_modified"].timestamp()) for one in found["objects"]]

    def parts(self, prefix: str) -> list[Entry]:
        """What is being written directly below a prefix of `file://`, or was interrupted. `entries` has none of it."""
        found: list[Entry] = []
        if self.url.startswith("file://"):
            for path in Path(self._store.prefix, prefix).glob("*#*"):
                with contextlib.suppress(MissingObjectError), self._failures(f"{prefix}/{path.name}"):
                    status = path.stat()
                    found.append(Entry(f"{prefix}/{path.name}", status.st_size, status.st_mtime))
        return found

    async def folders(self, prefix: str | None = None) -> list[str]:
        """What the names of objects below a prefix have between it and the next slash, with the prefix."""
        with self._failures(prefix or ""):
            found = await self._obstore.list_with_delimiter_async(self._store, prefix)
        return sorted(found["common_prefixes"])

    async def read(self, name: str, limit: int) -> bytes:
        """An object that has no more bytes than the limit."""
        size, chunks = await self.open(name)
        if size > limit:
            raise SnapshotError(f"{self.url}/{name} has {size} bytes, and {limit} are the most that is read")
        return b"".join([chunk async for chunk in chunks])

    async def open(self, name: str) -> tuple[int, AsyncIterator[bytes]]:
        """The size of an object, and its content in chunks."""
        with self._failures(name):
            found = await self._obstore.get_async(self._store, name)
        return found.meta["size"], self._chunks(name, found)

    async def _chunks(self, name: str, found: Any) -> AsyncIterator[bytes]:
        with self._failures(name):
            async for chunk in found.stream(min_chunk_size=1 << 20):
                yield chunk

    async def create(self, name: str, content: bytes) -> None:
        """Writes a small object whose name is new."""
        with self._failures(name), contextlib.suppress(self._obstore.exceptions.AlreadyExistsError):
            # If it exists, it is this one: the request was repeated because the first answer was lost.
            await self._obstore.put_async(self._store, name, content, mode="create")

    async def send(self, name: str, size: int, chunks: AsyncIterator[bytes]) -> None:
        """Writes an object of that size as a whole; nothing of it is seen before."""
        part = max(_PART, size // _MOST_PARTS + 1)
        with self._failures(name):
            content: Any = b"".join([chunk async for chunk in chunks]) if size <= _PART else chunks
            await self._obstore.put_async(self._store, name, content, chunk_size=part, max_concurrency=_PARTS_AT_ONCE)

    async def remove(self, names: Iterable[str]) -> None:
        """Removes objects, and parts of `file://`, if they are there."""
        for name in names:
            with contextlib.suppress(MissingObjectError), self._failures(name):
                if "#" in name:
                    Path(self._store.prefix, name).unlink()
                else:
                    await self._obstore.delete_async(self._store, name)

    @contextlib.contextmanager
    def _failures(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except SnapshotError:
            raise
        except Exception as error:
            reason, _, _ = str(error).partition("\n\nDebug source:")
            text = f"{self.url}{'/' if name else ''}{name}: {' '.join(reason.split())[:_LONGEST_REASON]}"
            raise self._kind(error)(text) from error

    def _kind(self, error: Exception) -> type[SnapshotError]:
        if isinstance(error, FileNotFoundError):
            return MissingObjectError
        return InvalidNameError if isinstance(error, self._obstore.exceptions.InvalidPathError) else SnapshotError


def _settings(variables: str, options: Mapping[str, str]) -> dict[str, Any]:
    environment = {name: os.environ.get(variables + name.upper()) for name in _CLIENT_OPTIONS}
    client = _TIMEOUTS | {name: value for name, value in environment.items() if value}
    client |= {name: value for name, value in options.items() if name in _CLIENT_OPTIONS}
    config = {name: value for name, value in options.items() if name not in _CLIENT_OPTIONS}
    return {"config": config, "client_options": client, "retry_config": _RETRIES}
