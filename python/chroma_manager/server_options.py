"""The options of the engine ``server``: where the server is, how its databases are used, how long it may take."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chroma_manager import option_checks as checks
from chroma_manager.errors import ManagerConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

# How instances are kept apart. The first is the default.
LAYOUTS = ("database", "collection")

DEFAULT_TENANT = "default_tenant"
DEFAULT_DATABASE = "default_database"

_CLOUD_ONLY = ("cloud_host", "cloud_port", "enable_ssl")


@dataclass(frozen=True)
class ServerOptions:
    """The options of the engine ``server``; ``ChromaDBManager`` documents them."""

    host: str | None = None
    port: int = 8000
    ssl: bool = False
    headers: Mapping[str, str] | None = None
    tenant: str | None = None
    database: str | None = None
    layout: str = LAYOUTS[0]
    api_key: str | None = None
    cloud_host: str = "api.trychroma.com"
    cloud_port: int = 443
    enable_ssl: bool = True
    max_connections: int = 64
    connect_timeout: float = 5.0
    read_timeout: float = 60.0
    retry_timeout: float = 30.0

    @property
    def is_cloud(self) -> bool:
        """Whether the server is Chroma Cloud's, or stands in its place."""
        return self.api_key is not None and self.host is None

    @property
    def address(self) -> tuple[str, int, bool]:
        """The host, the port, and whether TLS is used."""
        if self.is_cloud:
            return _bracketed(self.cloud_host), self.cloud_port, self.enable_ssl
        return _bracketed(self.host or "localhost"), self.port, self.ssl

    @property
    def url(self) -> str:
        """Where the server is, without the path of its API. A host may be a URL, which has all of it."""
        host, port, ssl = self.address
        if host.startswith(("http://", "https://")):
            return host.rstrip("/")
        return f"http{'s' if ssl else ''}://{host}:{port}"

    def check_together(self) -> None:
        """Raises ``ManagerConfigurationError`` for options that exclude each other."""
        for name in _CLOUD_ONLY:
            value = getattr(self, name)
            if value != getattr(ServerOptions, name) and not self.is_cloud:
                raise ManagerConfigurationError(
                    f"{name}={value!r}: it is about Chroma Cloud, and needs api_key; a server of your own is named by "
                    f"host, port and ssl"
                )
        if self.database is not None and self.layout == LAYOUTS[0]:
            raise ManagerConfigurationError(
                f"database={self.database!r}: with layout='database' each instance has a database of its own; "
                f"layout='collection' keeps all instances in one"
            )


def _bracketed(host: str) -> str:
    """A host as URLs have it: an address of IPv6 in brackets."""
    try:
        return f"[{ipaddress.IPv6Address(host)}]"
    except ValueError:
        return host


NAMES: tuple[str, ...] = tuple(ServerOptions.__dataclass_fields__)

CHECKS: dict[str, checks.Check] = {
    "host": checks.host_or_none,
    "port": checks.port,
    "ssl": checks.flag,
    "headers": checks.headers,
    "tenant": checks.text_or_none,
    "database": checks.text_or_none,
    "layout": checks.one_of(LAYOUTS),
    "api_key": checks.key_or_none,
    "cloud_host": checks.host,
    "cloud_port": checks.port,
    "enable_ssl": checks.flag,
    "max_connections": checks.count,
    "connect_timeout": checks.positive_seconds,
    "read_timeout": checks.positive_seconds,
    "retry_timeout": checks.seconds,
}
