"""What a closing knew is believed by the next opening as long as all files are as they were left."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chroma_manager import ChromaDBManager, InstanceOpenError
from chroma_manager.options import ENGINES
from conftest import directory, kill_engines, long, new_collection, sql

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="no engine process opens a database on this system")

KEEPS = '{"automatically_purge":false,"_type":"EmbeddingsQueueConfigurationInternal"}'
SETTING = "select config_json_str from embeddings_queue_config"


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


def note(path: Path) -> Path:
    return path / ".chroma_manager" / "closed.json"


def closed(manager: ChromaDBManager, records: int = 1) -> Path:
    """The directory of a database that was closed, whose note says that Chroma was found to keep its log."""
    collection: Any = new_collection(manager)
    collection.upsert(ids=[f"r{i}" for i in range(records)], embeddings=[[float(i), 1.0] for i in range(records)])
    manager.cleanup_all_instances()
    path = directory(manager)
    rewrite(path, lambda content: content["known"].update(purge_setting=KEEPS))
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a note, and seals it again."""
    sealed = json.loads(note(path).read_text())
    change(sealed["content"])
    sealed["crc32"] = zlib.crc32(json.dumps(sealed["content"], sort_keys=True).encode())
    note(path).write_text(json.dumps(sealed))


def is_believed(manager: ChromaDBManager) -> bool:
    """Whether the next opening believes the note: the closing after it puts back the setting that was found."""
    ids: Any = manager.get_collection("doc", "azure", "rag_collection").get()["ids"]
    assert len(ids) >= 1
    manager.cleanup_all_instances()
    return sql(directory(manager), SETTING) == [(KEEPS,)]


def test_the_note_of_a_database_that_nobody_has_changed_is_believed(manager: ChromaDBManager) -> None:
    closed(manager)
    assert is_believed(manager)


def test_a_directory_that_was_moved_is_as_it_was(manager: ChromaDBManager) -> None:
    path = closed(manager)
    path.rename(path.with_name("aside"))
    path.with_name("aside").rename(path)
    assert is_believed(manager)


def written_by_stock_chroma(path: Path) -> None:
    with chromadb.PersistentClient(path) as client:
        client.get_collection("rag_collection", embedding_function=None).add(ids=["stock"], embeddings=[[1.0, 2.0]])


def written_within_its_size_and_time(path: Path) -> None:
    file = path / "chroma.sqlite3"
    before = file.stat()
    with sqlite3.connect(file) as connection:
        connection.execute("update tenants set id = id")
    connection.close()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def copied(path: Path) -> None:
    shutil.copytree(path, path.with_name("copy"))
    shutil.rmtree(path)
    path.with_name("copy").rename(path)


def left_with_a_journal(path: Path) -> None:
    (path / "chroma.sqlite3-journal").write_bytes(b"")


def index_touched(path: Path) -> None:
    (index,) = (entry for entry in path.iterdir() if len(entry.name) == 36)
    os.utime(index / "data_level0.bin")


def index_file_removed(path: Path) -> None:
    (index,) = (entry for entry in path.iterdir() if len(entry.name) == 36)
    (index / "length.bin").unlink()


def index_added(path: Path) -> None:
    (path / "0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f").mkdir()


def with_a_batch(path: Path) -> None:
    (path / ".chroma_manager" / "batch-1-1").write_bytes(b"")


def checkpoints_removed(path: Path) -> None:
    shutil.rmtree(path / ".chroma_manager")


def manifest_touched(path: Path) -> None:
    os.utime(path / ".chroma_manager" / "checkpoint.json")


def note_damaged(path: Path) -> None:
    note(path).write_bytes(note(path).read_bytes()[:-10])


def note_emptied(path: Path) -> None:
    note(path).write_bytes(b"")


def note_linked(path: Path) -> None:
    elsewhere = path.parent / "elsewhere.json"
    note(path).rename(elsewhere)
    note(path).symlink_to(elsewhere)


def note_of_another_format(path: Path) -> None:
    rewrite(path, lambda content: content["files"].update(format=2))


def note_of_other_fields(path: Path) -> None:
    rewrite(path, lambda content: content["known"].update(more=1))


@pytest.mark.parametrize(
    "change",
    [
        written_by_stock_chroma,
        written_within_its_size_and_time,
        left_with_a_journal,
        index_touched,
        index_added,
        with_a_batch,
        manifest_touched,
        note_damaged,
        note_of_other_fields,
        *long(copied, index_file_removed, checkpoints_removed, note_emptied, note_linked, note_of_another_format),
    ],
)
def test_a_note_is_not_believed_after(manager: ChromaDBManager, change: Callable[[Path], None]) -> None:
    change(closed(manager, 1100))
    assert not is_believed(manager)
    collection = manager.get_collection("doc", "azure", "rag_collection")
    assert collection.count() == (1102 if change is written_by_stock_chroma else 1101)
    query: Any = collection.query(query_embeddings=[[1050.0, 1.0]], n_results=1)
    assert query["ids"] == [["r1050"]]


def test_a_killed_database_is_recovered_although_its_note_is_there(manager: ChromaDBManager) -> None:
    path = closed(manager)
    manager.get_collection("doc", "azure", "rag_collection").add(ids=["later"], embeddings=[[3.0, 4.0]])
    before = note(path).read_text()
    kill_engines()
    assert note(path).read_text() == before
    collection = manager.get_collection("doc", "azure", "rag_collection")
    assert set(collection.get()["ids"]) >= {"later", "r0"}
    query: Any = collection.query(query_embeddings=[[3.0, 4.0]], n_results=1)
    assert query["ids"] == [["later"]]
    manager.cleanup_all_instances()
    assert note(path).read_text() != before


def test_a_database_whose_chroma_is_newer_is_refused_by_its_note(manager: ChromaDBManager) -> None:
    path = closed(manager)
    rewrite(path, lambda content: content["known"]["migrations"].update(sysdb=99))
    with pytest.raises(InstanceOpenError, match="Inconsistent migration versions"):
        manager.get_client("doc", "azure")


@pytest.mark.parametrize("left", [b"", None])
def test_a_marker_that_a_power_cut_has_taken_is_not_needed(manager: ChromaDBManager, left: bytes | None) -> None:
    collection: Any = new_collection(manager)
    collection.add(ids=["two"], embeddings=[[3.0, 4.0]])
    kill_engines()
    marker = directory(manager) / ".chroma_manager" / "open"
    marker.unlink() if left is None else marker.write_bytes(left)
    assert manager.get_collection("doc", "azure", "rag_collection").count() == 2
    assert manager.verify("doc", "azure").ok
    manager.cleanup_all_instances()
    assert '"automatically_purge":true' in sql(directory(manager), SETTING)[0][0]
    assert not marker.exists()
