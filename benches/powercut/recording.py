"""What was done to a logged disk, and where in the log each call began and returned.

Operations are known by their number in the workload, so a check knows from a recording what must be there. Run as a
program, it does those of one workload.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cuts import Cut
from device import position, run
from model import State
from operations import Context, Operation
from workloads import WORKLOADS, Workload

OPERATIONS_FILE = "operations.json"


class Subject(NamedTuple):
    """What is cut: a workload on a file system."""

    system: str
    workload: str
    recordings: Path

    @property
    def log(self) -> Path:
        """The directory of its log."""
        return self.recordings / f"{self.system}-{self.workload}"

    @property
    def is_recorded(self) -> bool:
        return (self.log / OPERATIONS_FILE).exists()

    def replay(self, cut: Cut) -> str:
        """What checks a cut again."""
        what = f"--fs {self.system} --workload {self.workload} --cut {cut.position} --seed {cut.seed}"
        return f'make powercut ARGS="{what}"'


class Moment(NamedTuple):
    """What was acknowledged; what was in flight, and what would be there with it; and where in a workload that is."""

    state: State
    following: State | None
    operation: Operation | None
    name: str


@dataclass
class Recording:
    """What was done, and where in the log: for each operation its number, and the positions before and after it."""

    begin: int
    end: int
    done: list[tuple[int, int, int]]

    @classmethod
    def load(cls, log: Path) -> Recording:
        return cls(**json.loads((log / OPERATIONS_FILE).read_text()))

    def at(self, workload: Workload, position: int) -> Moment:
        """What has been acknowledged at a position in the log."""
        moment = Moment(State(), None, None, "before anything")
        operations = [*workload.before, *workload.operations]
        for number, began, acknowledged in self.done:
            operation = operations[number]
            if acknowledged > position:
                if began > position:
                    break
                following = moment.state.copy()
                operation.change(following)
                return Moment(moment.state, following, operation, f"in {operation.name}")
            operation.change(moment.state)
            moment = moment._replace(name=f"after {operation.name}")
        return moment


def record(name: str, disk: Path, log: Path) -> None:
    """Does the operations of a workload on a logged disk."""
    workload, context = WORKLOADS[name](), Context(disk)
    done: list[tuple[int, int, int]] = []
    begin = 0

    def do(number: int, operation: Operation) -> None:
        nonlocal begin
        if operation.until is not None and operation.until(context):
            return
        began = position(log)
        if operation.until is not None:
            begin = began
        operation.do(context)
        done.append((number, began, position(log)))

    for number, operation in enumerate(workload.before):
        do(number, operation)
    run("sync", "--file-system", str(disk))
    begin = position(log)
    for number, operation in enumerate(workload.operations, len(workload.before)):
        do(number, operation)
    recording = Recording(begin, position(log), done)
    (log / OPERATIONS_FILE).write_text(json.dumps(vars(recording)))
    context.manager.shutdown()


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
