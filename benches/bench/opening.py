"""What it takes to reach a database: opening it, and what a manager is asked for again and again."""

from __future__ import annotations

import timeit
from collections.abc import Callable

import numpy as np
from contenders import COLLECTION, EMBEDDING_TYPE, Contender
from scenario import Figures, Scenario, Sizes, all_in_threads, p50, records, seconds, vectors

HITS, LOOKUPS, REPEATS = 20_000, 200, 5


def opening_new(contender: Contender, sizes: Sizes) -> Figures:
    """New databases, one after another; what only a process's first opening does is not counted."""
    return opened(contender, sizes)


def opening_existing(contender: Contender, sizes: Sizes) -> Figures:
    """Databases of a collection with a record, which another process has made in the same way, and closed."""
    return opened(contender, sizes)


def opened(contender: Contender, sizes: Sizes) -> Figures:
    """How long it takes until a client is there."""
    kept = [contender.client("first")]
    took = [seconds(lambda n=n: kept.append(contender.client(f"doc{n}"))) for n in range(sizes.openings)]
    assert len(kept) == sizes.openings + 1
    return {"ms": p50(took) * 1e3}


def prepare_existing(contender: Contender, sizes: Sizes) -> Figures:
    for name in ["first", *(f"doc{n}" for n in range(sizes.openings))]:
        contender.collection(name).add(ids=["1"], embeddings=vectors(1, sizes.dimension))
    return {}


def opening_at_once(contender: Contender, sizes: Sizes) -> Figures:
    """The first thing that a process does: each thread opens a new database, and stores a record there."""
    import chromadb  # noqa: F401 - an app has imported it

    record = records(1, sizes.dimension)
    took = seconds(
        lambda: all_in_threads(sizes.opened_at_once, lambda n: contender.collection(f"doc{n}").add(**record))
    )
    return {"ms": took * 1e3}


def finding(contender: Contender, sizes: Sizes) -> Figures:
    """What a request pays before it reaches its data. Where there is no manager, the app has kept its client."""
    client = contender.client("doc")
    contender.collection_of(client).add(ids=["1"], embeddings=vectors(1, sizes.dimension))
    manager = getattr(contender, "manager", contender)
    first: list[float] = []
    for _ in range(sizes.calls // 5):
        all_in_threads(1, lambda _: first.append(seconds(lambda: contender.client("doc"))))
    figures = {"first client us": p50(first) * 1e6}
    if not contender.manages:
        return {**figures, "get_collection us": each(LOOKUPS, lambda: contender.collection_of(client)) * 1e6}
    return {
        **figures,
        "get_client ns": each(HITS, lambda: manager.get_client("doc", EMBEDDING_TYPE)) * 1e9,
        "get_collection us": each(LOOKUPS, lambda: manager.get_collection("doc", EMBEDDING_TYPE, COLLECTION)) * 1e6,
    }


def each(number: int, call: Callable[[], object]) -> float:
    """Seconds of one of many calls, after some that do not count."""
    call()
    return float(np.median(timeit.repeat(call, number=number, repeat=REPEATS))) / number


SCENARIOS = (
    Scenario(opening_new),
    Scenario(opening_existing, prepare=prepare_existing, own_files=True),
    Scenario(opening_at_once, contenders=("chromadb", "embedded", "isolated")),
    Scenario(finding, once=("server", "lancedb")),
)
