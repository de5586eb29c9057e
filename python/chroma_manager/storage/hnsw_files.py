"""The files of one vector index, read without Chroma: what is in them, whether they fit each other, and each vector.

A directory named after the vector segment holds hnswlib's four files and Chroma's own:

- ``header.bin``: the layout, the number of elements, the entry point of the graph.
- ``data_level0.bin``: elements of one size: links of the lowest level, the vector (float32), a label (64 bits). Bit 0
  of the third byte marks an element that was deleted; its vector stays.
- ``length.bin``: a float32 an element. In a cosine space the vectors are normalized and this is what they were divided
  by; in other spaces it is whatever was in memory.
- ``link_lists.bin``: an element's links of the higher levels, preceded by how many bytes they take.
- ``index_metadata.pickle``: which label a record's id has.

Anything can be damaged: what is wrong is listed, and the rest can still be had.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import mmap
import pickle
import struct
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager.storage.paths import METADATA_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from pathlib import Path

    Buffer = bytes | mmap.mmap

# What the opening of a file fails with where there is none.
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)

HEADER = struct.Struct("<iQQQQQQiIQQQdQ")

# More than any index can have room for.
IMPOSSIBLE_ROOM = 1 << 40

# hnswlib's `max_neighbors`, where the header does not say it.
DEFAULT_NEIGHBORS = 16


class Layout(NamedTuple):
    """Where things are in ``data_level0.bin``, by ``header.bin``."""

    elements: int
    element_size: int
    label_offset: int
    vector_offset: int
    max_level: int
    entry_point: int
    neighbors: int

    @classmethod
    def of_header(cls, header: bytes, dimension: int) -> Layout:
        """What a header says.

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
            raise ValueError("it is not one of an index")
        if (size, label, vector) != (expected.element_size, expected.label_offset, expected.vector_offset):
            raise ValueError(f"it is not one of vectors with {dimension} dimensions")
        if count and not (0 <= level < 64 and entry < count):
            raise ValueError(f"its entry point {entry} is not one of {count} elements")
        return expected._replace(max_level=level, entry_point=entry)

    @classmethod
    def of_dimension(cls, dimension: int, count: int, neighbors: int = DEFAULT_NEIGHBORS) -> Layout:
        """What hnswlib makes of a dimension."""
        vector = 4 + 4 * 2 * neighbors
        label = vector + 4 * dimension
        return cls(count, label + 8, label, vector, 0, 0, neighbors)


class IndexFiles:
    """What the files of one index hold.

    Attributes:
        problems: What is wrong with them, in sentences.
        unmarked: How many vectors no record has, though they are not marked as deleted.
        unread: Why a file that is there could not be read, which says nothing of what is in it; ``None`` if all were.
    """

    def __init__(self, directory: Path, dimension: int, is_cosine: bool, known: Callable[[], Container[str]]) -> None:
        """Reads all but the vectors.

        Args:
            directory: That of the index; need not exist.
            dimension: How many numbers a vector has.
            is_cosine: Whether the vectors are normalized.
            known: The ids that there may be: what else a damaged pickle says is damage.
        """
        self.problems: list[str] = []
        self.unmarked = 0
        self.unread: OSError | None = None
        self._dimension = dimension
        self._is_cosine = is_cosine
        self._known = known
        self._data = self._read(directory / "data_level0.bin")
        # Chroma wants it in any space, whatever is in it.
        self._lengths = self._read(directory / "length.bin")
        layout = self._read_layout(directory)
        if layout is not None:
            self._check_graph(layout, self._read(directory / "link_lists.bin"))
        # With a damaged header the elements are where they would be by default: their labels tell whether they are.
        layout = layout or Layout.of_dimension(dimension, 1 << 62)
        whole = min(layout.elements, len(self._data) // layout.element_size)
        self._layout = layout._replace(elements=whole)
        labels = self._read_labels(directory)
        self._element_of = self._elements_of(labels)

    @property
    def ids(self) -> set[str]:
        """The ids of the records that have a vector here."""
        return set(self._element_of)

    def vector(self, record: str) -> bytes | None:
        """A record's vector as it was written (float32, little endian), in a cosine space to within rounding.

        ``None`` where there is none, or what there is cannot be one: its numbers are not finite, or not normalized
        where they should be.
        """
        element = self._element_of.get(record)
        if element is None:
            return None
        start = element * self._layout.element_size + self._layout.vector_offset
        numbers = array("f", self._data[start : start + 4 * self._dimension])
        norm = math.hypot(*numbers)
        if not math.isfinite(norm):
            return None
        if not self._is_cosine or norm == 0:
            return numbers.tobytes()
        if abs(norm - 1) > 1e-2:
            return None
        return array("f", (number * self._length(element) for number in numbers)).tobytes()

    def is_exact(self, record: str) -> bool:
        """Whether a vector is as it was written, to within rounding: in a cosine space its length may be lost."""
        element = self._element_of[record]
        return not self._is_cosine or self._stored_length(element) is not None

    def stored(self, record: str) -> tuple[bytes, float | None]:
        """The vector of a record that has one, as it is stored, and what it was divided by (``None`` if it was not)."""
        element = self._element_of[record]
        start = element * self._layout.element_size + self._layout.vector_offset
        vector = self._data[start : start + 4 * self._dimension]
        return vector, self._length(element) if self._is_cosine else None

    def _length(self, element: int) -> float:
        """What the vector of an element was divided by; where that is lost 1, with which distances are the same."""
        return self._stored_length(element) or 1.0

    def _stored_length(self, element: int) -> float | None:
        if len(self._lengths) < 4 * element + 4:
            return None
        length: float = struct.unpack_from("<f", self._lengths, 4 * element)[0]
        return length if math.isfinite(length) and length >= 0 else None

    def _read(self, file: Path) -> Buffer:
        try:
            with file.open("rb") as opened:
                return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # it is empty
            return b""
        except OSError as error:
            self._note_failure(file.name, error)
            return b""

    def _note_failure(self, name: str, error: OSError) -> None:
        self.problems.append(f"{name}: {error.strerror}")
        if error.errno not in NO_FILE:
            self.unread = error

    def _read_layout(self, directory: Path) -> Layout | None:
        try:
            layout = Layout.of_header(bytes(self._read(directory / "header.bin")), self._dimension)
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

    def _check_graph(self, layout: Layout, upper: Buffer) -> None:
        """Links that lead out of the file are what Chroma would die of."""
        end = layout.elements * layout.element_size
        try:
            if len(self._data) >= end:
                for start in range(0, end, layout.element_size):
                    _links(self._data, start, layout, 2 * layout.neighbors)
            _check_levels(upper, layout)
        except (ValueError, struct.error) as error:
            self.problems.append(f"the graph (data_level0.bin, link_lists.bin): {error}")

    def _read_labels(self, directory: Path) -> dict[str, int]:
        try:
            pickled = (directory / METADATA_FILE).read_bytes()
        except OSError as error:
            self._note_failure(METADATA_FILE, error)
            return {}
        try:
            return _labels_in(pickled)
        except Exception as error:  # a damaged pickle raises anything
            self.problems.append(f"{METADATA_FILE}: {error or type(error).__name__}")
            return _labels_beside_damage(pickled, self._known())

    def _elements_of(self, labels: dict[str, int]) -> dict[str, int]:
        layout = self._layout
        whole = memoryview(self._data)[: layout.elements * layout.element_size]
        elements = list(struct.iter_unpack(f"<2xB{layout.label_offset - 3}xQ", whole)) if whole else []
        element_of = {label: i for i, (_, label) in enumerate(elements)}
        found = {record: element_of[label] for record, label in labels.items() if label in element_of}
        deleted = sum(elements[i][0] & 1 for i in found.values())
        self.unmarked = sum(not flags & 1 for flags, _ in elements) - (len(found) - deleted)
        if len(found) < len(labels):
            self.problems.append(f"data_level0.bin: {len(labels) - len(found)} of {len(labels)} labels are not in it")
        if deleted:
            self.problems.append(f"data_level0.bin: {deleted} of {len(labels)} vectors are marked as deleted")
        return found


def _links(data: Buffer, start: int, layout: Layout, most: int) -> tuple[int, ...]:
    """The elements that one has links to on a level."""
    (count,) = struct.unpack_from("<H", data, start)
    links = struct.unpack_from(f"<{count}I", data, start + 4) if count <= most else (layout.elements,)
    if links and max(links) >= layout.elements:
        raise ValueError("a link leads to an element that is not there")
    return links


def _check_levels(upper: Buffer, layout: Layout) -> None:
    """Each link of a higher level has to lead to an element of that level."""
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
            if any(levels[other] < level for other in _links(upper, position, layout, layout.neighbors)):
                raise ValueError("a link leads to a level that is not there")
            position += size
        position += 4


class _PersistentData:
    """What Chroma wrote when it was Python: an object of which only the attributes matter."""


class _Unpickler(pickle.Unpickler):
    """Makes containers, strings and numbers, and nothing else that a pickle can ask for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("chromadb.segment.impl.vector.local_persistent_hnsw", "PersistentData"):
            return _PersistentData
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def position_in(file: Path) -> int | None:
    """Up to which sequence id an index goes, where Chroma (up to 0.5.5) says so in its pickle; ``None`` where not."""
    try:
        position = _content_of(file.read_bytes())["max_seq_id"]
    except Exception:  # a damaged pickle raises anything, and is for a verification to find
        return None
    return position if type(position) is int and 0 < position < 1 << 63 else None


def _content_of(pickled: bytes) -> Any:
    content = _Unpickler(io.BytesIO(pickled)).load()
    return vars(content) if isinstance(content, _PersistentData) else content


def _labels_in(pickled: bytes) -> dict[str, int]:
    content = _content_of(pickled)
    if not isinstance(content, dict) or not isinstance(content.get("id_to_label"), dict):
        raise ValueError("it has no labels of ids")
    labels: dict[str, int] = content["id_to_label"]
    if not all(type(record) is str and type(label) is int for record, label in labels.items()):
        raise ValueError("its labels are not those of ids")
    if content.get("label_to_id") != {label: record for record, label in labels.items()}:
        raise ValueError("its labels contradict each other")
    return labels


def _labels_beside_damage(pickled: bytes, known: Container[str]) -> dict[str, int]:
    """The labels that can be had from a pickle that cannot be read: it says them twice, one way and the other."""
    after = pickled.find(b"label_to_id")
    claims = set(_pairs(pickled, "id_to_label"))
    if after >= 0:
        # As if it began there: the length of the string is what stands before it.
        claims |= {(record, label) for label, record in _pairs(pickled[max(after - 5, 0) :], "label_to_id")}
    claims = {(record, label) for record, label in claims if record in known}
    records = Counter(record for record, _ in claims)
    labels = Counter(label for _, label in claims)
    return {record: label for record, label in claims if records[record] == labels[label] == 1}


def _pairs(pickled: bytes, section: str) -> Iterator[tuple[Any, Any]]:
    """The pairs of a dict in a pickle, up to where it cannot be read on."""
    import pickletools  # noqa: PLC0415 - only damaged ones need it

    name: object = None
    is_inside = False
    key: str | int | None = None
    with contextlib.suppress(Exception):  # the damage
        for operation, argument, _ in pickletools.genops(pickled):
            if operation.name == "EMPTY_DICT":
                is_inside, key = name == section, None
            elif operation.name.startswith(("BININT", "BINUNICODE", "SHORT_BINUNICODE")):
                name = argument
                if is_inside and key is not None and type(key) is not type(argument):
                    yield key, argument
                    key = None
                else:
                    key = argument
