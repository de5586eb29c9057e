"""A record, and whether another one has the same content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# How far apart equal vectors may be, as a part of their length, where Chroma rounds them: four times what four
# roundings of a float32 come to.
ROUNDING = 1e-6


class Record(NamedTuple):
    """A record, without its id."""

    embedding: Any
    document: str | None
    metadata: Mapping[str, Any] | None
    uri: str | None

    @property
    def vector(self) -> np.ndarray[Any, Any]:
        """Its embedding, as Chroma stores it."""
        return np.asarray(self.embedding, np.float32)

    def is_same(self, other: Record | None, *, is_rounded: bool) -> bool:
        """Whether the other one has the same content.

        Args:
            other: Another record, or none.
            is_rounded: Whether Chroma rounds their vectors.
        """
        return (
            other is not None
            and (self.document, self.uri) == (other.document, other.uri)
            and is_same_value(dict(self.metadata or {}), dict(other.metadata or {}))
            and _is_same_vector(self.vector, other.vector, is_rounded)
        )

    def lacks_a_part_of(self, earlier: Record) -> bool:
        """Whether an earlier one has what it has not, and would keep it if this one were written over it."""
        return (
            (self.document is None and earlier.document is not None)
            or (self.uri is None and earlier.uri is not None)
            or not (earlier.metadata or {}).keys() <= (self.metadata or {}).keys()
        )


def is_same_value(one: Any, other: Any) -> bool:
    """Whether two values of metadata, or all of two, are equal and of one type: for Python ``True == 1 == 1.0``."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same_value(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_same_value, one, other))
    return bool(one == other)


def _is_same_vector(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], is_rounded: bool) -> bool:
    if one.tobytes() == other.tobytes():
        return True
    if not is_rounded or one.shape != other.shape:
        return False
    # In double precision, because the square of a short or a long vector's length is no float32.
    exact = one.astype(np.float64)
    return bool(np.linalg.norm(exact - other) <= ROUNDING * np.linalg.norm(exact))
