"""Chroma's HTTP API for instances that share a database: their collections have names that begin with a prefix.

What a client gives and sees are names without it. They are changed in the requests and the answers, so the methods of
Chroma's API need not be known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from chromadb.errors import InvalidArgumentError, NotFoundError
from overrides import override

from chroma_manager.engine.server import listing
from chroma_manager.engine.server.api import NAME, RemoteAPI
from chroma_manager.engine.server.names import LONGEST, SHORTEST_COLLECTION
from chroma_manager.engine.server.requests import GET, method_of

# Where the body of a request has the name of a collection.
_NAMES_IN_BODIES = {
    "create_collection": "name",
    "update_collection": "new_name",
    "fork": "new_name",
    "attach": "output_collection",
}

_NAMES_IN_PATHS = ("get_collection", "delete_collection")

_NAMES_IN_ANSWERS = ("create_collection", "get_collection", "get_collection_by_id", "fork")


class PrefixedAPI(RemoteAPI):
    """Chroma's API of an instance that shares a database with others."""

    @override
    def _make_request(self, method: str, path: str, **kwargs: Any) -> Any:
        called = method_of(method.upper(), path)
        parent, _, last = path.rpartition("/")
        if called == "list_collections":
            return self._page(path, kwargs.get("params") or {})
        if called == "count_collections":
            return sum(1 for _ in self._own(f"{parent}/collections"))
        if called in _NAMES_IN_PATHS:
            path = f"{parent}/{self._place.prefix}{last}"
        field = _NAMES_IN_BODIES.get(called)
        if field is not None and kwargs["json"].get(field) is not None:
            kwargs["json"] = {**kwargs["json"], field: self._prefixed(kwargs["json"][field])}
        try:
            answer = super()._make_request(method, path, **kwargs)
        except Exception as error:
            error.args = tuple(
                arg.replace(self._place.prefix, "") if isinstance(arg, str) else arg for arg in error.args
            )
            raise
        return self._shown(answer) if called in _NAMES_IN_ANSWERS else answer

    def _page(self, path: str, params: Mapping[str, int]) -> list[Any]:
        begin, limit = params.get("offset", 0), params.get("limit")
        return list(islice(self._own(path), begin, None if limit is None else begin + limit))

    def _own(self, path: str) -> Iterator[Any]:
        """Its collections. Those of the whole database are read for that."""
        make = super()._make_request
        models = listing.read(lambda page: make(GET, path, params=page))
        return (self._shown(model) for model in models if model["name"].startswith(self._place.prefix))

    def _prefixed(self, name: str) -> str:
        longest = LONGEST - len(self._place.prefix)
        # As Chroma refuses it, which would take a shorter one with the prefix.
        if not SHORTEST_COLLECTION <= len(name) <= longest or not NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"Validation error: name: Expected a name containing {SHORTEST_COLLECTION}-{longest} characters from "
                f"[a-zA-Z0-9._-], starting and ending with a character in [a-zA-Z0-9]. Got: {name}"
            )
        return self._place.prefix + name

    def _shown(self, model: dict[str, Any]) -> dict[str, Any]:
        if not model["name"].startswith(self._place.prefix):
            raise NotFoundError(f"Collection [{model['id']}] does not exist")
        return {**model, "name": model["name"].removeprefix(self._place.prefix)}
