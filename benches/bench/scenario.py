"""What a scenario is, how large it is, and how it measures. The scenarios themselves are in a module for each subject.

A scenario is a function of a contender and the sizes to its figures. It runs in a process of its own, on a directory of
its own, and what it returns goes through JSON.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from contenders import NAMES, Contender

# A number, the numbers of a curve, or what is said where there is nothing to measure.
Figures = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `make bench` says what each of them means by the rows in which it is written."""

    dimension: int = 1536
    # Records in a call, and records altogether.
    batches: tuple[tuple[int, int], ...] = ((100, 500), (500, 1000), (1000, 1000), (5000, 5000))
    existing: int = 300
    deleted: int = 500
    meanwhile: int = 2000
    singles: int = 60
    openings: int = 15
    opened_at_once: int = 8
    calls: int = 300
    demo_files: int = 79
    requests: int = 20
    chat_files: int = 8
    chat_records: int = 500
    held: int = 24
    passing: int = 96
    max_engines: int = 32
    recovered: int = 10_000
    recovered_dimension: int = 384
    grown_dimension: int = 384
    grown_threads: int = 64
    grown_databases: int = 500
    grown_records: int = 100_000

    @property
    def records(self) -> int:
        """The size of a large file."""
        return max(count for _, count in self.batches)


SMALL = Sizes(
    dimension=64,
    batches=((10, 50), (100, 100), (300, 300)),
    existing=20,
    deleted=20,
    meanwhile=300,
    singles=10,
    openings=4,
    calls=20,
    demo_files=4,
    requests=4,
    chat_records=50,
    held=4,
    passing=12,
    max_engines=3,
    recovered=500,
    grown_threads=4,
    grown_databases=10,
    grown_records=1000,
)
# For a night: `make bench ARGS=--long`.
LONG = Sizes(held=500, passing=2000, recovered=100_000)

OTHERS = ("guide", "server", "lancedb")

Run = Callable[[Contender, Sizes], Figures]


class Scenario(NamedTuple):
    """A function that measures, and for whom.

    What it needs on the disk, if anything, `prepare` makes in a process of its own: once for each format of files, by
    the first contender that has it, and each run has a copy. If it is about `own_files`, each contender makes them for
    each run where they are used: a copy is not what an app has closed.

    Those that take part `once` have the first round only: `isolated` is not compared with them there.
    """

    run: Run
    contenders: Sequence[str] = NAMES
    prepare: Run | None = None
    own_files: bool = False
    rounds: int = 2
    once: Sequence[str] = OTHERS
    longest_seconds: float = 300

    @property
    def name(self) -> str:
        return self.run.__name__


def vectors(count: int, dimension: int, seed: int = 0) -> Any:
    """Random ones, the same for every contender."""
    return np.random.default_rng(seed).random((count, dimension), dtype=np.float32)


def records(count: int, dimension: int, first: int = 0) -> dict[str, Any]:
    """What to add: ids, vectors, and a page of text with its metadata for each."""
    return {
        "ids": [str(first + i) for i in range(count)],
        "embeddings": vectors(count, dimension, seed=first),
        "documents": ["of the page that this vector is of " * 10] * count,
        "metadatas": [{"page": first + i, "source": "a.pdf"} for i in range(count)],
    }


def calls_of(contender: Contender, batch: int, count: int, dimension: int) -> list[dict[str, Any]]:
    """What to add, so many in a call, or as many as it takes."""
    step = min(batch, contender.largest_call)
    return [records(min(step, count - first), dimension, first) for first in range(0, count, step)]


def part(of: dict[str, Any], first: int, end: int) -> dict[str, Any]:
    """Some of these records."""
    return {name: values[first:end] for name, values in of.items()}


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def watched(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds that a call takes, and the longest for which it kept another thread from running.

    The other thread sleeps a millisecond at a time, as an event loop with little to do.
    """
    worst, done, ticking = 0.0, threading.Event(), threading.Event()

    def tick() -> None:
        nonlocal worst
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            worst, last = max(worst, now - last), now
            ticking.set()

    ticker = threading.Thread(target=tick)
    ticker.start()
    ticking.wait()
    try:
        took = seconds(call)
    finally:
        done.set()
        ticker.join()
    return took, worst


def in_threads(count: int, call: Callable[[int], object]) -> list[Exception]:
    """Runs `call(i)` in threads that begin together; returns what they raised."""
    barrier, errors = threading.Barrier(count), []

    def run(i: int) -> None:
        barrier.wait()
        try:
            call(i)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def all_in_threads(count: int, call: Callable[[int], object]) -> None:
    """The same; an error of one is an error of all."""
    errors = in_threads(count, call)
    if errors:
        raise errors[0]


def p50(took: Sequence[float]) -> float:
    """The median."""
    return float(np.median(took))


def p99(took: Sequence[float]) -> float:
    """Of few values, nearly the largest."""
    return float(np.quantile(took, 0.99))
