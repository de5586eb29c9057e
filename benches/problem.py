"""What goes wrong with stock Chroma in an app with threads and processes, and what does with this manager.

python benches/problem.py prints it as a Markdown table; `common.py` says what the columns are.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import DIMENSION, ENGINES, alone, collection, in_threads, main, opener, print_table, scratch

FORK_SECONDS = 5
WRITERS, BATCHES, BATCH = 2, 30, 50


def race(engine: str, base: str) -> str:
    """8 threads open the same new database at the same moment, 30 times: errors"""
    sys.setswitchinterval(1e-6)
    open_client = opener(engine, base)
    errors = [in_threads(8, lambda _, n=n: collection(open_client(f"doc{n}"))) for n in range(30)]
    return f"{sum(map(len, errors))} of 240 openings"


def leak(engine: str, base: str) -> str:
    """50 files, each used by a thread that has ended, then cleaned up where one can: what is kept"""
    open_client = opener(engine, base)

    def use(file_id: str) -> None:
        collection(open_client(file_id)).add(ids=["1"], embeddings=[[1.0] * DIMENSION])

    def clean() -> None:
        if engine != "chromadb":
            from chroma_manager import ChromaDBManager

            ChromaDBManager().cleanup_all_instances()
        time.sleep(0.5)

    in_threads(1, lambda _: use("warm"))
    clean()
    before = held()
    for i in range(50):
        in_threads(1, lambda _, i=i: use(f"doc{i}"))
    clean()
    return ", ".join(f"{after - before[name]:+d} {name}" for name, after in held().items())


def held() -> dict[str, int]:
    """What this process holds: its memory (MB), threads, open files and child processes."""
    import psutil

    process = psutil.Process()
    return {
        "MB": process.memory_info().rss >> 20,
        "threads": process.num_threads(),
        "files": process.num_fds(),
        "processes": len(process.children()),
    }


def fork_other(engine: str, base: str) -> str:
    """a process that has written forks; the child writes to another file"""
    return written_by_child(engine, base, "other")


def fork_same(engine: str, base: str) -> str:
    """the same; the child writes to the same file"""
    return written_by_child(engine, base, "doc")


def written_by_child(engine: str, base: str, file_id: str) -> str:
    """What a forked child says of writing to that file, after its parent has written to `doc`."""
    open_client = opener(engine, base)
    collection(open_client("doc")).add(ids=["1", "2"], embeddings=[[1.0] * 8] * 2)

    def write() -> None:
        c = collection(open_client(file_id))
        c.add(ids=["3", "4"], embeddings=[[2.0] * 8] * 2)
        assert c.get(ids=["3", "4"])["ids"] == ["3", "4"]

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


def processes(engine: str, base: str) -> str:
    """2 processes write 1,500 records each to one database at once: found afterwards"""
    context = multiprocessing.get_context("spawn")
    outcomes = context.Queue()
    writers = [context.Process(target=write_as_process, args=(engine, base, k, outcomes)) for k in range(WRITERS)]
    for writer in writers:
        writer.start()
    results = [outcomes.get() for _ in writers]
    for writer in writers:
        writer.join()
    written, errors = sum(result[0] for result in results), [result[1] for result in results if result[1]]
    # Looked at by another process: where it is destroyed, reading it can crash.
    command = [sys.executable, os.path.abspath(__file__), readable.__name__, engine, base]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if said.returncode == 0:
        found = f"{int(said.stdout):,}"
    else:
        last_words = (said.stderr.splitlines() or ["a crash"])[-1]
        found = f"none ({last_words.split(':')[0].split('.')[-1]})"
    return f"{found} of {written:,} written" + "".join(f"; a process gets {error}" for error in errors)


def write_as_process(engine: str, base: str, k: int, outcomes: Any) -> None:
    """One of the writers of `processes`: puts how many records it has written, and the error that ended it."""
    rng, written, failure = np.random.default_rng(k), 0, ""
    try:
        c = collection(opener(engine, base)("doc"))
        for i in range(BATCHES):
            ids = [f"{k}-{i}-{j}" for j in range(BATCH)]
            c.add(ids=ids, embeddings=rng.random((BATCH, 64), dtype=np.float32))
            written += BATCH
        time.sleep(2)  # the other one may have begun later, and is to meet this one
    except Exception as error:
        failure = type(error).__name__
    outcomes.put((written, failure))


def readable(engine: str, base: str) -> int:
    """How many records of `doc` are found by their own vectors."""
    c = collection(opener(engine, base)("doc"))
    got = c.get(include=["embeddings"])
    nearest = c.query(query_embeddings=got["embeddings"], n_results=1)["ids"]
    return sum(ids == [own] for ids, own in zip(nearest, got["ids"], strict=True))


SCENARIOS = (race, leak, fork_other, fork_same, processes)


def report() -> None:
    """Measures and prints the table."""
    rows = []
    for scenario in SCENARIOS:
        row = [str(scenario.__doc__)]
        for engine in ENGINES:
            with scratch() as base:
                row.append(alone(scenario, engine, base))
        rows.append(row)
    print_table(("what", *ENGINES), rows)


if __name__ == "__main__":
    main((*SCENARIOS, readable), report)
