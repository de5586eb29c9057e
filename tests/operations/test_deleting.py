"""`delete_instance` and `delete_file`: closed everywhere, then removed, whoever is in the middle of something."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import chromadb.errors
import psutil
import pytest
from chroma_manager import (
    ChromaDBManager,
    ClientClosedError,
    InstanceLockedError,
    InstanceNotFoundError,
    InstanceOpenError,
    InvalidKeyError,
)
from chroma_manager.options import ENGINES, LOCAL_ENGINES
from conftest import (
    IDS,
    VECTORS,
    CallInside,
    InCall,
    PausingIds,
    all_at_once,
    directory,
    engine_of,
    eventually,
    get_with,
    new_collection,
)

isolated_only = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")


def test_a_deleted_database_is_gone_with_its_directory_and_its_handles(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    other = new_collection(manager, "other")
    assert manager.delete_instance("doc", "azure") is True
    assert not directory(manager).parent.exists()
    with pytest.raises(ClientClosedError, match="doc/azure"):
        collection.count()
    assert manager.delete_instance("doc", "azure") is False
    assert other.count() == 1
    assert new_collection(manager).count() == 1


def test_one_that_is_closed_is_deleted_too(manager: ChromaDBManager) -> None:
    new_collection(manager)
    manager.cleanup_all_instances()
    assert manager.delete_instance("doc", "azure") is True
    assert os.listdir(directory(manager).parents[1]) == []


def test_deleting_what_is_not_there_creates_nothing(manager: ChromaDBManager) -> None:
    assert manager.delete_instance("doc", "azure") is False
    assert manager.delete_file("doc") == 0
    assert not directory(manager).parents[1].exists()
    with pytest.raises(InvalidKeyError):
        manager.delete_instance("..", "azure")
    with pytest.raises(InvalidKeyError):
        manager.delete_file("a/b")


def test_a_file_is_deleted_with_all_its_databases_and_nothing_else(manager: ChromaDBManager) -> None:
    for embedding_type in ("azure", "openai", "local"):
        manager.get_collection("doc", embedding_type, "rag_collection")
    manager.cleanup_instance("doc", "local")
    new_collection(manager, "other")
    # What a kill has left of a download has the content, too.
    left = directory(manager).with_name(".chroma_manager.0123456789abcdef.incoming")
    left.mkdir()
    assert manager.delete_file("doc") == 3
    assert not directory(manager).parent.exists()
    assert new_collection(manager, "other").count() == 1


def test_what_is_not_a_database_of_ours_stays(manager: ChromaDBManager) -> None:
    new_collection(manager)
    original = directory(manager).parent / "original"
    original.mkdir()
    (original.parent / "\x07").mkdir()
    (original / "document.pdf").write_text("x")
    assert manager.delete_file("doc") == 1
    assert (original / "document.pdf").exists()
    assert not directory(manager).exists()


def test_a_write_under_way_finishes_first(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    outcomes: list[object] = []

    def write() -> None:
        try:
            for n in range(1000):
                collection.upsert(ids=[f"{n}-{i}" for i in range(20)], embeddings=VECTORS[:20, :2])
                outcomes.append(n)
        except Exception as error:
            outcomes.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    assert eventually(lambda: len(outcomes) > 3)
    assert manager.delete_instance("doc", "azure") is True
    assert not directory(manager).exists()
    writer.join(60)
    assert isinstance(outcomes[-1], ClientClosedError), outcomes[-1]
    assert not directory(manager).exists()


def test_threads_that_delete_and_create_at_once_all_end_well(manager: ChromaDBManager) -> None:
    def work(i: int) -> None:
        for _ in range(8):
            if i % 2:
                manager.delete_instance("doc", "azure")
                continue
            # Deleted while it is being made, or between its making and its use.
            with contextlib.suppress(ClientClosedError, InstanceNotFoundError, chromadb.errors.NotFoundError):
                new_collection(manager)

    assert all_at_once(4, work) == [None] * 4
    assert new_collection(manager).count() == 1
    assert manager.delete_file("doc") == 1
    assert os.listdir(directory(manager).parents[1]) == []


def test_from_within_a_call_it_is_refused_instead_of_waiting_for_itself(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded")
    collection = new_collection(manager)
    refused: list[str] = []

    def inside() -> None:
        with pytest.raises(InstanceOpenError, match="this very thread") as caught:
            manager.delete_instance("doc", "azure")
        refused.append(str(caught.value))

    assert get_with(collection, PausingIds(inside))["ids"] == ["1"]
    assert len(refused) == 1
    assert collection.count() == 1


def test_a_call_of_another_thread_is_waited_for(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded")
    busy = CallInside(new_collection(manager))
    deletion = threading.Thread(target=manager.delete_instance, args=("doc", "azure"))
    deletion.start()
    deletion.join(0.2)
    assert deletion.is_alive()
    assert busy.finish() == ["1"]
    deletion.join(60)
    assert not directory(manager).exists()


def test_one_that_another_process_has_in_itself_is_not_deleted(tmp_path: Path, script) -> None:
    other = script("""
manager = ChromaDBManager(base_path=base, engine="embedded")
manager.get_collection("doc", "azure", "rag_collection")
print("open")
sys.stdin.readline()
""")
    assert other.read_line() == "open"
    for engine in LOCAL_ENGINES:
        manager = ChromaDBManager(base_path=tmp_path / "db", engine=engine)
        with pytest.raises(InstanceLockedError) as caught:
            manager.delete_instance("doc", "azure")
        assert caught.value.pid == other.process.pid
        assert (directory(manager) / "chroma.sqlite3").exists()
        manager.shutdown()
    other.say()
    other.finish()
    assert ChromaDBManager(base_path=tmp_path / "db").delete_instance("doc", "azure") is True


WRITER = """
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = manager.get_collection("doc", "azure", "rag_collection")
print("writes", flush=True)
try:
    for n in range(100_000):
        collection.upsert(ids=[f"{os.getpid()}-{n}-{i}" for i in range(50)], embeddings=[[1.0, float(n)]] * 50)
except InstanceNotFoundError as error:
    print("not found", error.file_id)
"""


@isolated_only
def test_processes_that_write_do_not_keep_it_nor_bring_it_back(tmp_path: Path, script) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    # They would be warned that it was removed.
    writers = [script("import logging; logging.disable(logging.WARNING)\n" + WRITER) for _ in range(2)]
    for writer in writers:
        assert writer.read_line() == "writes"
    assert eventually(lambda: new_collection(manager).count() > 500)
    assert manager.delete_instance("doc", "azure") is True
    assert not directory(manager).parent.exists()
    for writer in writers:
        assert writer.finish() == "not found doc"
    assert not directory(manager).parent.exists()
    assert eventually(lambda: psutil.Process().children() == [])


@isolated_only
def test_an_engine_that_is_killed_while_it_deletes_has_deleted_or_not(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    collection = new_collection(manager)
    engine = engine_of(manager)
    call = InCall(engine, lambda: collection.upsert(ids=IDS, embeddings=VECTORS[:, :2]))
    deletion = threading.Thread(target=manager.delete_instance, args=("doc", "azure"))
    deletion.start()
    engine.kill()
    deletion.join(60)
    assert not deletion.is_alive()
    assert not directory(manager).parent.exists()
    assert not isinstance(call.finish(), InstanceNotFoundError) or not directory(manager).exists()


@isolated_only
def test_what_a_deletion_that_was_killed_has_left_is_no_database(tmp_path: Path) -> None:
    """Chroma's file goes first."""
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    collection = new_collection(manager)
    collection.upsert(ids=IDS, embeddings=VECTORS[:, :2])
    manager.cleanup_old_instances(max_idle=0)
    (directory(manager) / "chroma.sqlite3").unlink()
    with pytest.raises(InstanceNotFoundError):
        collection.count()
    assert manager.delete_instance("doc", "azure") is False
    assert not directory(manager).exists()
