"""A Chroma server, as the Rust half (``src/engine/server.rs``) uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import chromadb
import httpx
from chromadb.api.base_http_client import BaseHTTPClient
from chromadb.auth import ClientAuthProvider
from chromadb.auth.token_authn import TokenTransportHeader
from chromadb.config import Settings, System
from chromadb.errors import InvalidArgumentError, NotFoundError
from chromadb.telemetry.product import ProductTelemetryClient

from chroma_manager.engine.server.layouts import CollectionLayout, DatabaseLayout, Layout, Place, deadline
from chroma_manager.engine.server.names import Key
from chroma_manager.engine.server.requests import GET, Request
from chroma_manager.engine.server.session import Session
from chroma_manager.errors import InstanceNotFoundError, ManagerConfigurationError
from chroma_manager.option_checks import header, shown
from chroma_manager.options import SERVER_API, changed_settings
from chroma_manager.server_options import DEFAULT_DATABASE, DEFAULT_TENANT

if TYPE_CHECKING:
    from chroma_manager.options import Options

# What cannot be done to a database on a server, and what to do instead.
_INSTEAD = {
    "snapshot": "back up the server's own files, or copy the instance to a directory with `chroma-manager migrate`",
    "restore": "copy an instance from a directory to the server with `chroma-manager migrate`",
    "verify": "the server looks after its own files",
    "compact": "run `chroma vacuum` where the server's files are",
}


class ChromaServer:
    """The instances on a server, and the connections to it. A manager has one."""

    def __init__(self, options: Options) -> None:
        """Connects to nothing yet.

        Raises:
            ManagerConfigurationError: The options name no server.
        """
        self._options = options
        self._settings = _settings_of(options)
        self._session = _session_of(options, self._settings)
        self._layout: Layout | None = None
        # What the server says of itself, once a client has asked.
        self.pre_flight_checks: Any = None

    @property
    def url(self) -> str:
        """That of the API."""
        return self._session.url

    @property
    def headers(self) -> Mapping[str, str]:
        """Those of each request."""
        return self._session.headers

    def open(self, file_id: str, embedding_type: str, may_create: bool, seconds: float | None) -> RemoteDatabase:
        """Finds an instance, or creates it.

        Args:
            file_id: First half of its key.
            embedding_type: Second half.
            may_create: Whether to create it if it does not exist.
            seconds: How long that may take; ``None`` for no limit but those of the options.

        Raises:
            InstanceNotFoundError: It does not exist, and is not to be created.
            ServerUnavailableError: As from ``Session.send``, whose other errors it raises as well.
        """
        key, until = Key(file_id, embedding_type), deadline(seconds)
        layout = self._layout_of_tenant(until)
        place = layout.place(key)
        if not layout.exists(key, until):
            if not may_create:
                raise InstanceNotFoundError(f"{key} does not exist on {self.url}")
            layout.create(key, until)
        system = RemoteSystem(self._settings, self, place)
        return RemoteDatabase(system, key, self._session, layout)

    def delete(self, file_id: str, embedding_type: str) -> bool:
        """Deletes an instance; whether there was one."""
        return self._layout_of_tenant().delete(Key(file_id, embedding_type))

    def instances(self, *, with_remains: bool = False) -> Iterator[Key]:
        """The keys of all instances; see ``Layout.instances``."""
        return self._layout_of_tenant().instances(with_remains=with_remains)

    def refuse(self, task: str) -> None:
        """Raises for exclusive maintenance.

        Raises:
            ManagerConfigurationError: Always.
        """
        raise ManagerConfigurationError(
            f"{task}() is not possible with engine='server', because the files are on {self.url}: {_INSTEAD[task]}"
        )

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def _layout_of_tenant(self, until: float | None = None) -> Layout:
        if self._layout is None:
            tenant = self._options.tenant or self._tenant_of_key(until)
            database = self._options.database or DEFAULT_DATABASE
            in_collections = self._options.layout == "collection"
            self._layout = (
                CollectionLayout(self._session, tenant, database)
                if in_collections
                else DatabaseLayout(self._session, tenant)
            )
        return self._layout

    def _tenant_of_key(self, until: float | None) -> str:
        """The tenant that an API key belongs to; without one Chroma's default."""
        if self._options.api_key is None:
            return DEFAULT_TENANT
        identity = self._session.send(Request(GET, "/auth/identity"), "asking whose the api_key is", until)
        return str(identity.get("tenant") or DEFAULT_TENANT)


class RemoteSystem(System):
    """Chroma's system of one instance on a server."""

    def __init__(self, settings: Settings, server: ChromaServer, place: Place) -> None:
        """Starts the telemetry, if the settings want it."""
        super().__init__(settings)
        self.server = server
        self.place = place
        self.instance(ProductTelemetryClient)  # type: ignore[type-abstract]  # it stands for the configured class


@dataclass(frozen=True)
class RemoteDatabase:
    """An open instance on a server: that it is open costs nothing there."""

    system: RemoteSystem
    _key: Key
    _session: Session = field(repr=False)
    _layout: Layout = field(repr=False)

    def call(
        self, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any] | None, seconds: float | None
    ) -> Any:
        """Makes a call.

        Args:
            method: That of Chroma's binding which the request stands for.
            arguments: Those of ``requests.Request``.
            keywords: Likewise.
            seconds: How long it may take; ``None`` for no limit but those of the options.

        Raises:
            InstanceNotFoundError: The instance was deleted.
            ServerUnavailableError: As from ``Session.send``, whose other errors it raises as well.
        """
        until = deadline(seconds)
        request = Request(*arguments, **(keywords or {}))
        try:
            answer = self._session.send(request, f"{method}() of {self._key}", until)
        except (NotFoundError, InvalidArgumentError) as error:
            # Chroma refuses to create a collection in a database that does not exist.
            may_be_deleted = isinstance(error, NotFoundError) or method == "create_collection"
            if may_be_deleted and not self._layout.exists(self._key, until):
                raise self._not_found() from error
            raise
        if method == "create_collection" and not self._layout.keeps(self._key, answer, until):
            raise self._not_found()
        return answer

    def _not_found(self) -> InstanceNotFoundError:
        return InstanceNotFoundError(f"{self._key} does not exist on {self._session.url}")


def _settings_of(options: Options) -> Settings:
    host, port, ssl = options.address
    changes: dict[str, Any] = {
        "chroma_api_impl": SERVER_API,
        "chroma_server_host": host,
        "chroma_server_http_port": port,
        "chroma_server_ssl_enabled": ssl,
        "chroma_server_headers": dict(options.headers or {}),
    }
    if options.api_key is not None:
        changes |= {
            "chroma_client_auth_provider": "chromadb.auth.token_authn.TokenAuthClientProvider",
            "chroma_client_auth_credentials": options.api_key,
            "chroma_auth_token_transport_header": TokenTransportHeader.X_CHROMA_TOKEN,
        }
    return changed_settings(options.settings or Settings(), changes)


def _session_of(options: Options, settings: Settings) -> Session:
    try:
        url = BaseHTTPClient.resolve_url(
            chroma_server_host=str(settings.chroma_server_host),
            chroma_server_http_port=settings.chroma_server_http_port,
            chroma_server_ssl_enabled=settings.chroma_server_ssl_enabled,
            default_api_path=settings.chroma_server_api_default_path,
        )
        parsed = httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise ManagerConfigurationError(f"{shown('host', options.address[0])}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ManagerConfigurationError(
            f"{shown('host', options.address[0])}: it must be a name, an address, or a URL with http:// or https://"
        )
    headers = {
        **(options.headers or {}),
        "Content-Type": "application/json",
        "User-Agent": f"Chroma Python Client v{chromadb.__version__} (https://github.com/chroma-core/chroma)",
    }
    if settings.chroma_client_auth_provider:
        try:
            secrets = System(settings).require(ClientAuthProvider).authenticate()  # type: ignore[type-abstract]
        except ValueError as error:
            raise ManagerConfigurationError(f"settings: chroma_client_auth_credentials: {error}") from error
        headers |= {name: value.get_secret_value() for name, value in secrets.items()}
    for item in headers.items():
        if problem := header(*item):
            raise ManagerConfigurationError(f"settings: {problem}")
    verify = settings.chroma_server_ssl_verify
    return Session(options, url, headers, True if verify is None else verify)
