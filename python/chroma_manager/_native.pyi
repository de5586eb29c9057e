"""The Rust half of chroma_manager."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, final
from uuid import UUID

from chromadb.api.client import Client
from chromadb_rust_bindings import SqliteDBConfig
from typing_extensions import Self, disjoint_base

from chroma_manager.engine.server.server import ChromaServer
from chroma_manager.options import OnMissing, Source
from chroma_manager.results import Stats
from chroma_manager.storage.hnsw_graph import Layout
from chroma_manager.worker.database import Database

__all__ = [
    "DEBUG_BUILD",
    "Bindings",
    "Catalogue",
    "Connection",
    "IndexFile",
    "Manager",
    "Method",
    "__version__",
    "chroma_methods",
    "close_inherited",
    "decode_call",
    "install",
    "is_same_vector",
    "serve",
]

__version__: str
DEBUG_BUILD: bool

def install() -> None:
    """Sets up logging, and the hooks at fork and exit. For an app, once."""

def is_same_vector(stored: bytes, length: float | None, written: bytes) -> bool:
    """Whether a stored vector is the written one (both f32, little-endian); see ``durability.proof``.

    Args:
        stored: As an index has it.
        length: What it was divided by; ``None`` where by nothing, and the vectors are compared bit by bit.
        written: As the log has it.
    """

@final
class IndexFile:
    """One of the files of a vector index, mapped into memory, for what looks at each of its elements.

    What the files hold is in ``storage/hnsw_files.py``. Nobody may write the file meanwhile.
    """

    def __new__(cls, path: Path | None = None) -> Self:
        """Maps a file.

        Args:
            path: The file. Without one it is as if it were empty.

        Raises:
            OSError: It cannot be opened or mapped.
        """

    def __len__(self) -> int: ...
    def part(self, start: int, length: int) -> bytes:
        """As many bytes from `start` on; fewer where the file ends before."""

    def check_links(self, layout: Layout) -> None:
        """Checks the links of the lowest level, in ``data_level0.bin``.

        Raises:
            ValueError: One leads to an element that is not there.
        """

    def check_levels(self, layout: Layout) -> None:
        """Checks the links of the higher levels, in ``link_lists.bin``.

        Raises:
            ValueError: One leads to an element that is not on that level, or the file is not as long as it says.
        """

    def unreached(self, layout: Layout) -> list[int]:
        """The elements of ``data_level0.bin`` to which no path of links of the lowest level leads from the entry point.

        A search does not find them, unless the links of a higher level lead it there.

        Raises:
            ValueError: A link leads to an element that is not there.
        """

    def elements(self, labels: dict[str, int], layout: Layout) -> tuple[dict[str, int], int, int]:
        """What ``data_level0.bin`` has of some records.

        Args:
            labels: The label of each record.
            layout: The layout of the file.

        Returns:
            The element of each record whose label is there; how many of these are marked as deleted; and how many
            elements belong to no record, and are not marked.
        """

    def differing(self, other: IndexFile, starts: list[tuple[int, int]], length: int) -> list[int]:
        """Which parts of this file differ from those of another one, or are not in both.

        Args:
            other: The other file.
            starts: Where each part begins, in this file and in the other.
            length: How many bytes a part has.

        Returns:
            The places of those parts in `starts`.
        """

def chroma_methods() -> list[tuple[str, str | None, list[tuple[str, str | None, bool]], bool, bool, bool]]:
    """The table of the methods of ``chromadb_rust_bindings.Bindings`` by which calls are repeated and sliced.

    Returns:
        Of each method its name, the first chromadb that has it (``None``: the lowest that is supported), its
        parameters, whether it writes, whether Chroma releases the interpreter in it, and whether it may change the
        catalogue. Of each parameter its name, the first chromadb that has it, and whether leaving it out is the same as
        ``None``.
    """

def decode_call(call: bytes) -> tuple[str, tuple[Any, ...]]:
    """The method and the arguments of a call in a journal; see ``durability.interrupted_batch``."""

def close_inherited() -> None:
    """Closes every descriptor of this process but the first three; see ``worker.engine_process``."""

def serve(
    inherited: tuple[int, int, str, str | None],
    directory: str,
    linger: float,
    database: Database,
    signals: list[int],
) -> None:
    """Serves a database in an engine process; see ``worker.engine_process``."""

@disjoint_base
class Manager:
    """The base class of ``ChromaDBManager``. Construct that instead."""

    def __new__(
        cls,
        base_path: str,
        engine: str,
        source: Source | ChromaServer,
        idle_timeout: float | None,
        lock_timeout: float,
        max_engines: int | None,
        call_timeout: float | None,
        on_missing: OnMissing,
        python: str | None,
        max_memory: int | None,
        restore: Callable[[str, str, Path], bool] | None,
    ) -> Self: ...
    def get_client(self, file_id: str, embedding_type: str, *, on_missing: OnMissing | None = None) -> Client:
        """This thread's own client of an instance, which is opened, and created, if needed.

        Every call in one thread returns the same object, and each thread has another one. After the client was closed,
        or closed by cleanup, there is a new one. The client is released when its thread ends; the database stays open
        for the next thread.

        Args:
            file_id: First half of the key: a name of 1 to 255 bytes, not a path.
            embedding_type: Second half of the key, likewise.
            on_missing: What to do about a missing database, as the manager's option; ``None`` for that option.

        Raises:
            InvalidKeyError: A half of the key cannot be the name of a directory.
            InstanceNotFoundError: The database is missing, and ``on_missing`` does not create it.
            InstanceLockedError: Another process owns the database, and still did after ``lock_timeout``.
            InstanceOpenError: It cannot be opened; ``__cause__`` says why.
            ClientClosedError: The manager was shut down.
        """

    def get_instance(
        self,
        file_id: str,
        embedding_type: str,
        user_id: str | int | UUID | None = None,
        is_embedding: bool = False,
        *,
        on_missing: OnMissing | None = None,
    ) -> Client:
        """As ``get_client``; with a ``user_id``, the client of that user's session in this thread.

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.
            user_id: The user of the session: a text, or a number or UUID, which stands for its text (``7`` for
                ``"7"``). ``None`` or ``""`` for the thread's own client.
            is_embedding: Ignore ``user_id``: an embedding job is in no session.
            on_missing: See ``get_client``.

        Raises:
            TypeError: ``user_id`` is of another type.
        """

    def cleanup_instance(self, file_id: str, embedding_type: str) -> None:
        """Releases an instance in all threads and closes its database.

        Calls in flight finish first; later calls on old handles raise ``ClientClosedError``. Afterwards the directory
        can be deleted, replaced, or opened by another process. Does nothing where the instance is not open.
        """

    def cleanup_all_instances(self) -> None:
        """``cleanup_instance`` for every instance. From any thread, also as a shutdown handler, any number of times."""

    def cleanup(self) -> None:
        """The same as ``cleanup_all_instances``."""

    def delete_instance(self, file_id: str, embedding_type: str) -> bool:
        """Removes a database with its directory, and the file's directory if nothing else is in it.

        The database is closed in all threads, as by ``cleanup_instance``, and in all other processes that share its
        engine process: calls in flight finish first, later ones on old handles raise ``ClientClosedError`` here and
        ``InstanceNotFoundError`` there.

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.

        Returns:
            Whether there was a database.

        Raises:
            InvalidKeyError: A half of the key cannot be the name of a directory.
            InstanceLockedError: Another process owns it with ``embedded``, and still did after ``lock_timeout``.
            OSError: It cannot be removed.
        """

    def cleanup_old_instances(self, max_idle: float = 300.0) -> int:
        """Closes the databases that were not used for ``max_idle`` seconds; returns how many.

        Their handles stay usable, and reopen them.
        """

    def stats(self) -> Stats:
        """As ``ChromaDBManager.stats``, without what a compaction would give back."""

    def _clear_thread_local_clients(self) -> None:
        """Forgets the calling thread's clients; its next ``get_client`` makes new ones. No database is closed."""

    def _get_instance_key(self, file_id: str, embedding_type: str) -> str:
        """``file_id/embedding_type``."""

    def _get_db_path(self, file_id: str, embedding_type: str) -> str:
        """``base_path/file_id/embedding_type``."""

    def _let_go_of_clients(self) -> bool:
        """Forgets the clients of all threads; whether the app has no reference to any of them or their collections."""

    def _snapshot(self, file_id: str, embedding_type: str, destination: str) -> Any:
        """Has the owner of a database copy it; returns the manifest."""

    def _restore(self, file_id: str, embedding_type: str, source: str, copy: Callable[[str], None]) -> Any:
        """Has the owner of a database put a snapshot in its place.

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.
            source: The directory of the snapshot.
            copy: Copies it into a directory, for a database that does not exist.
        """

    def _verify(self, file_id: str, embedding_type: str, repair: bool) -> Any:
        """Has the owner of a database examine it; returns the report."""

    def _compact(self, file_id: str, embedding_type: str) -> Any:
        """Has the owner of a database compact it; returns the report."""

    def _shut_down(self) -> None: ...

@final
class Bindings:
    """A database in an engine process, as a replacement of ``chromadb_rust_bindings.Bindings``.

    It has the same methods, and closes the database when the last reference to it is gone. Chroma's own test suite
    runs over it (``make chroma-suite``).

    Args:
        allow_reset: Whether ``reset()`` may be called.
        sqlite_db_config: Assumed to be Chroma's default, because it cannot be read.
        hnsw_cache_size: How many vector indexes Chroma keeps in memory.
        persist_path: Directory of the database; ``None`` for one in memory, which is lost with its process.

    Raises:
        InstanceLockedError: Another process owns the database with ``embedded``.
        chromadb.errors.ChromaError: As from Chroma's own; its methods raise it, too.
    """

    def __new__(
        cls, allow_reset: bool, sqlite_db_config: SqliteDBConfig, hnsw_cache_size: int, persist_path: str | None = None
    ) -> Self: ...
    def close(self) -> None:
        """Closes the database; calls raise ``ClientClosedError`` from then on. Calling it again does nothing."""

    def __getattr__(self, name: str) -> Method: ...

@final
class Connection:
    """What a client's calls go through, as a replacement of ``chromadb_rust_bindings.Bindings``."""

    def __getattr__(self, name: str) -> Method: ...
    def catalogue(self) -> Catalogue | None:
        """The catalogue as it is now; ``None`` where the database is not open, or it cannot be told when it changes."""

    def is_current(self, catalogue: Catalogue) -> bool:
        """Whether nothing in the catalogue has changed since, by any process, and its database is still the one open.

        Takes some microseconds: the engine process, which counts the changes, is not asked. Where it has died, or the
        database was closed, removed or replaced, this is false.
        """

    def close(self, client: Client) -> None:
        """Closes the connection of a client, and has its thread forget the client."""

@final
class Catalogue:
    """The catalogue of a database as it was at one moment: its collections, and what is known of each."""

@final
class Method:
    """A method of a connection."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
