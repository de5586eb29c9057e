"""The files of one vector index, read without Chroma: their vectors, and whether the files are consistent.

A directory named after the vector segment holds hnswlib's four files and Chroma's own:

- ``header.bin``: the layout, the number of elements, the entry point of the graph.
- ``data_level0.bin``: elements of one size: links of the lowest level, the vector (float32), a label (64 bits). Bit 0
  of the third byte marks an element that was deleted; its vector stays.
- ``length.bin``: a float32 for each element. In a cosine space it is what the vector was divided by to normalize it; in
  other spaces it is whatever was in memory.
- ``link_lists.bin``: an element's links of the higher levels, preceded by how many bytes they take.
- ``index_metadata.pickle``: which label a record's id has (``index_pickle.py``).

Any of them can be damaged: what is wrong is listed, and the rest can still be read.
"""

from __future__ import annotations

import errno
import math
import struct
from array import array
from typing import TYPE_CHECKING

from chroma_manager._native import IndexFile
from chroma_manager.storage.hnsw_graph import Layout
from chroma_manager.storage.index_pickle import labels_beside_damage, labels_in
from chroma_manager.storage.paths import METADATA_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from pathlib import Path

# How opening a file fails where there is none.
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


class IndexFiles:
    """What the files of one index contain.

    Attributes:
        problems: What is wrong with them, in sentences.
        unmarked: How many vectors belong to no record, and are not marked as deleted.
        has_all_ids: Whether it is known of which records there is a vector, whatever else is damaged.
        unread: Why an existing file could not be read, which says nothing about its content; ``None`` if all were read.
    """

    def __init__(self, directory: Path, dimension: int, is_cosine: bool, known: Callable[[], Container[str]]) -> None:
        """Reads everything but the vectors.

        Args:
            directory: The index's; need not exist.
            dimension: How many numbers a vector has.
            is_cosine: Whether the vectors are normalized.
            known: The ids that there can be. Whatever else a damaged pickle says is damage.
        """
        self.problems: list[str] = []
        self.unmarked = 0
        self.unread: OSError | None = None
        self._dimension = dimension
        self._is_cosine = is_cosine
        self._known = known
        self._data = self._read(directory / "data_level0.bin")
        # Chroma requires the file in any space, whatever is in it.
        self._lengths = self._read(directory / "length.bin")
        layout = self._read_layout(directory)
        if layout is not None:
            self._check_graph(layout, self._read(directory / "link_lists.bin"))
        # With a damaged header the default layout is tried: the labels of the elements tell whether it is right.
        layout = layout or Layout.of_dimension(dimension, 1 << 62)
        whole = min(layout.elements, len(self._data) // layout.element_size)
        self._layout = layout._replace(elements=whole)
        others = len(self.problems)
        labels = self._read_labels(directory)
        self._element_of = self._elements_of(labels)
        self.has_all_ids = len(self.problems) == others

    @property
    def ids(self) -> set[str]:
        """The ids of the records that have a vector here."""
        return set(self._element_of)

    @property
    def elements(self) -> int:
        """How many vectors there are, with those that were deleted."""
        return self._layout.elements

    def unreachable(self) -> set[str]:
        """The ids of the records whose vector no path of links leads to. Only of files without problems."""
        elements = set(self._data.unreached(self._layout))
        return {record for record, element in self._element_of.items() if element in elements}

    def vector(self, record: str) -> bytes | None:
        """A record's vector as it was written (float32, little endian), in a cosine space to within rounding.

        ``None`` where there is none, or what is there is not a vector: its numbers are not finite, or not normalized
        where they should be.
        """
        element = self._element_of.get(record)
        if element is None:
            return None
        numbers = array("f", self._data.part(self._start_of(element), 4 * self._dimension))
        norm = math.hypot(*numbers)
        if not math.isfinite(norm):
            return None
        if not self._is_cosine or norm == 0:
            return numbers.tobytes()
        if abs(norm - 1) > 1e-2:
            return None
        return array("f", (number * self._length(element) for number in numbers)).tobytes()

    def is_exact(self, record: str) -> bool:
        """Whether a vector is as it was written, to within rounding. In a cosine space its length may be lost."""
        element = self._element_of[record]
        return not self._is_cosine or self._stored_length(element) is not None

    def stored(self, record: str) -> tuple[bytes, float | None]:
        """The vector of a record that has one, as it is stored, and what it was divided by (``None`` if by nothing)."""
        element = self._element_of[record]
        vector = self._data.part(self._start_of(element), 4 * self._dimension)
        return vector, self._length(element) if self._is_cosine else None

    def that_differ(self, other: IndexFiles, records: Iterable[str]) -> list[str]:
        """The records that have another vector in the files of another index, of those that both have."""
        records = list(records)
        elements = [(self._element_of[record], other._element_of[record]) for record in records]
        starts = [(self._start_of(mine), other._start_of(theirs)) for mine, theirs in elements]
        suspects = set(self._data.differing(other._data, starts, 4 * self._dimension))
        if self._is_cosine:
            starts = [(4 * mine, 4 * theirs) for mine, theirs in elements]
            suspects.update(self._lengths.differing(other._lengths, starts, 4))
        # Two lengths that cannot be read count as equal.
        return [record for record in map(records.__getitem__, suspects) if self.stored(record) != other.stored(record)]

    def _start_of(self, element: int) -> int:
        """Where the vector of an element is."""
        return element * self._layout.element_size + self._layout.vector_offset

    def _length(self, element: int) -> float:
        """What the vector of an element was divided by; where that is lost 1, which gives the same distances."""
        return self._stored_length(element) or 1.0

    def _stored_length(self, element: int) -> float | None:
        stored = self._lengths.part(4 * element, 4)
        if len(stored) < 4:
            return None
        length: float = struct.unpack("<f", stored)[0]
        return length if math.isfinite(length) and length >= 0 else None

    def _read(self, file: Path) -> IndexFile:
        try:
            return IndexFile(file)
        except OSError as error:
            self._note_failure(file.name, error)
            return IndexFile()

    def _note_failure(self, name: str, error: OSError) -> None:
        self.problems.append(f"{name}: {error.strerror}")
        if error.errno not in NO_FILE:
            self.unread = error

    def _read_layout(self, directory: Path) -> Layout | None:
        header = self._read(directory / "header.bin")
        try:
            layout = Layout.of_header(header.part(0, len(header)), self._dimension)
        except ValueError as error:
            self.problems.append(f"header.bin: {error}")
            return None
        if len(self._data) < layout.elements * layout.element_size:
            self.problems.append(
                f"data_level0.bin: {len(self._data)} bytes instead of {layout.elements * layout.element_size}"
            )
        if self._is_cosine and len(self._lengths) < 4 * layout.elements:
            self.problems.append(f"length.bin: {len(self._lengths)} bytes instead of {4 * layout.elements}")
        return layout

    def _check_graph(self, layout: Layout, upper: IndexFile) -> None:
        """Checks the links: Chroma would die of one that leads out of the file."""
        try:
            self._data.check_links(layout)
            upper.check_levels(layout)
        except ValueError as error:
            self.problems.append(f"the graph (data_level0.bin, link_lists.bin): {error}")

    def _read_labels(self, directory: Path) -> dict[str, int]:
        try:
            pickled = (directory / METADATA_FILE).read_bytes()
        except OSError as error:
            self._note_failure(METADATA_FILE, error)
            return {}
        try:
            return labels_in(pickled)
        except Exception as error:  # a damaged pickle raises anything
            self.problems.append(f"{METADATA_FILE}: {error or type(error).__name__}")
            return labels_beside_damage(pickled, self._known())

    def _elements_of(self, labels: dict[str, int]) -> dict[str, int]:
        found, deleted, self.unmarked = self._data.elements(labels, self._layout)
        if len(found) < len(labels):
            self.problems.append(f"data_level0.bin: {len(labels) - len(found)} of {len(labels)} labels are not in it")
        if deleted:
            self.problems.append(f"data_level0.bin: {deleted} of {len(labels)} vectors are marked as deleted")
        return found
