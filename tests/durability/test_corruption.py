"""Databases that are damaged when they are opened: told what can be saved, repaired on request, else let be."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager, InstanceCorruptError, InstanceOpenError
from chroma_manager.options import ENGINES, LOCAL_ENGINES
from conftest import IDS, VECTORS, directory, eventually, files_open_in, kill_engines, made_once, new_collection

isolated_only = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")


@pytest.fixture
def isolated(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated")


@pytest.fixture
def made_by_stock(isolated: ChromaDBManager, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of stock Chroma in the place of one of the manager's."""

    def make(path: Path) -> None:
        with chromadb.PersistentClient(path) as client:
            collection = client.create_collection("rag_collection", embedding_function=None)
            collection.add(ids=IDS, embeddings=VECTORS, documents=[f"text {i}" for i in IDS])
        assert eventually(lambda: files_open_in(path) == [])

    return shutil.copytree(made_once(tmp_path_factory, "corruption", make), directory(isolated))


def cut_index(path: Path) -> None:
    for file in path.glob("[!.]*/*.bin"):
        os.truncate(file, 50)


def lose_index(path: Path) -> None:
    for file in path.glob("[!.]*/header.bin"):
        shutil.rmtree(file.parent)


def garble_metadata(path: Path) -> None:
    for file in path.glob("[!.]*/index_metadata.pickle"):
        file.write_bytes(os.urandom(500))


@isolated_only
@pytest.mark.parametrize("damage", [cut_index, lose_index, garble_metadata])
def test_a_database_that_was_damaged_before_says_what_can_be_saved_and_saves_it(
    isolated, made_by_stock, damage
) -> None:
    path = made_by_stock
    damage(path)
    before = sorted(file.relative_to(path) for file in path.rglob("*") if not file.match(".chroma_manager*"))
    for _ in range(2):
        with pytest.raises(InstanceCorruptError, match="rag_collection") as caught:
            isolated.get_client("doc", "azure")
        assert "doc/azure" in str(caught.value)
        assert "of 2,000 vectors can be rebuilt" in str(caught.value)
        assert "repair=True" in str(caught.value)
        assert (caught.value.file_id, caught.value.path) == ("doc", str(path))
    after = {file.relative_to(path) for file in path.rglob("*") if file.parent == path or file.match("*.bin")}
    assert {file for file in before if file.suffix == ".bin"} <= after
    report = isolated.verify("doc", "azure")
    assert not report.ok
    (collection,) = report.collections
    assert collection.records == 2000
    repaired = isolated.verify("doc", "azure", repair=True)
    assert repaired.ok
    assert repaired.repaired
    assert repaired.found == report.problems
    saved = isolated.get_client("doc", "azure").get_collection("rag_collection", embedding_function=None)
    got = saved.get(include=["embeddings", "documents"])
    assert len(got["ids"]) == collection.recoverable
    for i, vector, document in zip(got["ids"], got["embeddings"], got["documents"], strict=True):
        assert np.array_equal(vector.astype(np.float32), VECTORS[int(i)])
        assert document == f"text {i}"
    lost = collection.records - collection.recoverable
    if lost:
        assert repaired.set_aside is not None
        assert len(Path(repaired.set_aside).read_text().splitlines()) == lost
    saved.add(ids=["after"], embeddings=VECTORS[:1])
    assert isolated.verify("doc", "azure").ok


@isolated_only
def test_a_snapshot_is_restored_in_the_place_of_a_damaged_database(isolated, made_by_stock, tmp_path: Path) -> None:
    path = made_by_stock
    isolated.snapshot("doc", "azure", tmp_path / "snapshot")
    isolated.cleanup_all_instances()
    shutil.rmtree(path / ".chroma_manager")
    cut_index(path)
    with pytest.raises(InstanceCorruptError):
        isolated.snapshot("doc", "azure", tmp_path / "other")
    isolated.restore("doc", "azure", tmp_path / "snapshot")
    assert isolated.get_client("doc", "azure").get_collection("rag_collection").count() == 2000
    assert isolated.verify("doc", "azure").ok


@isolated_only
def test_a_damaged_database_is_deleted_as_any(isolated: ChromaDBManager, made_by_stock: Path) -> None:
    path = made_by_stock
    cut_index(path)
    with pytest.raises(InstanceCorruptError):
        isolated.get_client("doc", "azure")
    assert isolated.delete_instance("doc", "azure") is True
    assert not path.exists()
    assert new_collection(isolated).count() == 1


@isolated_only
def test_an_index_that_was_damaged_while_it_was_closed_comes_back_from_its_copy(isolated) -> None:
    """Nobody has written meanwhile, so what was copied is what is missing."""
    collection = isolated.get_collection("doc", "azure", "rag_collection")
    collection.add(ids=IDS, embeddings=VECTORS)
    isolated.cleanup_all_instances()
    cut_index(directory(isolated))
    collection = isolated.get_collection("doc", "azure", "rag_collection")
    got = collection.get(include=["embeddings"])
    assert len(got["ids"]) == 2000
    for i, vector in zip(got["ids"], got["embeddings"], strict=True):
        assert np.array_equal(vector.astype(np.float32), VECTORS[int(i)])
    assert isolated.verify("doc", "azure").ok


@isolated_only
def test_a_database_file_that_is_none_is_told_of_and_replaced_by_a_snapshot(isolated, tmp_path: Path) -> None:
    new_collection(isolated)
    isolated.snapshot("doc", "azure", tmp_path / "snapshot")
    isolated.cleanup_all_instances()
    file = directory(isolated) / "chroma.sqlite3"
    file.write_bytes(b"no database at all" * 1000)
    with pytest.raises(InstanceCorruptError, match=r"chroma\.sqlite3"):
        isolated.get_client("doc", "azure")
    assert not isolated.verify("doc", "azure").ok
    assert not isolated.verify("doc", "azure", repair=True).ok
    assert file.read_bytes() == b"no database at all" * 1000
    isolated.restore("doc", "azure", tmp_path / "snapshot")
    assert new_collection(isolated).count() == 1


def test_a_sound_database_is_found_to_be_so_and_calls_go_on(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    collection.upsert(ids=IDS, embeddings=VECTORS[:, :2])
    manager.get_collection("doc", "azure", "another").add(ids=["1"], embeddings=[[1.0]])
    report = manager.verify("doc", "azure")
    assert (report.ok, report.problems, report.sqlite, report.repaired) == (True, (), "ok", False)
    assert {found.name: (found.records, found.vectors) for found in report.collections} == {
        "rag_collection": (2000, 2000),
        "another": (1, 1),
    }
    assert collection.count() == 2000
    assert manager.verify("doc", "azure", repair=True).repaired is False


def test_embedded_opens_what_a_killed_engine_process_has_left(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine=LOCAL_ENGINES[0])
    if manager.stats()["instances"]:
        pytest.fail("a manager of another test is left")
    collection = manager.get_collection("doc", "azure", "rag_collection")
    collection.add(ids=IDS, embeddings=VECTORS)
    path = directory(manager)
    if LOCAL_ENGINES[0] == "isolated":
        kill_engines()
        cut_index(path)
    manager.shutdown()
    embedded = ChromaDBManager(base_path=tmp_path / "db", engine="embedded")
    got = embedded.get_client("doc", "azure").get_collection("rag_collection").get(include=["embeddings"])
    assert len(got["ids"]) == 2000
    embedded.shutdown()
    with sqlite3.connect(path / "chroma.sqlite3") as sql:
        (config,) = sql.execute("select config_json_str from embeddings_queue_config").fetchone()
    sql.close()
    assert '"automatically_purge":true' in config
    assert not (path / ".chroma_manager" / "open").exists()


def test_an_unreadable_snapshot_of_nothing_is_no_database(manager: ChromaDBManager) -> None:
    with pytest.raises(InstanceOpenError):
        manager.verify("doc", "azure")
    assert not directory(manager).exists()
