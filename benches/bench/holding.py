"""What databases cost that are open, or have been: memory, threads, descriptors and processes; and one after a kill."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from typing import Any

from contenders import Contender
from scenario import Figures, Scenario, Sizes, records, seconds, vectors

ENGINE_PROCESS = "chroma-engine"
MEGABYTE = 2**20
BATCH = 500
LONGEST_SECONDS = 1800  # of the sizes for a night


def many_open(contender: Contender, sizes: Sizes) -> Figures:
    """Databases that are all open, each written to and asked once: what one more costs."""
    contender.max_engines = sizes.held + 1
    kept = [used(contender, "first", sizes)]
    time.sleep(1)
    before = holds()
    kept += [used(contender, f"doc{n}", sizes) for n in range(sizes.held)]
    time.sleep(1)
    assert len(kept) == sizes.held + 1
    after = holds()
    figures = {f"{name} each": (after[name] - before[name]) / sizes.held for name in before}
    idle = [own for own in family() if name_of(own) == ENGINE_PROCESS]
    if idle:
        figures["engine process MB"] = statistics.median(memory_of(own) for own in idle) / MEGABYTE
    return figures


def passing_through(contender: Contender, sizes: Sizes) -> Figures:
    """Databases that are opened, used once and not needed any more: what the process has grown by in the end.

    From the moment on when as many have been opened as a manager of ours keeps open.
    """
    contender.max_engines = sizes.max_engines
    before: dict[str, float] = {}
    for n in range(sizes.passing):
        used(contender, f"doc{n}", sizes)
        if n == sizes.max_engines:
            time.sleep(1)
            before = holds()
    time.sleep(1)
    after = holds()
    return {**{f"{name} more": after[name] - before[name] for name in before}, "processes": after["processes"]}


def used(contender: Contender, file_id: str, sizes: Sizes) -> Any:
    """The collection of a database, which has a record, and has been asked."""
    collection = contender.collection(file_id)
    collection.add(ids=["1"], embeddings=vectors(1, sizes.dimension))
    collection.query(query_embeddings=vectors(1, sizes.dimension), n_results=1)
    return collection


def holds() -> dict[str, float]:
    """What this process and those below it have: memory (shared pages in parts), threads of the app, descriptors."""
    import psutil

    app, everyone = psutil.Process(), family()
    return {
        "MB": sum(map(memory_of, everyone)) / MEGABYTE,
        "app MB": app.memory_full_info().uss / MEGABYTE,
        "threads": app.num_threads(),
        "descriptors": app.num_fds(),
        "processes": len(everyone) - 1,
    }


def family() -> list[Any]:
    """This process, and those that it has started."""
    import psutil

    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def memory_of(process: Any) -> int:
    """Its share (PSS), in bytes; nothing of one that has just ended."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


def name_of(process: Any) -> str:
    import psutil

    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""


def recovery(contender: Contender, sizes: Sizes) -> Figures:
    """The next opening after a kill, up to the first answers."""
    question = vectors(1, sizes.recovered_dimension, seed=1)
    contender.client("another")

    def first_answers() -> None:
        collection = contender.collection("doc")
        assert collection.count() == sizes.recovered
        collection.get(ids=["5"], include=["embeddings"])
        collection.query(query_embeddings=question, n_results=10)

    return {"s": seconds(first_answers)}


def prepare_kill(contender: Contender, sizes: Sizes) -> Figures:
    collection = contender.collection("doc")
    for first in range(0, sizes.recovered, BATCH):
        collection.add(**records(min(BATCH, sizes.recovered - first), sizes.recovered_dimension, first))
    for process in family()[1:]:
        process.kill()
        process.wait()
    os.sync()
    return {}


SCENARIOS = (
    Scenario(many_open, longest_seconds=LONGEST_SECONDS),
    Scenario(passing_through, longest_seconds=LONGEST_SECONDS),
    Scenario(recovery, contenders=("isolated",), prepare=prepare_kill, longest_seconds=LONGEST_SECONDS),
)
