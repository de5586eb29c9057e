"""Power cuts: what was acknowledged is on the disk, whenever the power goes.

    make powercut                                                    all workloads on ext4
    make powercut ARGS="--fs xfs --fs btrfs --workload update"        one, on two file systems
    make powercut ARGS="--fs ext4 --workload update --cut 812 --seed 3"    one cut of what the last run has recorded

A workload is done once, on a real file system on a device that logs writes and flushes (`device.py`); where in the log
each call returned is noted (`recording.py`). Then the power is cut after every flush and between flushes: what a disk
may have kept by then (`cuts.py`) is mounted, opened, and compared with what was acknowledged (`check.py`).

It needs root, /dev/fuse, loop devices, libfuse 3 and the file system's mkfs, and ends with 3 where one is missing; with
1 where something was lost, or the bench itself failed; else with 0. Recordings stay in `target/powercut`, for single
cuts.
"""

from __future__ import annotations

import argparse
import ctypes.util
import faulthandler
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import check  # noqa: E402
from check import Result  # noqa: E402
from common import print_circumstances, print_table  # noqa: E402
from cuts import NOTHING, Cut, Log  # noqa: E402
from device import MAKE, PowercutError, logged_disk  # noqa: E402
from recording import Recording, Subject  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

RECORDINGS = HERE.parents[1] / "target" / "powercut"
FAILED, CANNOT_RUN = 1, 3
RECORDED_WITHIN = 300.0
CHECKED_WITHIN = 120.0
INSIDE = "POWERCUT_INSIDE"


def missing(systems: list[str]) -> list[str]:
    """What this machine lacks."""
    lacks = []
    if os.geteuid():
        lacks.append("root: devices are made and mounted")
    lacks += [
        f"{path} (a module of the kernel)" for path in ("/dev/fuse", "/dev/loop-control") if not os.path.exists(path)
    ]
    lacks += [
        f"{MAKE[system][0]} (Debian: {package})"
        for system, package in (("ext4", "e2fsprogs"), ("xfs", "xfsprogs"), ("btrfs", "btrfs-progs"))
        if system in systems and not shutil.which(MAKE[system][0])
    ]
    lacks += [f"{tool} (util-linux)" for tool in ("losetup", "unshare") if not shutil.which(tool)]
    if not ctypes.util.find_library("fuse3"):
        lacks.append("libfuse 3 (Debian: libfuse3-3)")
    return lacks


def inside() -> None:
    """Goes on in namespaces of its own: what is mounted and started there ends with this process, however it ends."""
    if INSIDE in os.environ:
        return
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
    os.execvpe("unshare", [*unshare, sys.executable, *sys.argv], os.environ | {INSIDE: "1"})


@dataclass
class Row:
    """A line of the table."""

    subject: Subject
    flushes: int = 0
    cuts: int = 0
    halves: int = 0
    failures: int = 0


def record(subject: Subject, scratch: Path) -> None:
    """Does a workload on a logged disk."""
    with logged_disk(subject.log, subject.system, scratch) as disk:
        command = [sys.executable, str(HERE / "recording.py"), subject.workload, str(disk), str(subject.log)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            output, _ = process.communicate(timeout=RECORDED_WITHIN)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = f"it hangs: {process.communicate()[0]}"
        if process.returncode:
            raise PowercutError(f"{subject.workload} failed on {subject.system}, without any cut:\n{output}")


def check_all(subject: Subject, cuts: list[Cut], scratch: Path, beside: int) -> Iterator[tuple[Cut, Result]]:
    """What is wrong after each of the cuts, so many of which are checked at the same time."""
    context = multiprocessing.get_context("fork")
    disk = scratch / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count()
    waiting, running = list(reversed(cuts)), {}

    def start(cut: Cut) -> None:
        image = scratch / f"image-{next(numbers)}"
        receives, sends = context.Pipe(duplex=False)
        process = context.Process(target=check.run_and_send, args=(subject, cut, image, disk, sends))
        process.start()
        sends.close()
        running[receives] = (cut, process, image, time.monotonic() + CHECKED_WITHIN)

    while waiting or running:
        while waiting and len(running) < beside:
            start(waiting.pop())
        ready = wait(list(running), timeout=1)
        for receives, (cut, process, image, ends) in list(running.items()):
            if receives in ready:
                try:
                    result = receives.recv()
                except EOFError:
                    process.join()
                    result = Result([f"the check died (exit {process.exitcode})"])
            elif time.monotonic() > ends:
                process.kill()
                result = Result([f"the check hangs: it has taken {CHECKED_WITHIN:.0f} s"])
            else:
                continue
            process.join()
            receives.close()
            image.unlink(missing_ok=True)
            del running[receives]
            yield cut, result


def cuts_of(subject: Subject, arguments: argparse.Namespace, row: Row) -> list[Cut]:
    """Those of a new recording."""
    recording, log = Recording.load(subject.log), Log(subject.log, subject.system)
    row.flushes = log.flushes(recording.begin, recording.end)
    if arguments.acknowledged:
        returned = [position for _, _, position in recording.done if position > recording.begin]
        cuts = list(dict.fromkeys(log.after(position, recording.end) for position in returned))
    else:
        cuts = list(log.cuts(recording.begin, recording.end, arguments.between, arguments.random))
    if arguments.most and len(cuts) > arguments.most:
        cuts = [cuts[i * len(cuts) // arguments.most] for i in range(arguments.most)]
    print(f"{subject.system} {subject.workload}: {row.flushes} flushes, {len(cuts)} cuts ...", flush=True)
    return cuts


def run_workload(row: Row, arguments: argparse.Namespace, scratch: Path) -> None:
    """Records a workload, and cuts the power."""
    subject, began = row.subject, time.monotonic()
    if arguments.cut is None:
        record(subject, scratch)
        cuts = cuts_of(subject, arguments, row)
    elif subject.is_recorded:
        cuts = [Cut(arguments.cut, arguments.seed)]
    else:
        raise PowercutError(
            f"nothing is recorded of {subject.workload} on {subject.system}: run it without --cut first"
        )
    for cut, result in check_all(subject, cuts, scratch, arguments.beside):
        row.cuts += 1
        row.halves += result.half
        if arguments.cut is not None:
            print(f"the power was cut {result.at}{', and half a batch is there' if result.half else ''}")
        if result.problems:
            row.failures += 1
            print(f"\nFAILED {result.at}: {'; '.join(result.problems)}\n  {subject.replay(cut)}", flush=True)
    print(f"  {row.cuts} cuts, {row.failures} failures, {time.monotonic() - began:.0f} s", flush=True)


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="make powercut", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fs", action="append", choices=list(MAKE), help="file systems; default ext4")
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="default: all")
    parser.add_argument("--between", type=int, default=1, help="random cuts between two flushes (default 1)")
    parser.add_argument(
        "--most", type=int, default=0, help="at most so many cuts of a workload, evenly chosen (0: all)"
    )
    parser.add_argument("--acknowledged", action="store_true", help="only one cut after each call that has returned")
    parser.add_argument("--random", type=int, default=1, help="seed of the random cuts")
    parser.add_argument("--cut", type=int, help="only this position in the log of the last recording")
    parser.add_argument(
        "--seed", type=int, default=NOTHING, help="of --cut: what was kept of the writes after the last flush"
    )
    parser.add_argument("--recordings", type=Path, default=RECORDINGS, help="where they are kept")
    parser.add_argument("--beside", type=int, default=os.cpu_count() or 1, help="checks at the same time")
    arguments = parser.parse_args()
    arguments.fs = arguments.fs or ["ext4"]
    arguments.workload = arguments.workload or list(WORKLOADS)
    return arguments


def report(rows: list[Row]) -> None:
    """Prints the table."""
    lines = []
    for row in rows:
        numbers = (row.flushes, row.cuts, row.halves, row.failures)
        lines.append([row.subject.system, row.subject.workload, *(f"{number:,}" for number in numbers)])
    print_table(["file system", "workload", "flushes", "cuts tried", "half a batch there", "failures"], lines)
    print_circumstances()


def main() -> int:
    """Runs what was asked for."""
    arguments = parse()
    if lacks := missing(arguments.fs):
        print("powercut cannot run here; it needs", *lacks, sep="\n  ", file=sys.stderr)
        return CANNOT_RUN
    inside()
    # As the first process of its namespace it would not get this signal without.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))
    faulthandler.enable()
    import chromadb  # noqa: F401 - once, not after every fork

    rows = []
    with tempfile.TemporaryDirectory(prefix="powercut-", dir="/dev/shm", ignore_cleanup_errors=True) as scratch:
        for system, name in itertools.product(arguments.fs, arguments.workload):
            row = Row(Subject(system, name, arguments.recordings))
            rows.append(row)
            try:
                run_workload(row, arguments, Path(scratch))
            except PowercutError as error:
                row.failures += 1
                print(f"\nFAILED {error}", file=sys.stderr)
    if arguments.cut is None:
        report(rows)
    return FAILED if any(row.failures for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
