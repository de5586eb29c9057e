"""The clients that a manager hands out: chromadb's own classes over a connection of ours.

They do not use chromadb's process-wide table of systems, which is where threads that open databases race, and do not
ask the database again, for every thread, whether its tenant exists. Nor do they ask for a collection again that they
know, while the catalogue of the database is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import chromadb.api.client
from chromadb.api.models.Collection import Collection
from chromadb.api.rust import RustBindingsAPI
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, System
from overrides import override

from chroma_manager.errors import ChromaManagerError
from chroma_manager.known import Asked, KnownCollections
from chroma_manager.options import SERVER_API

if TYPE_CHECKING:
    from chroma_manager._native import Connection
    from chroma_manager.engine.server.api import RemoteAPI
    from chroma_manager.engine.server.server import RemoteSystem


class ManagedAPI(RustBindingsAPI):
    """Chroma's API over a connection, which takes the place of the binding."""

    def __init__(self, system: System, connection: Connection) -> None:
        """Takes a connection, which need not be started."""
        super().__init__(system)
        self.bindings = connection

    @override
    def start(self) -> None:
        """Does nothing: the connection opens its database when it is needed."""

    @override
    def stop(self) -> None:
        """Does nothing: the manager closes the database."""


class ManagedAdminClient(chromadb.api.client.AdminClient):
    """The admin client of a managed client, over the same connection."""

    def __init__(self, api: ManagedAPI | RemoteAPI) -> None:
        """Shares its client's API."""
        self._server = api

    @property
    def _system(self) -> System:
        return self._server._system


class ManagedClient(chromadb.api.client.Client):
    """A ``chromadb.api.client.Client`` that a manager has made for one thread.

    Another thread can use it as well. ``close()`` closes this client, not the database, which others share.
    """

    _server: ManagedAPI | RemoteAPI

    def __init__(
        self, api: ManagedAPI | RemoteAPI, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE
    ) -> None:
        """Use ``ChromaDBManager.get_client`` instead."""
        self._server = api
        self._admin_client = ManagedAdminClient(api)
        self.tenant = tenant
        self.database = database
        self._known = api._system.instance(KnownCollections)

    @property
    def _system(self) -> System:
        return self._server._system

    def known_or_created(
        self, name: str, metadata: dict[str, Any], embedding_function: Any = None, data_loader: Any = None
    ) -> Collection:
        """As ``get_or_create_collection``, but asks the database only if it may have anything new to say.

        What is returned is a collection of the caller's own each time, as if the database had been asked.
        """
        asked = Asked.with_(name, metadata, self.tenant, self.database)

        def ask() -> Collection:
            given = {"embedding_function": embedding_function, "data_loader": data_loader}
            optional = {key: value for key, value in given.items() if value is not None}
            return self.get_or_create_collection(name, metadata=metadata, **optional)

        if asked is None:
            return ask()
        return self._known.get(self._server, asked, embedding_function, data_loader, ask)

    @override
    def close(self) -> None:
        """Closes this client and its collections; the thread's next ``get_client`` makes a new client."""
        if not self._closed:
            self._closed = True
            self._server.bindings.close(self)

    @override
    def _validate_tenant_database(self, tenant: str, database: str) -> None:
        try:
            super()._validate_tenant_database(tenant, database)
        except ValueError as error:
            # Chroma reports any failure here as a tenant that does not exist.
            if isinstance(error.__context__, ChromaManagerError):
                raise error.__context__ from None
            raise


def make_client(connection: Connection, system: System) -> Any:
    """A client over a connection to the database of a system."""
    if system.settings.chroma_api_impl == SERVER_API:
        return _make_remote_client(connection, cast("RemoteSystem", system))
    return ManagedClient(ManagedAPI(system, connection))


def _make_remote_client(connection: Connection, system: RemoteSystem) -> ManagedClient:
    # Imports Chroma's HTTP client, which the other engines can do without.
    from chroma_manager.engine.server.api import RemoteAPI  # noqa: PLC0415
    from chroma_manager.engine.server.prefixed import PrefixedAPI  # noqa: PLC0415

    tenant, database, prefix = system.place
    return ManagedClient((PrefixedAPI if prefix else RemoteAPI)(system, connection), tenant, database)
