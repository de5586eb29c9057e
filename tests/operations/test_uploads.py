"""A folder of a closed database is a database wherever it is copied, with all that chroma_manager keeps in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager
from chroma_manager.options import ENGINES
from conftest import directory, kill_engines

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
    assert_found(manager.get_collection(file_id, "azure", "vectors"), VECTORS[0])
    if "isolated" in ENGINES:
        kill_engines()
        assert_found(manager.get_collection(file_id, "azure", "vectors"), VECTORS[0])
    verification = manager.verify(file_id, "azure")
    assert (verification.ok, verification.problems) == (True, ())
    manager.cleanup_all_instances()
    with chromadb.PersistentClient(directory(manager, file_id)) as client:
        assert_found(client.get_collection("vectors", embedding_function=None), VECTORS[0])
