"""The HTTP connections of this process to a Chroma server: bounded, kept alive, and used by all threads.

Also what is done about a server that does not answer: requests that may be repeated are, with growing, random pauses,
and the others raise errors that say what to do.
"""

from __future__ import annotations

import email.utils
import os
import ssl
import time
import weakref
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import tenacity
from chromadb.api.base_http_client import BaseHTTPClient

from chroma_manager.errors import CallTimeoutError, EngineProtocolError, ServerAccessError, ServerUnavailableError

if TYPE_CHECKING:
    from chroma_manager.engine.server.requests import Request
    from chroma_manager.server_options import ServerOptions

# The pause before the nth repetition is a random time up to `PAUSE * 2 ** n`, and no longer than the longest.
PAUSE, LONGEST_PAUSE = 0.1, 2.0

# A connection that was not used for so many seconds is closed: servers and proxies close theirs after a minute.
KEPT_ALIVE = 40.0

DENIED = (401, 403)
TOO_MANY_REQUESTS = 429
UNAVAILABLE = (502, 503, 504)


class _UnansweredError(Exception):
    """An attempt at a request has got no answer, or one that says that the server is unavailable."""

    def __init__(self, reason: str, *, is_sent: bool, is_slow: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.is_sent = is_sent
        self.is_slow = is_slow
        self.retry_after = retry_after

    def may_be_repeated(self, request: Request) -> bool:
        # A server that was too slow once would be kept busy twice.
        return not self.is_slow and (request.is_safe_to_repeat or not self.is_sent)


class Session:
    """Makes requests. Any thread may call it, and a forked child, which has connections of its own."""

    def __init__(self, options: ServerOptions, url: str, headers: Mapping[str, str], verify: bool | str = True) -> None:
        """Connects to nothing yet.

        Args:
            options: The limits.
            url: That of the API, without a slash at the end.
            headers: Sent with each request.
            verify: As in Chroma's setting ``chroma_server_ssl_verify``.
        """
        self.url = url
        self.headers = headers
        self._options = options
        self._verify = verify
        self._client: httpx.Client | None = None
        self._lock = Lock()
        _sessions.add(self)

    def send(self, request: Request, what: str, until: float | None = None) -> Any:
        """Makes a request, and repeats it where that is safe while the server is away.

        Args:
            request: The request.
            what: What it is done for, as messages have it.
            until: When to give up, by ``time.monotonic()``; ``None`` for no limit but those of the options.

        Returns:
            The answer, decoded.

        Raises:
            ServerUnavailableError: The server did not answer.
            ServerAccessError: It refuses the credentials.
            CallTimeoutError: The time was up.
            EngineProtocolError: What answers is not a Chroma server.
            chromadb.errors.ChromaError: The server says so.
        """
        began = time.monotonic()
        limit = self._options.retry_timeout
        is_bounded = until is not None and until - began < limit
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, _UnansweredError) and error.may_be_repeated(request)
            ),
            wait=_pause,
            stop=tenacity.stop_before_delay(max(until - began, 0.0) if until is not None and is_bounded else limit),
            reraise=True,
        )
        try:
            return attempts(self._attempt, request, until)
        except _UnansweredError as failure:
            took = time.monotonic() - began
            is_too_late = until is not None and time.monotonic() >= until
            if is_too_late or (is_bounded and failure.may_be_repeated(request)):
                raise CallTimeoutError(
                    f"{what} did not return within call_timeout; it may still take effect: {self.url}: {failure}"
                ) from failure.__cause__
            raise ServerUnavailableError(self._describe(request, what, failure, took)) from failure.__cause__

    def close(self) -> None:
        """Closes the connections. The next request makes new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def forget_inherited(self) -> None:
        """Leaves the connections to the parent, in a forked child."""
        self._lock = Lock()
        self._client = None

    def _attempt(self, request: Request, until: float | None) -> Any:
        try:
            response = self._exchange(request, until)
        except httpx.PoolTimeout as error:
            bound = self._options.max_connections
            reason = f"all {bound} connections were in use for too long; max_connections allows more"
            raise _UnansweredError(reason, is_sent=False, is_slow=True) from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _UnansweredError(_reason(error), is_sent=False) from error
        except httpx.TimeoutException as error:
            raise _UnansweredError("no answer in time", is_sent=True, is_slow=True) from error
        except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as error:
            raise _UnansweredError(_reason(error), is_sent=True) from error
        if response.is_success:
            return self._decode(response)
        if not _is_of_chroma(response):
            self._refuse(response)
        BaseHTTPClient._raise_chroma_error(response)
        raise AssertionError("an answer without success raises")

    def _exchange(self, request: Request, until: float | None) -> httpx.Response:
        left = None if until is None else max(until - time.monotonic(), 0.001)
        connect, read = (
            time_limit if left is None else min(time_limit, left)
            for time_limit in (self._options.connect_timeout, self._options.read_timeout)
        )
        timeout = httpx.Timeout(read, connect=connect)
        url = self.url + request.path
        with self._connected().stream(
            request.verb, url, content=request.content, params=request.params, timeout=timeout
        ) as response:
            # Each read has its limit; all of them together have that of the call.
            content = b"".join(_until(until, response.iter_bytes()))
        headers = [item for item in response.headers.items() if item[0] != "content-encoding"]
        return httpx.Response(response.status_code, headers=headers, content=content, request=response.request)

    def _connected(self) -> httpx.Client:
        client = self._client
        if client is None:
            with self._lock:
                client = self._client = self._client or self._new_client()
        return client

    def _new_client(self) -> httpx.Client:
        bound = self._options.max_connections
        limits = httpx.Limits(max_connections=bound, max_keepalive_connections=bound, keepalive_expiry=KEPT_ALIVE)
        verify: bool | str | ssl.SSLContext = self._verify
        if isinstance(verify, str):
            is_directory = os.path.isdir(verify)
            verify = ssl.create_default_context(
                cafile=None if is_directory else verify, capath=verify if is_directory else None
            )
        return httpx.Client(headers=dict(self.headers), limits=limits, verify=verify)

    def _decode(self, response: httpx.Response) -> Any:
        try:
            return orjson.loads(response.content)
        except ValueError as error:
            raise EngineProtocolError(self._not_chroma(response)) from error

    def _refuse(self, response: httpx.Response) -> None:
        """Raises for an answer without success that is not Chroma's own, but a proxy's, say."""
        status = response.status_code
        if status in (TOO_MANY_REQUESTS, *UNAVAILABLE):
            is_sent = status != TOO_MANY_REQUESTS
            raise _UnansweredError(f"HTTP {status}", is_sent=is_sent, retry_after=_retry_after(response))
        if status in DENIED:
            raise ServerAccessError(
                f"{self.url} refuses the credentials (HTTP {status}): give ChromaDBManager valid ones as api_key=... "
                f"or headers=..."
            )
        raise EngineProtocolError(self._not_chroma(response))

    def _not_chroma(self, response: httpx.Response) -> str:
        kind = response.headers.get("content-type", "no content type")
        return (
            f"{self.url} is not a Chroma server of version 1: it answered with HTTP {response.status_code} and {kind}. "
            f"Check host, port and ssl"
        )

    def _describe(self, request: Request, what: str, failure: _UnansweredError, took: float) -> str:
        effect = ""
        if failure.is_sent and request.verb != "GET":
            effect = "; whether it took effect is unknown"
        return (
            f"{what} failed: the Chroma server at {self.url} is unavailable: {failure} (after {took:.1f} s){effect}. "
            f"Start it, or check host and port; handles go on when it is back"
        )


def _pause(state: tenacity.RetryCallState) -> float:
    failure = state.outcome and state.outcome.exception()
    asked = failure.retry_after if isinstance(failure, _UnansweredError) else 0.0
    return asked + float(tenacity.wait_random_exponential(multiplier=PAUSE, max=LONGEST_PAUSE)(state))


def _until(until: float | None, parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        if until is not None and time.monotonic() > until:
            raise httpx.ReadTimeout("the time of the call is up")
        yield part


def _is_of_chroma(response: httpx.Response) -> bool:
    """Whether an answer is an error that Chroma names."""
    # A server under load says so in its own words, and is to be asked again all the same.
    if response.status_code in (TOO_MANY_REQUESTS, *UNAVAILABLE):
        return False
    try:
        return "error" in orjson.loads(response.content)
    except (TypeError, ValueError):
        return False


def _retry_after(response: httpx.Response) -> float:
    """How many seconds a server wants to be left alone."""
    text = response.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _forget_inherited() -> None:
    for session in _sessions:
        session.forget_inherited()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
