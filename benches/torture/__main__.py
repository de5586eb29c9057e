"""Every file operation of an engine process fails, or is its last; what was acknowledged must be there afterwards.

    make torture                                              as many states as fifty minutes allow
    make torture ARGS="--life restore --fault kill"           those of one life and one fault
    make torture ARGS="--life new --fault EIO --at 123"       one run, as a failure prints it
    make torture ARGS="--random 500 --seed 7"                 states taken at random

A run plays a life with a database whose engine process has a library preloaded (``faults/``) that counts its file
operations, those of Chroma too, and has one fail. A model knows what was acknowledged. Then a fresh app opens the
database, without faults, reads and writes; a second one, and Chroma itself, must read the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Forked children must not inherit its threads.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from choice import Ranked, at_random, sample, spread, states_of
from lives import LIVES
from plan import FAULTS, Operation, build_library
from run import Bench, Result, State

MINUTES = 50.0
SHORT = 400


def main() -> int:
    """Runs what the command line asks for; 1 where anything failed."""
    options = _options()
    base = Path(tempfile.mkdtemp(prefix="torture-", dir=options.directory))
    bench = Bench(
        base,
        build_library(),
        whole_batches=options.whole_batches,
        keep=options.keep,
        checks_counting=not options.sample,
    )
    try:
        return _main(options, bench)
    finally:
        if not options.keep:
            shutil.rmtree(base, ignore_errors=True)


def _main(options: argparse.Namespace, bench: Bench) -> int:
    deadline = time.monotonic() + options.minutes * 60
    lives, faults = options.life or list(LIVES), options.fault or list(FAULTS)
    for life in lives:
        bench.prepare(LIVES[life], options.seed)
    if options.at:
        (life,), (fault,) = lives, faults
        result = bench.run(State(life, fault, options.at, options.again, options.seed), "run")
        _print_failure(result, None) if result.failures else print(f"nothing is wrong ({result.hit or 'no fault'})")
        return 1 if result.failures else 0
    with multiprocessing.get_context("fork").Pool(options.jobs, _be_worker, (bench,)) as pool:
        counted = {result.state.life: result for result in pool.imap_unordered(_run, _jobs(map(State, lives), deadline))}
        operations = {life: result.operations for life, result in counted.items()}
        groups = [group for life in lives for group in states_of(life, operations[life], faults, options.seed)]
        states = spread(groups)
        if options.sample:
            states = [one for one in sample(groups, list(LIVES), faults, options.sample) if one.life in lives]
        elif options.random:
            states = at_random(operations, faults, options.random, options.seed)
        results = list(counted.values())
        for result in results:
            _print_failure(result, SHORT)
        for result in pool.imap_unordered(_run, _jobs(states, deadline)):
            if result is not None:
                results.append(result)
                _print_failure(result, SHORT)
    _print_table(lives, faults, operations, groups, results)
    return 1 if any(result.failures for result in results) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__.split("\n")[0])
    parser.add_argument("--life", action="append", choices=LIVES, help="again for more; default: all")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="again for more; default: all")
    parser.add_argument("--at", type=int, default=0, help="one run: the operation that has the fault")
    parser.add_argument("--again", type=int, default=0, help="and one so many operations later")
    parser.add_argument("--seed", type=int, default=0, help="of vectors, and of the order in which states are tried")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which no run is begun (50)")
    parser.add_argument("--sample", type=int, default=0, help="so many states of each life, with each fault in turn")
    parser.add_argument("--random", type=int, default=0, help="so many states, at random")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once (as many as there are cores)")
    parser.add_argument("--whole-batches", action="store_true", help="a batch must be written as a whole or not at all")
    parser.add_argument("--keep", action="store_true", help="keep the directories of runs that failed")
    memory = Path("/dev/shm")
    parser.add_argument(
        "--directory", default=memory if memory.is_dir() else None, help="where databases are made (/dev/shm)"
    )
    return parser.parse_args()


_worker: Bench | None = None


def _be_worker(bench: Bench) -> None:
    global _worker  # noqa: PLW0603 - a worker process has one
    _worker = bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _jobs(states: object, deadline: float) -> Iterator[tuple[int, State, float]]:
    for i, state in enumerate(states):  # type: ignore[arg-type]
        yield i, state, deadline


def _run(job: tuple[int, State, float]) -> Result | None:
    i, state, deadline = job
    if time.monotonic() > deadline:
        return None
    assert _worker is not None
    began = time.monotonic()
    result = _worker.run(state, f"{state.fault}-{i}")
    result.seconds = time.monotonic() - began
    return result


def _print_failure(result: Result, length: int | None) -> None:
    if not result.failures:
        return
    print(f'make torture ARGS="{result.state.arguments()}"')
    print(f"  {result.hit or 'no fault'} ({result.fired} faults, {result.seconds:.0f} s)")
    for failure in result.failures:
        lines = failure.strip().splitlines()
        # Of a traceback that what was raised.
        text = failure.strip() if length is None else lines[-1] if lines[0].startswith("Traceback") else "\n".join(lines)
        print("    " + text[:length].replace("\n", "\n    "))
    if length is None:
        for act, error in result.errors:
            print(f"  act {act}: {error}")
    sys.stdout.flush()


def _print_table(
    lives: list[str],
    faults: list[str],
    operations: dict[str, list[Operation]],
    groups: list[list[Ranked]],
    results: list[Result],
) -> None:
    """Of each life how many states there are, were tried, and failed."""
    every = Counter((state.life, state.fault) for group in groups for _, state in group)
    tried = Counter((result.state.life, result.state.fault) for result in results)
    failed = Counter((result.state.life, result.state.fault) for result in results if result.failures)
    rows = [["life", "operations", *faults, "failures"]]
    for life in lives:
        cells = [
            f"{tried[life, fault]} of {every[life, fault]}"
            + (f", **{failed[life, fault]}**" if failed[life, fault] else "")
            for fault in faults
        ]
        wrong = sum(failed[life, fault] for fault in [None, *faults])
        rows.append([life, f"{len(operations[life]):,}", *cells, str(wrong)])
    rows.insert(1, ["---"] * len(rows[0]))
    for row in rows:
        print(f"| {' | '.join(row)} |")
    missed = sum(1 for result in results if result.state.fault and not result.fired)
    print(f"\n{len(results):,} runs, {sum(map(bool, (r.failures for r in results)))} failures; in {missed} no fault came.")
    print("A cell: states tried of those there are, and how many of them failed.")


if __name__ == "__main__":
    sys.exit(main())
