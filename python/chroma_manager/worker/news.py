"""What the records of a collection have told of it so far, so that what is new is noticed.

With the first records of a collection Chroma notes their dimension, and with metadata under a key, or of a type, that
no record had it extends the schema. Both belong to what a client knows of a collection without asking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Of more collections than that, what was told is forgotten, and told again.
MOST = 1000


class News:
    """What was told since this process has had the database."""

    def __init__(self) -> None:
        """Nothing was told yet."""
        self._told: dict[str, set[tuple[str, object]]] = {}

    def tells(self, collection: str, metadatas: Iterable[Mapping[str, Any] | None] | None) -> bool:
        """Whether records that were written with these metadata, or without any, tell anything new."""
        told = self._told.get(collection)
        found = {(key, _kind(value)) for metadata in metadatas or () if metadata for key, value in metadata.items()}
        if told is not None and found <= told:
            return False
        if told is None and len(self._told) >= MOST:
            self._told.clear()
        self._told.setdefault(collection, set()).update(found)
        return True


def _kind(value: object) -> object:
    """The type of a value, and that of its elements if it is a list."""
    return (list, *map(type, value[:1])) if type(value) is list else type(value)
