"""What databases must hold, and what is wrong with what they do hold.

A record's vector and document follow from its id and the version that it was last written with, so a state is small,
and an old version is told from a new one.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DIMENSION = 16
MOST_RECORDS = 4096

# What our get_collection puts into the metadata, and nobody changes.
OF_A_KEY = ("file_id", "embedding_type")


@dataclass
class CollectionState:
    """A collection: its metadata, and the version of each record."""

    metadata: dict[str, Any] = field(default_factory=dict)
    records: dict[int, int] = field(default_factory=dict)


@dataclass
class State:
    """What is acknowledged.

    Attributes:
        collections: Of the database; `None` where there is none.
        snapshots: By name, what each is of.
        is_damaged: Whether the database has been damaged, so that it is to be repaired first.
    """

    collections: dict[str, CollectionState] | None = None
    snapshots: dict[str, dict[str, CollectionState]] = field(default_factory=dict)
    is_damaged: bool = False

    def copy(self) -> State:
        return copy.deepcopy(self)


@functools.lru_cache(64)
def _vectors(version: int) -> Any:
    return np.random.default_rng(version).random((MOST_RECORDS, DIMENSION), dtype=np.float32)


def vector_of(record: int, version: int) -> Any:
    """The vector that a version of a record has, and no other."""
    return _vectors(version)[record]


def document_of(record: int, version: int) -> str:
    """Its document, which only SQLite has."""
    return f"record {record}, version {version}"


def rows(records: list[int], version: int) -> dict[str, Any]:
    """What `add`, `update` and `upsert` take."""
    return {
        "ids": [str(record) for record in records],
        "embeddings": _vectors(version)[records],
        "documents": [document_of(record, version) for record in records],
    }


Found = dict[str, tuple[dict[str, Any], dict[int, tuple[Any, str]]]]


def read(client: Any) -> Found:
    """All that a database has, by the name of the collection."""
    found: Found = {}
    for collection in client.list_collections():
        got = collection.get(include=["embeddings", "documents"])
        records = zip(got["ids"], got["embeddings"], got["documents"], strict=True)
        metadata = {name: value for name, value in (collection.metadata or {}).items() if name not in OF_A_KEY}
        found[collection.name] = metadata, {int(record): (vector, text) for record, vector, text in records}
        if collection.count() != len(got["ids"]):
            raise ValueError(f"{collection.name} counts {collection.count()} records, and has {len(got['ids'])}")
    return found


def faults(found: Found, state: dict[str, CollectionState], following: dict[str, CollectionState] | None) -> list[str]:
    """What is wrong with what was found.

    Args:
        found: By `read`.
        state: What was acknowledged.
        following: The same with the effect of what was in flight, which may be there or not: each record of a batch for
            itself, but a collection, its name and its metadata as a whole. `None` where nothing was.
    """
    if following is None or (following.keys() != state.keys() and found.keys() != following.keys()):
        following = state
    return list(_faults(found, state, following))


def _faults(found: Found, state: dict[str, CollectionState], following: dict[str, CollectionState]) -> Iterator[str]:
    if found.keys() != following.keys():
        yield f"collections {sorted(found)} instead of {sorted(following)}"
        return
    for name, after in following.items():
        before = state.get(name, after)
        metadata, records = found[name]
        if metadata not in (before.metadata, after.metadata):
            yield f"{name}: metadata {metadata} instead of {before.metadata}"
        yield from _faults_of_records(name, records, before.records, after.records)


def _faults_of_records(name: str, found: Any, before: dict[int, int], after: dict[int, int]) -> Iterator[str]:
    wrong: dict[str, list[int]] = {}
    for record in sorted(found.keys() | before.keys() | after.keys()):
        versions = [versions.get(record) for versions in (before, after)]
        if problem := _problem(record, found.get(record), versions):
            wrong.setdefault(problem, []).append(record)
    for problem, records in wrong.items():
        yield f"{name}: {problem}: {len(records)} records ({', '.join(map(str, records[:3]))} ...)"


def _problem(record: int, found: tuple[Any, str] | None, versions: list[int | None]) -> str | None:
    if found is None:
        return None if None in versions else "missing"
    vector, document = found
    of_vector = [version for version in versions if _has(record, version, vector)]
    of_document = [version for version in versions if version is not None and document == document_of(record, version)]
    if set(of_vector) & set(of_document):
        return None
    if versions == [None, None]:
        return "there, and deleted or never written"
    if of_document:
        return "the document as acknowledged, another vector"
    return "the vector as acknowledged, another document" if of_vector else "another version"


def _has(record: int, version: int | None, vector: Any) -> bool:
    return version is not None and np.array_equal(np.asarray(vector, dtype=np.float32), vector_of(record, version))


def is_half(found: Found, state: dict[str, CollectionState], following: dict[str, CollectionState]) -> bool:
    """Whether it is neither what it was nor what it was to become."""
    return bool(list(_faults(found, state, state)) and list(_faults(found, following, following)))
