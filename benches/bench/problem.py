"""What goes wrong with stock Chroma in an app with threads and processes, and what does with this manager.

The first line of each scenario is its row of the table.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable

import numpy as np
from alone import run_alone, start_alone
from contenders import Contender
from holding import holds
from scenario import Figures, Scenario, Sizes, in_threads, vectors

CONTENDERS = ("chromadb", "embedded", "isolated")
FORK_SECONDS = 5
WRITERS, BATCHES, BATCH = 2, 30, 50
DIMENSION = 64


def race(contender: Contender, _: Sizes) -> Figures:
    """8 threads open the same new database at the same moment, 30 times: errors"""
    sys.setswitchinterval(1e-6)
    errors = [in_threads(8, lambda _, n=n: contender.collection(f"doc{n}")) for n in range(30)]
    return {"said": f"{sum(map(len, errors))} of 240 openings"}


def leak(contender: Contender, sizes: Sizes) -> Figures:
    """50 files, each used by a thread that has ended, then cleaned up where one can: what is kept"""

    def use(file_id: str) -> None:
        contender.collection(file_id).add(ids=["1"], embeddings=vectors(1, sizes.dimension))

    def clean() -> None:
        if contender.manages:
            contender.manager.cleanup_all_instances()
        time.sleep(0.5)

    in_threads(1, lambda _: use("warm"))
    clean()
    before = holds()
    for i in range(50):
        in_threads(1, lambda _, i=i: use(f"doc{i}"))
    clean()
    after = holds()
    kept = {"MB": "app MB", "threads": "threads", "files": "descriptors", "processes": "processes"}
    return {"said": ", ".join(f"{after[figure] - before[figure]:+.0f} {name}" for name, figure in kept.items())}


def fork_other(contender: Contender, _: Sizes) -> Figures:
    """a process that has written forks; the child writes to another file"""
    return {"said": written_by_child(contender, "other")}


def fork_same(contender: Contender, _: Sizes) -> Figures:
    """the same; the child writes to the same file"""
    return {"said": written_by_child(contender, "doc")}


def written_by_child(contender: Contender, file_id: str) -> str:
    """What a forked child says of writing to that file, after its parent has written to `doc`."""
    contender.collection("doc").add(ids=["1", "2"], embeddings=[[1.0] * 8] * 2)

    def write() -> None:
        collection = contender.collection(file_id)
        collection.add(ids=["3", "4"], embeddings=[[2.0] * 8] * 2)
        assert collection.get(ids=["3", "4"])["ids"] == ["3", "4"]

    return in_fork(write)


def in_fork(call: Callable[[], None]) -> str:
    """Whether `call` works in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            call()
            said = "works"
        except Exception as error:
            said = type(error).__name__
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    if not select.select([reader], [], [], FORK_SECONDS)[0]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "hangs"
    os.waitpid(pid, 0)
    return os.read(reader, 100).decode() or "crashes"


def processes(contender: Contender, sizes: Sizes) -> Figures:
    """2 processes write 1,500 records each to one database at once: found afterwards"""
    writers = [start_alone(run.__name__, contender.name, contender.base, sizes) for run in (first_writer, other_writer)]
    said = [writer.result() for writer in writers]
    written = sum(each["written"] for each in said)
    # Looked at by another process: where it is destroyed, reading it can crash.
    found = run_alone(readable.__name__, contender.name, contender.base, sizes)
    text = f"{found['found']:,}" if isinstance(found, dict) and "found" in found else f"none ({why(found)})"
    refused = [each["error"] for each in said if each["error"]]
    return {"said": f"{text} of {written:,} written" + "".join(f"; a process gets {error}" for error in refused)}


def why(found: Figures | str) -> str:
    """A word on why nothing is found."""
    return found if isinstance(found, str) else str(found["error"])


def first_writer(contender: Contender, _: Sizes) -> Figures:
    return written_as_process(contender, 0)


def other_writer(contender: Contender, _: Sizes) -> Figures:
    return written_as_process(contender, 1)


def written_as_process(contender: Contender, k: int) -> Figures:
    """How many records one of the writers has written, and the error that ended it."""
    chance, written, failure = np.random.default_rng(k), 0, ""
    try:
        collection = contender.collection("doc")
        for i in range(BATCHES):
            ids = [f"{k}-{i}-{j}" for j in range(BATCH)]
            collection.add(ids=ids, embeddings=chance.random((BATCH, DIMENSION), dtype=np.float32))
            written += BATCH
        time.sleep(2)  # the other one may have begun later, and is to meet this one
    except Exception as error:
        failure = type(error).__name__
    return {"written": written, "error": failure}


def readable(contender: Contender, _: Sizes) -> Figures:
    """How many records of `doc` are found by their own vectors."""
    try:
        collection = contender.collection("doc")
        got = collection.get(include=["embeddings"])
        nearest = collection.query(query_embeddings=got["embeddings"], n_results=1)["ids"]
    except Exception as error:
        return {"error": type(error).__name__}
    return {"found": sum(ids == [own] for ids, own in zip(nearest, got["ids"], strict=True))}


SCENARIOS = tuple(Scenario(run, CONTENDERS, rounds=1) for run in (race, leak, fork_other, fork_same, processes))
# What `processes` starts.
PARTS = tuple(Scenario(run, CONTENDERS) for run in (first_writer, other_writer, readable))
