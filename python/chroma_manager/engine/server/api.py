"""Chroma's HTTP API over a connection: a request is a call like any other, which enters its instance.

So it is refused once the instance is cleaned up. ``server.py`` makes the request; ``prefixed.py`` is the same API for
instances that share a database.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
from chromadb.api.base_http_client import BaseHTTPClient
from chromadb.api.fastapi import FastAPI
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT
from chromadb.errors import AuthorizationError, NotFoundError
from chromadb.telemetry.opentelemetry import OpenTelemetryClient
from chromadb.telemetry.product import ProductTelemetryClient
from chromadb.types import Collection as CollectionModel
from overrides import override

from chroma_manager.engine.server.requests import is_safe_to_repeat, method_of

if TYPE_CHECKING:
    from chroma_manager._native import Connection
    from chroma_manager.engine.server.server import RemoteSystem

# How Chroma names collections, but for the length.
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*[a-zA-Z0-9]")


class RemoteAPI(FastAPI):
    """Chroma's API of an instance that has a database of its own."""

    def __init__(self, system: RemoteSystem, connection: Connection) -> None:
        """Takes a connection, which need not be started."""
        # Chroma's own constructor makes an HTTP client for each API.
        BaseHTTPClient.__init__(self, system)
        self._opentelemetry_client = self.require(OpenTelemetryClient)
        self._product_telemetry_client = self.require(ProductTelemetryClient)  # type: ignore[type-abstract]  # it stands for the configured class
        self._remote = system.server
        self._place = system.place
        self.bindings = connection

    @override
    def get_request_headers(self) -> Mapping[str, str]:
        """Those of each request."""
        return dict(self._remote.headers)

    @override
    def get_api_url(self) -> str:
        """Where requests are sent."""
        return self._remote.url

    @override
    def get_pre_flight_checks(self) -> Any:
        """What the server says of itself, which all clients share."""
        if self._remote.pre_flight_checks is None:
            self._remote.pre_flight_checks = super().get_pre_flight_checks()
        return self._remote.pre_flight_checks

    @override
    def get_collection(
        self, name: str, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE
    ) -> CollectionModel:
        """As Chroma's."""
        _refuse_impossible(name)
        return super().get_collection(name, tenant, database)

    @override
    def delete_collection(self, name: str, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE) -> None:
        """As Chroma's."""
        _refuse_impossible(name)
        super().delete_collection(name, tenant, database)

    @override
    def reset(self) -> bool:
        """Empties the instance, and not all of the server, as Chroma's would."""
        if not self._settings.allow_reset:
            raise AuthorizationError("Reset is disabled by config")
        tenant, database, _ = self._place
        while collections := self.list_collections(tenant=tenant, database=database):
            for collection in collections:
                self.delete_collection(collection.name, tenant, database)
        return True

    @override
    def _make_request(self, method: str, path: str, **kwargs: Any) -> Any:
        verb, path = method.upper(), urllib.parse.quote(path, safe="/")
        called = method_of(verb, path)
        body = kwargs.pop("json", None)
        if body is not None:
            kwargs["content"] = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        is_safe = is_safe_to_repeat(verb, called, body)
        return getattr(self.bindings, called)(verb, path, is_safe_to_repeat=is_safe, **kwargs)


def _refuse_impossible(name: str) -> None:
    """Raises for a name that no collection has. In the path of a request it could mean something else."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise NotFoundError(f"Collection [{name}] does not exist")
