"""A collection as it is stored, whichever API is before it: what describes it, and the calls that move its records.

Configurations and schemas are copied as Chroma stores them, so no embedding function need be installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from chromadb.types import Collection as Model

from chroma_manager.engine.server.api import RemoteAPI
from chroma_manager.migration.records import Record, is_same_value
from chroma_manager.migration.schemas import special

if TYPE_CHECKING:
    from chroma_manager.client import ManagedClient

EVERYTHING = ["embeddings", "documents", "metadatas", "uris"]

# Parts of a configuration that a server may set as it likes: they say how an index is built, and not what it returns.
_OF_THE_INDEX = ("hnsw", "spann")


class StoredCollection:
    """A collection of a client."""

    def __init__(self, client: ManagedClient, model: Model) -> None:
        """Takes what Chroma's API returns of it."""
        self.model = model
        self._api = client._server
        self._place: dict[str, Any] = {"tenant": client.tenant, "database": client.database}

    @property
    def name(self) -> str:
        """Its name."""
        return self.model.name

    @property
    def rounds_vectors(self) -> bool:
        """Whether Chroma stores its vectors divided by their length, and multiplies again what is read."""
        return bool(_space(self.model.configuration_json) == "cosine")

    def ids(self, page: int) -> list[str]:
        """The ids of its records, read page by page."""
        pages: Iterator[list[str]] = (
            self._api._get(self.model.id, limit=page, offset=offset, include=[], **self._place)["ids"]
            for offset in range(0, self._api._count(self.model.id, **self._place), page)
        )
        return list(dict.fromkeys(chain.from_iterable(pages)))

    def count(self) -> int:
        """How many records it has."""
        return self._api._count(self.model.id, **self._place)

    def read(self, ids: Sequence[str]) -> dict[str, Record]:
        """Those of some records that there are, by id."""
        include: Any = EVERYTHING
        got: Any = self._api._get(self.model.id, ids=list(ids), include=include, **self._place)
        columns = (got["embeddings"], got["documents"], got["metadatas"], got["uris"])
        rows = zip(*(column if column is not None else [None] * len(got["ids"]) for column in columns), strict=True)
        return {name: Record(*row) for name, row in zip(got["ids"], rows, strict=True)}

    def write(self, records: Mapping[str, Record]) -> None:
        """Writes records; what those of the same id have besides is kept."""
        _, documents, metadatas, uris = (list(column) for column in zip(*records.values(), strict=True))
        vectors: Any = [record.vector for record in records.values()]
        self._api._upsert(self.model.id, list(records), vectors, metadatas, documents, uris, **self._place)

    def delete(self, ids: Sequence[str]) -> None:
        """Deletes records."""
        self._api._delete(self.model.id, ids=list(ids), **self._place)


def collections_of(client: ManagedClient) -> dict[str, StoredCollection]:
    """The collections of a client's instance, by name."""
    models = client._server.list_collections(tenant=client.tenant, database=client.database)
    return {model.name: StoredCollection(client, model) for model in sorted(models, key=lambda model: model.name)}


def create_like(client: ManagedClient, model: Model) -> StoredCollection:
    """Creates a collection with the name, the metadata, the configuration and the schema of another one."""
    api = client._server
    # Chroma takes one of them, and forgets the embedding function of a schema that says nothing special.
    schema = model.serialized_schema if special(model.serialized_schema) else None
    configuration = None if schema else _given(model.configuration_json)
    if isinstance(api, RemoteAPI):
        body = {
            "name": model.name,
            "metadata": model.metadata,
            "configuration": configuration,
            "schema": schema,
            "get_or_create": True,
        }
        path = f"/tenants/{client.tenant}/databases/{client.database}/collections"
        created = Model.from_json(api._make_request("post", path, json=body))
    else:
        texts = (value and json.dumps(value) for value in (configuration, schema))
        api.bindings.create_collection(model.name, *texts, model.metadata, True, client.tenant, client.database)
        created = api.get_collection(model.name, client.tenant, client.database)
    return StoredCollection(client, created)


def differences(source: Model, destination: Model) -> list[str]:
    """In what two collections differ besides their records."""
    found = []
    if not is_same_value(dict(source.metadata or {}), dict(destination.metadata or {})):
        found.append(f"its metadata are {destination.metadata}, not {source.metadata}")
    ours, theirs = source.configuration_json, destination.configuration_json
    names = sorted((ours.keys() | theirs.keys()) - set(_OF_THE_INDEX))
    found += [
        f"{name} of its configuration is {theirs.get(name)}, not {ours.get(name)}"
        for name in names
        if (ours.get(name) or None) != (theirs.get(name) or None)
    ]
    if special(source.serialized_schema) != special(destination.serialized_schema):
        found.append("its schema indexes other values")
    if _space(ours) != _space(theirs):
        found.append(f"its space is {_space(theirs)}, not {_space(ours)}")
    return found


def _given(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as it is given to a new collection: what is not set is left out."""
    return {name: value for name, value in configuration.items() if value is not None}


def _space(configuration: Mapping[str, Any]) -> Any:
    index: Mapping[str, Any] = next((configuration[name] for name in _OF_THE_INDEX if configuration.get(name)), {})
    return index.get("space")
