"""Which requests are let in: those for a name of the app's, and of what changes something, those of its own page."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

# No name below these is in the DNS of the internet.
_LOCAL = (".localhost", ".local", ".internal")
_HOST = re.compile(r"\[(?P<address>[^\[\]]+)\](:\d+)?|(?P<name>[^\[\]:]+)(:\d+)?")
_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """Refuses what a page of another site sends in its user's name, and tells browsers what a page of ours may do."""

    def __init__(self, app: Any) -> None:
        """Takes the app behind it."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        handle = _refusal(scope) or self._app
        await handle(scope, receive, send_with_headers)


def is_ours(host: str, hosts: frozenset[str]) -> bool:
    """Whether a request for this host is for the app, and not for a name that somebody else has led to its address.

    Who owns the name that a page is from may have it stand for 127.0.0.1 later, and for a browser the app then is the
    page's own site. Nobody can do so with an address, nor with a name that only the local network knows.

    Args:
        host: As the header has it, with or without a port.
        hosts: Names that are the app's besides; ``*`` is every name.
    """
    found = _HOST.fullmatch(host.lower())
    if found is None:
        return False
    name = found["address"] or found["name"]
    return bool({name, "*"} & hosts) or "." not in name or name.endswith(_LOCAL) or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _refusal(scope: Scope) -> JSONResponse | None:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    # A browser always has one.
    host = headers.get(b"host", "localhost")
    if not is_ours(host, scope["app"].state.services.configs.host_names):
        detail = f"The app does not answer for {host}. Use its address, or have RAG_HOSTS name that host."
        return JSONResponse({"detail": detail}, status_code=421)
    if scope["method"] not in ("GET", "HEAD") and _is_of_another_page(headers, host):
        return JSONResponse({"detail": "This is not for pages of other sites."}, status_code=403)
    return None


def _is_of_another_page(headers: dict[bytes, str], host: str) -> bool:
    # Another port of the same machine is the same site, and none of ours.
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    # Browsers say no more where the app is neither on this machine nor behind TLS.
    origin = headers.get(b"origin")
    return origin is not None and urlsplit(origin).netloc != host
