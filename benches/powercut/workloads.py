"""What is done while every write to the disk is logged: the operations of each workload, always the same.

Each is small: after every flush of it the power is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from operations import (
    SMALL,
    USUAL,
    Context,
    Operation,
    closing,
    compaction,
    creation,
    damage,
    deletion,
    kill,
    modification,
    opening,
    range_of,
    removal,
    repair,
    restoration,
    snapshot,
    stock,
    write,
)


@dataclass(frozen=True)
class Workload:
    """Operations; the disk is synced between those of `before`, where there are no cuts, and the others."""

    before: list[Operation]
    operations: list[Operation]


def _create() -> Workload:
    return Workload(
        [],
        [opening(), creation("one"), write("add", [0], 1), write("add", range_of(1, 101), 2), closing(), opening()],
    )


def _collections() -> Workload:
    one_round = [
        creation("two", colour="red"),
        modification("two", new="three"),
        modification("three", metadata={"colour": "green"}),
        write("add", [7], 3, "three"),
        modification("three", new="four", metadata={"colour": "blue", "size": 1}),
        creation("five"),
        deletion("four"),
        modification("five", new="six"),
        write("add", range_of(0, 30), 4, "six"),
        deletion("six"),
    ]
    return Workload([opening(), creation("one"), write("add", range_of(0, 50), 1)], [*one_round, *one_round, closing()])


def _write() -> Workload:
    operations = [write("add", [100 + i], 2) for i in range(8)]
    operations += [write("add", range_of(200, 300), 3), write("update", [5], 4), write("update", range_of(0, 50), 5)]
    operations += [write("upsert", [6, 400], 6), write("upsert", range_of(280, 320), 7)]
    operations += [write("delete", [3], 8), write("delete", range_of(20, 60), 9), write("add", [3], 10)]
    operations += [write("delete", [100 + i], 11) for i in range(3)]
    return Workload(
        [opening(), creation("one"), write("add", range_of(0, 100), 1)], [*operations, closing(), opening()]
    )


def _full(count: int, configuration: dict[str, Any]) -> list[Operation]:
    """An index whose files have all records, so that later they are overwritten and do not grow."""
    writes = [write("add", range_of(0, count), 1), write("update", range_of(0, count), 2)]
    return [opening(), creation("one", configuration), *writes, closing()]


def _update() -> Workload:
    return Workload(
        _full(2000, USUAL), [write("update", range_of(0, 2000), 3), closing(), write("update", [1], 4), closing()]
    )


def _overwrite() -> Workload:
    """As `update`, smaller and more often; and with only some records, so that files are old in part."""
    rounds = [
        [write("update", range_of(start, stop), version), closing()]
        for version, (start, stop) in enumerate([(0, 200), (50, 150), (0, 1), (0, 200), (100, 120)], 3)
    ]
    return Workload(_full(200, SMALL), [operation for one in rounds for operation in one])


def _sample() -> Workload:
    """A little of `overwrite` and `collections`, for the tests."""
    operations = [write("update", range_of(0, 60), 3), closing(), creation("two", colour="red")]
    operations += [modification("two", new="three", metadata={"colour": "green"}), deletion("three")]
    return Workload(_full(60, SMALL), [*operations, write("delete", [3], 4), snapshot("first"), closing()])


def _checkpoint() -> Workload:
    seen: list[int] = []

    def is_taken(context: Context) -> bool:
        seen.append(context.checkpoint)
        return seen[-1] != seen[0]

    updates = [write("update", range_of(0, 1000), 3 + i, until=is_taken) for i in range(60)]
    return Workload(
        _full(1000, USUAL), [*updates, write("update", [1], 100), write("delete", [2], 101), write("add", [3000], 102)]
    )


def _snapshot() -> Workload:
    before = [opening(), creation("one"), write("add", range_of(0, 200), 1), closing()]
    writes = [write("update", range_of(0, 100), 2), snapshot("first"), write("update", [1], 3), write("delete", [2], 4)]
    return Workload(before, [*writes, snapshot("second"), write("add", [300], 5), closing(), snapshot("third")])


def _restore() -> Workload:
    before = [opening(), creation("one"), write("add", range_of(0, 200), 1), snapshot("first")]
    before += [
        write("update", range_of(0, 200), 2),
        creation("two"),
        write("add", range_of(0, 30), 3, "two"),
        snapshot("second"),
    ]
    before += [write("delete", range_of(0, 20), 4)]
    operations = [
        restoration("first"),
        write("add", [300], 5),
        restoration("second"),
        write("update", [1], 6),
        closing(),
    ]
    operations += [restoration("first"), removal(), restoration("second")]
    return Workload(before, operations)


def _repair() -> Workload:
    before = [opening(), creation("one"), write("add", range_of(0, 200), 1), closing(), damage()]
    return Workload(before, [repair(), write("update", range_of(0, 40), 2), closing()])


def _compact() -> Workload:
    before = [*_full(200, SMALL), write("delete", range_of(20, 160), 3), closing()]
    operations = [compaction(), write("update", range_of(0, 20), 4), closing()]
    operations += [write("delete", range_of(0, 15), 5), write("delete", range_of(170, 200), 6), closing(), compaction()]
    return Workload(before, [*operations, write("add", [300], 7), closing()])


def _delete() -> Workload:
    before = [opening(), creation("one"), write("add", range_of(0, 200), 1)]
    again = [opening(), creation("one"), write("add", range_of(0, 25), 2)]
    return Workload(before, [removal(), *again, closing(), removal(), *again])


def _recover() -> Workload:
    before = [opening(), creation("one"), write("add", range_of(0, 200), 1), closing()]
    operations = [write("update", range_of(0, 100), 2), write("delete", range_of(190, 200), 3), kill(), opening()]
    operations += [write("update", range_of(50, 150), 4), kill(), opening(), write("add", [300], 5), closing()]
    return Workload(before, operations)


def _stock() -> Workload:
    before = [stock(range_of(0, 200), 1, "one")]
    operations = [opening(), write("update", range_of(0, 100), 2), closing()]
    return Workload(before, operations)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "create": _create,
    "collections": _collections,
    "write": _write,
    "update": _update,
    "overwrite": _overwrite,
    "checkpoint": _checkpoint,
    "snapshot": _snapshot,
    "restore": _restore,
    "repair": _repair,
    "compact": _compact,
    "delete": _delete,
    "recover": _recover,
    "stock": _stock,
    "sample": _sample,
}
