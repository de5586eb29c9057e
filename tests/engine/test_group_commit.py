"""Short writes that wait for each other go to Chroma as one call, and each has the outcome that it would have alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chroma_manager import ChromaDBManager
from chroma_manager.options import ENGINES
from conftest import all_at_once, engine_of, eventually, has_ended, suspend

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="there are no engine processes")

THREADS = 8


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


def collection_of(manager: ChromaDBManager) -> Any:
    return manager.get_collection("doc", "azure", "rag", embedding_function=None)


def waiting_together(manager: ChromaDBManager, *calls: Callable[[Any], object]) -> list[object]:
    """Makes calls in threads, which all wait for the engine process; what each returned or raised."""
    collection = collection_of(manager)
    collection.upsert(ids=["first"], embeddings=[[1.0, 1.0]], documents=["first"])
    engine = engine_of(manager)
    suspend(engine)
    # By then all are there. Where one is not, it is made after the others.
    threading.Timer(0.5, engine.resume).start()
    return all_at_once(len(calls), lambda i: calls[i](collection))


def add(record: str, vector: list[float], **more: Any) -> Callable[[Any], object]:
    return lambda collection: collection.add(ids=[record], embeddings=[vector], **more)


def test_writes_that_wait_are_one_call_and_none_is_lost_if_the_process_is_killed_in_it(
    manager: ChromaDBManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHROMA_MANAGER_KILL_AT", "group written")
    collection = collection_of(manager)
    first = engine_of(manager)
    monkeypatch.delenv("CHROMA_MANAGER_KILL_AT")

    def write(i: int) -> int:
        for n in range(20):
            collection.add(ids=[f"{i}-{n}"], embeddings=[[float(i), float(n)]], documents=[f"{i} {n}"])
        return 20

    assert all_at_once(THREADS, write) == [20] * THREADS
    assert eventually(lambda: has_ended(first)), "no two writes were made together"
    found = collection.get(include=["embeddings", "documents"])
    vectors = {f"{i}-{n}": ([float(i), float(n)], f"{i} {n}") for i in range(THREADS) for n in range(20)}
    rows = zip(found["ids"], found["embeddings"].tolist(), found["documents"], strict=True)
    assert {record: (vector, document) for record, vector, document in rows} == vectors


def test_each_has_its_own_answer_or_error(manager: ChromaDBManager) -> None:
    good = [add(str(i), [float(i), 1.0], metadatas=[{"i": i}]) for i in range(4)]
    outcomes = waiting_together(
        manager,
        *good,
        add("long", [1.0, 2.0, 3.0], metadatas=[{"i": 4}]),
        add("key", [1.0, 2.0], metadatas=[{"chroma:document": "reserved"}]),
        add("\ud800", [1.0, 2.0], metadatas=[{"i": 6}]),
        add("first", [9.0, 9.0], metadatas=[{"i": 7}]),
    )
    collection = collection_of(manager)
    alone = [type(error) for error in all_at_once(1, lambda _: add("long", [1.0, 2.0, 3.0])(collection))]
    assert outcomes[:4] == [None] * 4
    assert [type(outcomes[4])] == alone
    assert isinstance(outcomes[6], Exception)
    assert outcomes[7] is None, "adding what exists does nothing"
    found = collection.get(include=["embeddings", "metadatas"])
    stored = dict(zip(found["ids"], found["metadatas"], strict=True))
    assert {str(i): stored.get(str(i)) for i in range(4)} == {str(i): {"i": i} for i in range(4)}
    assert "long" not in stored
    assert collection.get(ids=["first"], include=["embeddings"])["embeddings"].tolist() == [[1.0, 1.0]]


def test_writes_to_the_same_record_are_made_one_after_the_other(manager: ChromaDBManager) -> None:
    def upsert(i: int) -> Callable[[Any], object]:
        return lambda collection: collection.upsert(ids=["same"], embeddings=[[float(i), 0.0]], documents=[str(i)])

    assert waiting_together(manager, *map(upsert, range(THREADS))) == [None] * THREADS
    found = collection_of(manager).get(ids=["same"], include=["embeddings", "documents"])
    assert found["embeddings"].tolist() == [[float(found["documents"][0]), 0.0]]
    assert collection_of(manager).count() == 2


def test_what_is_left_out_stays_as_it_was(manager: ChromaDBManager) -> None:
    collection = collection_of(manager)
    ids = [str(i) for i in range(THREADS)]
    collection.add(ids=ids, embeddings=[[float(i), 0.0] for i in range(THREADS)], metadatas=[{"is": "old"}] * THREADS)

    def update(i: int) -> Callable[[Any], object]:
        changes: dict[str, Any] = {"metadatas": [{"is": "new"}]} if i % 2 else {"embeddings": [[float(i), 1.0]]}
        return lambda collection: collection.update(ids=[str(i)], **changes)

    assert waiting_together(manager, *map(update, range(THREADS))) == [None] * THREADS
    found = collection.get(ids=ids, include=["embeddings", "metadatas"])
    vectors = dict(zip(found["ids"], found["embeddings"].tolist(), strict=True))
    words = {record: metadata["is"] for record, metadata in zip(found["ids"], found["metadatas"], strict=True)}
    assert vectors == {str(i): [float(i), 0.0 if i % 2 else 1.0] for i in range(THREADS)}
    assert words == {str(i): "new" if i % 2 else "old" for i in range(THREADS)}


def test_writes_to_several_collections_reach_their_own(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    others = [client.create_collection(f"other{i}", embedding_function=None) for i in range(THREADS)]
    writes = [lambda _, i=i: others[i % 4].add(ids=[str(i)], embeddings=[[1.0, float(i)]]) for i in range(THREADS)]
    assert waiting_together(manager, *writes) == [None] * THREADS
    assert [sorted(other.get()["ids"]) for other in others] == [[str(i), str(i + 4)] for i in range(4)] + [[]] * 4
