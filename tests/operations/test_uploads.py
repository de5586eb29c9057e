"""A folder of a closed database is a database wherever it is copied, with all that chroma_manager keeps in it.

What comes along is also the worst that can: a lock file that names a live owner, the checkpoint of another time or of
another database, a dirty marker, and the journal of half a batch.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager
from chroma_manager.options import ENGINES
from conftest import IDS, directory, engine_of, eventually, kill_engines, lock_file, log_of, long, socket_of, suspend
from conftest import VECTORS as WIDE

COUNT = 1100
VECTORS = np.random.default_rng(0).random((2, COUNT, 4), dtype=np.float32)


def fill(manager: ChromaDBManager, file_id: str, vectors: np.ndarray) -> None:
    collection = manager.get_collection(file_id, "azure", "vectors")
    collection.add(ids=[str(i) for i in range(COUNT)], embeddings=vectors)
    manager.cleanup_instance(file_id, "azure")


def assert_found(collection: chromadb.Collection, vectors: np.ndarray) -> None:
    got = collection.get(include=["embeddings"])
    assert sorted(map(int, got["ids"])) == list(range(COUNT))
    found = dict(zip(map(int, got["ids"]), got["embeddings"], strict=True))
    assert all(np.array_equal(found[i], vectors[i]) for i in range(COUNT))
    nearest = collection.query(query_embeddings=vectors, n_results=1, include=[])["ids"]
    assert sum(found != [str(i)] for i, found in enumerate(nearest)) <= 1


def through_a_bucket(source: Path, target: Path) -> None:
    """As objects, which have names and content, and nothing else."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        copied = target / file.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(file.read_bytes())


def with_times(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def assert_is_sound(manager: ChromaDBManager, file_id: str, vectors: np.ndarray) -> None:
    """A database has these vectors, and still has them after a kill and for stock Chroma. It is closed at the end."""
    assert_found(manager.get_collection(file_id, "azure", "vectors"), vectors)
    if "isolated" in ENGINES:
        kill_engines()
        assert_found(manager.get_collection(file_id, "azure", "vectors"), vectors)
    verification = manager.verify(file_id, "azure")
    assert (verification.ok, verification.problems) == (True, ())
    manager.cleanup_all_instances()
    with chromadb.PersistentClient(directory(manager, file_id)) as client:
        assert_found(client.get_collection("vectors", embedding_function=None), vectors)


@pytest.mark.parametrize(
    ("copy", "target"),
    [
        (through_a_bucket, "elsewhere"),
        (through_a_bucket, "over another database"),
        (with_times, "over another database"),
        (with_times, "over itself"),
    ],
)
def test_a_copied_folder_is_the_database(
    manager: ChromaDBManager, copy: Callable[[Path, Path], None], target: str, tmp_path: Path
) -> None:
    fill(manager, "doc", VECTORS[0])
    uploaded = tmp_path / "bucket"
    copy(directory(manager), uploaded)
    assert (uploaded / ".chroma_manager.lock").is_file()
    file_id = "doc" if target == "over itself" else "other"
    if target == "over another database":
        fill(manager, file_id, VECTORS[1])
    elif target == "over itself":
        collection = manager.get_collection(file_id, "azure", "vectors")
        collection.update(ids=[str(i) for i in range(COUNT)], embeddings=VECTORS[1])
        manager.cleanup_instance(file_id, "azure")
    copy(uploaded, directory(manager, file_id))
    assert_is_sound(manager, file_id, VECTORS[0])


def ours_of(source: Path, target: Path) -> None:
    """The checkpoint of `source`, and all else that chroma_manager keeps there, in the place of what `target` has."""
    shutil.rmtree(target / ".chroma_manager")
    shutil.copytree(source / ".chroma_manager", target / ".chroma_manager")


@pytest.mark.skipif("isolated" not in ENGINES, reason="the other engine takes no checkpoints")
@pytest.mark.parametrize("of", ["an earlier time", *long("a later time", "another database")])
def test_a_checkpoint_that_is_not_of_the_copied_database_is_not_put_in_its_place(tmp_path: Path, of: str) -> None:
    """As where Chroma's own files are copied over a folder, and ours are left out."""
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)
    fill(manager, "doc", VECTORS[0])
    earlier = tmp_path / "earlier"
    with_times(directory(manager), earlier)
    if of == "another database":
        fill(manager, "other", VECTORS[1])
        ours_of(directory(manager, "other"), directory(manager))
    else:
        collection = manager.get_collection("doc", "azure", "vectors")
        collection.update(ids=[str(i) for i in range(COUNT)], embeddings=VECTORS[1])
        manager.cleanup_all_instances()
        if of == "an earlier time":
            ours_of(earlier, directory(manager))
        else:
            ours_of(directory(manager), earlier)
            shutil.rmtree(directory(manager))
            with_times(earlier, directory(manager))
    # The first opening finds the database closed. The kill comes before its first checkpoint.
    assert_is_sound(manager, "doc", VECTORS[1] if of == "an earlier time" else VECTORS[0])


def test_a_copy_of_an_open_folder_takes_nothing_from_the_owner_that_its_lock_file_names(
    manager: ChromaDBManager, tmp_path: Path
) -> None:
    """Nothing is written meanwhile, so the copy is whole; but lock file and dirty marker are those of a live owner."""
    collection = manager.get_collection("doc", "azure", "vectors")
    collection.add(ids=[str(i) for i in range(COUNT)], embeddings=VECTORS[0])
    owner = lock_file(manager)
    assert owner[0].isdecimal()
    through_a_bucket(directory(manager), directory(manager, "copy"))
    assert lock_file(manager, "copy") == owner
    copied = manager.get_collection("copy", "azure", "vectors")
    assert_found(copied, VECTORS[0])
    copied.update(ids=[str(i) for i in range(COUNT)], embeddings=VECTORS[1])
    assert lock_file(manager) == owner
    assert lock_file(manager, "copy") != owner
    if manager._options.engine == "isolated":
        assert engine_of(manager).pid != engine_of(manager, "copy").pid
        assert socket_of(manager).is_socket()
        assert log_of(manager).is_file()
    assert_found(collection, VECTORS[0])
    manager.cleanup_instance("copy", "azure")
    assert_found(collection, VECTORS[0])
    assert manager.verify("doc", "azure").ok
    assert_is_sound(manager, "copy", VECTORS[1])


@pytest.mark.skipif("isolated" not in ENGINES, reason="the other engine keeps no journal")
@pytest.mark.parametrize("copy", [through_a_bucket, with_times])
def test_a_copy_from_the_middle_of_a_write_is_what_a_kill_would_have_left(
    tmp_path: Path, copy: Callable[[Path, Path], None]
) -> None:
    """The engine process is stopped while it is copied: files that change meanwhile are no database."""
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)
    collection = manager.get_collection("doc", "azure", "vectors")
    collection.add(ids=[f"before-{i}" for i in range(COUNT)], embeddings=WIDE[:COUNT])
    engine = engine_of(manager)
    writing = threading.Thread(target=collection.add, kwargs={"ids": IDS, "embeddings": WIDE})
    writing.start()
    assert eventually(lambda: collection.count() > COUNT)
    suspend(engine)
    copy(directory(manager), directory(manager, "copy"))
    assert list((directory(manager, "copy") / ".chroma_manager").glob("batch-*")), "the write had ended"
    copied = manager.get_collection("copy", "azure", "vectors").get(include=["embeddings"])
    engine.resume()
    writing.join(60)
    found = dict(zip(copied["ids"], copied["embeddings"], strict=True))
    assert all(np.array_equal(found.pop(f"before-{i}"), WIDE[i]) for i in range(COUNT))
    assert sorted(found) == sorted(IDS)
    assert all(np.array_equal(row, WIDE[int(i)]) for i, row in found.items())
    assert manager.verify("copy", "azure").ok
    assert collection.count() == COUNT + len(IDS)
