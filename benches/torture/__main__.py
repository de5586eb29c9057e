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
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

# Forked children must not inherit its threads.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from child import in_children
from choice import at_random, sample, spread, states_of
from lives import LIVES
from plan import FAULTS, build_library
from report import print_failure, print_kinds, print_progress, print_table
from run import Bench, State

MINUTES = 50.0
PROGRESS = 100
ROOM = 256 << 20


def main() -> int:
    """Runs what the command line asks for; 1 where anything failed."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = Path(tempfile.mkdtemp(prefix="torture-", dir=options.directory))
    bench = Bench(
        base,
        build_library(),
        whole_batches=not options.half_batches,
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
        result = bench.run(State(life, fault, options.at, options.again, options.seed))
        if result.failures:
            print_failure(result, in_full=True)
        else:
            print(f"nothing is wrong ({result.hit or 'no fault came'})")
        return 1 if result.failures else 0
    counting = [State(life, seed=options.seed) for life in lives]
    results = list(in_children(bench.run, counting, options.jobs, deadline))
    matches = re.compile(options.only).search
    operations = {result.state.life: [one for one in result.operations if matches(str(one))] for result in results}
    groups = [group for life in lives for group in states_of(life, operations[life], faults, options.seed)]
    states = spread(groups)
    if options.sample:
        states = [one for one in sample(groups, list(LIVES), faults, options.sample) if one.life in lives]
    elif options.random:
        states = at_random(operations, faults, options.random, options.seed)
    # What there is when it is interrupted is worth a table.
    with contextlib.suppress(KeyboardInterrupt):
        for result in in_children(bench.run, states, options.jobs, deadline):
            results.append(result)
            if result.failures:
                print_failure(result)
            if len(results) % PROGRESS == 0:
                print_progress(len(results), len(states), sum(bool(result.failures) for result in results))
    print_kinds(results)
    print_table(lives, faults, operations, groups, results)
    return 1 if any(result.failures for result in results) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__.split("\n")[0])
    parser.add_argument("--life", action="append", choices=LIVES, help="again for more; default: all")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="again for more; default: all")
    parser.add_argument("--at", type=int, default=0, help="one run: the operation that has the fault")
    parser.add_argument("--again", type=int, default=0, help="and one so many operations later")
    parser.add_argument("--only", default="", metavar="REGEX", help='operations such as "write .*/length.bin"')
    parser.add_argument("--seed", type=int, default=0, help="of vectors, and of the order in which states are tried")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which no run is begun (50)")
    parser.add_argument("--sample", type=int, default=0, help="so many states of each life, with each fault in turn")
    parser.add_argument("--random", type=int, default=0, help="so many states, at random")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once (as many as there are cores)")
    parser.add_argument("--half-batches", action="store_true", help="a batch that was interrupted may be there in part")
    parser.add_argument("--keep", action="store_true", help="keep the directories of runs that failed")
    parser.add_argument("--directory", default=_memory(), help="where databases are made (/dev/shm)")
    return parser.parse_args()


def _memory() -> Path | None:
    """A file system that keeps nothing: a kill needs no disk."""
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM
    return memory if has_room else None


if __name__ == "__main__":
    sys.exit(main())
