"""Where instances are on a Chroma server: each in a database of its own, or all of a tenant in one database.

A layout knows which requests create, find, list and delete an instance. The collections of an instance are the business
of its clients (``api.py``).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import orjson
from chromadb.errors import NotFoundError, UniqueConstraintError

from chroma_manager.engine.server import listing
from chroma_manager.engine.server.names import instance_of, key_of, name_of
from chroma_manager.engine.server.requests import DELETE, GET, POST, Request

if TYPE_CHECKING:
    from chroma_manager.engine.server.names import Key
    from chroma_manager.engine.server.session import Session


class Place(NamedTuple):
    """Where an instance is, and what the names of its collections begin with there."""

    tenant: str
    database: str
    prefix: str


class Layout(ABC):
    """How instances are kept apart in a tenant."""

    def __init__(self, session: Session, tenant: str) -> None:
        """Asks nothing yet."""
        self.tenant = tenant
        self._session = session
        self._has_tenant = False

    @abstractmethod
    def place(self, key: Key) -> Place:
        """Where an instance is.

        Raises:
            InvalidKeyError: It cannot be named there.
        """

    @abstractmethod
    def exists(self, key: Key, until: float | None = None) -> bool:
        """Whether there is such an instance."""

    @abstractmethod
    def create(self, key: Key, until: float | None = None) -> None:
        """Creates an instance, unless another process is faster."""

    @abstractmethod
    def delete(self, key: Key) -> bool:
        """Deletes an instance; whether there was one."""

    @abstractmethod
    def keeps(self, key: Key, created: Mapping[str, Any], until: float | None = None) -> bool:
        """Whether a collection that a client has created is in an instance that exists. If not, it is deleted."""

    @abstractmethod
    def instances(self, *, with_remains: bool = False) -> Iterator[Key]:
        """The keys of all instances.

        Args:
            with_remains: Also of those that do not exist and have left something, which ``delete`` removes.
        """

    def _databases(self) -> str:
        return f"/tenants/{quote(self.tenant, safe='')}/databases"

    def _collections(self, database: str) -> str:
        return f"{self._databases()}/{quote(database, safe='')}/collections"

    def _find(self, path: str, what: str, until: float | None) -> bool:
        """Whether what a path names exists."""
        try:
            self._session.send(Request(GET, path), what, until)
        except NotFoundError:
            return False
        return True

    def _remove(self, path: str, what: str, until: float | None = None) -> bool:
        """Deletes what a path names; whether it was there."""
        try:
            self._session.send(Request(DELETE, path), what, until)
        except NotFoundError:
            return False
        return True

    def _create_database(self, name: str, what: str, until: float | None) -> None:
        if not self._has_tenant:
            path = f"/tenants/{quote(self.tenant, safe='')}"
            if not self._find(path, what, until):
                self._create("/tenants", {"name": self.tenant}, what, until)
            self._has_tenant = True
        self._create(self._databases(), {"name": name}, what, until)

    def _create(self, path: str, body: dict[str, Any], what: str, until: float | None) -> None:
        try:
            self._session.send(Request(POST, path, orjson.dumps(body)), what, until)
        except UniqueConstraintError:
            pass  # another process, or an attempt whose answer was lost, was first
        except Exception as error:
            # A server of version 1 names no class for it.
            if "already exists" not in str(error):
                raise

    def _names(self, path: str, what: str) -> Iterator[str]:
        """The names of all that is in a list."""
        pages = listing.read(lambda page: self._session.send(Request(GET, path, params=page), what))
        return (item["name"] for item in pages)


class DatabaseLayout(Layout):
    """Each instance has a database of its own."""

    def place(self, key: Key) -> Place:
        """Where an instance is."""
        return Place(self.tenant, name_of(key), "")

    def exists(self, key: Key, until: float | None = None) -> bool:
        """Whether there is such a database."""
        return self._find(self._path(key), f"opening {key}", until)

    def create(self, key: Key, until: float | None = None) -> None:
        """Creates its database."""
        self._create_database(name_of(key), f"creating {key}", until)

    def delete(self, key: Key) -> bool:
        """Deletes its database."""
        return self._remove(self._path(key), f"deleting {key}")

    def keeps(self, key: Key, created: Mapping[str, Any], until: float | None = None) -> bool:  # noqa: ARG002
        """It does: the server creates no collection in a database that does not exist."""
        return True

    def instances(self, *, with_remains: bool = False) -> Iterator[Key]:  # noqa: ARG002 - there are none
        """Those whose names are among the databases of the tenant."""
        yield from filter(None, map(key_of, self._names(self._databases(), "listing databases")))

    def _path(self, key: Key) -> str:
        return f"{self._databases()}/{quote(name_of(key), safe='')}"


class CollectionLayout(Layout):
    """All instances of a tenant are in one database, and the names of their collections begin with theirs.

    An instance exists while there is a collection with its very name, which is empty. So creating one is atomic, and
    one without collections exists as well.
    """

    def __init__(self, session: Session, tenant: str, database: str) -> None:
        """Asks nothing yet."""
        super().__init__(session, tenant)
        self._database = database

    def place(self, key: Key) -> Place:
        """Where an instance is."""
        return Place(self.tenant, self._database, f"{name_of(key)}.")

    def exists(self, key: Key, until: float | None = None) -> bool:
        """Whether there is the collection that stands for it."""
        return self._find(self._path(name_of(key)), f"opening {key}", until)

    def create(self, key: Key, until: float | None = None) -> None:
        """Creates the collection that stands for it, and the database if need be."""
        what = f"creating {key}"
        if not self._find(f"{self._databases()}/{quote(self._database, safe='')}", what, until):
            self._create_database(self._database, what, until)
        metadata = {"file_id": key.file_id, "embedding_type": key.embedding_type}
        body = {"name": name_of(key), "metadata": metadata, "get_or_create": True}
        self._create(self._collections(self._database), body, what, until)

    def delete(self, key: Key) -> bool:
        """Deletes its collections and the one that stands for it, and what others have created in it meanwhile."""
        what = f"deleting {key}"
        existed = self._remove_all(self._own(key, what), what)
        existed |= self._remove(self._path(name_of(key)), what)
        # Whoever creates a collection from now on finds that it is gone (`keeps`), unless it is there again.
        while (names := self._own(key, what)) and not self.exists(key):
            existed |= self._remove_all(names, what)
        return existed

    def keeps(self, key: Key, created: Mapping[str, Any], until: float | None = None) -> bool:
        """Asks for the one that stands for it, unless the collection has records, and so was there before."""
        if created.get("dimension") is not None or self.exists(key, until):
            return True
        self._remove(self._path(created["name"]), f"deleting what was created in {key}", until)
        return False

    def instances(self, *, with_remains: bool = False) -> Iterator[Key]:
        """Those for which a collection stands."""
        names = self._all("listing instances")
        if with_remains:
            names = iter({instance_of(name) for name in names})
        yield from filter(None, map(key_of, names))

    def _own(self, key: Key, what: str) -> list[str]:
        prefix = self.place(key).prefix
        return [name for name in self._all(what) if name.startswith(prefix)]

    def _remove_all(self, names: list[str], what: str) -> bool:
        """Deletes collections; whether one was there."""
        return sum(self._remove(self._path(name), what) for name in names) > 0

    def _all(self, what: str) -> Iterator[str]:
        return self._names(self._collections(self._database), what)

    def _path(self, name: str) -> str:
        return f"{self._collections(self._database)}/{quote(name, safe='')}"


def deadline(seconds: float | None) -> float | None:
    """When a time is up, by ``time.monotonic()``."""
    return None if seconds is None else time.monotonic() + seconds
