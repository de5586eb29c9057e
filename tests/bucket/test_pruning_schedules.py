"""Snapshots and prunings of one database at once, each paused at any point for any time: none is without a file.

A seed chooses who goes on next, for how many requests, and how much time passes before. The bucket is a directory,
whose objects have the time of the test's clock.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from buckets import Folder
from chroma_manager import SnapshotError
from chroma_manager.bucket import pruning
from chroma_manager.bucket.store import Entry, Store
from chroma_manager.bucket.upload import upload

KEY = "doc/azure"
INDEX = "0b0cc8bc-3d4c-4bd5-9a3f-5d3a8a4a9b55/header.bin"

# How long everybody is paused before one goes on, and for how many requests that is.
HOURS = [0, 11, 80]
TURNS = [1, 2, 100, 100, 100]
MOST_PAUSED = 3


class Turns(Store):
    """A bucket that a process reaches when it has its turn. What it writes has the time of the test's clock."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder.path.as_uri(), {}, writes=True)
        self._folder = folder
        self._may_go = asyncio.Event()
        self.waits = asyncio.Event()

    async def go_on(self, task: asyncio.Task[Any]) -> None:
        """Has the turn last until the next request, or the end."""
        self.waits.clear()
        self._may_go.set()
        waits = asyncio.ensure_future(self.waits.wait())
        await asyncio.wait([task, waits], return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()

    async def _turn(self) -> None:
        self.waits.set()
        await self._may_go.wait()
        self._may_go.clear()

    async def entries(self, prefix: str) -> list[Entry]:
        await self._turn()
        return sorted(await super().entries(prefix))

    async def read(self, name: str, limit: int) -> bytes:
        await self._turn()
        return await super().read(name, limit)

    async def remove(self, names: Any) -> None:
        for name in names:
            await self._turn()
            await super().remove([name])

    async def send(self, name: str, size: int, chunks: Any) -> None:
        await super().send(name, size, chunks)
        self._stamp(name)

    async def create(self, name: str, content: bytes) -> None:
        # No turn: this is where a snapshot must not be paused (`bucket/pruning.py`).
        await super().create(name, content)
        self._stamp(name)

    def _stamp(self, name: str) -> None:
        os.utime(self._folder.path / name, (time.time(), time.time()))


class Play:
    """Some processes at one bucket."""

    def __init__(self, seed: int, folder: Folder, directories: list[tuple[Path, dict[str, Any]]]) -> None:
        self.random, self._folder, self._directories = Random(seed), folder, directories
        self._tasks: dict[asyncio.Task[Any], Turns] = {}
        self.now = time.time()
        self.pruned = self.taken = 0

    async def run(self, processes: int) -> None:
        for _ in range(processes):
            await self._go_on(await self._begun(Turns(self._folder)))
            if len(self._tasks) > MOST_PAUSED:
                await self._go_on(self.random.choice(list(self._tasks)))
        while self._tasks:
            await self._go_on(self.random.choice(list(self._tasks)))

    async def _begun(self, store: Turns) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(self._take(store) if self.random.random() < 0.5 else self._prune(store))
        self._tasks[task] = store
        await store.waits.wait()
        return task

    async def _take(self, store: Store) -> None:
        try:
            await upload(store, KEY, *self.random.choice(self._directories))
            self.taken += 1
        except SnapshotError as error:
            if "took longer" not in str(error):
                raise

    async def _prune(self, store: Store) -> None:
        self.pruned += (await pruning.prune(store, KEY, keep=self.random.choice([1, 2]), keep_for=0)).files

    async def _go_on(self, task: asyncio.Task[Any]) -> None:
        self.now += self.random.choice(HOURS) * 3600
        for _ in range(self.random.choice(TURNS)):
            await self._tasks[task].go_on(task)
            self._check()
            if task.done():
                del self._tasks[task]
                task.result()
                break

    def _check(self) -> None:
        files = self._folder.objects("files")
        for name, path in self._folder.objects("snapshots").items():
            wanted = {file["object"] for file in json.loads(path.read_text())["files"].values()}
            assert wanted <= files.keys(), f"{name} is without a file"


def snapshots(base: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Directories as those of snapshots, and their manifests. Some share the file of an index."""
    made = []
    for records, index in ("00", "10", "11"):
        directory, files = base / (records + index), {}
        for name, content in {
            "chroma.sqlite3": b"records" + records.encode(),
            INDEX: b"index" + index.encode(),
        }.items():
            (directory / name).parent.mkdir(parents=True)
            (directory / name).write_bytes(content)
            files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        made.append((directory, {"format": 1, "created_at": 1.0, "records": 1, "files": files}))
    return made


@pytest.mark.parametrize("seeds", [range(30), pytest.param(range(30, 400), marks=pytest.mark.long)])
def test_whoever_is_paused_for_however_long_no_snapshot_is_without_a_file(tmp_path, monkeypatch, seeds: range) -> None:
    directories = snapshots(tmp_path / "taken")
    taken = pruned = 0
    for seed in seeds:
        play = Play(seed, Folder((tmp_path / str(seed)).as_uri()), directories)
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda play=play: play.now)
            patched.setattr(os, "urandom", play.random.randbytes)
            try:
                asyncio.run(play.run(20))
            except AssertionError as error:
                raise AssertionError(f"seed {seed}") from error
        taken, pruned = taken + play.taken, pruned + play.pruned
    # Schedules in which little happens would show little.
    assert taken > 3 * len(seeds)
    assert pruned > len(seeds)
