"""What is removed from a bucket, and what is not: nothing that a snapshot relies on which somebody is taking."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
from buckets import Folder
from chroma_manager import ChromaDBManager, SnapshotError
from chroma_manager.bucket import manifest, pruning
from chroma_manager.bucket.store import Store
from chroma_manager.bucket.upload import upload
from chroma_manager.results import Pruned
from conftest import new_collection

KEY = ("doc", "azure")
DAY = 24 * 3600.0


def take(manager: ChromaDBManager, url: str, count: int, **rule: object) -> list[str]:
    """Snapshots of a database that changes; their paths, from the oldest to the newest."""
    collection = new_collection(manager)
    taken = []
    for _ in range(count):
        collection.add(ids=[str(collection.count() + 1)], embeddings=[[1.0, 2.0]])
        taken.append(manager.snapshot(*KEY, url, **rule).path)
    return taken


def left(objects: Folder, taken: list[str]) -> list[int]:
    names = objects.objects("snapshots")
    return [i for i, path in enumerate(taken) if path.rpartition("/")[2] in names]


def can_be_restored(manager: ChromaDBManager, path: str) -> bool:
    manager.restore("copy", "azure", path)
    return manager.get_collection("copy", "azure", "rag_collection").count() > 0


def test_the_newest_and_those_of_the_last_day_are_kept(tmp_path: Path, folder_url: str, objects: Folder) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    taken = take(manager, folder_url, 3)
    objects.age(5)
    taken += take(manager, folder_url, 2)
    assert manager.prune(folder_url, *KEY, keep=3) == Pruned(0, 0, 0)
    assert left(objects, taken) == [0, 1, 2, 3, 4]
    assert manager.prune(folder_url, *KEY, keep=2).snapshots == 1
    assert left(objects, taken) == [1, 2, 3, 4]
    manager.prune(folder_url, *KEY, keep=1)
    assert left(objects, taken) == [2, 3, 4]
    assert all(can_be_restored(manager, taken[i]) for i in (2, 3, 4))
    objects.age(5)
    manager.prune(folder_url, *KEY, keep_for=timedelta(days=7))
    assert left(objects, taken) == [3, 4]
    manager.prune(folder_url, *KEY, keep=1)
    assert left(objects, taken) == [4]
    assert can_be_restored(manager, taken[4])
    with pytest.raises(SnapshotError, match="snapshots"):
        manager.restore(*KEY, taken[0])


def test_files_that_no_snapshot_has_are_removed_and_counted(tmp_path: Path, folder_url: str, objects: Folder) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    taken = take(manager, folder_url, 2)
    objects.age(5)
    before = objects.objects("files")
    done = manager.prune(folder_url, *KEY, keep=1)
    gone = {name: path for name, path in before.items() if not path.exists()}
    assert (done.snapshots, done.files) == (1, len(gone))
    assert gone
    assert can_be_restored(manager, taken[1])
    # What an interrupted snapshot has left goes as well, once nobody can rely on it any more.
    young, old = (objects.path / f"doc/azure/files/{digit * 64}-{digit * 8}" for digit in "01")
    for path, days in ((young, 1.5), (old, 2.5)):
        path.write_bytes(b"left")
        objects.age(days, [path])
    assert manager.prune(folder_url, *KEY, keep=1) == Pruned(0, 1, 4)
    assert young.exists()
    assert can_be_restored(manager, taken[1])


FOREIGN = [
    "doc/azure/files/contract.pdf",
    f"doc/azure/files/{'0' * 64}",
    f"doc/azure/files/{'0' * 64}-00000000.bak",
    f"doc/azure/files/deep/{'0' * 64}-00000000",
    f"doc/azure/files/{'0' * 64}-00000000#draft",
    "doc/azure/files/contract.pdf#1",
    "doc/azure/snapshots/state.json",
    "doc/azure/snapshots/20261129T201501.123456Z-1a2b3c4d-copy.json",
    "doc/azure/snapshots/20269999T201501.123456Z-1a2b3c4d.json",
    "doc/azure/snapshots/deep/20261129T201501.123456Z-1a2b3c4d.json",
    "users/42/files/contract.pdf",
    "users/42/snapshots/state.json",
]


@pytest.mark.parametrize("keep", [1, 0])
def test_objects_of_others_are_neither_removed_nor_in_the_way(tmp_path, folder_url, objects: Folder, keep: int) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    taken = take(manager, folder_url, 2)
    for name in FOREIGN:
        (objects.path / name).parent.mkdir(parents=True, exist_ok=True)
        (objects.path / name).write_text("theirs")
    objects.age(5)
    assert manager.prune(folder_url, *KEY, keep=keep).snapshots == 2 - keep
    assert manager.prune(folder_url, "users", "42", keep=keep) == Pruned(0, 0, 0)
    assert [name for name in FOREIGN if not (objects.path / name).exists()] == []
    assert left(objects, taken) == [1][:keep]
    # The next snapshot is the newest one, whatever they have there.
    taken += take(manager, folder_url, 1)
    manager.restore(*KEY, folder_url)
    assert all(can_be_restored(manager, taken[i]) for i in left(objects, taken))


def test_a_file_that_somebody_has_copied_is_not_used_by_a_snapshot(tmp_path, folder_url, objects: Folder) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    new_collection(manager)
    manager.snapshot(*KEY, tmp_path / "same")
    store, content = Store(folder_url, {}, writes=True), snapshot_manifest(tmp_path / "same")
    asyncio.run(upload(store, "doc/azure", tmp_path / "same", content))
    for path in objects.objects("files").values():
        path.rename(f"{path}-copy")
    asyncio.run(upload(store, "doc/azure", tmp_path / "same", content))
    manager.restore(*KEY, folder_url)


def test_what_a_killed_snapshot_has_left_in_a_directory_is_removed(script, tmp_path, folder_url, objects) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    take(manager, folder_url, 1)
    files = objects.path / "doc/azure/files"
    app = script(f"""
import asyncio, hashlib, pathlib
from chroma_manager.bucket import store, upload
read = upload._read
async def dying(file, expected):
    async for chunk in read(file, expected):
        yield chunk
    while not list(pathlib.Path({str(files)!r}).glob("*#*")):
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
upload._read = dying
content = bytes(12 << 20)
pathlib.Path(base, "large").write_bytes(content)
files = {{"large": {{"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}}}}
asyncio.run(upload.upload(store.Store({folder_url!r}, {{}}), "doc/azure", pathlib.Path(base), {{"files": files}}))
""")
    assert app.process.wait(60) == -signal.SIGKILL
    (part,) = files.glob("*#*")
    (snapshot,) = objects.objects("snapshots").values()
    of_manifest = snapshot.with_name(f"{snapshot.name}#1")
    of_manifest.write_text("{")
    assert manager.prune(folder_url, *KEY, keep=1) == Pruned(0, 0, 0)
    objects.age(2.5)
    size = part.stat().st_size + len("{")
    assert manager.prune(folder_url, *KEY, keep=1) == Pruned(0, 2, size)
    assert (part.exists(), of_manifest.exists(), snapshot.exists()) == (False, False, True)
    part.write_text("left")
    assert manager.prune(folder_url, *KEY, keep=0).files == 2
    assert [path for path in objects.path.rglob("*") if path.is_file()] == []


def test_a_snapshot_prunes_by_its_rule(tmp_path: Path, url: str) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    taken = take(manager, url, 2, keep=1, keep_for=timedelta(hours=1))
    # All of them are of the last day.
    assert all(can_be_restored(manager, path) for path in taken)


def test_a_snapshot_with_a_rule_removes_old_ones(tmp_path: Path, folder_url: str, objects: Folder) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    taken = take(manager, folder_url, 3)
    objects.age(3)
    taken += take(manager, folder_url, 1, keep=1)
    assert left(objects, taken) == [2, 3]


def test_a_pruning_that_fails_does_not_fail_the_snapshot(tmp_path, folder_url, objects: Folder, caplog) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    take(manager, folder_url, 1)
    (path,) = objects.objects("snapshots").values()
    path.write_text("garbage")
    objects.age(3)
    before = objects.objects("files")
    taken = take(manager, folder_url, 1, keep=1)
    assert "could not be pruned" in caplog.text
    assert can_be_restored(manager, taken[0])
    # Which files the damaged one has is not known, so none is removed.
    with pytest.raises(SnapshotError, match=path.name):
        manager.prune(folder_url, *KEY, keep=1)
    assert before.keys() <= objects.objects("files").keys()


def test_all_of_a_database_is_removed_when_that_is_asked_for(tmp_path: Path, url: str) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    take(manager, url, 2)
    new_collection(manager, "other")
    other = manager.snapshot("other", "azure", url)
    done = manager.prune(url, *KEY, keep=0)
    assert done.snapshots == 2
    with pytest.raises(SnapshotError, match="has no snapshot of doc/azure"):
        manager.restore(*KEY, url)
    assert manager.prune(url, *KEY, keep=0) == Pruned(0, 0, 0)
    assert can_be_restored(manager, other.path)


def test_what_is_no_rule_removes_nothing(tmp_path: Path, folder_url: str) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    taken = take(manager, folder_url, 1)
    for rule in ({}, {"keep": -1}, {"keep": True}, {"keep_for": timedelta(days=-1)}, {"keep_for": 7}):
        with pytest.raises(ValueError, match="keep"):
            manager.prune(folder_url, *KEY, **rule)
    assert can_be_restored(manager, taken[0])


class Interleaved(Store):
    """A bucket in which something else happens right before a manifest is written."""

    def __init__(self, url: str, meanwhile) -> None:
        super().__init__(url, {}, writes=True)
        self._meanwhile = meanwhile

    async def create(self, name: str, content: bytes) -> None:
        await self._meanwhile(Store(self.url, {}))
        await super().create(name, content)


@pytest.mark.parametrize("age", [1.5, 10.0])
def test_a_pruning_in_the_middle_of_a_snapshot_removes_nothing_that_it_relies_on(
    tmp_path: Path, folder_url: str, objects: Folder, age: float
) -> None:
    """Somebody has found the newest snapshot, and relies on its files. Others take and prune snapshots meanwhile."""
    manager = ChromaDBManager(base_path=tmp_path / "db")
    take(manager, folder_url, 2)
    objects.age(age)
    manager.cleanup_all_instances()
    manager.snapshot(*KEY, tmp_path / "same")
    manager.snapshot(*KEY, tmp_path / "other")
    content, other = (snapshot_manifest(tmp_path / name) for name in ("same", "other"))

    async def meanwhile(store: Store) -> None:
        for _ in range(2):
            (tmp_path / "other/chroma.sqlite3").write_bytes(b"other")
            await upload(store, "doc/azure", tmp_path / "other", changed(other))
            await pruning.prune(store, "doc/azure", keep=1, keep_for=0)

    async def work() -> str:
        taken = await upload(Interleaved(folder_url, meanwhile), "doc/azure", tmp_path / "same", content)
        # A pruning long after it does not either.
        objects.age(age)
        await pruning.prune(Store(folder_url, {}), "doc/azure", keep=3, keep_for=0)
        return taken.path

    assert can_be_restored(manager, asyncio.run(work()))


def test_a_pruning_that_others_thwart_all_the_time_ends_and_removes_nothing(tmp_path, folder_url, objects) -> None:
    class Stale(Store):
        """A bucket whose lists have what is gone."""

        async def read(self, name: str, limit: int) -> bytes:
            return await super().read(f"{name}.gone", limit)

    manager = ChromaDBManager(base_path=tmp_path / "db")
    take(manager, folder_url, 2)
    objects.age(5)
    before = sorted(objects.path.rglob("*"))
    with pytest.raises(SnapshotError, match=f"{folder_url}/doc/azure .* prune it when they are done"):
        asyncio.run(pruning.prune(Stale(folder_url, {}), "doc/azure", keep=1, keep_for=0))
    assert sorted(objects.path.rglob("*")) == before


def snapshot_manifest(directory: Path) -> dict:
    from chroma_manager.durability.snapshot import read_manifest

    return read_manifest(directory)


def changed(content: dict) -> dict:
    import hashlib

    file = {"size": 5, "sha256": hashlib.sha256(b"other").hexdigest()}
    return {**content, "files": {**content["files"], "chroma.sqlite3": file}}


def test_a_snapshot_relies_on_no_file_that_may_be_about_to_be_pruned(tmp_path, folder_url, objects: Folder) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    first = new_collection(manager)
    manager.snapshot(*KEY, folder_url)
    old = set(objects.objects("files"))
    objects.age(1.5)
    first.add(ids=["2"], embeddings=[[1.0, 2.0]])
    manager.snapshot(*KEY, folder_url)
    store = Store(folder_url, {})

    async def reusable() -> set[str]:
        from chroma_manager.bucket.upload import HOLD, _reusable

        _, known = await _reusable(store, "doc/azure", HOLD)
        newest = await manifest.read(store, "doc/azure", (await manifest.newest_snapshot(store, "doc/azure")) or "")
        assert newest.objects <= set(known.values())
        return set(known.values())

    assert asyncio.run(reusable()) == set(objects.objects("files")) - old


def test_one_that_takes_too_long_fails(tmp_path: Path, folder_url: str, objects: Folder, monkeypatch) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    new_collection(manager)
    manager.snapshot(*KEY, tmp_path / "taken")
    content = snapshot_manifest(tmp_path / "taken")
    with pytest.raises(SnapshotError, match="took longer"):
        asyncio.run(upload(Store(folder_url, {}, writes=True), "doc/azure", tmp_path / "taken", content, hold=0.0))
    assert objects.objects("snapshots") == {}

    # A machine that sleeps: one of its clocks stands still, and the other is set when it wakes up.
    async def sleep(_: Store) -> None:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + DAY)

    with pytest.raises(SnapshotError, match="took longer than 12 hours"):
        asyncio.run(upload(Interleaved(folder_url, sleep), "doc/azure", tmp_path / "taken", content))
    assert objects.objects("snapshots") == {}
