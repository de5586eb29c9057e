"""Safe, fast, isolated access to Chroma databases from the threads of one application.

>>> from chroma_manager import ChromaDBManager
>>> manager = ChromaDBManager(base_path="./chroma_db")
>>> collection = manager.get_collection("doc123", "azure", "rag_collection_doc123_azure")

Importing this does not import chromadb (which takes a second); making the manager does, so that no request has to.
"""

import warnings

from chroma_manager import _native
from chroma_manager.errors import (
    CallTimeoutError,
    CallTooLargeError,
    ChromaManagerError,
    ClientClosedError,
    CompactionError,
    EngineCrashedError,
    EngineProtocolError,
    InstanceCorruptError,
    InstanceLockedError,
    InstanceNotFoundError,
    InstanceOpenError,
    InvalidKeyError,
    ManagerConfigurationError,
    MigrationError,
    RequestTooLargeError,
    ServerAccessError,
    ServerUnavailableError,
    SnapshotError,
)
from chroma_manager.manager import ChromaDBManager

__all__ = [
    "CallTimeoutError",
    "CallTooLargeError",
    "ChromaDBManager",
    "ChromaManagerError",
    "ClientClosedError",
    "CompactionError",
    "EngineCrashedError",
    "EngineProtocolError",
    "InstanceCorruptError",
    "InstanceLockedError",
    "InstanceNotFoundError",
    "InstanceOpenError",
    "InvalidKeyError",
    "ManagerConfigurationError",
    "MigrationError",
    "RequestTooLargeError",
    "ServerAccessError",
    "ServerUnavailableError",
    "SnapshotError",
    "__version__",
]

__version__ = _native.__version__

_native.install()

if _native.DEBUG_BUILD:
    warnings.warn(
        "chroma_manager is a debug build: do not measure it (maturin develop --release)", RuntimeWarning, stacklevel=2
    )
