"""The HTTP connections of this process to a Chroma server: bounded, kept alive, and used by all threads.

Also what is done about a server that does not answer: requests that may be repeated are, with growing, random pauses,
and the others raise errors that say what to do.
"""

from __future__ import annotations

import os
import ssl
import time
import weakref
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

import httpx
import tenacity

from chroma_manager.engine.server import answers
from chroma_manager.engine.server.answers import UnansweredError
from chroma_manager.errors import CallTimeoutError, EngineProtocolError, ServerUnavailableError

if TYPE_CHECKING:
    from chroma_manager.engine.server.requests import Request
    from chroma_manager.server_options import ServerOptions

# The pause before the nth repetition is a random time up to `PAUSE * 2 ** n`, and no longer than the longest.
PAUSE, LONGEST_PAUSE = 0.1, 2.0

# A connection that was not used for so many seconds is closed: servers and proxies close theirs after a minute.
KEPT_ALIVE = 40.0


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
            CallTimeoutError: The time was up.
            ServerAccessError: As from ``answers.read``, whose other errors it raises as well.
        """
        began = time.monotonic()
        limit = self._options.retry_timeout
        is_bounded = until is not None and until - began < limit
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, UnansweredError) and error.may_be_repeated(request)
            ),
            wait=_pause,
            stop=tenacity.stop_before_delay(max(until - began, 0.0) if until is not None and is_bounded else limit),
            reraise=True,
        )
        try:
            return attempts(self._attempt, request, what, until)
        except UnansweredError as failure:
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

    def _attempt(self, request: Request, what: str, until: float | None) -> Any:
        try:
            response = self._exchange(request, until)
        except httpx.PoolTimeout as error:
            bound = self._options.max_connections
            reason = f"all {bound} connections were in use for too long; max_connections allows more"
            raise UnansweredError(reason, is_sent=False, is_slow=True) from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UnansweredError(_reason(error), is_sent=False) from error
        except httpx.TimeoutException as error:
            raise UnansweredError("no answer in time", is_sent=True, is_slow=True) from error
        except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as error:
            raise UnansweredError(_reason(error), is_sent=True) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # Not its words, which may have a header in them.
            raise EngineProtocolError(
                f"{what} failed: what is at {self.url} does not answer as a Chroma server, or cannot be asked "
                f"({type(error).__name__}). Check host, port and ssl"
            ) from None
        return answers.read(response, request, self.url, what)

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

    def _describe(self, request: Request, what: str, failure: UnansweredError, took: float) -> str:
        return (
            f"{what} failed: the Chroma server at {self.url} is unavailable: {failure} (after {took:.1f} s)"
            f"{failure.effect(request)}. Start it, or check host and port; handles go on when it is back"
        )


def _pause(state: tenacity.RetryCallState) -> float:
    failure = state.outcome and state.outcome.exception()
    asked = failure.retry_after if isinstance(failure, UnansweredError) else 0.0
    return asked + float(tenacity.wait_random_exponential(multiplier=PAUSE, max=LONGEST_PAUSE)(state))


def _until(until: float | None, parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        if until is not None and time.monotonic() > until:
            raise httpx.ReadTimeout("the time of the call is up")
        yield part


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _forget_inherited() -> None:
    for session in _sessions:
        session.forget_inherited()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
