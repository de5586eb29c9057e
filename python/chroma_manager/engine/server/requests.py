"""What a request to a Chroma server is: its method, as Chroma's binding calls it, and whether it may be repeated.

Chroma's own API class makes the requests; see ``api.py``. One that is not in the table is taken for one that writes,
and is not repeated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

GET, POST, PUT, DELETE = "GET", "POST", "PUT", "DELETE"

_DATABASES = "/tenants/[^/]+/databases"
_COLLECTIONS = f"{_DATABASES}/[^/]+/collections"

# By verb and path. A method that has no name in the binding has that of the last part of its path.
_METHODS = [
    (verb, re.compile(path), method)
    for verb, path, method in (
        (GET, "/heartbeat", "heartbeat"),
        (GET, "/version", "get_version"),
        (GET, "/pre-flight-checks", "get_max_batch_size"),
        (POST, "/reset", "reset"),
        (POST, "/tenants", "create_tenant"),
        (GET, "/tenants/[^/]+", "get_tenant"),
        (POST, _DATABASES, "create_database"),
        (GET, _DATABASES, "list_databases"),
        (GET, f"{_DATABASES}/[^/]+", "get_database"),
        (DELETE, f"{_DATABASES}/[^/]+", "delete_database"),
        (POST, _COLLECTIONS, "create_collection"),
        (GET, _COLLECTIONS, "list_collections"),
        (GET, f"{_DATABASES}/[^/]+/collections_count", "count_collections"),
        (GET, f"{_COLLECTIONS}/by-id/[^/]+", "get_collection_by_id"),
        (GET, f"{_COLLECTIONS}/[^/]+", "get_collection"),
        (DELETE, f"{_COLLECTIONS}/[^/]+", "delete_collection"),
        (PUT, f"{_COLLECTIONS}/[^/]+", "update_collection"),
    )
]

# Requests that give the same twice as once, although they are no GET. What others write to the same records between the
# two attempts is written while the call is in flight, and has no order with it anyway (``docs/server.md``).
_SAFE = ("get", "query", "search", "add", "update", "upsert")


class Request(NamedTuple):
    """A request to a server."""

    verb: str
    path: str
    content: bytes | None = None
    params: Mapping[str, Any] | None = None
    is_safe_to_repeat: bool = True


def method_of(verb: str, path: str) -> str:
    """The method whose call a request is."""
    for known, pattern, method in _METHODS:
        if known == verb and pattern.fullmatch(path):
            return method
    return path.rpartition("/")[2]


def is_safe_to_repeat(verb: str, method: str, body: Mapping[str, Any] | None) -> bool:
    """Whether executing a request twice gives the same as executing it once."""
    if verb == GET or method in _SAFE:
        return True
    if method == "create_collection":
        return body is not None and body.get("get_or_create") is True
    # Of the records that a limit has left, a second `delete` would take others.
    return method == "delete" and body is not None and body.get("limit") is None
