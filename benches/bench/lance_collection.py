"""LanceDB with the calls of a Chroma client and collection, as far as it has the same: a table for each collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class LanceClient:
    """A connection to a database of LanceDB."""

    def __init__(self, path: Path) -> None:
        import lancedb

        self._connection = lancedb.connect(str(path))

    def get_or_create_collection(self, name: str, **_: object) -> LanceCollection:
        return LanceCollection(self._connection, name)

    def get_max_batch_size(self) -> int:
        return 5000


class LanceCollection:
    """A table, which is made when the number of dimensions is known."""

    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self._name = name
        self._table = connection.open_table(name) if name in connection.list_tables().tables else None

    def add(self, **records: Any) -> None:
        rows = rows_of(records)
        self._table_for(rows).add(rows)

    def upsert(self, ids: Any = None, **records: Any) -> None:
        rows = rows_of({"ids": ids, **records})
        merge = self._table_for(rows).merge_insert("id")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def update(self, **records: Any) -> None:
        self._opened().merge_insert("id").when_matched_update_all().execute(rows_of(records))

    def delete(self, ids: list[str]) -> None:
        self._opened().delete(with_ids(ids))

    def query(self, query_embeddings: Any, n_results: int) -> dict[str, Any]:
        found = [self._opened().search(np.asarray(vector)).limit(n_results).to_list() for vector in query_embeddings]
        return {"ids": [[row["id"] for row in rows] for rows in found], "found": found}

    def get(self, ids: list[str] | None = None, **_: object) -> dict[str, Any]:
        table = self._opened()
        rows = table.to_arrow() if ids is None else table.search().where(with_ids(ids)).limit(len(ids)).to_arrow()
        return rows.to_pydict()

    def count(self) -> int:
        return self._table.count_rows() if self._table is not None else 0

    def _opened(self) -> Any:
        if self._table is None:
            self._table = self._connection.open_table(self._name)
        return self._table

    def _table_for(self, rows: Any) -> Any:
        if self._table is None:
            self._table = self._connection.create_table(self._name, schema=rows.schema, exist_ok=True)
        return self._table


def with_ids(ids: list[str]) -> str:
    """The condition that a row has one of these ids."""
    return f"id in ({', '.join(repr(own) for own in ids)})"


def rows_of(records: dict[str, Any]) -> Any:
    """What LanceDB takes, of what Chroma does."""
    import pyarrow

    vectors = np.asarray(records["embeddings"], dtype=np.float32)
    columns = {
        "id": pyarrow.array(records["ids"]),
        "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1]),
    }
    if "documents" in records:
        columns["document"] = pyarrow.array(records["documents"])
    for name in (records.get("metadatas") or [{}])[0]:
        columns[name] = pyarrow.array([metadata[name] for metadata in records["metadatas"]])
    return pyarrow.table(columns)
