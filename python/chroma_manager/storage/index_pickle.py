"""Chroma's own file in the directory of an index, a pickle: which label the id of a record has.

Reading it makes containers, strings and numbers, and imports nothing that it names. Of a damaged one the labels are
read that can be.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from pathlib import Path


class _PersistentData:
    """The object that Chroma wrote when it was Python; only its attributes matter."""


class _Unpickler(pickle.Unpickler):
    """Makes containers, strings and numbers, and nothing else that a pickle can name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("chromadb.segment.impl.vector.local_persistent_hnsw", "PersistentData"):
            return _PersistentData
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def position_in(file: Path) -> int | None:
    """The sequence id of an index, which Chroma up to 0.5.5 kept in its pickle; ``None`` where it is not there."""
    try:
        position = _content_of(file.read_bytes())["max_seq_id"]
    except Exception:  # a damaged pickle raises anything; a verification finds it
        return None
    return position if type(position) is int and 0 < position < 1 << 63 else None


def _content_of(pickled: bytes) -> Any:
    content = _Unpickler(io.BytesIO(pickled)).load()
    return vars(content) if isinstance(content, _PersistentData) else content


def labels_in(pickled: bytes) -> dict[str, int]:
    """The label of each id.

    Raises:
        ValueError: The labels contradict each other, or there are none.
        Exception: The pickle is damaged.
    """
    content = _content_of(pickled)
    if not isinstance(content, dict) or not isinstance(content.get("id_to_label"), dict):
        raise ValueError("it has no labels of ids")
    labels: dict[str, int] = content["id_to_label"]
    if not ({*map(type, labels)} <= {str} and {*map(type, labels.values())} <= {int}):
        raise ValueError("its labels are not those of ids")
    if content.get("label_to_id") != dict(zip(labels.values(), labels, strict=True)):
        raise ValueError("its labels contradict each other")
    return labels


def labels_beside_damage(pickled: bytes, known: Container[str]) -> dict[str, int]:
    """The labels that can be read from a damaged pickle, which has them twice, by id and by label."""
    after = pickled.find(b"label_to_id")
    claims = set(_pairs(pickled, "id_to_label"))
    if after >= 0:
        # Read as if it began with that string, whose length is before it.
        claims |= {(record, label) for label, record in _pairs(pickled[max(after - 5, 0) :], "label_to_id")}
    claims = {(record, label) for record, label in claims if record in known}
    records = Counter(record for record, _ in claims)
    labels = Counter(label for _, label in claims)
    return {record: label for record, label in claims if records[record] == labels[label] == 1}


def _pairs(pickled: bytes, section: str) -> Iterator[tuple[Any, Any]]:
    """The pairs of a dict in a pickle, up to the damage."""
    import pickletools  # noqa: PLC0415 - needed for a damaged pickle only

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
