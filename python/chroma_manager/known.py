"""The collections that a client knows, so that it need not ask the database again while the catalogue is the same.

When that has changed is found out by the Rust half (``src/engine/isolated/catalogue.rs``); when to ask is decided in
``client.py``.
"""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from chromadb.api.models.Collection import Collection
from chromadb.types import Collection as Model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chroma_manager._native import Catalogue

# pydantic 1 has another name for it.
_copy_model: Callable[[Model], Model] = getattr(Model, "model_copy", None) or Model.copy


class Asked(NamedTuple):
    """What a collection is asked for with, as far as the answer depends on it."""

    name: str
    metadata: tuple[tuple[str, object], ...]
    tenant: str
    database: str

    @classmethod
    def with_(cls, name: str, metadata: Mapping[str, Any], tenant: str, database: str) -> Asked | None:
        """Those; ``None`` where they cannot be compared with others, because one is of another type than usual."""
        items = tuple(metadata.items())
        is_plain = isinstance(name, str) and all(type(value) in (str, int, float, bool) for _, value in items)
        return cls(name, items, tenant, database) if is_plain else None


class KnownCollection:
    """A collection as the database had it.

    The embedding function and the data loader with which it was asked for are not kept from being collected: the app
    may make new ones for each call.
    """

    def __init__(self, asked: Asked, function: object, loader: object, collection: Collection) -> None:
        """Keeps a copy.

        Raises:
            TypeError: There is no weak reference to the embedding function, or to the data loader.
        """
        self._asked = asked
        self._function = None if function is None else weakref.ref(function)
        self._loader = None if loader is None else weakref.ref(loader)
        self._collection = _copy(collection)
        if function is not None:
            self._collection._embedding_function = None
        self._collection._data_loader = None

    def get(self, asked: Asked, function: object, loader: object) -> Collection | None:
        """A collection of the caller's own, if it is asked for with the very same objects, and equal metadata."""
        if asked != self._asked or not _is(self._function, function) or not _is(self._loader, loader):
            return None
        collection = _copy(self._collection)
        if function is not None:
            collection._embedding_function = function  # type: ignore[assignment]
        collection._data_loader = loader  # type: ignore[assignment]
        return collection


class Known(NamedTuple):
    """The collections that were got while the catalogue was this, by name."""

    catalogue: Catalogue
    collections: dict[str, KnownCollection]


def _is(reference: weakref.ref[Any] | None, given: object) -> bool:
    return given is None if reference is None else given is not None and reference() is given


def _copy(collection: Collection) -> Collection:
    """A collection of which nothing that its methods change is shared with the other."""
    model = _copy_model(collection._model)
    # Past pydantic, which would validate them again.
    attributes = vars(model)
    attributes["metadata"] = copy.copy(attributes["metadata"])
    copied = Collection.__new__(Collection)
    vars(copied).update(vars(collection), _model=model)
    return copied
