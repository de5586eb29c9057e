"""`snapshot` and `restore`: a consistent copy while others write; all of it, or nothing, in the place of a database."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import threading
from pathlib import Path

import chromadb
import numpy as np
import psutil
import pytest
from chroma_manager import (
    ChromaDBManager,
    ClientClosedError,
    EngineCrashedError,
    InstanceLockedError,
    InstanceNotFoundError,
    InstanceOpenError,
    SnapshotError,
)
from chroma_manager.options import ENGINES, LOCAL_ENGINES
from conftest import IDS, VECTORS, directory, eventually, kill_engines, long, made_once, new_collection, reader_of, sql

isolated_only = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")
KILLED_AT = "CHROMA_MANAGER_KILL_AT"


def filled(manager: ChromaDBManager):
    """A collection with an index that has files, and a log beyond them."""
    collection = manager.get_collection("doc", "azure", "rag_collection")
    collection.upsert(ids=IDS, embeddings=VECTORS, documents=[f"text {i}" for i in IDS])
    return collection


def assert_is_filled(collection, count: int = len(IDS)) -> None:
    got = collection.get(include=["embeddings", "documents"])
    assert len(got["ids"]) == count
    for i, vector, document in zip(got["ids"], got["embeddings"], got["documents"], strict=True):
        assert np.array_equal(vector.astype(np.float32), VECTORS[int(i)])
        assert document == f"text {i}"


def test_a_snapshot_is_what_any_chroma_opens(manager: ChromaDBManager, tmp_path: Path) -> None:
    collection = filled(manager)
    taken = manager.snapshot("doc", "azure", tmp_path / "out" / "snapshot")
    assert taken.path == str(tmp_path / "out" / "snapshot")
    assert taken.records == len(IDS)
    files = [file for file in Path(taken.path).rglob("*") if file.is_file() and file.name != "snapshot.json"]
    assert taken.files == len(files)
    assert taken.size == sum(file.stat().st_size for file in files)
    collection.delete(ids=IDS[:500])
    with chromadb.PersistentClient(taken.path) as client:
        assert_is_filled(client.get_collection("rag_collection"))
    assert collection.count() == 1500
    assert os.listdir(tmp_path / "out") == ["snapshot"]
    with sqlite3.connect(tmp_path / "out" / "snapshot" / "chroma.sqlite3") as sql:
        assert sql.execute("pragma user_version").fetchone() == (0,)
        for (config,) in sql.execute("select config_json_str from embeddings_queue_config"):
            assert '"automatically_purge":true' in config
    sql.close()


def test_a_restored_database_is_what_the_snapshot_was_and_handles_go_on(manager, tmp_path: Path) -> None:
    collection = filled(manager)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    collection.upsert(ids=IDS[:100], embeddings=VECTORS[100:200])
    collection.delete(ids=IDS[1000:])
    manager.get_collection("doc", "azure", "another")
    manager.restore("doc", "azure", tmp_path / "snapshot")
    assert_is_filled(collection)
    assert [c.name for c in manager.get_client("doc", "azure").list_collections()] == ["rag_collection"]
    collection.delete(ids=IDS[:10])
    manager.cleanup_all_instances()
    assert manager.get_client("doc", "azure").get_collection("rag_collection").count() == len(IDS) - 10


def test_a_snapshot_is_restored_where_there_was_nothing(manager: ChromaDBManager, tmp_path: Path) -> None:
    filled(manager)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    manager.restore("new", "azure", tmp_path / "snapshot")
    assert_is_filled(manager.get_client("new", "azure").get_collection("rag_collection"))


@pytest.mark.parametrize("is_missing", [False, True])
def test_what_is_not_of_the_database_survives_a_restore(
    manager: ChromaDBManager, tmp_path: Path, is_missing: bool
) -> None:
    filled(manager)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    (directory(manager) / "originals").mkdir()
    (directory(manager) / "originals" / "document.pdf").write_text("x")
    if is_missing:
        manager.cleanup_all_instances()
        (directory(manager) / "chroma.sqlite3").unlink()
    manager.restore("doc", "azure", tmp_path / "snapshot")
    assert (directory(manager) / "originals" / "document.pdf").read_text() == "x"
    assert_is_filled(manager.get_collection("doc", "azure", "rag_collection"))


def test_an_empty_database_has_a_snapshot(manager: ChromaDBManager, tmp_path: Path) -> None:
    manager.get_client("doc", "azure")
    assert manager.snapshot("doc", "azure", tmp_path / "snapshot").records == 0
    new_collection(manager)
    manager.restore("doc", "azure", tmp_path / "snapshot")
    assert manager.get_client("doc", "azure").list_collections() == []


def test_what_was_acknowledged_before_is_in_it_and_what_came_after_is_not(manager, tmp_path: Path) -> None:
    """Threads write meanwhile; a snapshot has each one's writes up to some moment, and all up to its beginning."""
    new_collection(manager)
    acknowledged: list[list[str]] = [[], [], []]
    done = threading.Event()

    def write(k: int) -> None:
        collection = manager.get_client("doc", "azure").get_collection("rag_collection")
        while not done.is_set():
            record = f"{k}-{len(acknowledged[k])}"
            collection.add(ids=[record], embeddings=[[float(k), 1.0]])
            acknowledged[k].append(record)

    writers = [threading.Thread(target=write, args=(k,)) for k in range(3)]
    for writer in writers:
        writer.start()
    snapshots = []
    for n in range(3):
        assert eventually(lambda n=n: min(map(len, acknowledged)) > 20 * (n + 1))
        before = [len(ids) for ids in acknowledged]
        manager.snapshot("doc", "azure", tmp_path / f"snapshot{n}")
        snapshots.append((before, [len(ids) + 1 for ids in acknowledged]))
    done.set()
    for writer in writers:
        writer.join(60)
    for n, (before, after) in enumerate(snapshots):
        with chromadb.PersistentClient(tmp_path / f"snapshot{n}") as client:
            present = set(client.get_collection("rag_collection").get()["ids"]) - {"1"}
        for k in range(3):
            count = sum(i.startswith(f"{k}-") for i in present)
            assert before[k] <= count <= after[k]
            assert {f"{k}-{i}" for i in range(count)} <= present
    present = set(manager.get_client("doc", "azure").get_collection("rag_collection").get()["ids"])
    assert {record for ids in acknowledged for record in ids} <= present


# With `embedded` and without a write-ahead log a reader keeps Chroma itself waiting.
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux tells who has a file open")
@pytest.mark.parametrize(("engine", "was_write_ahead"), [*((one, True) for one in LOCAL_ENGINES), ("isolated", False)])
def test_a_program_that_reads_keeps_nothing_out_of_it(tmp_path, script, engine: str, was_write_ahead: bool) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine=engine, idle_timeout=None)
    new_collection(manager)
    if was_write_ahead:
        manager.cleanup_all_instances()
        assert sql(directory(manager), "pragma journal_mode = wal") == [("wal",)]
    collection = manager.get_collection("doc", "azure", "rag_collection")
    reader = reader_of(directory(manager), script)
    collection.add(ids=["2"], embeddings=[[2.0, 3.0]])
    with pytest.raises(InstanceLockedError, match=f"process {reader.process.pid} .*doc/azure/chroma.sql") as caught:
        manager.snapshot("doc", "azure", tmp_path / "snapshot")
    assert caught.value.pid == reader.process.pid
    assert os.listdir(tmp_path) == ["db"]
    collection.add(ids=["3"], embeddings=[[3.0, 4.0]])
    assert collection.count() == 3
    # It is waited for. Then it has the database open still, and is idle.
    threading.Timer(0.3, reader.say).start()
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    with chromadb.PersistentClient(tmp_path / "snapshot") as client:
        assert client.get_collection("rag_collection").get()["ids"] == ["1", "2", "3"]
    assert sql(tmp_path / "snapshot", "pragma user_version") == [(0,)]
    assert collection.count() == 3


def test_a_destination_that_cannot_be_is_refused_and_nothing_is_left_there(manager, tmp_path: Path) -> None:
    collection = new_collection(manager)
    new_collection(manager, "other")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for destination, problem in [
        (full, "exists"),
        (tmp_path / "file", "exists"),
        (tmp_path / "file" / "below", "exists|Not a directory"),
        (directory(manager) / "snapshot", "directory of a database"),
        (directory(manager, "other") / "below" / "snapshot", "directory of a database"),
    ]:
        with pytest.raises(SnapshotError, match=problem) as caught:
            manager.snapshot("doc", "azure", destination)
        assert str(destination) in str(caught.value)
        assert (caught.value.file_id, caught.value.embedding_type) == ("doc", "azure")
    assert sorted(os.listdir(tmp_path)) == ["db", "file", "full"]
    assert os.listdir(full) == ["mine"]
    (tmp_path / "empty").mkdir()
    assert manager.snapshot("doc", "azure", tmp_path / "empty").records == 1
    assert collection.count() == 1


def test_a_snapshot_of_what_is_not_there_is_an_error_and_creates_nothing(manager, tmp_path: Path) -> None:
    with pytest.raises(InstanceNotFoundError, match="doc/azure"):
        manager.snapshot("doc", "azure", tmp_path / "snapshot")
    assert os.listdir(tmp_path) in ([], ["db"])
    assert not directory(manager).parent.exists()


def cut(snapshot: Path) -> None:
    (index,) = snapshot.glob("*/data_level0.bin")
    os.truncate(index, 100)


def flip(snapshot: Path) -> None:
    content = bytearray((snapshot / "chroma.sqlite3").read_bytes())
    content[len(content) // 2] ^= 1
    (snapshot / "chroma.sqlite3").write_bytes(content)


def lose(snapshot: Path) -> None:
    (index,) = snapshot.glob("*/header.bin")
    index.unlink()


def forget(snapshot: Path) -> None:
    (snapshot / "snapshot.json").unlink()


def garble(snapshot: Path) -> None:
    (snapshot / "snapshot.json").write_text("{")


def climb(snapshot: Path) -> None:
    manifest = json.loads((snapshot / "snapshot.json").read_text())
    manifest["files"]["../escaped"] = manifest["files"]["chroma.sqlite3"]
    shutil.copy(snapshot / "chroma.sqlite3", snapshot.parent / "escaped")
    (snapshot / "snapshot.json").write_text(json.dumps(manifest))


def age(snapshot: Path) -> None:
    manifest = json.loads((snapshot / "snapshot.json").read_text())
    (snapshot / "snapshot.json").write_text(json.dumps({**manifest, "format": 99}))


def nest(snapshot: Path) -> None:
    (snapshot / "snapshot.json").write_text("[" * 100_000)


def pipe(snapshot: Path) -> None:
    (snapshot / "snapshot.json").unlink()
    os.mkfifo(snapshot / "snapshot.json")


def pipe_file(snapshot: Path) -> None:
    lose(snapshot)
    (index,) = snapshot.glob("*/data_level0.bin")
    os.mkfifo(index.with_name("header.bin"))


@pytest.fixture
def collection(manager: ChromaDBManager, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    """A filled one, of which there is a snapshot, and which has changed since."""

    def make(folder: Path) -> None:
        filled(manager)
        manager.snapshot("doc", "azure", folder / "snapshot")
        manager.cleanup_all_instances()
        directory(manager).rename(folder / "database")

    made = made_once(tmp_path_factory, f"snapshot-{manager._options.engine}", make)
    shutil.copytree(made / "snapshot", tmp_path / "snapshot")
    shutil.copytree(made / "database", directory(manager))
    collection = manager.get_collection("doc", "azure", "rag_collection")
    collection.delete(ids=IDS[:10])
    return collection


@pytest.mark.parametrize("damage", [cut, flip, lose, forget, garble, climb, age, nest, pipe, pipe_file])
def test_a_damaged_snapshot_is_refused_and_nothing_is_touched(manager, collection, tmp_path: Path, damage) -> None:
    damage(tmp_path / "snapshot")
    with pytest.raises(SnapshotError, match="snapshot") as caught:
        manager.restore("doc", "azure", tmp_path / "snapshot")
    assert caught.value.path == str(directory(manager))
    assert collection.count() == len(IDS) - 10
    manager.cleanup_all_instances()
    assert manager.get_client("doc", "azure").get_collection("rag_collection").count() == len(IDS) - 10
    assert not list(directory(manager).glob(".chroma_manager/restoring*"))
    assert not list(directory(manager).rglob("escaped"))


@pytest.mark.parametrize("is_sound", [True, False])
def test_a_missing_database_is_restored_as_a_whole_or_not_at_all(
    manager: ChromaDBManager, collection: chromadb.Collection, tmp_path: Path, is_sound: bool
) -> None:
    """Nobody sees an empty database before it is, or after it could not be."""
    manager.delete_instance("doc", "azure")
    if not is_sound:
        cut(tmp_path / "snapshot")
    seen, is_done = set[int](), threading.Event()

    def look() -> None:
        while not is_done.is_set():
            with contextlib.suppress(InstanceNotFoundError, ClientClosedError):
                seen.add(len(manager.get_client("doc", "azure", on_missing="error").list_collections()))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        with contextlib.nullcontext() if is_sound else pytest.raises(SnapshotError, match="damaged"):
            manager.restore("doc", "azure", tmp_path / "snapshot")
    finally:
        is_done.set()
        looking.join(20)
    assert seen <= {1}
    if is_sound:
        assert_is_filled(manager.get_collection("doc", "azure", "rag_collection"))
    else:
        assert not directory(manager).parent.exists()


def test_a_snapshot_is_not_restored_to_itself(manager: ChromaDBManager, tmp_path: Path) -> None:
    new_collection(manager)
    path = tmp_path / "snapshots" / "doc" / "azure"
    manager.snapshot("doc", "azure", path)
    manager.shutdown()
    other = ChromaDBManager(tmp_path / "snapshots", engine=manager._options.engine)
    with other, pytest.raises(SnapshotError, match="itself"):
        other.restore("doc", "azure", path)
    assert set(os.listdir(path)) == {"chroma.sqlite3", "snapshot.json"}


def test_a_snapshot_of_a_newer_chroma_is_refused(manager: ChromaDBManager, tmp_path: Path) -> None:
    new_collection(manager)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    with sqlite3.connect(tmp_path / "snapshot" / "chroma.sqlite3") as newer:
        newer.execute("insert into migrations values ('sysdb', 99, '00099-new.sqlite.sql', '', '')")
    newer.close()
    with pytest.raises(SnapshotError, match="install the Chroma"):
        manager.restore("doc", "azure", tmp_path / "snapshot")
    assert new_collection(manager).count() == 1


@isolated_only
def test_other_processes_go_on_with_what_was_restored(tmp_path: Path, script) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    collection = new_collection(manager)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    collection.add(ids=["later"], embeddings=[[3.0, 4.0]])
    other = script("""
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = manager.get_collection("doc", "azure", "rag_collection")
print(collection.count(), flush=True)
sys.stdin.readline()
print(collection.count())
collection.add(ids=["of the other"], embeddings=[[1.0, 2.0]])
""")
    assert other.read_line() == "2"
    manager.restore("doc", "azure", tmp_path / "snapshot")
    other.say()
    assert other.finish() == "1"
    assert sorted(collection.get()["ids"]) == ["1", "of the other"]


STEPS = [
    *("restore prepared", "restore decided", "database replaced", "indexes removed", "indexes replaced"),
    *("index replaced by a restore", "restore finished"),
]


@isolated_only
@pytest.mark.parametrize("step", [*STEPS[1:4], *long(STEPS[0], *STEPS[4:])])
def test_a_kill_at_a_step_of_restoring_leaves_the_one_or_the_other(tmp_path, monkeypatch, step: str) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    collection = filled(manager)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    collection.delete(ids=IDS[1900:])
    collection.upsert(ids=IDS[:100], embeddings=VECTORS[100:200], documents=["other"] * 100)
    manager.cleanup_all_instances()
    monkeypatch.setenv(KILLED_AT, step)
    with pytest.raises((EngineCrashedError, InstanceOpenError)):
        manager.restore("doc", "azure", tmp_path / "snapshot")
    monkeypatch.delenv(KILLED_AT)
    left = directory(manager) / ".chroma_manager"
    assert (left / "checkpoint.json").exists() == (step in ("restore prepared", "restore decided"))
    collection = manager.get_collection("doc", "azure", "rag_collection")
    if step == "restore prepared":
        assert collection.count() == 1900
        assert collection.get(ids=["5"])["documents"] == ["other"]
        manager.restore("doc", "azure", tmp_path / "snapshot")
    assert_is_filled(collection)
    manager.cleanup_all_instances()
    with chromadb.PersistentClient(directory(manager)) as client:
        assert_is_filled(client.get_collection("rag_collection"))
    assert not list(directory(manager).glob(".chroma_manager/restoring*"))


@isolated_only
def test_a_restore_that_is_killed_while_it_clears_up_is_not_made_again_from_what_is_left(tmp_path, monkeypatch) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    filled(manager)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    manager.cleanup_all_instances()
    monkeypatch.setenv(KILLED_AT, "restore finished")
    with pytest.raises((EngineCrashedError, InstanceOpenError)):
        manager.restore("doc", "azure", tmp_path / "snapshot")
    monkeypatch.delenv(KILLED_AT)
    (trash,) = directory(manager).glob(".chroma_manager/*.trash")
    next(path for path in trash.rglob("*") if path.is_file()).unlink()
    collection = manager.get_collection("doc", "azure", "rag_collection")
    collection.upsert(ids=IDS[:100], embeddings=VECTORS[100:200], documents=["later"] * 100)
    manager.cleanup_all_instances()
    assert manager.get_collection("doc", "azure", "rag_collection").get(ids=["5"])["documents"] == ["later"]
    assert not list(directory(manager).glob(".chroma_manager/*.trash"))


@isolated_only
@pytest.mark.parametrize("contents", [None, b"{}", b"\xff"])
def test_what_only_looks_like_a_restore_is_kept_and_not_made(tmp_path: Path, contents: bytes | None) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    filled(manager)
    manager.cleanup_all_instances()
    (index,) = (path.parent for path in directory(manager).glob("[!.]*/header.bin"))
    restoring = directory(manager) / ".chroma_manager" / "restoring"
    (restoring / index.name).mkdir(parents=True)
    (restoring / index.name / "header.bin").write_bytes(b"of another time")
    if contents is not None:
        (restoring / "restoring.json").write_bytes(contents)
    assert_is_filled(manager.get_collection("doc", "azure", "rag_collection"))
    (kept,) = directory(manager).glob(".chroma_manager/damaged-restoring-*")
    assert (kept / index.name / "header.bin").read_bytes() == b"of another time"


@isolated_only
def test_a_restore_needs_no_space_once_it_is_decided(tmp_path: Path, monkeypatch) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    collection = filled(manager)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    collection.delete(ids=IDS[:1000])
    manager.cleanup_all_instances()
    inodes = {path.name: path.stat().st_ino for path in directory(manager).glob("[!.]*/data_level0.bin")}
    monkeypatch.setenv(KILLED_AT, "restore decided")
    with pytest.raises((EngineCrashedError, InstanceOpenError)):
        manager.restore("doc", "azure", tmp_path / "snapshot")
    monkeypatch.delenv(KILLED_AT)
    restoring = directory(manager) / ".chroma_manager" / "restoring"
    prepared = {path.stat().st_ino for path in restoring.rglob("*") if path.is_file()}
    assert_is_filled(manager.get_collection("doc", "azure", "rag_collection"))
    placed = {path.name: path.stat().st_ino for path in directory(manager).glob("[!.]*/data_level0.bin")}
    assert placed != inodes
    assert {*placed.values(), (directory(manager) / "chroma.sqlite3").stat().st_ino} <= prepared


@isolated_only
def test_what_is_written_after_a_snapshot_is_as_safe_as_before(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    collection = filled(manager)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    collection.delete(ids=IDS[:1500])
    collection.upsert(ids=IDS[:1500], embeddings=VECTORS[:1500], documents=[f"text {i}" for i in IDS[:1500]])
    kill_engines()
    for file in directory(manager).glob("[!.]*/*.bin"):
        os.truncate(file, 50)
    assert_is_filled(collection)


@isolated_only
def test_a_kill_in_the_middle_of_a_snapshot_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    filled(manager)
    manager.cleanup_all_instances()
    monkeypatch.setenv(KILLED_AT, "snapshot copied")
    with pytest.raises(EngineCrashedError, match="snapshot"):
        manager.snapshot("doc", "azure", tmp_path / "snapshot")
    monkeypatch.delenv(KILLED_AT)
    assert not (tmp_path / "snapshot").exists()
    assert_is_filled(manager.get_collection("doc", "azure", "rag_collection"))
    assert manager.snapshot("doc", "azure", tmp_path / "snapshot").records == len(IDS)


def test_a_restore_waits_for_calls_and_calls_wait_for_it(manager: ChromaDBManager, tmp_path: Path) -> None:
    collection = filled(manager)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    done = threading.Event()
    outcomes: list[object] = []

    def read() -> None:
        own = manager.get_client("doc", "azure").get_collection("rag_collection")
        while not done.is_set():
            try:
                outcomes.append(own.count())
            except Exception as error:
                outcomes.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(3):
        collection.delete(ids=IDS[:10])
        manager.restore("doc", "azure", tmp_path / "snapshot")
    done.set()
    for reader in readers:
        reader.join(60)
    assert set(outcomes) <= {len(IDS), len(IDS) - 10}
    assert_is_filled(collection)


@isolated_only
def test_a_snapshot_leaves_no_process_and_no_file_behind(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    new_collection(manager)
    manager.cleanup_all_instances()
    assert eventually(lambda: psutil.Process().children() == [])
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    assert eventually(lambda: psutil.Process().children() == [])
    shutil.rmtree(tmp_path / "snapshot")
    assert os.listdir(tmp_path) == ["db"]
