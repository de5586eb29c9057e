"""What is measured: six ways to a database, each with Chroma's own calls.

    chromadb   chromadb.PersistentClient in each thread
    guide      the manager of the guide in plain Python: a lock around PersistentClient, and a cache for each thread
    server     chromadb.HttpClient to `chroma run`, with a database of the server for each file
    lancedb    LanceDB, where it has the same call; without an index, so its answers are exact
    embedded   this manager, with Chroma in the app's own process
    isolated   this manager, with a process of its own for each database

What is done with them is in the modules of the scenarios (see `scenario.py`).
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from chroma_server import ChromaServer
from lance_collection import LanceClient

EMBEDDING_TYPE = "azure"
COLLECTION = "rag_collection"


class Contender(ABC):
    """A way to the databases below a directory."""

    name: ClassVar[str]
    # Contenders of one format read each other's files.
    storage: ClassVar[str] = "chroma"
    # Whether the app asks it for a client or a collection again and again, instead of keeping what it got.
    manages: ClassVar[bool] = False
    # Records of 1,536 dimensions that one call takes; what has more is several calls.
    largest_call: ClassVar[int] = 5000

    def __init__(self, base: Path) -> None:
        self.base = base
        # How many databases a manager of ours may have open, if that is not its default.
        self.max_engines: int | None = None

    @abstractmethod
    def client(self, file_id: str) -> Any:
        """Returns this thread's client of a database."""

    def collection(self, file_id: str) -> Any:
        """Returns this thread's handle of the collection that every scenario uses."""
        return self.collection_of(self.client(file_id))

    def collection_of(self, client: Any) -> Any:
        """Returns the same collection, from a client that the caller has kept."""
        return client.get_or_create_collection(COLLECTION, embedding_function=None)

    def directory(self, file_id: str) -> Path:
        """Returns where a database is."""
        return self.base / file_id / EMBEDDING_TYPE

    def close(self) -> None:
        """Ends what outlives the process otherwise; here, nothing does."""
        return

    # What an app asks a manager for (the demo does).

    def get_client(self, file_id: str, _: str) -> Any:
        return self.client(file_id)

    def get_collection(self, file_id: str, _: str, name: str, metadata: dict[str, Any] | None = None) -> Any:
        return self.client(file_id).get_or_create_collection(name, metadata=metadata, embedding_function=None)


class Stock(Contender):
    name = "chromadb"

    def client(self, file_id: str) -> Any:
        import chromadb

        return chromadb.PersistentClient(str(self.directory(file_id)))


class Guide(Contender):
    """As the guide has it, word for word where it shows code."""

    name = "guide"
    manages = True

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self._thread_local_data = threading.local()
        self._creation_lock = threading.Lock()

    def client(self, file_id: str) -> Any:
        return self.get_client(file_id, EMBEDDING_TYPE)

    def get_client(self, file_id: str, embedding_type: str) -> Any:
        import chromadb

        instance_key = f"{file_id}_{embedding_type}"
        if not hasattr(self._thread_local_data, "clients"):
            self._thread_local_data.clients = {}
        if instance_key not in self._thread_local_data.clients:
            with self._creation_lock:
                if instance_key not in self._thread_local_data.clients:
                    db_path = os.path.join(self.base, file_id, embedding_type)
                    os.makedirs(db_path, exist_ok=True)
                    client = chromadb.PersistentClient(path=db_path)
                    self._thread_local_data.clients[instance_key] = client
        return self._thread_local_data.clients[instance_key]


class Server(Contender):
    name = "server"
    storage = "server"
    largest_call = 2500  # to more of them it says "Payload too large"

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self._server = ChromaServer(base / "server")

    def client(self, file_id: str) -> Any:
        return self._server.client(f"{file_id}-{EMBEDDING_TYPE}")

    def close(self) -> None:
        self._server.end()


class Lance(Contender):
    name = "lancedb"
    storage = "lancedb"

    def client(self, file_id: str) -> Any:
        return LanceClient(self.directory(file_id))


class Managed(Contender):
    """This manager."""

    manages = True

    def client(self, file_id: str) -> Any:
        return self.manager.get_client(file_id, EMBEDDING_TYPE)

    def collection(self, file_id: str) -> Any:
        return self.manager.get_collection(file_id, EMBEDDING_TYPE, COLLECTION)

    def get_collection(self, file_id: str, _: str, name: str, metadata: dict[str, Any] | None = None) -> Any:
        return self.manager.get_collection(file_id, EMBEDDING_TYPE, name, metadata=metadata)

    def close(self) -> None:
        self.manager.shutdown()

    @cached_property
    def manager(self) -> Any:
        """The manager, made when it is first needed."""
        from chroma_manager import ChromaDBManager

        limit = {} if self.max_engines is None else {"max_engines": self.max_engines}
        return ChromaDBManager(base_path=self.base, engine=self.name, **limit)


class Embedded(Managed):
    name = "embedded"


class Isolated(Managed):
    name = "isolated"


CONTENDERS: Sequence[type[Contender]] = (Stock, Guide, Server, Lance, Embedded, Isolated)
NAMES = tuple(contender.name for contender in CONTENDERS)


def named(name: str) -> type[Contender]:
    """Returns the contender of that name."""
    return next(contender for contender in CONTENDERS if contender.name == name)
