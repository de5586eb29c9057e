"""Filters of many parts, and answers of many bytes: what stock Chroma says or returns, and the engine process lives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager
from chroma_manager.options import ENGINES
from conftest import engine_of

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

# Of a thread of this process, in which stock Chroma can be asked what crashes it in the main thread.
LARGE_STACK = 512 << 20


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


@pytest.fixture
def both(manager: ChromaDBManager, tmp_path: Path) -> Iterator[list[chromadb.Collection]]:
    """A collection of stock Chroma, and ours."""
    with chromadb.PersistentClient(tmp_path / "theirs") as client:
        collections = [
            each.create_collection("base", embedding_function=None)
            for each in (client, manager.get_client("doc", "azure"))
        ]
        for collection in collections:
            collection.add(ids=["a"], embeddings=[[1, 2]], metadatas=[{"k": 1}], documents=["one"])
        yield collections


def any_of(count: int) -> dict[str, Any]:
    return {"$or": [{"k": i} for i in range(count)]}


def all_of(count: int) -> dict[str, Any]:
    return {"$and": [{"k": 1}] * count}


def nested(depth: int) -> dict[str, Any]:
    filter_: dict[str, Any] = {"k": 1}
    for i in range(depth):
        filter_ = {"$or" if i % 2 else "$and": [filter_, {"k": i}]}
    return filter_


def nested_any_of(count: int) -> dict[str, Any]:
    return {"$and": [any_of(count), {"$or": [any_of(count), {"k": 1}]}]}


FILTERS: dict[str, Callable[[], dict[str, Any]]] = {
    "2,500 parts": lambda: any_of(2_500),
    "10,000 of the smallest": lambda: all_of(10_000),  # too many for the main thread of stock Chroma
    "3 x 2,000 parts": lambda: nested_any_of(2_000),
    "50 levels": lambda: nested(50),
    "300 levels": lambda: nested(300),
    "50,000 values": lambda: {"k": {"$in": list(range(50_000))}},
}


def outcome(call: Callable[[], Any]) -> Any:
    """What it returns or raises where there is stack enough."""
    outcomes: list[Any] = []

    def run() -> None:
        try:
            outcomes.append(call())
        except Exception as error:
            outcomes.append((type(error), str(error)))

    before = threading.stack_size(LARGE_STACK)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return outcomes[0]


@pytest.mark.parametrize("name", FILTERS)
def test_a_large_filter_is_what_it_is_for_stock_chroma(manager, both, name: str) -> None:
    engine = engine_of(manager)
    filter_ = FILTERS[name]()
    calls: list[Callable[[chromadb.Collection], Any]] = [
        lambda collection: collection.get(where=filter_),
        lambda collection: collection.query(query_embeddings=[[1, 2]], where=filter_),
        lambda collection: collection.delete(where=filter_),
        lambda collection: collection.get()["ids"],
    ]
    # A large one takes Chroma a second each time.
    for call in calls if len(str(filter_)) < 50_000 else calls[:1]:
        theirs, ours = (outcome(lambda c=collection, call=call: call(c)) for collection in both)
        assert ours == theirs
    assert engine_of(manager) == engine


def test_a_large_filter_of_documents_is_what_it_is_for_stock_chroma(manager, both) -> None:
    filter_ = {"$or": [{"$contains": str(i)} for i in range(4_000)]}
    theirs, ours = (outcome(lambda c=collection: c.get(where_document=filter_)) for collection in both)
    assert ours == theirs


def test_an_answer_of_many_parts_is_what_was_written(manager: ChromaDBManager) -> None:
    collection = manager.get_collection("doc", "azure", "rag_collection")
    text = "".join(chr(ord("a") + i % 26) for i in range(1 << 20)) * 15
    collection.add(ids=["a"], embeddings=[[1.0, 2.0]], documents=[text])
    engine = engine_of(manager)
    # Once for each vector that it is asked for.
    found = collection.query(query_embeddings=np.ones((5, 2)), n_results=1, include=["documents"])
    assert found["documents"] == [[text]] * 5
    assert collection.count() == 1
    assert engine_of(manager) == engine
