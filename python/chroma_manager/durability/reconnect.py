"""Reconnects unreachable vectors after a recovery.

An index is a graph that is searched from neighbour to neighbour. Some of its vectors cannot be reached, because no link
leads to them: of 10,000 vectors of 384 dimensions 2 to 4 if they are spread evenly, and 101 to 116 if their numbers are
normally distributed, whether Chroma replays them or an app adds them by the hundred (1.5.9). Writing such a vector
again connects it in most cases: of the 4 all, of the 116 another 96. The others stay unreachable however often they are
written, because their neighbours have nearer ones to link to. No vector was seen to be disconnected by that.

The graph of the index files tells which vectors are unreachable; those that Chroma has not written to its files yet are
looked for by queries. This runs in the engine process, and changes no value.
"""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager.storage.catalog import INNER_PRODUCT
from chroma_manager.storage.hnsw_files import IndexFiles
from chroma_manager.storage.manifest import fingerprint_of_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

RECORDS_A_CALL = 200

# Distances that differ by less count as equal: of two records with the same vector a query may find either.
PRECISION = 1e-6


class Vectors(NamedTuple):
    """Vectors of a collection.

    Attributes:
        collection: Its id.
        tenant: The collection's.
        database: The collection's.
        space: Its distance function.
        vectors: The vector of each record, as bytes (f32).
    """

    collection: str
    tenant: str
    database: str
    space: str
    vectors: dict[str, bytes]


class Replayed(NamedTuple):
    """What Chroma replays from the log of a collection at its next read.

    Attributes:
        newest: The newest vector of each record in the log.
        segment: Name of the directory of the collection's index files.
        files: Size and time of modification of each of these files before the replay.
    """

    newest: Vectors
    segment: str
    files: dict[str, list[int]]


def replay(bindings: Any, replayed: Iterable[Replayed]) -> None:
    """Has Chroma replay its log, which it does at the first read of a collection."""
    for part in replayed:
        bindings.count(part.newest.collection, part.newest.tenant, part.newest.database)


def suspected(directory: Path, part: Replayed) -> Vectors:
    """What of a replay a query may not find: all of it, unless the index files tell.

    Args:
        directory: The database's.
        part: What Chroma has replayed.
    """
    vectors = part.newest.vectors
    if not vectors:
        return part.newest
    unreachable = unreachable_in(directory / part.segment, part.files, len(next(iter(vectors.values()))) // 4)
    if unreachable is None:
        return part.newest
    return part.newest._replace(vectors={record: vectors[record] for record in vectors.keys() & unreachable})


def unreachable_in(index: Path, before: dict[str, list[int]], dimension: int) -> set[str] | None:
    """The records that no path of links leads to.

    Chroma replays a log as a whole, and writes its index files at the end, or not at all where the log is short.

    Args:
        index: The directory of the index files.
        before: Size and time of modification of each file before the replay.
        dimension: How many numbers a vector has.

    Returns:
        Their ids; ``None`` where the files do not have what was replayed, or are damaged.
    """
    if fingerprint_of_files(index) == before:
        return None
    files = IndexFiles(index, dimension, is_cosine=False, known=set)
    return None if files.problems else files.unreachable()


def connect(bindings: Any, suspected: Iterable[Vectors], seconds: float) -> dict[str, int]:
    """Writes vectors again that a query does not find, each once.

    Args:
        bindings: Chroma's binding.
        suspected: What to look for.
        seconds: After so many seconds it stops.

    Returns:
        How many vectors were written to each collection, by its id.
    """
    deadline = time.monotonic() + seconds
    connected = dict[str, int]()
    for part in suspected:
        ids = list(part.vectors)
        for start in range(0, len(ids), RECORDS_A_CALL):
            if time.monotonic() > deadline:
                return connected
            written = _connect(bindings, part, ids[start : start + RECORDS_A_CALL])
            connected[part.collection] = connected.get(part.collection, 0) + written
    return connected


def _connect(bindings: Any, part: Vectors, ids: list[str]) -> int:
    place = (part.tenant, part.database)
    got = bindings.get(part.collection, ids, None, None, 0, None, ["embeddings"], *place)
    if not got.ids:
        return 0
    found = bindings.query(part.collection, None, got.embeddings, 1, None, None, ["distances"], *place)
    missed = []
    for record, vector, nearest, distances in zip(got.ids, got.embeddings, found.ids, found.distances, strict=True):
        if nearest == [record]:
            continue
        own = _distance_to_itself(part.space, vector)
        # A query that finds nothing means that no record can be reached.
        is_nearest = not distances or own < distances[0] - PRECISION * max(1.0, abs(own))
        logged = array("f", part.vectors[record])
        # Where log and index have different vectors, Chroma has decided so, and nothing is changed here.
        if is_nearest and _are_same(logged, vector):
            missed.append((record, logged))
    if missed:
        records, vectors = zip(*missed, strict=True)
        bindings.update(part.collection, list(records), list(vectors), None, None, None, *place)
    return len(missed)


def _distance_to_itself(space: str, vector: Sequence[float]) -> float:
    # Chroma would tell, but a query among this one record takes 0.1 s where there are 100,000.
    return 1.0 - sum(number * number for number in vector) if space == INNER_PRODUCT else 0.0


def _are_same(one: Iterable[float], other: Iterable[float]) -> bool:
    return all(abs(a - b) <= PRECISION * max(1.0, abs(a)) for a, b in zip(one, other, strict=True))
