"""Everything at once, for long: what was acknowledged stays, nothing hangs, and nothing is left over at the end.

    make soak                    fifteen minutes
    make soak SOAK_SECONDS=60    one

Threads come and go, files are created and deleted, worker processes share the databases with this one; engine processes
and workers are killed, this process forks, and cleanups run, all at random. Every record says who wrote it and which
write it was; each writer knows which of its writes were acknowledged, and what it reads must agree.

The same is done twice: for some seconds to warm up, and for the time that counts. What the process has then (memory,
threads, descriptors, children, files of sockets) it must not have more of than after the first time.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import gc
import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from chroma_manager import ChromaDBManager
from common import print_circumstances, print_table

SECONDS = float(os.environ.get("SOAK_SECONDS", "900"))
WARM_UP_SECONDS = 15
DIMENSION = 32
KEPT_FILES, LANES = 4, 3
JOBS, WORKERS, THREADS_OF_A_WORKER = 8, 2, 2
RECORDS_OF_A_LANE = 400
OPTIONS: dict[str, Any] = {"engine": "isolated", "max_engines": 4, "idle_timeout": 0.5}

HANG_SECONDS = 120
MOST_ATTEMPTS = 30
MORE_MEMORY = 40  # MB
LARGEST_PART_NOT_FOUND = 0.02  # the index is approximate, without any kill too

# What somebody else did: a cleanup, a kill, a deletion.
EXPECTED = {"ClientClosedError", "EngineCrashedError", "InstanceNotFoundError"}

State = int | None


def is_expected(error: Exception) -> bool:
    """Whether it tells what others do here; also where five engine processes of one opening were killed."""
    name = type(error).__name__
    return name in EXPECTED or (name == "InstanceOpenError" and "SIGKILL" in str(error))


def vector_of(record: str, version: int) -> Any:
    """The vector that a version of a record has; no other has it."""
    chance = np.random.default_rng(zlib.crc32(f"{record}@{version}".encode()))
    return chance.random(DIMENSION, dtype=np.float32)


class Lane:
    """The records that one writer has in one file: with the versions that each may have now, `None` for no record."""

    def __init__(self, file: str, name: str) -> None:
        self.file, self.name = file, name
        self.states: dict[str, set[State]] = {}
        self.lock = threading.Lock()
        self._pending: dict[str, State] = {}
        self._next = 1

    def begin(self, change: dict[str, State]) -> None:
        """A call is made that is to have this effect."""
        self._pending = change
        for record, state in change.items():
            self.states.setdefault(record, {None}).add(state)

    def acknowledge(self) -> None:
        """The call has returned. Where it never does, it may have had its effect, or not, on each record."""
        for record, state in self._pending.items():
            if state is None:
                del self.states[record]
            else:
                self.states[record] = {state}

    def certain(self) -> list[str]:
        """The records that there are for sure."""
        return [record for record, states in self.states.items() if None not in states]

    def random_change(self, chance: random.Random) -> tuple[str, dict[str, State]]:
        """A method, and what it is to do."""
        self._next += 1
        known = chance.sample(list(self.states), min(len(self.states), chance.choice([1, 5, 30])))
        method = chance.choice(["add", "add", "upsert", "update", "delete"])
        if method == "delete" or len(self.states) > RECORDS_OF_A_LANE:
            return "delete", dict.fromkeys(known, None) if method == "delete" else dict.fromkeys(self.states, None)
        # Seldom many: Chroma's index keeps what was deleted. With forty times as many of these as there are records, an
        # update takes a second.
        (count,) = chance.choices([1, 5, 30, 300], [30, 30, 30, 2]) if method != "update" else (0,)
        new = [f"{self.name}-{self._next}-{i}" for i in range(count)]
        old = {"add": [], "upsert": known, "update": [record for record in known if record in set(self.certain())]}
        return method, dict.fromkeys([*old[method], *new], self._next)

    def faults(self, found: dict[str, tuple[int, Any]]) -> Iterator[str]:
        """What in a reading of all records, with version and vector of each, cannot be."""
        for record in found.keys() - self.states.keys():
            yield f"{self.file}: {record} is there, and was deleted or never written"
        for record, states in self.states.items():
            version, vector = found.get(record, (None, None))
            if version not in states:
                yield f"{self.file}: {record} has version {version}; it may be {states}"
            elif version is not None and not np.array_equal(vector, vector_of(record, version)):
                yield f"{self.file}: {record} has another vector than its version {version}"


def apply(collection: Any, lane: Lane, method: str, change: dict[str, State]) -> None:
    """Makes a change."""
    records = list(change)
    if method == "delete":
        collection.delete(ids=records)
        return
    getattr(collection, method)(
        ids=records,
        embeddings=[vector_of(record, version) for record, version in change.items()],
        metadatas=[{"lane": lane.name, "version": version} for version in change.values()],
    )


def read(collection: Any, lane: Lane) -> dict[str, tuple[int, Any]]:
    """All records of a lane."""
    got = collection.get(where={"lane": lane.name}, include=["embeddings", "metadatas"])
    rows = zip(got["ids"], got["metadatas"], got["embeddings"], strict=True)
    return {record: (metadata["version"], vector.astype(np.float32)) for record, metadata, vector in rows}


class Tally:
    """What was done, how long the longest took, what was refused, and what must not be."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.longest: defaultdict[str, float] = defaultdict(float)
        self.errors: Counter[str] = Counter()
        self.faults: list[str] = []
        self.asked = self.not_found = 0

    def attempt(self, what: str, call: Callable[[], object]) -> bool:
        """Does something that others may be in the way of; tells whether they were not."""
        began = time.monotonic()
        try:
            call()
        except Exception as error:
            self.errors[type(error).__name__] += 1
            if not is_expected(error):
                self.faults.append(f"{what}: {traceback.format_exc()}")
            return False
        finally:
            self.longest[what] = max(self.longest[what], time.monotonic() - began)
        self.done[what] += 1
        return True

    def achieve(self, what: str, call: Callable[[], object]) -> None:
        """Does something as often as others are in the way of it."""
        if not any(self.attempt(what, call) for _ in range(MOST_ATTEMPTS)):
            self.faults.append(f"{what}: not in {MOST_ATTEMPTS} attempts")

    def merge(self, other: dict[str, Any]) -> None:
        """Adds what another process counted."""
        self.done.update(other.get("done", {}))
        self.errors.update(other.get("errors", {}))
        self.faults.extend(other.get("faults", []))
        self.asked += other.get("asked", 0)
        self.not_found += other.get("not found", 0)
        for what, longest in other.get("longest", {}).items():
            self.longest[what] = max(self.longest[what], longest)

    def for_json(self) -> dict[str, Any]:
        """What `merge` takes."""
        return {
            "done": self.done,
            "longest": self.longest,
            "errors": self.errors,
            "faults": self.faults,
            "asked": self.asked,
            "not found": self.not_found,
        }


class Writer:
    """Writes into lanes, and reads them."""

    def __init__(self, manager: ChromaDBManager, tally: Tally) -> None:
        self.manager, self.tally = manager, tally

    def collection(self, file: str) -> Any:
        return self.manager.get_collection(file, "azure", "rag_collection")

    def write(self, lane: Lane, chance: random.Random, tell: Callable[[dict[str, State] | None], None]) -> None:
        """One write; `tell` is told before it what it is to do, and after it that it was acknowledged."""
        method, change = lane.random_change(chance)
        if not change:
            return
        tell(change)
        lane.begin(change)
        if self.tally.attempt(method, lambda: apply(self.collection(lane.file), lane, method, change)):
            lane.acknowledge()
            tell(None)

    def check(self, lane: Lane, collection: Any = None) -> None:
        """Reads all of a lane, and finds some of its records by their vectors."""
        collection = collection or self.collection(lane.file)
        self.tally.faults.extend(lane.faults(read(collection, lane)))
        asked = [(record, *lane.states[record]) for record in lane.certain()[:10] if len(lane.states[record]) == 1]
        if asked:
            found = collection.query(query_embeddings=[vector_of(*each) for each in asked], n_results=3)["ids"]
            self.tally.asked += len(asked)
            self.tally.not_found += sum(each[0] not in ids for each, ids in zip(asked, found, strict=True))


# -- worker processes


def worker(base: str, name: str) -> None:
    """Writes until its input ends; prints each write before and after it, for whoever outlives it."""
    manager, tally = ChromaDBManager(base_path=base, **OPTIONS), Tally()
    stopping, printing = threading.Event(), threading.Lock()

    def say(**words: Any) -> None:
        with printing:
            print(json.dumps(words), flush=True)

    def run(thread: int) -> None:
        chance, writer = random.Random(), Writer(manager, tally)
        lanes = [Lane(f"kept{i}", f"{name}.{thread}") for i in range(KEPT_FILES)]
        while not stopping.is_set():
            lane = chance.choice(lanes)
            writer.write(lane, chance, lambda change, lane=lane: say(lane=[lane.file, lane.name], change=change))
            if chance.random() < 0.2:
                tally.attempt("check", lambda lane=lane: writer.check(lane))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS_OF_A_WORKER)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stopping.set()
    for thread in threads:
        thread.join()
    manager.shutdown()
    say(tally=tally.for_json())


class Worker:
    """A worker process, and what it has said."""

    numbers = itertools.count()

    def __init__(self, base: str) -> None:
        self.lanes: dict[tuple[str, str], Lane] = {}
        self.last: dict[str, Any] = {}
        self.process = subprocess.Popen(
            [sys.executable, __file__, base, f"worker{next(self.numbers)}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # cut by a kill
                self.last = json.loads(line)
                if "lane" in self.last:
                    self._take_note(tuple(self.last["lane"]), self.last["change"])

    def _take_note(self, place: tuple[str, str], change: dict[str, State] | None) -> None:
        lane = self.lanes.setdefault(place, Lane(*place))
        if change is None:
            lane.acknowledge()
        else:
            lane.begin(change)

    def kill(self) -> None:
        """As it is; its engine processes may outlive it."""
        self.process.kill()
        self._end()

    def finish(self) -> dict[str, Any]:
        """Lets it end by itself; what it said last."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(HANG_SECONDS)
        finally:
            self.kill()
        return self.last

    def _end(self) -> None:
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


# -- this process


def engines(base: str) -> list[psutil.Process]:
    """The engine processes of these databases, whoever started them, and whether that lives."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if len(command) > 2 and "engine_process.py" in " ".join(command[:6]) and base in " ".join(command):
                found.append(process)
    return found


class Soak:
    """All that happens in this process."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.manager = ChromaDBManager(base_path=base, **OPTIONS)
        self.tally = Tally()
        self.counts: Counter[str] = Counter()
        self.lanes = [Lane(f"kept{i}", f"lane{k}") for i in range(KEPT_FILES) for k in range(LANES)]
        self.passing: list[Any] = []
        self.numbers = itertools.count()
        self.end = 0.0

    def run(self, seconds: float) -> None:
        """Everything at once, until the time is over; then quiet."""
        self.end = time.monotonic() + seconds
        actors = [
            threading.Thread(target=self.repeat, args=actor)
            for actor in (
                (self.kill_an_engine, 0.5, 4.0),
                (self.fork, 0.3, 1.0),
                (self.clean_up, 0.05, 0.6),
                (self.replace_a_worker, 2.0, 6.0),
                *[(self.start_a_job, 0.0, 0.01)] * JOBS,
            )
        ]
        self.workers = [Worker(self.base) for _ in range(WORKERS)]
        for actor in actors:
            actor.start()
        for actor in actors:
            actor.join()
        self.end_workers()
        for lane in self.lanes:
            self.tally.achieve("check at the end", functools.partial(self.writer().check, lane))
        self.manager.cleanup_all_instances()
        self.passing.clear()

    def repeat(self, act: Callable[[random.Random], None], shortest: float, longest: float) -> None:
        chance = random.Random()
        while time.monotonic() < self.end and len(self.tally.faults) < 10:
            time.sleep(chance.uniform(shortest, longest))
            try:
                act(chance)
            except Exception:
                self.tally.faults.append(traceback.format_exc())

    def writer(self) -> Writer:
        return Writer(self.manager, self.tally)

    # -- jobs, each in a thread that ends with it

    def start_a_job(self, chance: random.Random) -> None:
        jobs = [self.write, self.check, self.pass_through, self.use_an_old_handle, self.make_a_snapshot]
        (job,) = chance.choices(jobs, [8, 4, 2, 4, 0.5])
        thread = threading.Thread(target=job, args=(chance,))
        thread.start()
        thread.join()
        self.counts["threads"] += 1

    def write(self, chance: random.Random) -> None:
        lane = chance.choice(self.lanes)
        with lane.lock:
            for _ in range(chance.randint(1, 4)):
                self.writer().write(lane, chance, lambda _: None)

    def check(self, chance: random.Random) -> None:
        lane = chance.choice(self.lanes)
        with lane.lock:
            self.tally.attempt("check", lambda: self.writer().check(lane))

    def pass_through(self, chance: random.Random) -> None:
        """A file from its creation to its deletion."""
        lane, writer = Lane(f"passing{next(self.numbers)}", "only"), self.writer()
        handles: list[Any] = []
        if self.tally.attempt("create a file", lambda: handles.append(writer.collection(lane.file))):
            self.passing[:] = [*handles, *self.passing[:4]]
            for _ in range(chance.randint(0, 5)):
                writer.write(lane, chance, lambda _: None)
                time.sleep(chance.random() * 0.3)
            self.tally.attempt("check a file", lambda: writer.check(lane))
        self.tally.achieve("delete a file", lambda: self.delete(lane.file, chance))
        self.assert_is_gone(lane.file, handles)

    def delete(self, file: str, chance: random.Random) -> None:
        ways: list[Callable[[], object]] = [lambda: self.remove(file)]
        if hasattr(self.manager, "delete_instance"):
            ways.append(lambda: self.manager.delete_instance(file, "azure"))
            ways.append(lambda: self.manager.delete_file(file))
        chance.choice(ways)()

    def remove(self, file: str) -> None:
        self.manager.cleanup_instance(file, "azure")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(Path(self.base, file))

    def assert_is_gone(self, file: str, handles: list[Any]) -> None:
        """Nobody may bring it back, either: so it is looked at after the old handle was used."""
        for handle in handles:
            try:
                handle.count()
                self.tally.faults.append(f"{file} was deleted, and its handle goes on")
            except Exception as error:
                if type(error).__name__ != "ClientClosedError":
                    self.tally.faults.append(f"a handle of {file}, which was deleted: {traceback.format_exc()}")
        if Path(self.base, file, "azure").exists():
            self.tally.faults.append(f"{file} was deleted, and is there")

    def use_an_old_handle(self, chance: random.Random) -> None:
        if self.passing:
            handle = chance.choice(self.passing)
            self.tally.attempt("use another thread's handle", lambda: handle.get(limit=5))

    def make_a_snapshot(self, chance: random.Random) -> None:
        """Of a file that is in use, restored as another one."""
        if not hasattr(self.manager, "snapshot"):
            return
        file, copy = f"kept{chance.randrange(KEPT_FILES)}", f"passing{next(self.numbers)}"
        with contextlib.ExitStack() as locks, tempfile.TemporaryDirectory(prefix="soak-snapshot-") as place:
            lanes = [lane for lane in self.lanes if lane.file == file]
            for lane in lanes:
                locks.enter_context(lane.lock)
            self.tally.attempt("snapshot", lambda: self.restore_and_check(file, copy, str(Path(place, "copy")), lanes))
        self.tally.achieve("delete a file", lambda: self.delete(copy, chance))

    def restore_and_check(self, file: str, copy: str, place: str, lanes: list[Lane]) -> None:
        self.manager.snapshot(file, "azure", place)
        self.manager.restore(copy, "azure", place)
        for lane in lanes:
            self.writer().check(lane, self.writer().collection(copy))
        verification = self.manager.verify(copy, "azure")
        if not verification.ok:
            self.tally.faults.append(f"a restored snapshot of {file}: {verification.problems}")

    # -- what happens to them

    def kill_an_engine(self, chance: random.Random) -> None:
        running = engines(self.base)
        if running:
            with contextlib.suppress(psutil.NoSuchProcess):
                chance.choice(running).kill()
                self.counts["engine processes killed"] += 1

    def clean_up(self, chance: random.Random) -> None:
        file = f"kept{chance.randrange(KEPT_FILES)}"
        ways: dict[str, Callable[[], object]] = {
            "cleanup_instance": lambda: self.manager.cleanup_instance(file, "azure"),
            "cleanup_old_instances": lambda: self.manager.cleanup_old_instances(chance.random() * 0.3),
            "cleanup_all_instances": self.manager.cleanup_all_instances,
        }
        (name,) = chance.choices(list(ways), [5, 5, 1])
        self.tally.attempt(name, ways[name])

    def fork(self, chance: random.Random) -> None:
        """A child that reads one record and exits."""
        file = f"kept{chance.randrange(KEPT_FILES)}"
        reading, writing = os.pipe()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            tally = Tally()
            tally.attempt("read in a forked child", lambda: Writer(self.manager, tally).collection(file).get(limit=1))
            os.write(writing, json.dumps(tally.for_json()).encode())
            os._exit(0)
        self.tally.merge({"done": {"fork": 1}, "longest": {"fork": time.monotonic() - began}})
        os.close(writing)
        self.wait_for(child)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        self.tally.merge(json.loads(said or '{"faults": ["a forked child ended without a word"]}'))

    def wait_for(self, child: int) -> None:
        deadline = time.monotonic() + HANG_SECONDS
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                self.tally.faults.append("a forked child hangs; its threads are printed above")
                os.kill(child, signal.SIGUSR1)
                time.sleep(1)
                os.kill(child, signal.SIGKILL)
                deadline += HANG_SECONDS
            time.sleep(0.005)

    def replace_a_worker(self, chance: random.Random) -> None:
        place = chance.randrange(WORKERS)
        killed = self.workers[place]
        victims = [killed.process.pid]
        if chance.random() < 0.5:
            victims += [child.pid for child in psutil.Process(killed.process.pid).children(recursive=True)]
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        killed.kill()
        self.counts["worker processes killed"] += 1
        self.workers[place] = Worker(self.base)
        self.bury(killed)

    def bury(self, ended: Worker) -> None:
        """What it was told is written must be there; then nobody needs it any more."""
        for lane in ended.lanes.values():
            self.tally.achieve("check what a worker wrote", functools.partial(self.writer().check, lane))
            self.tally.achieve("delete where", functools.partial(self.delete_records, lane))

    def delete_records(self, lane: Lane) -> None:
        self.writer().collection(lane.file).delete(where={"lane": lane.name})

    def end_workers(self) -> None:
        for each in self.workers:
            said = each.finish()
            if each.process.returncode != 0 or "tally" not in said:
                self.tally.faults.append(f"a worker ended with {each.process.returncode}; it said {str(said)[:200]}")
                continue
            self.tally.merge(said["tally"])
            self.bury(each)


# -- what is left


def left_over(base: str, runtime: str) -> dict[str, float]:
    """What the process has, when it has nothing to do."""
    deadline = time.monotonic() + 10
    while engines(base) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    children = process.children(recursive=True)
    return {
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "child processes": len(children),
        "zombies": sum(child.status() == psutil.STATUS_ZOMBIE for child in children),
        "engine processes": len(engines(base)),
        "files of sockets and logs": len(list(Path(runtime).glob("*/*"))),
        "memory, MB": process.memory_info().rss / 2**20,
    }


def problems(before: dict[str, float], after: dict[str, float], tally: Tally) -> list[str]:
    """Everything that is off."""
    more = [
        f"{what}: {before[what]:.0f} after the warm-up, {after[what]:.0f} at the end"
        for what in before
        if after[what] > before[what] + (MORE_MEMORY if "memory" in what else 0)
    ]
    if tally.not_found > LARGEST_PART_NOT_FOUND * tally.asked:
        more.append(f"{tally.not_found} of {tally.asked} records were not found by their own vector")
    return [*tally.faults, *more]


def report(soak: Soak, before: dict[str, float], after: dict[str, float]) -> None:
    """Prints the figures."""
    tally = soak.tally
    print()
    rows = [(what, f"{tally.done[what]:,}", f"{tally.longest[what]:.2f} s") for what in sorted(tally.longest)]
    print_table(("what was done", "times", "longest"), rows)
    print()
    stats = soak.manager.stats()
    counts = {**soak.counts, "openings": stats["openings"], "evictions": stats["evictions"], **tally.errors}
    counts["records asked for by their vector"] = tally.asked
    counts["of these not found"] = tally.not_found
    print_table(("what happened, or was refused", "times"), [(what, f"{count:,}") for what, count in counts.items()])
    print()
    print_table(
        ("what there is", "after the warm-up", "at the end"),
        [(what, f"{before[what]:.0f}", f"{after[what]:.0f}") for what in before],
    )
    print_circumstances()


def main() -> int:
    """Runs it; 1 where anything is off."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    faulthandler.dump_traceback_later(SECONDS + WARM_UP_SECONDS + 5 * HANG_SECONDS, exit=True)
    logging.getLogger("chroma_manager").setLevel(logging.ERROR)  # a repeated call is a warning
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        base, runtime = os.path.join(place, "db"), os.path.join(place, "run")
        os.mkdir(runtime)
        os.environ["XDG_RUNTIME_DIR"] = runtime
        soak = Soak(base)
        # Imports chromadb. A fork waits for that, but five seconds at most, and under this load it may take longer.
        soak.manager.get_client("kept0", "azure")
        soak.run(WARM_UP_SECONDS)
        before = left_over(base, runtime)
        if not soak.tally.faults:
            soak.run(SECONDS)
        after = left_over(base, runtime)
        report(soak, before, after)
        wrong = problems(before, after, soak.tally)
        for problem in wrong:
            print(f"\n{problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) == 3:
        logging.getLogger("chroma_manager").setLevel(logging.ERROR)
        worker(*sys.argv[1:])
    else:
        sys.exit(main())
