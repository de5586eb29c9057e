"""The snapshots below one URL, of any number of instances: taken, listed, restored and pruned.

This is the door of the folder. Each method waits until it is done.
"""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chroma_manager.bucket import manifest, pruning
from chroma_manager.bucket.addresses import address_of, instance_of, key_of, snapshot_of
from chroma_manager.bucket.download import download, write_manifest
from chroma_manager.bucket.running import run
from chroma_manager.bucket.store import InvalidNameError, MissingObjectError, Store
from chroma_manager.bucket.upload import upload
from chroma_manager.bucket.workspace import workspace
from chroma_manager.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from chroma_manager.results import Pruned, Snapshot

_logger = logging.getLogger("chroma_manager")


@dataclass(frozen=True)
class Keep:
    """Which snapshots are kept: the newest ones, and those of a time. All of the last day are, in any case."""

    newest: int
    seconds: float

    @classmethod
    def of(cls, keep: int | None, keep_for: timedelta | None, *, least: int = 1) -> Keep | None:
        """The rule that arguments of a caller state; ``None`` where they state none.

        Raises:
            ValueError: They are no rule.
        """
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < least):
            raise ValueError(f"keep={keep!r}: it must be a number of snapshots, {least} or more")
        if keep_for is not None and (not isinstance(keep_for, timedelta) or keep_for < timedelta()):
            raise ValueError(f"keep_for={keep_for!r}: it must be a timedelta that is not negative")
        if keep is None and keep_for is None:
            return None
        return cls(1 if keep is None else keep, 0.0 if keep_for is None else keep_for.total_seconds())


@dataclass(frozen=True)
class Repository:
    """What is below a URL; with options for obstore, beside those in the environment."""

    url: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    def take(
        self,
        file_id: str,
        embedding_type: str,
        database: Path,
        copy: Callable[[str], dict[str, Any]],
        keep: Keep | None,
    ) -> Snapshot:
        """Sends a snapshot.

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.
            database: The directory of the database.
            copy: Takes a snapshot to the directory that it is given, and returns its manifest.
            keep: Which older ones are kept; ``None`` for all.
        """
        key = key_of(file_id, embedding_type)
        with _about(file_id, embedding_type), workspace(database) as directory:
            store = self._store(writes=True)
            content = copy(str(directory))
            taken = run(upload(store, key, directory, content))
            if keep is not None:
                self._prune_after(store, key, keep)
        return taken

    def restore(
        self,
        file_id: str,
        embedding_type: str,
        database: Path,
        put: Callable[[str], object],
        snapshot: str | None = None,
    ) -> None:
        """Fetches a snapshot, by default the newest, and has it put in the place of a database.

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.
            database: The directory of the database.
            put: Puts the snapshot of the directory that it is given there.
            snapshot: The URL of its manifest; another instance may have it.
        """
        key, name = key_of(file_id, embedding_type), None
        if snapshot is not None:
            _, named, name = address_of(snapshot)
            key = named or key
        with _about(file_id, embedding_type), workspace(database) as directory:
            stored = self._fetch(key, name, directory)
            if stored is None:
                raise SnapshotError(f"{self.url} has no snapshot of {file_id}/{embedding_type}")
            write_manifest(stored, directory)
            put(str(directory))

    def provide(self, file_id: str, embedding_type: str, directory: Path) -> bool:
        """Writes the files of the newest snapshot into an empty directory; whether there is one."""
        from chroma_manager.engine.settings import refuse_newer_snapshot  # noqa: PLC0415 - imports chromadb

        with _about(file_id, embedding_type):
            stored = self._fetch(key_of(file_id, embedding_type), None, directory)
            if stored is None:
                return False
            refuse_newer_snapshot(directory)
        _logger.info("%s/%s is restored from %s/%s", file_id, embedding_type, self.url, stored.name)
        return True

    def instances(self) -> tuple[list[tuple[str, str]], list[SnapshotError]]:
        """The names of the instances that have snapshots, or had some; and what is wrong with each other folder."""
        instances = []
        keys, problems = self._keys()
        for key in keys:
            if _names_instance(key):
                instances.append(instance_of(key))
            else:
                problems.append(SnapshotError(f"{self.url}/{key} does not have the name of an instance"))
        return instances, problems

    def snapshots(self, file_id: str, embedding_type: str) -> tuple[list[Snapshot], list[SnapshotError]]:
        """The snapshots of an instance, from the oldest to the newest; and what is wrong with those left out."""
        store, key = self._store(), key_of(file_id, embedding_type)
        found: list[Snapshot] = []
        problems: list[SnapshotError] = []

        async def work() -> None:
            for entry in await manifest.manifests(store, key):
                try:
                    found.append((await manifest.read(store, key, snapshot_of(entry.name))).result(self.url))
                except MissingObjectError:
                    pass  # pruned meanwhile
                except SnapshotError as error:
                    problems.append(error)

        run(work())
        return found, problems

    def prune(self, file_id: str, embedding_type: str, keep: Keep) -> Pruned:
        """Removes the snapshots of an instance that are not kept, and the files that only they have."""
        store, key = self._store(), key_of(file_id, embedding_type)
        with _about(file_id, embedding_type):
            if keep.newest == 0:
                return run(pruning.remove_all(store, key))
            return run(pruning.prune(store, key, keep.newest, keep.seconds))

    def _store(self, *, writes: bool = False) -> Store:
        return Store(address_of(self.url).repository, self.options, writes=writes)

    def _keys(self) -> tuple[list[str], list[SnapshotError]]:
        store = self._store()

        async def work() -> tuple[list[str], list[SnapshotError]]:
            keys: list[str] = []
            problems: list[SnapshotError] = []
            for folder in await store.folders():
                try:
                    keys += await store.folders(folder)
                except InvalidNameError as error:
                    problems.append(error)
            return keys, problems

        return run(work())

    def _fetch(self, key: str, name: str | None, directory: Path) -> manifest.Stored | None:
        store = self._store()

        async def work() -> manifest.Stored | None:
            named = name or await manifest.newest_snapshot(store, key)
            if named is None:
                return None
            stored = await manifest.read(store, key, named)
            await download(store, key, stored, directory)
            return stored

        try:
            return run(work())
        except OSError as error:
            raise SnapshotError(f"{self.url} cannot be restored to {directory}: {error}") from error

    def _prune_after(self, store: Store, key: str, keep: Keep) -> None:
        try:
            run(pruning.prune(store, key, keep.newest, keep.seconds))
        except SnapshotError as error:
            # The snapshot is there, and the next one prunes again.
            _logger.warning("a snapshot was taken to %s, but older ones could not be pruned: %s", self.url, error)


def _names_instance(key: str) -> bool:
    names = instance_of(key)
    return key_of(*names) == key and not any(name in ("", ".", "..") or re.search(r"[/\\\0]", name) for name in names)


@contextlib.contextmanager
def _about(file_id: str, embedding_type: str) -> Iterator[None]:
    """Has an error say which instance it is about."""
    try:
        yield
    except SnapshotError as error:
        error.file_id, error.embedding_type = error.file_id or file_id, error.embedding_type or embedding_type
        raise
