"""Records are written in requests that the destination takes: servers, and proxies before them, bound their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import orjson

from chroma_manager.errors import MigrationError, RequestTooLargeError

if TYPE_CHECKING:
    from chroma_manager.migration.collections import StoredCollection
    from chroma_manager.migration.records import Record

# How many bytes of records are written at once, unless it is a single one: `chroma run` takes 40 MiB.
LARGEST_REQUEST = 32_000_000


class Writer:
    """Writes to a collection, and keeps in mind how much it takes at once."""

    def __init__(self, target: StoredCollection) -> None:
        """Takes the collection."""
        self._target = target
        self._bound = LARGEST_REQUEST

    def write(self, records: Mapping[str, Record]) -> None:
        """Writes records.

        Raises:
            MigrationError: The server refuses a request with a single record as too large.
        """
        rest = dict(records)
        while rest:
            part = _first(rest, self._bound)
            try:
                self._target.write(part)
            except RequestTooLargeError as error:
                if len(part) == 1:
                    where = f"collection {self._target.name!r}"
                    raise MigrationError(f"record {next(iter(part))!r} of {where} is too large: {error}") from error
                self._bound = sum(_size(*item) for item in part.items()) // 2
            else:
                rest = {name: record for name, record in rest.items() if name not in part}


def _first(records: Mapping[str, Record], bound: int) -> dict[str, Record]:
    """As many of the records as the bound allows, and one at least."""
    part: dict[str, Record] = {}
    size = 0
    for name, record in records.items():
        size += _size(name, record)
        if part and size > bound:
            break
        part[name] = record
    return part


def _size(name: str, record: Record) -> int:
    """How many bytes of a request a record takes, about. Vectors are sent in Base64."""
    return len(orjson.dumps((name, record.document, record.metadata, record.uri))) + record.vector.nbytes * 4 // 3
