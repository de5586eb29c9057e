"""What an app does to a database's directory while it is open: it is removed, replaced, moved away."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path

import chromadb
import numpy as np
import psutil
import pytest
from chroma_manager import ChromaDBManager, InstanceNotFoundError, InstanceOpenError
from chroma_manager.engine import embedded
from chroma_manager.options import ENGINES
from conftest import IDS, VECTORS, directory, eventually, in_thread, kill_engines, new_collection

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"

isolated_only = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")


def closed_copy(manager: ChromaDBManager, target: Path) -> Path:
    """A copy of the database as it is when nobody has it open."""
    manager.cleanup_all_instances()
    shutil.copytree(directory(manager), target, ignore=shutil.ignore_patterns(".chroma_manager*"))
    return target


def ids(collection) -> list[str]:
    return sorted(collection.get()["ids"])


def test_a_handle_does_not_bring_a_removed_database_back(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    collection = new_collection(manager)
    shutil.rmtree(directory(manager).parent)
    for call in (
        collection.count,
        lambda: collection.add(ids=["2"], embeddings=[[1.0, 2.0]]),
        lambda: collection.query(query_embeddings=[[1.0, 2.0]]),
        lambda: client.create_collection("other", embedding_function=None),
    ):
        with pytest.raises(InstanceNotFoundError, match=r"doc/azure.*get_client") as caught:
            call()
        assert caught.value.path == str(directory(manager))
        assert not directory(manager).parent.exists()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_database_that_is_removed_or_replaced_is_named_in_a_warning(
    manager: ChromaDBManager, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_replaced: bool
) -> None:
    collection = new_collection(manager)
    backup = closed_copy(manager, tmp_path / "backup")
    collection = new_collection(manager)
    shutil.rmtree(directory(manager))
    if is_replaced:
        shutil.copytree(backup, directory(manager))
        assert collection.count() == 1
    else:
        with pytest.raises(InstanceNotFoundError):
            collection.count()
    (record,) = [record for record in caplog.records if "removed or replaced" in record.message]
    assert (record.name, record.levelname) == ("chroma_manager", "WARNING")
    message = record.message.removeprefix("doc/azure ")
    documented = " ".join(OPERATIONS.read_text(encoding="utf-8").split())
    assert f"the rest at {record.levelname}, including that a database `{message}`" in documented


def test_whoever_asks_for_a_client_of_a_removed_database_gets_a_new_one(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    collection = new_collection(manager)
    shutil.rmtree(directory(manager))
    assert manager.get_client("doc", "azure") is client
    assert client.list_collections() == []
    assert new_collection(manager).count() == 1
    with pytest.raises(chromadb.errors.NotFoundError):
        collection.count()
    assert (directory(manager) / "chroma.sqlite3").exists()


def test_a_client_that_was_asked_for_before_brings_nothing_back_through_its_collections(manager) -> None:
    collection = new_collection(manager)
    manager.get_client("doc", "azure")
    shutil.rmtree(directory(manager))
    with pytest.raises(InstanceNotFoundError):
        collection.upsert(ids=["2"], embeddings=[[1.0, 2.0]])
    assert not directory(manager).exists()


def test_another_thread_that_asks_gets_a_new_one_too(manager: ChromaDBManager) -> None:
    new_collection(manager)
    shutil.rmtree(directory(manager))
    assert in_thread(lambda: manager.get_client("doc", "azure").list_collections()) == []


def test_a_database_that_was_removed_while_it_was_closed_is_not_brought_back(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    assert manager.cleanup_old_instances(max_idle=0) == 1
    shutil.rmtree(directory(manager))
    with pytest.raises(InstanceNotFoundError):
        collection.count()
    assert not directory(manager).exists()


def test_handles_go_on_with_what_was_put_in_the_place(manager: ChromaDBManager, tmp_path: Path) -> None:
    new_collection(manager)
    backup = closed_copy(manager, tmp_path / "backup")
    collection = new_collection(manager)
    collection.add(ids=["later"], embeddings=[[3.0, 4.0]])
    shutil.rmtree(directory(manager))
    shutil.copytree(backup, directory(manager))
    assert ids(collection) == ["1"]
    collection.add(ids=["2"], embeddings=[[3.0, 4.0]])
    manager.cleanup_all_instances()
    assert ids(manager.get_client("doc", "azure").get_collection("rag_collection")) == ["1", "2"]


def test_a_directory_that_is_exchanged_under_a_writer_has_its_writes_and_not_the_other(manager, tmp_path) -> None:
    new_collection(manager)
    backup = closed_copy(manager, tmp_path / "backup")
    collection = new_collection(manager)
    acknowledged: list[tuple[float, str]] = []
    done = threading.Event()

    def write() -> None:
        n = 0
        while not done.is_set():
            # For a moment there is none.
            with contextlib.suppress(InstanceNotFoundError):
                collection.add(ids=[f"w{n}-{i}" for i in range(20)], embeddings=np.ones((20, 2), dtype=np.float32) * n)
                acknowledged.append((time.monotonic(), f"w{n}-0"))
            n += 1

    writer = threading.Thread(target=write)
    writer.start()
    assert eventually(lambda: len(acknowledged) > 5)
    directory(manager).rename(tmp_path / "moved")
    backup.rename(directory(manager))
    exchanged = time.monotonic()
    count = len(acknowledged)
    assert eventually(lambda: len(acknowledged) > count + 5)
    done.set()
    writer.join(60)
    present = set(ids(collection))
    # One whose answer was on its way may be in either.
    after = [i for at, i in acknowledged if at > exchanged][1:]
    before = [i for at, i in acknowledged if at < exchanged]
    assert set(after) <= present
    assert "w0-0" not in present
    manager.cleanup_all_instances()
    with chromadb.PersistentClient(tmp_path / "moved") as client:
        moved = set(ids(client.get_collection("rag_collection")))
    assert set(before) <= moved
    assert after[-1] not in moved


def test_a_directory_that_was_moved_away_is_whole_where_it_is_now(manager: ChromaDBManager, tmp_path: Path) -> None:
    collection = new_collection(manager)
    collection.add(ids=[f"m{i}" for i in range(1500)], embeddings=VECTORS[:1500, :2])
    directory(manager).rename(tmp_path / "moved")
    with pytest.raises(InstanceNotFoundError):
        collection.count()
    assert not directory(manager).exists()
    assert not (tmp_path / "moved" / ".chroma_manager" / "open").exists()
    with chromadb.PersistentClient(tmp_path / "moved") as client:
        assert client.get_collection("rag_collection").count() == 1501
    (tmp_path / "moved").rename(directory(manager))
    assert collection.count() == 1501


def test_a_database_put_over_what_is_left_of_one_is_not_taken_for_it(manager: ChromaDBManager, tmp_path: Path) -> None:
    """As `rm -rf DIRECTORY/*` and a copy do: what a shell does not name stays."""
    collection = new_collection(manager)
    collection.add(ids=[f"a{i}" for i in range(1500)], embeddings=VECTORS[:1500, :2])
    backup = closed_copy(manager, tmp_path / "backup")
    collection = new_collection(manager)
    collection.add(ids=[f"b{i}" for i in range(1500)], embeddings=VECTORS[:1500, :2])
    for entry in directory(manager).glob("[!.]*"):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.copytree(backup, directory(manager), dirs_exist_ok=True)
    expected = ["1", *sorted(f"a{i}" for i in range(1500))]
    assert ids(collection) == expected
    collection.add(ids=["c"], embeddings=[[1.0, 1.0]])
    manager.cleanup_all_instances()
    assert ids(new_collection(manager)) == [*expected, "c"]


@isolated_only
def test_a_long_write_does_not_go_on_where_its_directory_was_moved_to(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    collection = manager.get_collection("doc", "azure", "large")
    outcome: list[object] = []
    writer = threading.Thread(
        target=lambda: outcome.append(in_thread(lambda: collection.upsert(ids=IDS, embeddings=VECTORS)))
    )
    writer.start()
    assert eventually(lambda: collection.count() > 0)
    directory(manager).rename(tmp_path / "moved")
    writer.join(60)
    assert isinstance(outcome[0], InstanceNotFoundError), "acknowledged, and nobody will find it"


@isolated_only
def test_a_cleanup_ends_the_engine_process_that_took_the_place_of_one_that_died(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    new_collection(manager)
    kill_engines()
    assert manager.verify("doc", "azure").ok
    assert len(psutil.Process().children()) == 1
    manager.cleanup_instance("doc", "azure")
    # It would write into the directory that is being removed.
    assert psutil.Process().children() == []
    shutil.rmtree(directory(manager))


@isolated_only
def test_one_put_over_the_rest_of_a_database_whose_engine_was_killed_is_not_taken_for_it(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    new_collection(manager).add(ids=[f"a{i}" for i in range(1500)], embeddings=VECTORS[:1500, :2])
    backup = closed_copy(manager, tmp_path / "backup")
    new_collection(manager).add(ids=[f"b{i}" for i in range(1500)], embeddings=VECTORS[:1500, :2])
    manager.cleanup_all_instances()
    new_collection(manager)
    kill_engines()
    for entry in directory(manager).glob("[!.]*"):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.copytree(backup, directory(manager), dirs_exist_ok=True)
    collection = new_collection(manager)
    assert collection.count() == 1501
    got = collection.get(ids=["a7"], include=["embeddings"])["embeddings"]
    assert np.array_equal(got[0].astype(np.float32), VECTORS[7, :2])
    # What is written now has places in the log that the checkpoint of the other one has seen taken.
    collection.add(ids=[f"c{i}" for i in range(500)], embeddings=VECTORS[:500, :2])
    assert len(collection.get(include=["embeddings"])["embeddings"]) == 2001
    assert manager.verify("doc", "azure").ok


def test_an_emptied_directory_has_no_database_afterwards(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    for entry in directory(manager).glob("[!.]*"):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    with pytest.raises(InstanceNotFoundError):
        collection.count()
    manager.cleanup_all_instances()
    assert not (directory(manager) / "chroma.sqlite3").exists()


def test_removing_it_while_a_thread_writes_removes_it_for_good(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    outcomes: list[object] = []
    started = threading.Event()

    def write() -> None:
        try:
            for n in range(10_000):
                started.set()
                collection.add(ids=[f"{n}-{i}" for i in range(50)], embeddings=VECTORS[:50, :2])
        except Exception as error:
            outcomes.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    assert started.wait(60)
    time.sleep(0.2)

    def removed() -> bool:
        # A file that appears while the directory is being emptied makes it fail, with any Chroma.
        shutil.rmtree(directory(manager), ignore_errors=True)
        return not directory(manager).exists()

    assert eventually(removed)
    writer.join(60)
    (outcome,) = outcomes
    assert isinstance(outcome, (InstanceNotFoundError, InstanceOpenError, chromadb.errors.ChromaError)), outcome
    time.sleep(0.2)
    assert not directory(manager).exists()


@isolated_only
def test_no_process_is_left_of_a_removed_database(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    collection = new_collection(manager)
    shutil.rmtree(tmp_path / "db" / "doc")
    with pytest.raises(InstanceNotFoundError):
        collection.count()
    assert eventually(lambda: psutil.Process().children() == [])
    assert manager.stats()["instances"] == {}


@isolated_only
def test_the_handles_of_another_process_see_it_too(tmp_path: Path, script) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    new_collection(manager)
    other = script("""
import logging; logging.disable(logging.WARNING)  # that the directory was removed
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = manager.get_collection("doc", "azure", "rag_collection")
print(collection.count())
sys.stdin.readline()
try:
    collection.count()
except InstanceNotFoundError:
    print("not found")
print(os.path.exists(os.path.join(base, "doc", "azure")))
sys.stdin.readline()
print(manager.get_client("doc", "azure").get_collection("rag_collection").count())
""")
    assert other.read_line() == "1"
    shutil.rmtree(directory(manager))
    other.say()
    assert (other.read_line(), other.read_line()) == ("not found", "False")
    assert new_collection(manager).count() == 1
    other.say()
    assert other.finish() == "1"


def remove_as_soon_as_it_is_there(path: Path) -> None:
    assert eventually((path / "chroma.sqlite3").exists)
    shutil.rmtree(path, ignore_errors=True)


def replaces(path: Path, others: Path) -> None:
    path.rename(path.with_name("moved"))
    shutil.copytree(others, path)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_directory_that_is_removed_or_replaced_while_it_is_opened_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_replaced: bool
) -> None:
    """Its records used to be counted, and writes to fail, when it was removed once more."""
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded", idle_timeout=None)
    collection = new_collection(manager)
    collection.add(ids=["old"], embeddings=[[1.0, 2.0]])
    others = closed_copy(manager, tmp_path / "others")
    shutil.rmtree(directory(manager).parent)
    original = embedded.open_bindings
    moments = [1]

    def open_bindings(settings: object, python: object, path: Path) -> object:
        opened = original(settings, python, path)
        if moments:
            moments.pop()
            replaces(Path(path), others) if is_replaced else shutil.rmtree(path)
        return opened

    monkeypatch.setattr(embedded, "open_bindings", open_bindings)
    collection = manager.get_collection("doc", "azure", "rag_collection")
    assert collection.count() == (2 if is_replaced else 0)
    collection.add(ids=["new"], embeddings=[[1.0, 2.0]])
    assert "new" in ids(collection)
    shutil.rmtree(directory(manager))
    with pytest.raises(InstanceNotFoundError):
        collection.count()
    assert new_collection(manager).count() == 1


@isolated_only
def test_an_engine_whose_directory_is_removed_while_it_opens_serves_nobody(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)
    for _ in range(5):
        removes = threading.Thread(target=remove_as_soon_as_it_is_there, args=(directory(manager),))
        removes.start()
        with contextlib.suppress(InstanceNotFoundError):
            manager.get_client("doc", "azure")
        removes.join()
        collection = new_collection(manager)
        assert (directory(manager) / "chroma.sqlite3").exists()
        assert collection.count() == 1
        manager.delete_instance("doc", "azure")
