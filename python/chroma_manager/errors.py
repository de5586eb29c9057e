"""The exceptions of chroma_manager: one base class, and one class for each thing a caller may want to handle.

Chroma's own exceptions (``chromadb.errors``, ``ValueError``) pass through calls unchanged and are not here.
"""

from __future__ import annotations


class ChromaManagerError(Exception):
    """Base of all exceptions that chroma_manager raises itself.

    Attributes:
        file_id: First half of the key of the database that it is about; ``None`` where it is about none.
        embedding_type: Second half of the key, likewise.
        path: Directory of the database, likewise.
    """

    file_id: str | None = None
    embedding_type: str | None = None
    path: str | None = None


class InvalidKeyError(ChromaManagerError, ValueError):
    """A ``file_id`` or ``embedding_type`` cannot be the name of a directory. Nothing was touched."""


class ManagerConfigurationError(ChromaManagerError, ValueError):
    """An option is invalid, or differs from what the process's manager was constructed with."""


class ClientClosedError(ChromaManagerError):
    """The client, or what belongs to it, was closed explicitly; the message says what to call for a new one."""


class InstanceOpenError(ChromaManagerError):
    """A database could not be opened. ``__cause__`` is the reason, where there is an exception for it."""


class InstanceLockedError(InstanceOpenError):
    """Another process owns the database, or has it open without owning it and writes to it.

    Attributes:
        pid: Process id of the owner, or of the other one; ``None`` where it could not be read.
    """

    pid: int | None = None

    def __init__(self, message: str, pid: int | None = None) -> None:
        """With a process id that, other than an attribute, crosses to other processes."""
        super().__init__(message, pid)
        self.pid = pid

    def __str__(self) -> str:
        """The message."""
        return str(self.args[0])


class InstanceNotFoundError(InstanceOpenError):
    """There is no database: it was removed, and a handle from before does not bring it back; or there never was one.

    ``get_client`` and ``get_collection`` create it, or do what ``on_missing`` says.
    """


class InstanceCorruptError(InstanceOpenError):
    """A database is damaged, and was so before it was opened here. The message says what can be saved.

    ``verify(..., repair=True)`` does so; ``restore`` puts a snapshot in its place.
    """


class SnapshotError(ChromaManagerError):
    """A snapshot cannot be taken to that place, or cannot be restored. The database is as it was."""


class EngineCrashedError(ChromaManagerError):
    """The engine process of a database ended in the middle of a call that cannot be repeated, or twice in one that can.

    Whether the call took effect is not known. Every handle goes on: the next call starts another engine process.
    """


class CallTimeoutError(ChromaManagerError, TimeoutError):
    """A call did not return within the option ``call_timeout``.

    A write of which nothing was written yet is dropped; a batch that has begun is finished, and the next call waits for
    that: it sees all of it or nothing. Every handle goes on.
    """


class CallTooLargeError(ChromaManagerError, ValueError):
    """The arguments of a call are more than one message to an engine process can take (2 GiB). Nothing was sent."""


class EngineProtocolError(ChromaManagerError):
    """What answered is no engine process of this version of the package, or its answer was damaged.

    Whether the call took effect is not known.
    """
