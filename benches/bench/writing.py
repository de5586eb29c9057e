"""How fast records are written, and what that does to others: the app's threads, and those that query meanwhile."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

from contenders import Contender
from scenario import (
    OTHERS,
    Figures,
    Scenario,
    Sizes,
    all_in_threads,
    calls_of,
    p99,
    part,
    records,
    seconds,
    vectors,
    watched,
)

ASKED = 50
WRITERS = 8


def writing(contender: Contender, sizes: Sizes) -> Figures:
    """One thread writes, and nobody else is there, but a thread that only wants to run."""
    figures: Figures = {}
    for batch, count in sizes.batches:
        collection = warm(contender, f"doc{batch}", sizes)
        adds = calls_of(contender, batch, count, sizes.dimension)
        took, stall = watched(lambda c=collection, adds=adds: [c.add(**each) for each in adds])
        figures |= {f"add {batch} /s": count / took, "add stall ms": stall * 1e3}
    existing = records(2 * sizes.existing, sizes.dimension)
    halves = part(existing, 0, sizes.existing), part(existing, sizes.existing, 2 * sizes.existing)
    calls = {
        "upsert": lambda: collection.upsert(**halves[0]),
        "update": lambda: collection.update(**halves[1]),
        "get": lambda: collection.get(include=["embeddings", "documents", "metadatas"]),
        "delete": lambda: collection.delete(ids=existing["ids"][: sizes.deleted]),
    }
    for name, call in calls.items():
        took, stall = watched(call)
        figures |= {f"{name} ms": took * 1e3, f"{name} stall ms": stall * 1e3}
    for name in ("upsert", "update"):
        figures[f"{name} /s"] = sizes.existing / figures[f"{name} ms"] * 1e3
    return figures


def reading_meanwhile(contender: Contender, sizes: Sizes) -> Figures:
    """One thread adds a large file in one call; another asks, one question after another."""
    collection = contender.collection("doc")
    collection.add(**records(sizes.existing, sizes.dimension, first=sizes.meanwhile))
    asked, large = vectors(ASKED, sizes.dimension, seed=1), records(sizes.meanwhile, sizes.dimension)
    took: list[float] = []
    done, asking = threading.Event(), threading.Event()

    def write(_: int) -> None:
        asking.wait()
        try:
            took.append(seconds(lambda: collection.add(**large)))
        finally:
            done.set()

    waited: list[float] = []

    def ask(_: int) -> None:
        own = contender.collection("doc")
        own.query(query_embeddings=[asked[0]], n_results=10)
        asking.set()
        while not done.is_set():
            question = [asked[len(waited) % ASKED]]
            waited.append(seconds(partial(own.query, query_embeddings=question, n_results=10)))

    all_in_threads(2, lambda i: (write, ask)[i](i))
    return {"query p99 ms": p99(waited) * 1e3, "add /s": sizes.meanwhile / took[0]}


def single_records(contender: Contender, sizes: Sizes) -> Figures:
    """One record a call: from one thread, and from eight at once, into one database."""
    collection = warm(contender, "doc", sizes)
    alone = [records(1, sizes.dimension, first) for first in range(sizes.singles)]
    figures = {"one thread /s": sizes.singles / seconds(lambda: [collection.add(**each) for each in alone])}
    share = sizes.singles // 4
    began: list[float] = []
    # What a thread's first client takes is another scenario's subject.
    ready = threading.Barrier(WRITERS, action=lambda: began.append(time.perf_counter()))

    def add(thread: int) -> None:
        own, first = contender.collection("doc"), sizes.singles * (thread + 1)
        mine = [records(1, sizes.dimension, first + n) for n in range(share)]
        ready.wait()
        for each in mine:
            own.add(**each)

    all_in_threads(WRITERS, add)
    return {**figures, "eight threads /s": WRITERS * share / (time.perf_counter() - began[0])}


def warm(contender: Contender, file_id: str, sizes: Sizes) -> Any:
    """A collection with one record: what only a collection's first write does is not counted."""
    collection = contender.collection(file_id)
    collection.add(**records(1, sizes.dimension, first=10 * sizes.records))
    return collection


SCENARIOS = (
    Scenario(writing, once=(*OTHERS, "embedded")),
    Scenario(reading_meanwhile),
    Scenario(single_records),
)
