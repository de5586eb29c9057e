"""SQLite's write-ahead log is on while an engine process has a database open, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import chromadb
import pytest
from chroma_manager import ChromaDBManager, InstanceOpenError
from chroma_manager.engine.isolated import prepare
from chroma_manager.options import ENGINES
from chroma_manager.worker import template
from chroma_manager.worker.database import Database
from conftest import (
    Script,
    directory,
    engine_of,
    eventually,
    files_open_in,
    kill_engines,
    new_collection,
    sql,
)

pytestmark = pytest.mark.skipif(
    "isolated" not in ENGINES or sys.platform != "linux",
    reason="the engine, or what tells what it has open, is not there",
)

DATABASE = "chroma.sqlite3"
WRITE_VERSION = slice(18, 19)


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


def is_write_ahead(path: Path) -> bool:
    """Whether the SQLite file says so; it is not opened with SQLite."""
    return (path / DATABASE).read_bytes()[WRITE_VERSION] == b"\2"


def files_of_sqlite(path: Path) -> set[str]:
    return {entry.name for entry in path.glob(f"{DATABASE}*")}


def open_in_engine(manager: ChromaDBManager) -> list[str]:
    """The names of SQLite's files that the engine process has open."""
    descriptors = Path(f"/proc/{engine_of(manager).pid}/fd")
    names = []
    for descriptor in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.append(os.path.basename(os.readlink(descriptor)))
    return [name for name in names if name.startswith(DATABASE)]


def read(path: Path) -> list[str]:
    """The documents that stock Chroma finds."""
    with chromadb.PersistentClient(path) as client:
        return client.get_collection("rag_collection", embedding_function=None).get()["documents"] or []


def test_it_is_on_while_the_database_is_open_and_off_when_it_is_closed(manager: ChromaDBManager) -> None:
    new_collection(manager)
    assert is_write_ahead(directory(manager))
    assert files_of_sqlite(directory(manager)) == {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"}
    manager.cleanup_all_instances()
    assert not is_write_ahead(directory(manager))
    assert files_of_sqlite(directory(manager)) == {DATABASE}
    assert read(directory(manager)) == ["one"]


def test_one_that_was_on_before_stays_on(manager: ChromaDBManager) -> None:
    new_collection(manager)
    manager.cleanup_all_instances()
    assert sql(directory(manager), "pragma journal_mode = wal") == [("wal",)]
    new_collection(manager)
    kill_engines()
    new_collection(manager)
    manager.cleanup_all_instances()
    assert is_write_ahead(directory(manager))
    assert read(directory(manager)) == ["one"]


def test_what_a_kill_leaves_in_it_stock_chroma_and_the_next_engine_read(
    manager: ChromaDBManager, tmp_path: Path
) -> None:
    collection = new_collection(manager)
    before = (directory(manager) / DATABASE).read_bytes()
    collection.add(ids=["2"], embeddings=[[3.0, 4.0]], documents=["two"])
    kill_engines()
    assert (directory(manager) / DATABASE).read_bytes() == before
    shutil.copytree(directory(manager), tmp_path / "copy")
    assert read(tmp_path / "copy") == ["one", "two"]
    assert collection.get()["documents"] == ["one", "two"]
    manager.cleanup_all_instances()
    assert read(directory(manager)) == ["one", "two"]


def test_what_is_left_of_a_removed_database_does_not_get_into_the_next_one(
    manager: ChromaDBManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_collection(manager)
    kill_engines()
    path = directory(manager)
    # As an interrupted deletion leaves it.
    (path / DATABASE).unlink()
    (path / ".chroma_manager" / "checkpoint.json").write_text("of the removed one")
    assert (path / f"{DATABASE}-wal").stat().st_size
    # As an engine process that a host has forked opens it, which creates a database by a copy.
    monkeypatch.setattr(template._Template, "content", template.make())
    bindings = Database(json.loads(prepare(None, path)[1]), path).open()
    assert bindings.count_collections(chromadb.DEFAULT_TENANT, chromadb.DEFAULT_DATABASE) == 0
    del bindings
    assert eventually(lambda: files_open_in(path) == [])
    assert new_collection(manager).get()["documents"] == ["one"]
    manager.cleanup_all_instances()
    assert manager.verify("doc", "azure").ok
    assert read(path) == ["one"]


def test_a_snapshot_has_none(manager: ChromaDBManager, tmp_path: Path) -> None:
    new_collection(manager)
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    assert not is_write_ahead(tmp_path / "snapshot")
    assert files_of_sqlite(tmp_path / "snapshot") == {DATABASE}
    assert is_write_ahead(directory(manager))
    manager.restore("doc", "azure", tmp_path / "snapshot")
    assert new_collection(manager).get()["documents"] == ["one"]
    assert is_write_ahead(directory(manager))


@pytest.mark.long
def test_a_program_that_reads_the_database_and_closes_it_removes_nothing(
    manager: ChromaDBManager, script: Callable[..., Script]
) -> None:
    # The last one that closes a database removes its write-ahead log. A process that has released its locks does not
    # count, and whoever closes any descriptor of the file releases them.
    collection = new_collection(manager)
    for i in range(2, 5):
        reader = script(
            "import chromadb\n"
            "with chromadb.PersistentClient(base + '/doc/azure') as client:\n"
            "    print(client.get_collection('rag_collection', embedding_function=None).count())\n"
        )
        assert reader.finish() == str(i - 1)
        assert set(open_in_engine(manager)) == {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"}
        collection.upsert(ids=[str(i)], embeddings=[[1.0, float(i)]])
    kill_engines()
    assert collection.count() == 4


def test_a_file_system_that_cannot_have_one_has_the_journal_of_before(unmappable: Path) -> None:
    manager = ChromaDBManager(base_path=unmappable / "db", engine="isolated", idle_timeout=None)
    collection = new_collection(manager)
    assert not is_write_ahead(directory(manager))
    engine = engine_of(manager)
    engine.kill()
    engine.wait()
    assert collection.get()["documents"] == ["one"]
    manager.cleanup_all_instances()
    assert read(directory(manager)) == ["one"]
    for count in 2, 3:
        # From the second closing on without anything that stock Chroma has changed.
        collection = manager.get_collection("doc", "azure", "rag_collection")
        assert not is_write_ahead(directory(manager))
        collection.add(ids=[str(count)], embeddings=[[1.0, 2.0]])
        assert collection.count() == count
        manager.cleanup_all_instances()


def test_what_a_kill_leaves_of_a_database_that_was_opened_as_it_was_closed(manager: ChromaDBManager) -> None:
    new_collection(manager)
    manager.cleanup_all_instances()
    path = directory(manager)
    for how in "killed at once", "killed after a write":
        collection = manager.get_collection("doc", "azure", "rag_collection")
        if how == "killed after a write":
            collection.add(ids=["two"], embeddings=[[1.0, 2.0]], documents=["two"])
        assert is_write_ahead(path)
        kill_engines()
        copy = path.with_name(how)
        shutil.copytree(path, copy)
        assert sql(copy, "pragma user_version") != [(0,)]
        assert '"automatically_purge":false' in sql(copy, "select config_json_str from embeddings_queue_config")[0][0]
        assert sorted(read(copy)) == sorted(manager.get_collection("doc", "azure", "rag_collection").get()["documents"])
        manager.cleanup_all_instances()
        assert not is_write_ahead(path)


@pytest.mark.parametrize("step", ["marked", "log kept", "write-ahead log on"])
def test_an_opening_that_is_killed_changes_no_setting(manager: ChromaDBManager, monkeypatch, step: str) -> None:
    new_collection(manager)
    manager.cleanup_all_instances()
    path = directory(manager)
    monkeypatch.setenv("CHROMA_MANAGER_KILL_AT", step)
    # Not each process comes to the step: one that recovers does not mark the database again.
    with contextlib.suppress(InstanceOpenError):
        manager.get_client("doc", "azure")
    monkeypatch.delenv("CHROMA_MANAGER_KILL_AT")
    assert (path / ".chroma_manager" / "open").exists()
    assert manager.get_collection("doc", "azure", "rag_collection").count() == 1
    manager.cleanup_all_instances()
    assert not is_write_ahead(path)
    assert '"automatically_purge":true' in sql(path, "select config_json_str from embeddings_queue_config")[0][0]
