"""The exceptions of chroma_manager: one base class, and one class for each thing a caller may want to handle.

Chroma's own exceptions (``chromadb.errors``, ``ValueError``) pass through calls unchanged and are not here.
"""

from __future__ import annotations


class ChromaManagerError(Exception):
    """Base class of all exceptions that chroma_manager raises itself.

    Attributes:
        file_id: First half of the key of the database that the error is about; ``None`` where it is about none.
        embedding_type: Second half of that key, or ``None``.
        path: Directory of that database, or ``None``. With the engine ``server``, the server's URL and the key.
    """

    file_id: str | None = None
    embedding_type: str | None = None
    path: str | None = None


class InvalidKeyError(ChromaManagerError, ValueError):
    """A ``file_id`` or ``embedding_type`` cannot name a directory, or a database on a server. Nothing was touched."""


class ManagerConfigurationError(ChromaManagerError, ValueError):
    """An option is invalid, or differs from the one that the process's manager was constructed with."""


class ClientClosedError(ChromaManagerError):
    """The client was closed by cleanup, ``close()`` or ``shutdown()``; the message says what to call for a new one."""


class InstanceOpenError(ChromaManagerError):
    """A database could not be opened. ``__cause__`` is the reason, if it is an exception."""


class InstanceLockedError(InstanceOpenError):
    """Another process owns the database, or writes to it without owning it.

    Attributes:
        pid: Process id of the owner or writer; ``None`` where it is unknown.
    """

    pid: int | None = None

    def __init__(self, message: str, pid: int | None = None) -> None:
        """Takes a process id, which crosses to other processes as an argument; an attribute would not."""
        super().__init__(message, pid)
        self.pid = pid

    def __str__(self) -> str:
        """The message."""
        return str(self.args[0])


class InstanceNotFoundError(InstanceOpenError):
    """There is no database: it never existed, or it was removed, and an older handle does not create it again.

    ``get_client`` and ``get_collection`` create it, or do what the option ``on_missing`` says.
    """


class InstanceCorruptError(InstanceOpenError):
    """A database is damaged, and was damaged before it was opened here. The message says what can be saved.

    ``verify(..., repair=True)`` saves it; ``restore`` replaces the database by a snapshot.
    """


class ServerUnavailableError(InstanceOpenError, ConnectionError):
    """A Chroma server did not answer, or said that it is unavailable, for as long as the option ``retry_timeout``.

    Whether a write took effect may be unknown; the message says so. All handles stay usable: the next call asks again.
    """


class ServerAccessError(InstanceOpenError, PermissionError):
    """A Chroma server, or a proxy before it, refuses the credentials in ``api_key`` or ``headers``."""


class RequestTooLargeError(ChromaManagerError):
    """A Chroma server, or a proxy before it, takes no request of that size (HTTP 413). Nothing was written.

    The message says how large the request was. Fewer records a call make a smaller one.
    """


class SnapshotError(ChromaManagerError):
    """A snapshot cannot be written to that directory, or cannot be restored. The database is as it was."""


class MigrationError(ChromaManagerError):
    """An instance cannot be copied, or its copy differs from it (``chroma-manager migrate``). Nothing was removed."""


class CompactionError(ChromaManagerError):
    """A database cannot be compacted: for lack of space, say. It is as it was."""


class EngineCrashedError(ChromaManagerError):
    """The engine process of a database died in a call that cannot be retried, or twice in one that can.

    Whether the call took effect is unknown. All handles stay usable: the next call starts another engine process.
    """


class CallTimeoutError(ChromaManagerError, TimeoutError):
    """A call did not return within the option ``call_timeout``.

    A write that has not begun is dropped. A batch that has begun is completed first, so the next call sees all of it or
    nothing. All handles stay usable.
    """


class CallTooLargeError(ChromaManagerError, ValueError):
    """The arguments of a call exceed the largest message to an engine process (2 GiB). Nothing was sent."""


class EngineProtocolError(ChromaManagerError):
    """The peer is not an engine process of this version of the package, or its response was malformed.

    Whether the call took effect is unknown.
    """
