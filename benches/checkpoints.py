"""What checkpoints cost: writes with and without them, a recovery, room on the disk, opening and closing.

python benches/checkpoints.py prints a Markdown table. Without checkpoints is the same package, in a copy whose
`durability/checkpoint.py` keeps nothing. A run takes about five minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import alone, collection, main, opener, print_circumstances, print_table, scratch

DIMENSION = 384
BATCH = 100
WRITTEN, CALLS_IN_TURN, ROUNDS = 40_000, 40, 2
RECORDS, RECOVERIES, OPENINGS = 100_000, 3, 5
LONGEST_SECONDS = 600

KEEPS_NOTHING = """
Lifecycle.is_new = False
Checkpoints.log_length = lambda self: None
Lifecycle.before_opening = lambda self, suspects=False: None
Lifecycle.after_closing = lambda self: None
"""


def vectors(count: int, seed: int) -> Any:
    """As embeddings are: around some hundred centers."""
    centers = np.random.default_rng(0).standard_normal((200, DIMENSION), dtype=np.float32)
    chance = np.random.default_rng(seed)
    return centers[chance.integers(0, len(centers), count)] + 0.3 * chance.standard_normal(
        (count, DIMENSION), dtype=np.float32
    )


def directory(base: str) -> Path:
    """That of the database that every scenario uses."""
    return Path(base, "doc", "azure")


def manifest_state(base: str) -> int:
    """Changes with every checkpoint."""
    manifest = directory(base) / ".chroma_manager" / "checkpoint.json"
    return manifest.stat().st_mtime_ns if manifest.exists() else 0


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def kill_engine() -> None:
    """Kills the engine processes of this process, and waits for their end."""
    import psutil

    for engine in psutil.Process().children():
        engine.kill()
        engine.wait()


def result(scenario: Callable[[str, str], Any], base: str, **environment: str) -> Any:
    """What a scenario, run alone, says; there is nothing to print without it."""
    said = alone(scenario, "isolated", base, longest=LONGEST_SECONDS, **environment)
    if isinstance(said, str):
        sys.exit(f"{scenario.__name__}: {said}")
    return said


# -- writes


def batches() -> Iterator[tuple[str, dict[str, Any]]]:
    """Nine batches of new records, one of existing ones: those cost ten times as much."""
    for n, first in enumerate(range(0, WRITTEN, BATCH)):
        record = {"documents": ["of the page that this vector is of " * 5] * BATCH}
        if n % 10 == 9:
            ids = [str(i) for i in np.random.default_rng(n).choice(first, BATCH, replace=False)]
            yield "upsert", {"ids": ids, "embeddings": vectors(BATCH, n), **record}
        else:
            yield "add", {"ids": [str(first + i) for i in range(BATCH)], "embeddings": vectors(BATCH, n), **record}


def write(engine: str, base: str) -> dict[str, Any]:
    """Ordinary writes, some at each word on standard input; a checkpoint is known by its manifest."""
    c = collection(opener(engine, base)("doc"))
    took: dict[str, list[float]] = {"add": [], "upsert": []}
    manifests = {manifest_state(base)}
    for n, (method, batch) in enumerate(batches()):
        if n % CALLS_IN_TURN == 0:
            print("ready", flush=True)
            sys.stdin.readline()
        took[method].append(seconds(lambda method=method, batch=batch: getattr(c, method)(**batch)))
        manifests.add(manifest_state(base))
    return {"longest": max(map(max, took.values())), "checkpoints": len(manifests) - 1}


class Writer:
    """A process that writes, a turn at a time."""

    def __init__(self, base: str, package: str) -> None:
        command = [sys.executable, os.path.abspath(sys.argv[0]), write.__name__, "isolated", base]
        self.seconds = 0.0
        self.result: dict[str, Any] = {}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": package},
        )
        self._read()

    def take_turn(self) -> None:
        assert self._process.stdin is not None
        began = time.perf_counter()
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._read()
        self.seconds += time.perf_counter() - began

    def _read(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            self.result = json.loads(line)


def without_checkpoints(base: str) -> str:
    """A copy of the package that keeps nothing; where it is."""
    import chroma_manager

    package = Path(base, "without", "chroma_manager")
    shutil.copytree(Path(chroma_manager.__file__).parent, package)
    with (package / "durability" / "lifecycle.py").open("a") as file:
        file.write(KEEPS_NOTHING)
    return str(package.parent)


def write_in_turns(packages: dict[str, str]) -> dict[str, Writer]:
    """The same writes with each package; what else the machine does slows down both alike."""
    with contextlib.ExitStack() as bases:
        writers = {name: Writer(bases.enter_context(scratch()), package) for name, package in packages.items()}
        for _ in range(0, WRITTEN, BATCH * CALLS_IN_TURN):
            for writer in writers.values():
                writer.take_turn()
        return writers


def measure_writes() -> list[tuple[str, str]]:
    """What checkpoints add to writes."""
    with scratch() as place:
        packages = {"with": "", "without": without_checkpoints(place)}
        rounds = [write_in_turns(packages) for _ in range(ROUNDS)]
    factors = [said["with"].seconds / said["without"].seconds for said in rounds]
    took = {name: statistics.median(said[name].seconds for said in rounds) for name in packages}
    longest = {name: max(said[name].result["longest"] for said in rounds) for name in packages}
    taken = [said["with"].result["checkpoints"] for said in rounds]
    assert all(taken)
    assert not any(said["without"].result["checkpoints"] for said in rounds)
    return [
        (f"writing {WRITTEN:,} records, {BATCH} a call; each tenth call upserts existing ones", ""),
        ("- without checkpoints", f"{took['without']:.1f} s"),
        (f"- with checkpoints ({' and '.join(map(str, taken))} of them)", f"{took['with']:.1f} s"),
        ("- times slower in each round; it should be at most 1.10", ", ".join(f"{factor:.2f}" for factor in factors)),
        ("- longest call, without and with checkpoints", f"{longest['without']:.2f} and {longest['with']:.2f} s"),
    ]


# -- recovery and disk


class DiskUse:
    """A thread that watches the copies and the index files of a database, for when the copies are largest."""

    def __init__(self, base: str) -> None:
        self.index = self.copies = self.blocks = 0
        self._directory = directory(base)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._look()

    def _look(self) -> None:
        copies, blocks = size(self._directory.glob(".chroma_manager/*/*"))
        if copies > self.copies:
            self.index, _ = size(self._directory.glob("[!.]*/*"))
            self.copies, self.blocks = copies, blocks

    def finish(self) -> dict[str, int]:
        """The figures of the worst moment, in bytes."""
        self._done.set()
        self._thread.join()
        return {"index": self.index, "copies": self.copies, "blocks": self.blocks}


def size(files: Iterator[Path]) -> tuple[int, int]:
    """Bytes in files, and in the blocks that they use."""
    found = []
    for file in files:
        try:
            found.append(file.stat())
        except FileNotFoundError:  # replaced meanwhile
            continue
    return sum(stat.st_size for stat in found), sum(stat.st_blocks * 512 for stat in found)


def log_of(base: str) -> tuple[int, int]:
    """Rows of the log, and bytes in them; only while no engine has the database."""
    with sqlite3.connect(directory(base) / "chroma.sqlite3") as sql:
        found = sql.execute(
            "select count(*), sum(length(vector) + coalesce(length(metadata), 0) + length(id) + length(topic))"
            " from embeddings_queue"
        ).fetchone()
    sql.close()
    return found


def fill_and_kill(engine: str, base: str) -> dict[str, Any]:
    """A database of at least `RECORDS`, killed when it had written for nearly as long as before the last checkpoint."""
    c = collection(opener(engine, base)("doc"))
    disk = DiskUse(base)
    written, since, whole, before = 0, 0.0, 0.0, 0
    while written < RECORDS or since < 0.9 * whole:
        batch = {"ids": [str(written + i) for i in range(5 * BATCH)], "embeddings": vectors(5 * BATCH, written)}
        since += seconds(lambda batch=batch: c.add(**batch))
        written += 5 * BATCH
        if manifest_state(base) != before:
            before, whole, since = manifest_state(base), since, 0.0
    kill_engine()
    rows, log = log_of(base)
    return {"records": written, "rows": rows, "log": log, "since": since, **disk.finish()}


def recover(engine: str, base: str) -> dict[str, float]:
    """The next opening, the first read, the first query, and the closing after them."""
    from chroma_manager import ChromaDBManager

    open_client, asked = opener(engine, base), vectors(1, 7)
    figures = {"open": seconds(lambda: open_client("doc"))}
    c = collection(open_client("doc"))
    figures["read"] = seconds(lambda: c.get(ids=["5"], include=["embeddings"]))
    figures["query"] = seconds(lambda: c.query(query_embeddings=asked, n_results=10))
    figures["close"] = seconds(ChromaDBManager().cleanup_all_instances)
    return figures


def open_and_close(engine: str, base: str) -> dict[str, float]:
    """Opening and closing of a database: as the closing before left it, after some writes, and after many."""
    from chroma_manager import ChromaDBManager

    open_client, close = opener(engine, base), ChromaDBManager().cleanup_all_instances
    open_client("another")  # what only a process's first opening does
    figures: dict[str, list[float]] = {}
    for n in range(OPENINGS):
        for name, count in (("no writes", 0), ("100 records", 100), ("1,000 records", 1000)):
            opening = seconds(lambda: open_client("doc"))
            c = collection(open_client("doc"))
            c.count()
            if count:
                c.add(ids=[f"{n}-{count}-{i}" for i in range(count)], embeddings=vectors(count, count + n))
            figures.setdefault("opening", []).append(opening)
            figures.setdefault(f"closing after {name}", []).append(seconds(close))
    return {name: statistics.median(took) for name, took in figures.items()}


def measure_recovery() -> list[tuple[str, str]]:
    """One database, killed once, recovered from copies."""
    with scratch() as killed, scratch() as place:
        filled = result(fill_and_kill, killed)
        recovered = []
        for _ in range(RECOVERIES):
            with scratch() as base:
                shutil.copytree(killed, base, dirs_exist_ok=True)
                os.sync()
                recovered.append(result(recover, base))
        shutil.copytree(killed, place, dirs_exist_ok=True)
        result(recover, place)
        with_them = result(open_and_close, place)
        without = result(open_and_close, place, PYTHONPATH=without_checkpoints(place))
    return [*recovery_rows(filled, recovered), *disk_rows(filled), *opening_rows(filled, with_them, without)]


def recovery_rows(filled: dict[str, Any], recovered: list[dict[str, float]]) -> list[tuple[str, str]]:
    """What a kill costs whoever comes next."""
    took = {name: statistics.median(run[name] for run in recovered) for name in recovered[0]}
    written = f"{filled['rows']:,} rows of log, written in {filled['since']:.1f} s"
    return [
        (f"recovery of {filled['records']:,} records after a kill, just before a checkpoint ({written})", ""),
        ("- opening: the copies come back, Chroma replays the log", f"{took['open']:.1f} s"),
        ("- first read", f"{took['read']:.1f} s"),
        ("- first query after it", f"{took['query'] * 1e3:.0f} ms"),
        ("- all together", f"{took['open'] + took['read'] + took['query']:.1f} s"),
        ("- closing after it: a checkpoint of everything", f"{took['close']:.1f} s"),
    ]


def disk_rows(filled: dict[str, Any]) -> list[tuple[str, str]]:
    """What is on the disk beside the index that Chroma has itself."""
    index, copies, log = filled["index"], filled["copies"], filled["log"]
    return [
        ("disk, in sizes of the index", ""),
        ("- copies at their largest: the old one beside the new one", in_sizes(copies, index)),
        ("- the same in blocks of the file system", in_sizes(filled["blocks"], index)),
        ("- rows of the log at the kill", in_sizes(log, index)),
        ("- copies and log", in_sizes(copies + log, index)),
    ]


def in_sizes(part: int, whole: int) -> str:
    """A size, as a multiple of another and in MB."""
    return f"{part / whole:.2f} ({part / 2**20:,.0f} of {whole / 2**20:,.0f} MB)"


def opening_rows(
    filled: dict[str, Any], with_them: dict[str, float], without: dict[str, float]
) -> list[tuple[str, str]]:
    """Opening and closing, with and without what is done for checkpoints."""
    return [
        (f"a database of {filled['records']:,}, without and with checkpoints", ""),
        *((f"- {name}", f"{without[name] * 1e3:,.0f} and {with_them[name] * 1e3:,.0f} ms") for name in with_them),
    ]


def report() -> None:
    """Measures and prints the table."""
    began = time.monotonic()
    rows = [*measure_writes(), *measure_recovery()]
    print()
    print_table((f"what checkpoints cost, {DIMENSION} dimensions", ""), rows)
    print_circumstances()
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main((write, fill_and_kill, recover, open_and_close), report)
