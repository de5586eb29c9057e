"""Damage that an opening finds: what loses nothing is mended, the rest refused, and sound collections work."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager, InstanceCorruptError, InstanceOpenError
from chroma_manager.options import ENGINES, LOCAL_ENGINES
from chroma_manager.storage.log import KEEPS_ROWS
from conftest import directory, eventually, files_open_in, kill_engines, made_once, sql

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

COUNT = 1300
VECTORS = np.random.default_rng(3).random((COUNT, 8), dtype=np.float32)
IDS = [str(i) for i in range(COUNT)]
# With as many the index files are written again.
STRAYS = 1000
# Links of the first element that lead nowhere: Chroma dies of them when it loads the index.
ASTRAY = b"\xff\xff\xff\x7f" * 8

Damage = Callable[[Path], None]


@pytest.fixture(params=LOCAL_ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of stock Chroma with two collections whose log does not have all of their vectors."""

    def make(path: Path) -> None:
        with chromadb.PersistentClient(path) as client:
            for name in ("one", "two"):
                collection = client.create_collection(name, embedding_function=None)
                collection.add(ids=IDS, embeddings=VECTORS, documents=[f"text {i}" for i in IDS])
        assert eventually(lambda: files_open_in(path) == [])

    return made_once(tmp_path_factory, "damage", make)


def manager_of(made: Path, base: Path, engine: str, **options: object) -> ChromaDBManager:
    manager = ChromaDBManager(base_path=base / "db", engine=engine, **options)
    if not directory(manager).exists():
        shutil.copytree(made, directory(manager))
    return manager


def index(path: Path, name: str = "one") -> Path:
    query = (
        "select segments.id from segments join collections on collections.id = collection "
        "where name = ? and scope = 'VECTOR'"
    )
    return path / sql(path, query, name)[0][0]


def keeping_times(file: Path, change: Callable[[Path], None]) -> None:
    """Changes a file as a failing disk does: nobody is told."""
    times = file.stat()
    change(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def write_astray(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(4)
        opened.write(ASTRAY)


def lead_astray(path: Path) -> None:
    """In the index, and in its copy if there is one."""
    name = index(path).name
    for folder in (path / name, *(path / ".chroma_manager").glob(f"{name}@*")):
        keeping_times(folder / "data_level0.bin", write_astray)


def lose_the_index(path: Path) -> None:
    name = index(path).name
    for folder in (path / name, *(path / ".chroma_manager").glob(f"{name}@*")):
        shutil.rmtree(folder)


def add_strays(path: Path) -> None:
    """As a copy has them that was made file by file during writes: SQLite's file first, the index files later."""
    more = path.with_name("more")
    shutil.copytree(path, more)
    with chromadb.PersistentClient(more) as client:
        client.get_collection("one").add(ids=[f"stray {i}" for i in range(STRAYS)], embeddings=VECTORS[:STRAYS] + 1)
    assert eventually(lambda: files_open_in(more) == [])
    shutil.rmtree(index(path))
    shutil.copytree(more / index(path).name, index(path))


def assert_has(collection: object, count: int = COUNT) -> None:
    got = collection.get(include=["embeddings", "documents"])
    assert sorted(got["ids"], key=int) == IDS[:count]
    for i, vector, document in zip(got["ids"], got["embeddings"], got["documents"], strict=True):
        assert np.array_equal(vector.astype(np.float32), VECTORS[int(i)])
        assert document == f"text {i}"
    found = collection.query(query_embeddings=VECTORS[:20], n_results=1)["ids"]
    assert sum(ids == [str(i)] for i, ids in enumerate(found)) >= 19


def collection_of(manager: ChromaDBManager, name: str = "one") -> object:
    return manager.get_client("doc", "azure").get_collection(name, embedding_function=None)


def kept(path: Path) -> list[Path]:
    return list((path / ".chroma_manager").glob("damaged-*/*/data_level0.bin"))


@pytest.mark.parametrize("damage", [lead_astray, add_strays], ids=lambda damage: damage.__name__)
def test_what_can_be_rebuilt_without_loss_is_when_it_is_opened(
    made: Path, tmp_path: Path, engine: str, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manager_of(made, tmp_path, engine)
    damage(directory(manager))
    old = (index(directory(manager)) / "data_level0.bin").read_bytes()
    has_strays = damage is add_strays
    with caplog.at_level(logging.WARNING, "chroma_manager"):
        assert_has(collection_of(manager))
        assert_has(collection_of(manager, "two"))
    (said,) = caplog.messages
    assert said.startswith(f"doc/azure ({directory(manager)}): collection 'one': ")
    assert (f"{STRAYS:,} vectors have no record" if has_strays else "its index is damaged") in said
    assert [file.read_bytes() for file in kept(directory(manager))] == ([] if has_strays else [old])
    # What is added anew has its own vector.
    collection = collection_of(manager)
    collection.add(ids=["stray 1"], embeddings=[VECTORS[0] + 5])
    assert np.array_equal(collection.get("stray 1", include=["embeddings"])["embeddings"][0], VECTORS[0] + 5)
    caplog.clear()
    manager.cleanup_all_instances()
    assert manager.verify("doc", "azure").ok
    assert collection_of(manager).count() == COUNT + 1
    assert caplog.messages == []


def test_an_index_that_is_ahead_of_its_position_is_sound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a kill leaves it that comes after Chroma has written the files, and before it commits how far they go."""
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)
    path = directory(manager)
    hnsw = {"sync_threshold": 10, "batch_size": 5}
    with chromadb.PersistentClient(path) as client:
        client.create_collection("one", embedding_function=None, configuration={"hnsw": hnsw})
        sql(path, "update embeddings_queue_config set config_json_str = ?", KEEPS_ROWS)
    with chromadb.PersistentClient(path) as client:
        collection = client.get_collection("one", embedding_function=None)
        collection.upsert(ids=IDS[:30], embeddings=VECTORS[:30])
        collection.delete(ids=IDS[10:20])
        # Of these rows the index has all, and SQLite says that it has none.
        collection.upsert(ids=IDS[:10], embeddings=VECTORS[:10] + 1)
        collection.delete(ids=IDS[20:25])
        collection.add(ids=IDS[20:25], embeddings=VECTORS[20:25] + 1)
        expected = collection.get(include=["embeddings"])
    assert eventually(lambda: files_open_in(path) == [])
    assert sql(path, "select seq_id from max_seq_id where segment_id = ?", index(path).name) == [(60,)]
    sql(path, "update max_seq_id set seq_id = 40 where segment_id = ?", index(path).name)
    assert manager.verify("doc", "azure").ok
    found = collection_of(manager).get(include=["embeddings"])
    assert found["ids"] == expected["ids"]
    assert np.array_equal(found["embeddings"], expected["embeddings"])
    assert caplog.messages == []


def test_where_nothing_is_to_be_repaired_damage_is_refused(made: Path, tmp_path: Path, engine: str) -> None:
    manager = manager_of(made, tmp_path, engine, repair="never")
    path = directory(manager)
    add_strays(path)
    old = (index(path) / "data_level0.bin").read_bytes()
    for _ in range(2):
        with pytest.raises(InstanceCorruptError, match=r"collection 'one': .*vectors can be rebuilt"):
            manager.get_client("doc", "azure")
    with pytest.raises(InstanceCorruptError):
        manager.snapshot("doc", "azure", tmp_path / "snapshot")
    assert (index(path) / "data_level0.bin").read_bytes() == old
    assert kept(path) == []
    repaired = manager.verify("doc", "azure", repair=True)
    assert repaired.ok
    assert_has(collection_of(manager))


def test_a_collection_that_cannot_be_rebuilt_is_refused_and_the_others_work(
    made: Path, tmp_path: Path, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manager_of(made, tmp_path, engine)
    path = directory(manager)
    lose_the_index(path)
    with caplog.at_level(logging.WARNING, "chroma_manager"):
        assert_has(collection_of(manager, "two"))
    (said,) = caplog.messages
    assert "collection 'one'" in said
    damaged = collection_of(manager)
    calls = [
        damaged.count,
        lambda: damaged.get("1"),
        lambda: damaged.query(query_embeddings=VECTORS[:1]),
        lambda: damaged.add(ids=["new"], embeddings=VECTORS[:1]),
        lambda: damaged.upsert(ids=IDS, embeddings=VECTORS),
        lambda: damaged.update(ids=["1"], embeddings=VECTORS[:1]),
        lambda: damaged.delete(["1"]),
    ]
    for call in calls:
        with pytest.raises(InstanceCorruptError, match=r"collection 'one': .* vectors can be rebuilt") as caught:
            call()
        assert (caught.value.file_id, caught.value.path) == ("doc", str(path))
    other = collection_of(manager, "two")
    other.upsert(ids=["0"], embeddings=VECTORS[:1])
    if engine == "isolated":
        # A kill is no reason to lose what a sound collection was given.
        other.delete(ids=IDS[COUNT - 100 :])
        kill_engines()
        assert_has(other, COUNT - 100)
        with pytest.raises(InstanceCorruptError):
            damaged.count()
    with pytest.raises(InstanceCorruptError, match="'one'"):
        manager.snapshot("doc", "azure", tmp_path / "snapshot")
    manager.cleanup_all_instances()
    report = manager.verify("doc", "azure")
    assert [collection.name for collection in report.collections if collection.problems] == ["one"]
    repaired = manager.verify("doc", "azure", repair=True)
    assert repaired.ok
    lost = len(Path(str(repaired.set_aside)).read_text().splitlines())
    assert 0 < lost < COUNT
    assert collection_of(manager).count() == COUNT - lost
    assert_has(collection_of(manager, "two"), COUNT - 100 if engine == "isolated" else COUNT)


def test_a_damaged_collection_that_was_deleted_keeps_the_others_from_nothing(
    made: Path, tmp_path: Path, engine: str
) -> None:
    manager = manager_of(made, tmp_path, engine)
    lose_the_index(directory(manager))
    assert_has(collection_of(manager, "two"))
    manager.get_client("doc", "azure").delete_collection("one")
    assert manager.snapshot("doc", "azure", tmp_path / "snapshot").records == COUNT


def test_the_copy_of_a_collection_that_stays_damaged_is_kept_for_its_repair(made: Path, tmp_path: Path) -> None:
    manager = manager_of(made, tmp_path, "isolated")
    path = directory(manager)
    collection_of(manager)
    manager.cleanup_all_instances()
    # Another Chroma writes on, and purges the log; then its index is lost.
    with chromadb.PersistentClient(path) as client:
        client.get_collection("one").upsert(ids=IDS, embeddings=VECTORS[::-1], documents=[f"text {i}" for i in IDS])
    assert eventually(lambda: files_open_in(path) == [])
    shutil.rmtree(index(path))
    for _ in range(2):
        assert_has(collection_of(manager, "two"))
        with pytest.raises(InstanceCorruptError):
            collection_of(manager).count()
        kill_engines()
        assert list((path / ".chroma_manager").glob(f"{index(path).name}@*/data_level0.bin"))
        manager.cleanup_all_instances()
    assert manager.verify("doc", "azure", repair=True).set_aside is None
    assert collection_of(manager).count() == COUNT


def test_a_database_of_which_nothing_is_sound_is_refused_and_can_be_replaced(
    made: Path, tmp_path: Path, engine: str
) -> None:
    manager = manager_of(made, tmp_path, engine)
    path = directory(manager)
    manager.get_client("doc", "azure").delete_collection("two")
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    manager.cleanup_all_instances()
    lose_the_index(path)
    with pytest.raises(InstanceCorruptError, match=r"'one': .* vectors can be rebuilt"):
        manager.get_client("doc", "azure")
    manager.restore("doc", "azure", tmp_path / "snapshot")
    assert_has(collection_of(manager))
    manager.cleanup_all_instances()
    lose_the_index(path)
    assert manager.delete_instance("doc", "azure") is True


@pytest.mark.parametrize(("when", "repair"), [("closed", "safe"), ("open", "safe"), ("open", "never")])
def test_an_index_that_chroma_dies_of_is_mended_or_said_to_be_damaged(
    made: Path, tmp_path: Path, when: str, repair: str
) -> None:
    """In the index and in its copy, of a database that was closed, or whose engine process was killed."""
    manager = manager_of(made, tmp_path, "isolated", repair=repair)
    path = directory(manager)
    collection_of(manager).upsert(ids=["0"], embeddings=VECTORS[:1])
    if when == "closed":
        manager.cleanup_all_instances()
    else:
        kill_engines()
    lead_astray(path)
    if repair == "safe":
        # One of them is the record whose links lead astray; the first twenty may all be found without it.
        collection_of(manager).query(query_embeddings=VECTORS, n_results=1)
        assert_has(collection_of(manager))
        assert manager.verify("doc", "azure").ok
        return
    with pytest.raises(InstanceCorruptError, match=r"'one': .*1,300 of 1,300 vectors can be rebuilt"):
        assert_has(collection_of(manager))
    with pytest.raises(InstanceCorruptError):
        manager.snapshot("doc", "azure", tmp_path / "snapshot")
    assert not manager.verify("doc", "azure").ok
    assert manager.verify("doc", "azure", repair=True).ok
    assert_has(collection_of(manager))
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    lead_astray(path)
    manager.restore("doc", "azure", tmp_path / "snapshot")
    assert_has(collection_of(manager))


# Stands for the interpreter: each engine process that it runs dies where Chroma is first called, while a file is there.
DYING = """#!{python} -IS
import os, runpy, signal, sys

sys.argv = sys.argv[sys.argv.index("-X") + 2:]
if os.path.exists({dies!r}):
    sys.setprofile(lambda _, event, about: event == 'c_call' and about.__name__ == 'get_database'
                   and os.kill(os.getpid(), signal.SIGSEGV))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_database_that_chroma_dies_of_for_no_known_reason_can_be_restored_all_the_same(
    made: Path, tmp_path: Path
) -> None:
    program, dies = tmp_path / "python", tmp_path / "dies"
    program.write_text(DYING.format(python=sys.executable, dies=str(dies)))
    program.chmod(0o755)
    manager = manager_of(made, tmp_path, "isolated", python=program)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    manager.cleanup_all_instances()
    dies.touch()
    for _ in range(2):
        with pytest.raises(InstanceCorruptError, match=r"Chroma dies when it opens it \(Segmentation fault\)"):
            manager.get_client("doc", "azure")
    with pytest.raises(InstanceCorruptError):
        manager.snapshot("doc", "azure", tmp_path / "another")
    assert manager.verify("doc", "azure").ok
    dies.unlink()
    manager.restore("doc", "azure", tmp_path / "snapshot")
    assert_has(collection_of(manager))
    manager.cleanup_all_instances()
    assert not (directory(manager) / ".chroma_manager" / "crashes").exists()


def test_a_repair_at_an_opening_that_is_killed_is_made_again(made, tmp_path, monkeypatch) -> None:
    # After the first nothing is lost any more whatever is killed, and the next engine process goes on.
    for step, is_again in {
        "log completed": True,
        "index moved": False,
    }.items():
        manager = manager_of(made, tmp_path / step, "isolated")
        lead_astray(directory(manager))
        with monkeypatch.context() as patch:
            patch.setenv("CHROMA_MANAGER_KILL_AT", step)
            with pytest.raises(InstanceOpenError, match="signal: 9") if is_again else contextlib.nullcontext():
                manager.get_client("doc", "azure")
        assert_has(collection_of(manager))
        assert kept(directory(manager))
        manager.shutdown()
        config = sql(directory(manager), "select config_json_str from embeddings_queue_config")
        assert '"automatically_purge":true' in config[0][0]


def test_what_is_to_be_done_about_damage_is_one_of_two() -> None:
    with pytest.raises(ValueError, match=r"repair='perhaps': it must be 'safe' or 'never'"):
        ChromaDBManager(repair="perhaps")


@pytest.mark.parametrize("damage", [lead_astray, add_strays], ids=lambda damage: damage.__name__)
def test_a_database_of_an_older_chroma_is_mended_too(made: Path, tmp_path: Path, damage: Damage) -> None:
    """Before 1.0 it wrote its sequence ids as bytes."""
    manager = manager_of(made, tmp_path, "isolated")
    path = directory(manager)
    damage(path)
    sql(path, "drop table embedding_metadata_array")
    sql(path, "delete from migrations where dir = 'metadb' and version > 4")
    for segment, position in sql(path, "select segment_id, seq_id from max_seq_id"):
        sql(path, "update max_seq_id set seq_id = ? where segment_id = ?", position.to_bytes(8, "big"), segment)
    assert_has(collection_of(manager))
    assert_has(collection_of(manager, "two"))
    assert manager.verify("doc", "azure").ok


def test_what_the_user_has_added_to_the_sqlite_file_is_no_damage(made: Path, tmp_path: Path, engine: str) -> None:
    manager = manager_of(made, tmp_path, engine)
    for statement in (
        "analyze",
        "create virtual table notes using fts5(text)",
        "create table twice (number, double as (number * 2))",
        "insert into twice (number) values (1)",
        "create trigger counted after insert on segments begin insert into notes values ('another'); end",
    ):
        sql(directory(manager), statement)
    # Its first opening examines it.
    assert_has(collection_of(manager))
    assert manager.verify("doc", "azure").ok
    manager.compact("doc", "azure")
    assert_has(collection_of(manager))
    manager.cleanup_all_instances()
    assert sql(directory(manager), "select count(*) > 0, (select double from twice) from sqlite_stat1") == [(1, 2)]


def test_a_directory_in_that_of_an_index_is_no_damage(made: Path, tmp_path: Path, engine: str) -> None:
    manager = manager_of(made, tmp_path, engine)
    path = directory(manager)
    strange = index(path) / "@eaDir"
    strange.mkdir()
    assert_has(collection_of(manager))
    manager.cleanup_all_instances()
    for copy in path.glob(f".chroma_manager/{strange.parent.name}@*"):
        (copy / "@eaDir").mkdir()
    assert manager.verify("doc", "azure").ok
    if engine == "isolated":
        # An index that is damaged while it is closed comes back from its copy.
        write_astray(strange.parent / "data_level0.bin")
        assert_has(collection_of(manager))
    else:
        assert strange.is_dir()
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    manager.restore("doc", "azure", tmp_path / "snapshot")
    assert_has(collection_of(manager))
