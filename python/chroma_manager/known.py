"""The collections that the clients of a database know, so that none asks again while the catalogue is the same.

Whether that has changed is found out by the Rust half (``src/engine/isolated/catalogue.rs``); when to ask is decided in
``client.py``.
"""

from __future__ import annotations

import contextlib
import marshal
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from chromadb.api.models.Collection import Collection
from chromadb.config import Component, System
from chromadb.types import Collection as Model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chromadb.api.rust import RustBindingsAPI

    from chroma_manager._native import Catalogue, Connection
    from chroma_manager.engine.server.api import RemoteAPI

    _API: TypeAlias = RustBindingsAPI | RemoteAPI

# pydantic 1 has another name for it.
_copy_model: Callable[[Model], Model] = getattr(Model, "model_copy", None) or Model.copy


# What metadata usually has: values that can be compared and hashed.
_PLAIN = frozenset({str, int, float, bool})


class Asked(NamedTuple):
    """What a collection is asked for with, as far as the answer depends on it."""

    name: str
    metadata: tuple[tuple[str, object], ...]
    tenant: str
    database: str

    @classmethod
    def with_(cls, name: str, metadata: Mapping[str, Any], tenant: str, database: str) -> Asked | None:
        """Those; ``None`` where they cannot be compared with others, because one is of another type than usual."""
        is_plain = isinstance(name, str) and _PLAIN.issuperset(map(type, metadata.values()))
        return cls(name, tuple(metadata.items()), tenant, database) if is_plain else None


class KnownCollection:
    """A collection as the database had it.

    The embedding function and the data loader with which it was asked for are not kept from being collected: the app
    may make new ones for each call.
    """

    def __init__(
        self,
        asked: Asked,
        function: object,
        loader: object,
        collection: Collection,
        forget: Callable[[object], object],
    ) -> None:
        """Keeps a copy, which has no client.

        Args:
            asked: What it was asked for with.
            function: The embedding function that was given.
            loader: The data loader.
            collection: What was returned.
            forget: Called once one of these two objects is collected.

        Raises:
            TypeError: There is no weak reference to the embedding function, or to the data loader.
            ValueError: Its configuration is not JSON.
        """
        self._asked = asked
        self._function = None if function is None else weakref.ref(function, forget)
        self._loader = None if loader is None else weakref.ref(loader, forget)
        self._collection = _copy(collection)
        self._collection._client = None  # type: ignore[assignment]
        if function is not None:
            self._collection._embedding_function = None
        self._collection._data_loader = None
        # What the caller changes in it is not to be seen by others; this takes a tenth of the time of `deepcopy`.
        self._configuration = marshal.dumps(collection._model.configuration_json)

    def get(self, api: _API, asked: Asked, function: object, loader: object) -> Collection | None:
        """A collection of the caller's own, if it is asked for with the very same objects, and equal metadata."""
        if asked != self._asked or not _is(self._function, function) or not _is(self._loader, loader):
            return None
        collection = _copy(self._collection)
        vars(collection._model)["configuration_json"] = marshal.loads(self._configuration)
        collection._client = api
        if function is not None:
            collection._embedding_function = function  # type: ignore[assignment]
        collection._data_loader = loader  # type: ignore[assignment]
        return collection


class KnownCollections(Component):
    """What is known of the collections of one database, by all its clients: a component of the system they share."""

    def __init__(self, system: System) -> None:
        """Knows nothing yet."""
        super().__init__(system)
        self._known: Known | None = None

    def __len__(self) -> int:
        """How many collections are known."""
        return len(self._known.collections) if self._known is not None else 0

    def get(
        self, api: _API, asked: Asked, function: object, loader: object, ask: Callable[[], Collection]
    ) -> Collection:
        """A collection of the caller's own, as if the database had been asked.

        Args:
            api: The caller's, over its connection.
            asked: What the collection is asked for with.
            function: The embedding function that is given.
            loader: The data loader that is given.
            ask: Asks the database.
        """
        connection: Connection = api.bindings
        before, key = self._known, _key(asked, function, loader)
        if before is not None and key in before.collections:
            collection = before.collections[key].get(api, asked, function, loader)
            if collection is not None and connection.is_current(before.catalogue):
                return collection
        # As it is before the database is asked: a change meanwhile makes the answer outdated.
        catalogue = connection.catalogue()
        got = ask()
        if catalogue is not None and type(got) is Collection:
            # If what was known before is not outdated by now, nothing has changed while the database was asked either.
            is_same = before is not None and connection.is_current(before.catalogue)
            known = before if before is not None and is_same else Known(catalogue, {})
            self._known, collections = known, known.collections
            with contextlib.suppress(TypeError, ValueError):
                collections[key] = KnownCollection(asked, function, loader, got, lambda _: collections.pop(key, None))
        return got


# Threads may have embedding functions of their own. The metadata is not in it: an app may give another one each time.
_Key: TypeAlias = "tuple[str, str, str, int, int]"


class Known(NamedTuple):
    """The collections that were got while the catalogue was this."""

    catalogue: Catalogue
    collections: dict[_Key, KnownCollection]


def _key(asked: Asked, function: object, loader: object) -> _Key:
    return asked.tenant, asked.database, asked.name, id(function), id(loader)


def _is(reference: weakref.ref[Any] | None, given: object) -> bool:
    return given is None if reference is None else given is not None and reference() is given


def _copy(collection: Collection) -> Collection:
    """A collection of which nothing that its methods change is shared with the other."""
    model = _copy_model(collection._model)
    # Past pydantic, which would validate them again.
    attributes = vars(model)
    if attributes["metadata"] is not None:
        attributes["metadata"] = dict(attributes["metadata"])
    copied = Collection.__new__(Collection)
    vars(copied).update(vars(collection), _model=model)
    return copied
