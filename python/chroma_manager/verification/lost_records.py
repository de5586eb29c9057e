"""Writes records whose vector is nowhere to be found to a file of JSON lines, before they leave their collection."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any

from chroma_manager.storage.files import write_durably

if TYPE_CHECKING:
    from pathlib import Path

    from chroma_manager.storage.catalog import Collection


def write_lost_records(sql: sqlite3.Connection, file: Path, lost: list[tuple[Collection, str]]) -> str:
    """Writes records durably, one a line; returns the name of the file."""
    lines = (json.dumps(_record(sql, collection, record), ensure_ascii=False) for collection, record in lost)
    write_durably(file, "".join(line + "\n" for line in lines))
    return str(file)


def _record(sql: sqlite3.Connection, collection: Collection, record: str) -> dict[str, Any]:
    """What SQLite has of a record, in the words of `get`."""
    values: dict[str, Any] = {}
    query = (
        "select key, string_value, int_value, float_value, bool_value from {} where id = "
        "(select id from embeddings where segment_id = ? and embedding_id = ?) order by rowid"
    )
    for key, *typed in sql.execute(query.format("embedding_metadata"), (collection.records_segment, record)):
        values[key] = _value(typed)
    with contextlib.suppress(sqlite3.OperationalError):  # an older Chroma has no table of lists
        for key, *typed in sql.execute(query.format("embedding_metadata_array"), (collection.records_segment, record)):
            values.setdefault(key, []).append(_value(typed))
    return {
        "collection": collection.name,
        "database": collection.database,
        "tenant": collection.tenant,
        "id": record,
        "document": values.pop("chroma:document", None),
        "metadata": values or None,
    }


def _value(typed: list[Any]) -> Any:
    text, number, fraction, truth = typed
    return bool(truth) if truth is not None else next((v for v in (text, number, fraction) if v is not None), None)
