"""The layout of the files of an HNSW index. The links of its graph are in ``src/storage/graph.rs``."""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER = struct.Struct("<iQQQQQQiIQQQdQ")

# More elements than any index can have room for.
IMPOSSIBLE_ROOM = 1 << 40

# hnswlib's `max_neighbors`, where the header does not say it.
DEFAULT_NEIGHBORS = 16


class Layout(NamedTuple):
    """Where things are in ``data_level0.bin``, as ``header.bin`` says."""

    elements: int
    element_size: int
    label_offset: int
    vector_offset: int
    max_level: int
    entry_point: int
    neighbors: int

    @classmethod
    def of_header(cls, header: bytes, dimension: int) -> Layout:
        """The layout that a header describes.

        Raises:
            ValueError: It contradicts itself or the dimension.
        """
        if len(header) != HEADER.size:
            raise ValueError(f"it has {len(header)} bytes instead of {HEADER.size}")
        version, level0, most, count, size, label, vector, level, entry, high, low, _, _, _ = HEADER.unpack(header)
        expected = cls.of_dimension(dimension, count, high)
        if (
            (version, level0, low) != (1, 0, 2 * high)
            or not 2 <= high <= 1 << 16
            or not count <= most < IMPOSSIBLE_ROOM
        ):
            raise ValueError("it is not the header of an index")
        if (size, label, vector) != (expected.element_size, expected.label_offset, expected.vector_offset):
            raise ValueError(f"it is not the header of vectors with {dimension} dimensions")
        if count and not (0 <= level < 64 and entry < count):
            raise ValueError(f"its entry point {entry} is not one of {count} elements")
        return expected._replace(max_level=level, entry_point=entry)

    @classmethod
    def of_dimension(cls, dimension: int, count: int, neighbors: int = DEFAULT_NEIGHBORS) -> Layout:
        """The layout that hnswlib uses for a dimension."""
        vector = 4 + 4 * 2 * neighbors
        label = vector + 4 * dimension
        return cls(count, label + 8, label, vector, 0, 0, neighbors)
