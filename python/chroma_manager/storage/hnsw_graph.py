"""The layout of the files of an HNSW index, and whether the links of its graph lead somewhere. Vectors are not read."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mmap

    Buffer = bytes | mmap.mmap

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


def links(data: Buffer, start: int, layout: Layout, most: int) -> tuple[int, ...]:
    """The elements that an element has links to on one level.

    Raises:
        ValueError: One is not there.
    """
    (count,) = struct.unpack_from("<H", data, start)
    links = struct.unpack_from(f"<{count}I", data, start + 4) if count <= most else (layout.elements,)
    if links and max(links) >= layout.elements:
        raise ValueError("a link leads to an element that is not there")
    return links


def unreached(data: Buffer, layout: Layout) -> set[int]:
    """The elements to which no path of links of the lowest level leads from the entry point.

    A search does not find them, unless the links of a higher level lead it there.

    Raises:
        ValueError: A link leads to an element that is not there.
    """
    left = set(range(layout.elements))
    found = [layout.entry_point] if left else []
    left.difference_update(found)
    while found:
        start = found.pop() * layout.element_size
        for element in links(data, start, layout, 2 * layout.neighbors):
            if element in left:
                left.remove(element)
                found.append(element)
    return left


def check_levels(upper: Buffer, layout: Layout) -> None:
    """Checks that each link of a higher level leads to an element of that level.

    Raises:
        ValueError: One does not.
    """
    size, levels, position = 4 + 4 * layout.neighbors, list[int](), 0
    for _ in range(layout.elements):
        (taken,) = struct.unpack_from("<I", upper, position)
        if taken % size:
            raise ValueError("the links of an element have no possible size")
        levels.append(taken // size)
        position += 4 + taken
    if position != len(upper):
        raise ValueError(f"link_lists.bin has {len(upper)} bytes instead of {position}")
    if levels and not levels[layout.entry_point] == layout.max_level == max(levels):
        raise ValueError("it is not entered at its highest level")
    position = 4
    for own in levels:
        for level in range(1, own + 1):
            if any(levels[other] < level for other in links(upper, position, layout, layout.neighbors)):
                raise ValueError("a link leads to a level that is not there")
            position += size
        position += 4
