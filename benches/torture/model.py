"""What a database must hold: what was acknowledged, and what may or may not have taken effect."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

# Of 200 records that are looked for by their vector so many may not be found: the index is approximate. After 120 were
# added to it and 50 updated, stock Chroma does not find one of them in 2.6 % of 6,000 runs, and two in 0.2 %.
ASKED, MOST_NOT_FOUND = 200, 3

# Cosine spaces keep vectors normalized.
ROUNDING = 1e-5

NAMED = 5


class Value(NamedTuple):
    """What a record has; where there is no record it is ``None``."""

    vector: bytes
    document: str | None
    metadata: str

    @staticmethod
    def of(vector: Any, document: str | None, metadata: Mapping[str, Any] | None) -> Value:
        """From what Chroma takes and gives."""
        return Value(np.asarray(vector, np.float32).tobytes(), document, json.dumps(metadata, sort_keys=True))

    def array(self) -> Any:
        """The vector."""
        return np.frombuffer(self.vector, np.float32)

    def is_like(self, other: Value, space: str) -> bool:
        """Whether it is the same, within rounding where the space does that."""
        if self[1:] != other[1:]:
            return False
        if self.vector == other.vector:
            return True
        return space == "cosine" and bool(np.allclose(_unit(self.array()), _unit(other.array()), atol=ROUNDING))

    def __str__(self) -> str:
        """Short, for a report."""
        return f"({np.round(self.array()[:2], 3)}..., {self.document!r}, {self.metadata})"


def _unit(vector: Any) -> Any:
    # A damaged one may be all zeros.
    return vector / (np.linalg.norm(vector) or 1.0)


State = Value | None


@dataclass
class Collection:
    """A collection; each set has what may be, one thing where it is certain.

    Attributes:
        names: ``None`` where there may be none.
        space: "l2" or "cosine".
        notes: In its metadata.
        records: By id.
    """

    names: set[str | None]
    space: str
    notes: set[str | None]
    records: dict[str, set[State]] = field(default_factory=dict)

    def certain(self) -> list[str]:
        """The records that there are for sure."""
        return [key for key, states in self.records.items() if None not in states]


@dataclass
class Batch:
    """A write that is in doubt: it is to have taken effect on all of its records or on none."""

    name: str
    before: dict[str, set[State]]
    after: dict[str, set[State]]


@dataclass
class World:
    """What a database may hold."""

    collections: dict[str, Collection] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)

    def write(self, name: str, method: str, values: Mapping[str, State], is_certain: bool) -> None:
        """A write of records to the collection that is known by a name."""
        records = self.collections[name].records
        before = {key: records.get(key, {None}) for key in values}
        after = {key: {_written(method, state, new) for state in before[key]} for key, new in values.items()}
        touched = values.keys()
        self.batches = [batch for batch in self.batches if batch.name != name or not touched & batch.before.keys()]
        if not is_certain:
            self.batches.append(Batch(name, before, after))
        records.update(after if is_certain else {key: before[key] | after[key] for key in values})


def _written(method: str, state: State, new: State) -> State:
    if method == "add":
        return new if state is None else state
    if method == "update":
        return None if state is None else new
    return new


@dataclass
class Model:
    """All that a database may hold: one world, or more where a restore is in doubt; and the snapshots of it."""

    worlds: list[World] = field(default_factory=lambda: [World()])
    snapshots: dict[str, tuple[list[World], bool]] = field(default_factory=dict)

    def create(self, name: str, space: str, note: str | None, is_certain: bool) -> None:
        """A collection is created, or there is one."""
        for world in self.worlds:
            found = world.collections.get(name)
            if found is None:
                names: set[str | None] = {name} if is_certain else {name, None}
                world.collections[name] = Collection(names, space, {note})
            elif is_certain:
                found.names.discard(None)

    def write(self, name: str, method: str, values: Mapping[str, State], is_certain: bool) -> None:
        """Records are written."""
        for world in self.worlds:
            if name in world.collections:
                world.write(name, method, values, is_certain)

    def rename(self, name: str, new: str, is_certain: bool) -> None:
        """A collection gets another name; it stays known by the first."""
        for world in self.worlds:
            found = world.collections[name]
            found.names = {new} if is_certain else {*found.names, new}

    def annotate(self, name: str, note: str, is_certain: bool) -> None:
        """The metadata of a collection are replaced."""
        for world in self.worlds:
            found = world.collections[name]
            found.notes = {note} if is_certain else {*found.notes, note}

    def drop(self, name: str, is_certain: bool) -> None:
        """A collection is deleted."""
        for world in self.worlds:
            found = world.collections[name]
            found.names = {None} if is_certain else {*found.names, None}

    def snapshot(self, path: str, is_certain: bool) -> None:
        """A snapshot is taken."""
        self.snapshots[path] = (copy.deepcopy(self.worlds), is_certain)

    def restore(self, worlds: list[World], is_certain: bool) -> None:
        """A snapshot is restored, of which this is known."""
        self.worlds = ([] if is_certain else self.worlds) + copy.deepcopy(worlds)


class Found(NamedTuple):
    """A collection as it is read."""

    note: str | None
    records: dict[str, Value]
    count: int
    query: Callable[[list[Any]], list[list[str]]]


def faults_in(worlds: Iterable[World], found: Mapping[str, Found], *, whole_batches: bool) -> list[str]:
    """What was found and cannot be, in sentences; of the world that fits best."""
    faults = min((_faults_in(world, found, whole_batches) for world in worlds), key=len)
    return [*faults, *(fault for name, read in found.items() for fault in _faults_of_reading(name, read))]


def _faults_in(world: World, found: Mapping[str, Found], whole_batches: bool) -> list[str]:
    faults, expected = list[str](), set[str]()
    for key, collection in world.collections.items():
        there = [name for name in collection.names if name in found]
        if len(there) != 1:
            if there or None not in collection.names:
                faults.append(f"collection {key} is there as {there}; it may be {collection.names}")
            continue
        (name,) = there
        expected.add(str(name))
        read = found[str(name)]
        if read.note not in collection.notes:
            faults.append(f"collection {name} has the note {read.note}; it may have {collection.notes}")
        faults += _faults_of_records(str(name), collection, read)
        if whole_batches:
            faults += [
                f"collection {name}: half a batch: {problem}"
                for batch in world.batches
                if batch.name == key and (problem := _half(batch, read, collection.space))
            ]
    faults += [f"collection {name} is there, and was deleted or never created" for name in found.keys() - expected]
    return faults


def _faults_of_records(name: str, collection: Collection, read: Found) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for key, states in collection.records.items():
        got = read.records.get(key)
        if got is None:
            if None not in states:
                kinds.setdefault("lost", []).append(key)
        elif not any(state is not None and got.is_like(state, collection.space) for state in states):
            kinds.setdefault(_difference(got, states), []).append(key)
    for key in read.records.keys() - collection.records.keys():
        kinds.setdefault("never written", []).append(key)
    return [
        f"collection {name}: {len(keys)} of {len(collection.records)} records {kind}: {', '.join(keys[:NAMED])}"
        for kind, keys in kinds.items()
    ]


def _difference(got: Value, states: set[State]) -> str:
    values = [state for state in states if state is not None]
    if not values:
        return "deleted, but there"
    if any(got[1:] == value[1:] for value in values):
        return "with another vector"
    return f"with other content, e.g. {got} instead of {values[0]}"


def _half(batch: Batch, read: Found, space: str) -> str | None:
    done = undone = 0
    for key, after in batch.after.items():
        before = batch.before[key]
        if len(before) != 1 or len(after) != 1 or before == after:
            continue
        if _is(read.records.get(key), next(iter(after)), space):
            done += 1
        else:
            undone += 1
    return f"{done} of its records are written and {undone} are not" if done and undone else None


def _is(got: State, state: State, space: str) -> bool:
    if got is None or state is None:
        return got is state
    return got.is_like(state, space)


def _faults_of_reading(name: str, read: Found) -> list[str]:
    faults = []
    if read.count != len(read.records):
        faults.append(f"collection {name}: {len(read.records)} records are read, {read.count} are counted")
    keys = sorted(read.records)[:: max(1, len(read.records) // ASKED)][:ASKED]
    if keys:
        nearest = read.query([read.records[key].array() for key in keys])
        missed = [key for key, ids in zip(keys, nearest, strict=True) if key not in ids]
        if len(missed) > MOST_NOT_FOUND:
            faults.append(
                f"collection {name}: {len(missed)} of {len(keys)} records are not found by their vector: "
                f"{', '.join(missed[:NAMED])}"
            )
    return faults
