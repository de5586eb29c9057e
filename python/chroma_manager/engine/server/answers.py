"""What an answer means: one of Chroma's, of a proxy before the server, or of something else.

``session.py`` makes the requests, and repeats those that have got no answer (``UnansweredError``).
"""

from __future__ import annotations

import email.utils
import time
from typing import TYPE_CHECKING, Any

import httpx
import orjson
from chromadb.api.base_http_client import BaseHTTPClient

from chroma_manager.errors import EngineProtocolError, RequestTooLargeError, ServerAccessError

if TYPE_CHECKING:
    from chroma_manager.engine.server.requests import Request

DENIED = (401, 403)
TOO_LARGE = 413
TOO_MANY_REQUESTS = 429
UNAVAILABLE = (502, 503, 504)


class UnansweredError(Exception):
    """An attempt at a request has got no answer, or one that says that the server is unavailable."""

    def __init__(self, reason: str, *, is_sent: bool, is_slow: bool = False, retry_after: float = 0.0) -> None:
        """Takes the reason, and what a repetition depends on."""
        super().__init__(reason)
        self.is_sent = is_sent
        self.is_slow = is_slow
        self.retry_after = retry_after

    def may_be_repeated(self, request: Request) -> bool:
        """Whether the request is to be made again."""
        # A server that was too slow once would be kept busy twice.
        return not self.is_slow and (request.is_safe_to_repeat or not self.is_sent)

    def effect(self, request: Request) -> str:
        """What is known of the effect of the request, as messages have it."""
        return "; whether it took effect is unknown" if self.is_sent and request.verb != "GET" else ""


def read(response: httpx.Response, request: Request, url: str, what: str) -> Any:
    """Reads an answer.

    Args:
        response: The answer.
        request: What it answers.
        url: That of the API.
        what: What the request was made for, as messages have it.

    Returns:
        Its content, decoded.

    Raises:
        UnansweredError: The server, or a proxy before it, says that it is unavailable, or too busy.
        ServerAccessError: It refuses the credentials.
        RequestTooLargeError: It takes no request of that size.
        EngineProtocolError: What answers is not a Chroma server.
        chromadb.errors.ChromaError: The server says so.
    """
    if response.is_success:
        return _decode(response, url, what)
    status = response.status_code
    # Before Chroma's own words are looked for: a server under load has some, and is to be asked again all the same, and
    # those about credentials and sizes have no class.
    if status in (TOO_MANY_REQUESTS, *UNAVAILABLE):
        is_sent = status != TOO_MANY_REQUESTS
        raise UnansweredError(f"HTTP {status}", is_sent=is_sent, retry_after=_retry_after(response))
    if status in DENIED:
        raise ServerAccessError(
            f"{what} failed: {url} refuses the credentials (HTTP {status}): give ChromaDBManager valid ones as "
            f"api_key=... or headers=..."
        )
    if status == TOO_LARGE:
        raise RequestTooLargeError(
            f"{what} failed: the Chroma server at {url}, or a proxy before it, takes no request of "
            f"{len(request.content or b''):,} bytes (HTTP {status}). Nothing was written: send fewer records a call, "
            f"or raise the limit"
        )
    if not _is_of_chroma(response):
        raise EngineProtocolError(
            f"{what} failed: the Chroma server at {url}, or a proxy before it, answered with HTTP {status} and "
            f"{_kind(response)}, which is not an answer of Chroma's. Check host, port and ssl, and the log of the proxy"
        )
    BaseHTTPClient._raise_chroma_error(response)
    raise AssertionError("an answer without success raises")


def _decode(response: httpx.Response, url: str, what: str) -> Any:
    try:
        return orjson.loads(response.content)
    except ValueError as error:
        raise EngineProtocolError(
            f"{what} failed: {url} is not a Chroma server of version 1: it answered with HTTP {response.status_code} "
            f"and {_kind(response)}. Check host, port and ssl"
        ) from error


def _kind(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "no content type"))


def _is_of_chroma(response: httpx.Response) -> bool:
    """Whether an answer is an error that Chroma names."""
    try:
        content = orjson.loads(response.content)
    except ValueError:
        return False
    return isinstance(content, dict) and {"error", "message"} <= content.keys()


def _retry_after(response: httpx.Response) -> float:
    """How many seconds a server wants to be left alone."""
    text = response.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0
