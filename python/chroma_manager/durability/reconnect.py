"""Reconnects unreachable vectors after a recovery, so that a query finds everything that Chroma has replayed.

An index is a graph that is searched from neighbour to neighbour. Of 10,000 vectors that Chroma replays at once, two to
five cannot be reached afterwards; of the same vectors written a hundred at a time, none or one (1.5.9). Writing such a
vector again connects it. This runs in the engine process, and changes no value.
"""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

RECORDS_A_CALL = 200
MOST_ROUNDS = 3

# Distances that differ by less count as equal: of two records with the same vector a query may find either.
PRECISION = 1e-6


class Replayed(NamedTuple):
    """What Chroma replays from the log of a collection at its next read.

    Attributes:
        collection: Its id.
        tenant: The collection's.
        database: The collection's.
        vectors: The newest vector of each record in the log, as bytes (f32).
    """

    collection: str
    tenant: str
    database: str
    vectors: dict[str, bytes]


def replay(bindings: Any, replayed: Iterable[Replayed]) -> None:
    """Has Chroma replay its log, which it does at the first read of a collection."""
    for part in replayed:
        bindings.count(part.collection, part.tenant, part.database)


def connect(bindings: Any, replayed: Iterable[Replayed], seconds: float) -> int:
    """Writes vectors again that a query does not find.

    Args:
        bindings: Chroma's binding.
        replayed: What Chroma has replayed.
        seconds: After so many seconds it stops.

    Returns:
        How many vectors were written.
    """
    deadline = time.monotonic() + seconds
    connected = 0
    for part in replayed:
        # Connecting one vector may disconnect another one.
        for _ in range(MOST_ROUNDS):
            now = _connect_all(bindings, part, deadline)
            connected += now
            if not now:
                break
    return connected


def _connect_all(bindings: Any, part: Replayed, deadline: float) -> int:
    connected = 0
    ids = list(part.vectors)
    for start in range(0, len(ids), RECORDS_A_CALL):
        if time.monotonic() > deadline:
            break
        connected += _connect(bindings, part, ids[start : start + RECORDS_A_CALL])
    return connected


def _connect(bindings: Any, part: Replayed, ids: list[str]) -> int:
    place = (part.tenant, part.database)
    got = bindings.get(part.collection, ids, None, None, 0, None, ["embeddings"], *place)
    if not got.ids:
        return 0
    found = bindings.query(part.collection, None, got.embeddings, 1, None, None, ["distances"], *place)
    missed = []
    for record, vector, nearest, distances in zip(got.ids, got.embeddings, found.ids, found.distances, strict=True):
        if nearest == [record]:
            continue
        (own,) = bindings.query(part.collection, [record], [vector], 1, None, None, ["distances"], *place).distances
        # A query of this one record that finds nothing means that it is cut off altogether.
        is_nearest = not distances or not own or own[0] < distances[0] - PRECISION * max(1.0, abs(own[0]))
        logged = array("f", part.vectors[record])
        # Where log and index have different vectors, Chroma has decided so, and nothing is changed here.
        if is_nearest and _are_same(logged, vector):
            missed.append((record, logged))
    if missed:
        records, vectors = zip(*missed, strict=True)
        bindings.update(part.collection, list(records), list(vectors), None, None, None, *place)
    return len(missed)


def _are_same(one: Iterable[float], other: Iterable[float]) -> bool:
    return all(abs(a - b) <= PRECISION * max(1.0, abs(a)) for a, b in zip(one, other, strict=True))
