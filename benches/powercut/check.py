"""What is wrong with a disk after a cut: it is mounted, which replays its journal, opened by us, then by stock Chroma.

A check runs in a process of its own, forked from one that has all modules loaded; in a mount namespace of its own, so
that each disk is mounted where the one that it is a copy of was.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuts import Cut, Log
from device import MOUNT_OPTIONS, PowercutError, run
from model import CollectionState, State, faults, is_half, read, rows
from operations import KEY, Context
from recording import Moment, Recording, Subject
from workloads import WORKLOADS

CLONE_NEWNS = 0x00020000
UNMOUNTS_WITHIN = 15.0

# A record and a collection that no workload has, and the version with which the check writes.
NEW_RECORD, NEW_COLLECTION, NEW_VERSION = 4000, "written_after", 4095


@dataclass
class Result:
    """What a check found.

    Attributes:
        problems: Sentences; none where all is as it should be.
        half: The batch in flight was found in part.
        at: Where in the workload the cut was.
    """

    problems: list[str] = field(default_factory=list)
    half: bool = False
    at: str = ""


def check(subject: Subject, cut: Cut, image: Path, disk: Path) -> Result:
    """Builds the disk of a cut, and tells what is wrong with it."""
    moment = Recording.load(subject.log).at(WORKLOADS[subject.workload](), cut.position)
    result = Result(at=moment.name)
    Log(subject.log, subject.system).build(cut, image)
    own_mounts()
    try:
        run("mount", "-t", subject.system, "-o", f"loop,{MOUNT_OPTIONS[subject.system]}", str(image), str(disk))
    except PowercutError as error:
        result.problems.append(str(error))
        return result
    try:
        Check(Context(disk), moment, result).run()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        result.problems.append(f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})")
    finally:
        result.problems += list(_unmount(disk))
    return result


def own_mounts() -> None:
    """What this process mounts is seen by it and its children, and goes with them."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise PowercutError(f"unshare: {os.strerror(ctypes.get_errno())}")
    run("mount", "--make-rprivate", "/")


def _unmount(disk: Path) -> Iterator[str]:
    ends = time.monotonic() + UNMOUNTS_WITHIN
    while True:
        try:
            run("umount", str(disk))
            return
        except PowercutError as error:
            if time.monotonic() > ends:
                yield f"after the manager's shutdown() the disk is in use: {error}"
                return
        time.sleep(0.05)


class Check:
    """One database after a cut."""

    def __init__(self, context: Context, moment: Moment, result: Result) -> None:
        self._context, self._result = context, result
        self._state, self._following, self._operation = moment.state, moment.following, moment.operation

    def run(self) -> None:
        """Notes what is wrong."""
        try:
            self._check_snapshots()
            found = self._check_existence() and self._check_contents()
            self._context.manager.cleanup_all_instances()
            self._check_snapshots_restored()
        finally:
            self._context.manager.shutdown()
        if found and not self._result.problems:
            self._check_with_stock()

    def _note(self, problem: str) -> None:
        self._result.problems.append(problem)

    @property
    def _states(self) -> list[State]:
        return [self._state] if self._following is None else [self._state, self._following]

    def _check_existence(self) -> bool:
        """Whether there is a database that must be as it was."""
        there = (self._context.directory / "chroma.sqlite3").exists()
        wanted = {state.collections is not None for state in self._states}
        if there not in wanted:
            self._note("the database is there, and was deleted" if there else "the database is gone")
        return there in wanted

    def _check_contents(self) -> bool:
        manager = self._context.manager
        if self._context.directory.exists() and any(state.is_damaged for state in self._states):
            self._repair_if_needed()
        found = read(manager.get_client(*KEY))
        self._compare("", found)
        report = manager.verify(*KEY)
        if not report.ok:
            self._note(f"verify: {'; '.join(report.problems)}")
        self._compare("after verify: ", read(manager.get_client(*KEY)))
        self._write(found)
        self._found = read(manager.get_client(*KEY))
        return True

    def _repair_if_needed(self) -> None:
        report = self._context.manager.verify(*KEY, repair=True)
        if not report.ok or report.set_aside:
            self._note(f"verify --repair: {'; '.join(report.problems)}; set aside: {report.set_aside}")

    def _compare(self, when: str, found: Any) -> None:
        before = self._state.collections or {}
        after = None if self._following is None else self._following.collections or {}
        if after is None or self._operation is None:
            problems = faults(found, before, None)
        elif self._operation.is_whole:
            problems = faults(found, before, None) and faults(found, after, None)
        else:
            problems = faults(found, before, after)
            self._result.half |= not problems and is_half(found, before, after)
        for problem in problems:
            self._note(when + problem)

    def _write(self, found: Any) -> None:
        client = self._context.manager.get_client(*KEY)
        for name, (_, records) in found.items():
            collection = client.get_collection(name)
            collection.add(**rows([NEW_RECORD], NEW_VERSION))
            if records:
                collection.update(**rows([min(records)], NEW_VERSION))
            got = collection.query(query_embeddings=rows([NEW_RECORD], NEW_VERSION)["embeddings"], n_results=1)
            if got["ids"] != [[str(NEW_RECORD)]]:
                self._note(f"{name}: what is written after the cut is not found: {got['ids']}")
        client.create_collection(NEW_COLLECTION)

    def _check_with_stock(self) -> None:
        """Stock Chroma finds what we have left."""
        import chromadb

        expected = {name: CollectionState(metadata, {}) for name, (metadata, _) in self._found.items()}
        with chromadb.PersistentClient(self._context.directory) as client:
            found = read(client)
        if problems := [
            *faults({n: (m, {}) for n, (m, _) in found.items()}, expected, None),
            *_differences(found, self._found),
        ]:
            self._note(f"opened by stock Chroma: {'; '.join(problems)}")

    def _check_snapshots(self) -> None:
        whole = [self._context.snapshot(name) for name in self._state.snapshots]
        in_flight = self._following.snapshots.keys() - self._state.snapshots.keys() if self._following else ()
        # It appears when it is complete.
        whole += [self._context.snapshot(name) for name in in_flight if self._context.snapshot(name).exists()]
        for snapshot in whole:
            for problem in _faults_of_snapshot(snapshot):
                self._note(f"snapshot {snapshot.name}: {problem}")

    def _check_snapshots_restored(self) -> None:
        """The last one; the checksums of the others have been compared."""
        for name, collections in list(self._state.snapshots.items())[-1:]:
            self._context.manager.restore("restored", name, self._context.snapshot(name))
            for problem in faults(read(self._context.manager.get_client("restored", name)), collections, None):
                self._note(f"restored from snapshot {name}: {problem}")


def _faults_of_snapshot(snapshot: Path) -> Iterator[str]:
    try:
        files = json.loads((snapshot / "snapshot.json").read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        yield f"its manifest cannot be read ({error})"
        return
    for name, file in files.items():
        try:
            content = (snapshot / name).read_bytes()
        except OSError as error:
            yield f"{name} cannot be read ({error})"
            continue
        if (len(content), hashlib.sha256(content).hexdigest()) != (file["size"], file["sha256"]):
            yield f"{name} is damaged: its checksum is another"


def _differences(found: Any, expected: Any) -> Iterator[str]:
    for name in found.keys() & expected.keys():
        records, others = found[name][1], expected[name][1]
        different = [
            record
            for record in records.keys() | others.keys()
            if record not in records
            or record not in others
            or records[record][1] != others[record][1]
            or list(records[record][0]) != list(others[record][0])
        ]
        if different:
            yield f"{name}: {len(different)} records differ ({sorted(different)[:3]} ...)"


def run_and_send(subject: Subject, cut: Cut, image: Path, disk: Path, sends: Any) -> None:
    """Makes a check in this process, which is its own, and sends what it found."""
    try:
        result = check(subject, cut, image, disk)
    except BaseException:
        result = Result([traceback.format_exc()])
    sends.send(result)
    sends.close()
    os._exit(0)
