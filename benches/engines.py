"""How fast the engines are, and what they cost: beside stock Chroma, and beside what `isolated` promises.

python benches/engines.py prints Markdown tables; `common.py` says what the columns are. Every figure is the median of
some rounds, in each of which the engines take turns. A factor is to `chromadb` in the same round.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from common import (
    DIMENSION,
    ENGINES,
    Scenario,
    alone,
    collection,
    in_threads,
    main,
    opener,
    print_circumstances,
    print_table,
    scratch,
)

RECORDS = 5000
FILES, RECORDS_OF_A_FILE, BATCH = 4, 1000, 100
COMPUTE_SECONDS = 2
OPENINGS, FIRST_CLIENTS, QUERIES = 8, 200, 300
IDLE = 10
ENGINE = "chroma-engine"


def vectors(count: int, seed: int = 0) -> Any:
    """Random ones, the same for every engine."""
    return np.random.default_rng(seed).random((count, DIMENSION), dtype=np.float32)


def records(count: int) -> dict[str, Any]:
    """What to add: ids, vectors, and a page of text with its metadata for each."""
    return {
        "ids": [str(i) for i in range(count)],
        "embeddings": vectors(count),
        "documents": ["of the page that this vector is of " * 10] * count,
        "metadatas": [{"page": i, "source": "a.pdf"} for i in range(count)],
    }


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def watched(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds that a call takes, and the longest for which it kept another thread from running.

    The other thread sleeps a millisecond at a time, as an event loop with little to do.
    """
    worst, done = 0.0, threading.Event()

    def tick() -> None:
        nonlocal worst
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            worst, last = max(worst, now - last), now

    ticker = threading.Thread(target=tick)
    ticker.start()
    took = seconds(call)
    done.set()
    ticker.join()
    return took, worst


def stall(engine: str, base: str) -> dict[str, float]:
    """One thread does what embedding a large file does; another wants to run."""
    c, all_of_them = collection(opener(engine, base)("doc")), records(RECORDS)

    def compute() -> None:
        end = time.perf_counter() + COMPUTE_SECONDS
        while time.perf_counter() < end:
            pass

    calls = {
        "compute": compute,
        "add": lambda: c.add(**all_of_them),
        "upsert": lambda: c.upsert(**{name: values[:300] for name, values in all_of_them.items()}),
        "get": lambda: c.get(include=["embeddings", "documents", "metadatas"]),
        "delete": lambda: c.delete(ids=all_of_them["ids"][:500]),
    }
    figures = {}
    for name, call in calls.items():
        took, worst = watched(call)
        figures |= {f"{name} s": took, f"{name} stall ms": worst * 1e3}
    return figures


def ingest(engine: str, base: str) -> dict[str, float]:
    """Four threads fill a file each, batch by batch."""
    open_client, batch = opener(engine, base), records(BATCH)

    def fill(file: int) -> None:
        c = collection(open_client(f"doc{file}"))
        for first in range(0, RECORDS_OF_A_FILE, BATCH):
            c.add(**batch | {"ids": [str(first + i) for i in range(BATCH)], "embeddings": vectors(BATCH, first)})

    for file in range(FILES):
        collection(open_client(f"doc{file}"))
    errors: list[Exception] = []
    took, worst = watched(lambda: errors.extend(in_threads(FILES, fill)))
    assert not errors, errors
    return {"records/s": FILES * RECORDS_OF_A_FILE / took, "stall ms": worst * 1e3}


def query(engine: str, base: str) -> dict[str, float]:
    """One thread asks, one question at a time. The database is the same for all engines; the first to come fills it."""
    c = collection(opener(engine, base)("doc"))
    if c.count() == 0:
        c.add(**records(RECORDS))
    asked = vectors(QUERIES + 50, seed=1)
    took = [seconds(lambda v=v: c.query(query_embeddings=[v], n_results=10)) for v in asked]
    return {"ms": statistics.median(took[50:]) * 1e3}


def first_client(engine: str, base: str) -> dict[str, float]:
    """A thread's first client of a database that another has open."""
    open_client = opener(engine, base)
    kept, took = open_client("doc"), []
    for _ in range(FIRST_CLIENTS):
        in_threads(1, lambda _: took.append(seconds(lambda: open_client("doc"))))
    assert kept
    assert len(took) == FIRST_CLIENTS
    return {"us": statistics.median(took) * 1e6}


def opening(engine: str, base: str) -> dict[str, float]:
    """New databases, one after another and all at once; what only a process's first opening does is not counted."""
    open_client = opener(engine, base)
    kept = [open_client("first")]
    took = [seconds(lambda n=n: kept.append(open_client(f"in turn {n}"))) for n in range(OPENINGS)]
    together = seconds(lambda: in_threads(OPENINGS, lambda n: kept.append(open_client(f"at once {n}"))))
    assert len(kept) == 1 + 2 * OPENINGS
    return {"one ms": statistics.median(took) * 1e3, "in turn ms": sum(took) * 1e3, "at once ms": together * 1e3}


def idle(engine: str, base: str) -> dict[str, float]:
    """What a database costs that is open, was used, and is not now: what the app has grown by, and its own process.

    Of the app it is what no other process shares (USS), of the process with its share of what is shared (PSS).
    """
    import psutil

    open_client, app = opener(engine, base), psutil.Process()
    kept = []

    def use(file_id: str) -> None:
        kept.append(collection(open_client(file_id)))
        kept[-1].add(ids=["1"], embeddings=vectors(1))
        kept[-1].query(query_embeddings=vectors(1), n_results=1)

    use("warm")
    time.sleep(1)
    threads, memory = app.num_threads(), app.memory_full_info().uss
    for n in range(IDLE):
        use(f"doc{n}")
    time.sleep(1)
    processes = [child.memory_full_info().pss for child in app.children(recursive=True) if child.name() == ENGINE]
    return {
        "app MB": (app.memory_full_info().uss - memory) / IDLE / 2**20,
        "process MB": statistics.median(processes or [0]) / 2**20,
        "threads": (app.num_threads() - threads) / IDLE,
    }


class Row(NamedTuple):
    """A line of a table: which figure of a scenario, how it is printed, and what `isolated` promises of it."""

    what: str
    scenario: Scenario
    figure: str
    form: str = "{:,.0f} ms"
    promise: str = ""
    compared: bool = False


STALLS = (
    Row("computes in plain Python", stall, "compute stall ms"),
    Row("adds 5,000 records", stall, "add stall ms", promise="20 ms"),
    Row("upserts 300 that exist", stall, "upsert stall ms", promise="20 ms"),
    Row("gets 5,000 with embeddings", stall, "get stall ms", promise="20 ms"),
    Row("deletes 500", stall, "delete stall ms", promise="20 ms"),
    Row("is one of four that fill four files", ingest, "stall ms", promise="20 ms"),
)
SPEEDS = (
    Row("4 threads fill 4 files, 100 a batch: records/s", ingest, "records/s", "{:,.0f}", ">= 1.25x", True),
    Row("a query among 5,000, ten results", query, "ms", "{:.2f} ms", "1.05x, or 0.3 ms more", True),
    Row("adds 5,000 records", stall, "add s", "{:.1f} s", compared=True),
    Row("upserts 300 that exist", stall, "upsert s", "{:.1f} s", compared=True),
    Row("gets 5,000 with embeddings", stall, "get s", "{:.2f} s", compared=True),
    Row("deletes 500", stall, "delete s", "{:.1f} s", compared=True),
    Row("a thread's first client of an open database", first_client, "us", "{:,.0f} us", "500 us"),
    Row("opens a new database", opening, "one ms", promise="120 ms"),
    Row("opens 8 new ones, one after another", opening, "in turn ms"),
    Row("opens 8 new ones, all at once", opening, "at once ms", promise="960 ms"),
    Row("an idle open database: memory of the app", idle, "app MB", "{:.1f} MB"),
    Row("an idle open database: memory of its own process", idle, "process MB", "{:.1f} MB"),
    Row("an idle open database: threads of the app", idle, "threads", "{:.1f}"),
)
ROUNDS = {stall: 3, ingest: 3, query: 5, first_client: 3, opening: 3, idle: 1}

Results = dict[Scenario, list[dict[str, Any]]]


def measure(scenario: Scenario, rounds: int) -> list[dict[str, Any]]:
    """What each engine said in each round."""
    with scratch() as shared:
        said = []
        for _ in range(rounds):
            said.append({})
            for engine in ENGINES:
                with scratch() as own:
                    said[-1][engine] = alone(scenario, engine, shared if scenario is query else own)
    return said


def cell(row: Row, engine: str, results: Results) -> str:
    """An engine's median, and where it is to be compared the factor to stock Chroma."""
    rounds = results[row.scenario]
    failures = [said[engine] for said in rounds if isinstance(said[engine], str)]
    if failures:
        return failures[0]
    text = row.form.format(statistics.median(said[engine][row.figure] for said in rounds))
    if row.compared and engine != "chromadb" and not any(isinstance(said["chromadb"], str) for said in rounds):
        text += (
            f" ({statistics.median(said[engine][row.figure] / said['chromadb'][row.figure] for said in rounds):.2f}x)"
        )
    return text


def report() -> None:
    """Measures and prints the tables."""
    began = time.monotonic()
    results = {scenario: measure(scenario, rounds) for scenario, rounds in ROUNDS.items()}
    for title, rows in (("worst stall of another thread while one ...", STALLS), ("speed and cost", SPEEDS)):
        print()
        lines = [(row.what, *(cell(row, engine, results) for engine in ENGINES), row.promise) for row in rows]
        print_table((title, *ENGINES, "isolated promises"), lines)
    print_circumstances()
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(ROUNDS, report)
