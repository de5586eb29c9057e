"""What goes wrong with stock Chroma in a threaded app, and what does with this manager: the table of the README.

    python benches/problem.py             both, as a Markdown table
    python benches/problem.py chromadb    one of them, as JSON
    python benches/problem.py manager

Each scenario runs in a process of its own, because some do not survive it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WHICH = ("chromadb", "manager")
DIMENSION = 1536
NAME = "rag_collection"


def opener(which: str, base: str) -> Callable[[str], Any]:
    """A function from a file_id to this thread's client of its database."""
    if which == "manager":
        from chroma_manager import ChromaDBManager

        manager = ChromaDBManager(base_path=base)
        return lambda file_id: manager.get_client(file_id, "azure")
    import chromadb

    return lambda file_id: chromadb.PersistentClient(os.path.join(base, file_id, "azure"))


def collection(client: Any) -> Any:
    """The collection that every scenario uses."""
    return client.get_or_create_collection(NAME, embedding_function=None)


def in_threads(count: int, call: Callable[[int], object]) -> list[BaseException]:
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


def figures() -> dict[str, int]:
    """This process's memory (MB), threads and open files."""
    import psutil

    process = psutil.Process()
    return {"MB": process.memory_info().rss >> 20, "threads": process.num_threads(), "files": process.num_fds()}


def race(which: str, base: str) -> str:
    """8 threads open the same new database at the same moment, 30 times: errors"""
    sys.setswitchinterval(1e-6)
    open_client = opener(which, base)
    errors = [in_threads(8, lambda _, n=n: collection(open_client(f"doc{n}"))) for n in range(30)]
    return f"{sum(map(len, errors))} of 240 openings"


def leak(which: str, base: str) -> str:
    """50 files, each used by a thread that has ended, then cleaned up where one can: what is kept"""
    open_client = opener(which, base)

    def use(file_id: str) -> None:
        collection(open_client(file_id)).add(ids=["1"], embeddings=[[1.0] * DIMENSION])

    def clean() -> None:
        if which == "manager":
            from chroma_manager import ChromaDBManager

            ChromaDBManager().cleanup_all_instances()
        time.sleep(0.5)

    in_threads(1, lambda _: use("warm"))
    clean()
    before = figures()
    for i in range(50):
        in_threads(1, lambda _, i=i: use(f"doc{i}"))
    clean()
    after = figures()
    return ", ".join(f"{after[name] - before[name]:+d} {name}" for name in before)


def first_client(which: str, base: str) -> str:
    """a new thread's first client of a database that is open"""
    open_client = opener(which, base)
    kept = open_client("doc")
    began = time.perf_counter()
    for _ in range(50):
        in_threads(1, lambda _: open_client("doc"))
    seconds = (time.perf_counter() - began) / 50
    assert kept
    return f"{seconds * 1e6:,.0f} us"


def fork(which: str, base: str) -> str:
    """a process that has written forks; the child writes to another file"""
    open_client = opener(which, base)
    collection(open_client("doc")).add(ids=["1", "2"], embeddings=[[1.0] * 8] * 2)
    pid = os.fork()
    if pid == 0:
        collection(open_client("other")).add(ids=["1", "2"], embeddings=[[1.0] * 8] * 2)
        os._exit(0)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return "works" if status == 0 else f"ends with status {status}"
        time.sleep(0.05)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hangs"


def write_as_process(which: str, base: str, k: int, outcomes: Any) -> None:
    """One of the processes of `processes`."""
    rng, refused, written = np.random.default_rng(k), "", 0
    try:
        c = collection(opener(which, base)("doc"))
        for i in range(30):
            c.add(ids=[f"{k}-{i}-{j}" for j in range(50)], embeddings=rng.random((50, 64), dtype=np.float32))
            written += 50
        time.sleep(2)
    except Exception as error:
        refused = type(error).__name__
    outcomes.put((written, refused))


def processes(which: str, base: str) -> str:
    """2 processes write to one database at once: afterwards"""
    context = multiprocessing.get_context("spawn")
    outcomes = context.Queue()
    started = [context.Process(target=write_as_process, args=(which, base, k, outcomes)) for k in range(2)]
    for process in started:
        process.start()
    results = [outcomes.get() for _ in started]
    for process in started:
        process.join()
    written, refusals = sum(result[0] for result in results), [result[1] for result in results if result[1]]
    check = f"{sys.executable!r} {os.path.abspath(__file__)!r} check {which} {base!r}"
    said = subprocess.run(["sh", "-c", check], capture_output=True, text=True, check=False, timeout=120)
    found = said.stdout.strip() or "unreadable: " + (said.stderr.strip().splitlines() or ["crash"])[-1][:60]
    return f"{found} of {written:,} written" + (f"; the other process gets {refusals[0]}" if refusals else "")


def check(which: str, base: str) -> None:
    """Prints how many records are there and found by their own vectors."""
    c = collection(opener(which, base)("doc"))
    got = c.get(include=["embeddings"])
    found = c.query(query_embeddings=got["embeddings"], n_results=1)["ids"]
    print(f"{sum(ids == [own] for ids, own in zip(found, got['ids'], strict=True)):,}")


def stall(which: str, base: str) -> str:
    """worst stall of another thread while one adds 1,000 records"""
    c = collection(opener(which, base)("doc"))
    vectors = np.random.default_rng(0).random((1000, DIMENSION), dtype=np.float32)
    gaps, done = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    ticker = threading.Thread(target=tick)
    ticker.start()
    c.add(ids=[str(i) for i in range(1000)], embeddings=vectors)
    done.set()
    ticker.join()
    return f"{max(gaps) * 1e3:,.0f} ms"


SCENARIOS = (race, leak, first_client, fork, processes, stall)


def measure(which: str) -> dict[str, str]:
    """All scenarios, each in a process of its own."""
    results = {}
    for scenario in SCENARIOS:
        with tempfile.TemporaryDirectory(prefix="problem-", ignore_cleanup_errors=True) as base:
            command = [sys.executable, os.path.abspath(__file__), "one", which, scenario.__name__, base]
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        lines = ran.stdout.strip().splitlines() or [f"exit {ran.returncode}"]
        results[scenario.__name__] = lines[-1]
    return results


def table() -> str:
    """Both, side by side."""
    stock, ours = (measure(which) for which in WHICH)
    rows = [
        f"| {scenario.__doc__} | {stock[scenario.__name__]} | {ours[scenario.__name__]} |" for scenario in SCENARIOS
    ]
    return "\n".join(["| what | chromadb | chroma-manager |", "| --- | --- | --- |", *rows])


def main(arguments: list[str]) -> None:
    """See the module's own words."""
    if not arguments:
        print(table())
    elif arguments[0] == "one":
        _, which, name, base = arguments
        print(next(scenario for scenario in SCENARIOS if scenario.__name__ == name)(which, base))
        sys.stdout.flush()
        os._exit(0)  # stock Chroma after a hang does not always end by itself
    elif arguments[0] == "check":
        check(*arguments[1:])
    else:
        print(json.dumps(measure(arguments[0]), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
