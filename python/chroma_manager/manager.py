"""``ChromaDBManager``: the one manager of a process, and its collections.

Which thread holds which client, and what is open, is the native base class's (``src/manager.rs``).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, cast
from uuid import UUID

from chroma_manager._native import Manager
from chroma_manager.errors import ManagerConfigurationError
from chroma_manager.options import DEFAULT, Default, Options, Source
from chroma_manager.results import Snapshot, Verification

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from chromadb.api.collection_configuration import CreateCollectionConfiguration
    from chromadb.api.models.Collection import Collection
    from chromadb.api.types import DataLoader, EmbeddingFunction, Schema
    from chromadb.config import Settings
    from typing_extensions import Self

    from chroma_manager.options import OnMissing

_logger = logging.getLogger("chroma_manager")


class ChromaDBManager(Manager):
    """Gives every thread its own client of every database, and owns the databases under them.

    There is one in a process: constructing it again returns the same object. Options are taken at the first
    construction; a later one without options, or with the same, is how any part of an app gets at it.

    Args:
        base_path: Directory of all databases; that of an instance is ``base_path/file_id/embedding_type``. A relative
            one is taken from the working directory at the first construction. Default ``"./chroma_db"``.
        engine: What executes the clients' calls. ``"isolated"`` (default on Linux and macOS) runs Chroma's own engine
            in a process of its own for each database; ``"embedded"`` (all there is elsewhere) runs it in this process.
        settings: ``chromadb.config.Settings`` of all databases; where they are is not taken from it. With
            ``Settings(allow_reset=True)`` a client's ``reset()`` empties its database, for all threads and processes.
            Default: those that chromadb reads from the environment (``ALLOW_RESET=TRUE`` allows it as well).
        idle_timeout: Seconds after which a database that nobody uses is closed; its clients and collections go on, and
            open it again. ``None`` for never. Default 300.
        lock_timeout: Seconds to wait for another process to give up a database before ``InstanceLockedError``.
            Default 0.
        max_engines: How many databases this process has open at most. One more closes the one that was not used for the
            longest time (one without a call under way, or as soon as there is one); its clients and collections go on,
            and open it again. ``None`` for no bound. Default 128: with ``isolated`` each has a process of 12 MB.
        call_timeout: Seconds that a call to a database may take before ``CallTimeoutError``, with ``isolated``:
            finding or starting its engine process, and being retried, included. Of an opening by ``get_client`` it
            bounds how long an engine process that is there already may take to answer. ``None`` for no limit. Default
            ``None``.
        on_missing: What a database that is not there means to ``get_client``, ``get_instance`` and ``get_collection``.
            ``"create"`` (default): a new one. ``"error"``: ``InstanceNotFoundError``. Or a callable, which is called
            with ``file_id``, ``embedding_type`` and a new, empty directory (``pathlib.Path``), and puts there what is
            to be in the database's directory: ``chroma.sqlite3`` and the directories of the indexes. When it returns,
            that takes the place of the database as a whole. It is called once, while other threads of this process that
            ask for the database wait; what it raises is raised to who asked, and the next one tries again. It may as
            well call ``restore``, or build the database with ``get_collection(..., on_missing="create")``.
        python: Path of the interpreter on which engine processes run, and the processes in which a verification has
            Chroma read. It must be of this interpreter's version (3.11, say), and find what this app has of chromadb
            and chroma_manager, or have the same versions of them installed. For an app that has no interpreter beside
            itself: a frozen one, or a program that embeds Python. ``None`` (default) for the app's own: at
            ``sys.executable``, or below ``sys.prefix`` and ``sys.base_prefix``.
        repair: What is done about a damaged database when it is opened. ``"safe"`` (default): what can be rebuilt
            without losing anything is rebuilt, logged as a warning, and what it replaces is kept in
            ``.chroma_manager/damaged-*`` of the database; a collection that cannot be is refused
            (``InstanceCorruptError``), and the others work. ``"never"``: a database with any damage is refused.

    Raises:
        ManagerConfigurationError: An option is invalid, or not the one that the process's manager has. (One that the
            app has kept no reference to, nor to any of its clients and collections, is shut down instead.)

    Used as a context manager, it is shut down at the end of the block.
    """

    _options: Options

    def __new__(
        cls,
        base_path: str | os.PathLike[str] | Default = DEFAULT,
        *,
        engine: str | Default = DEFAULT,
        settings: Settings | Default | None = DEFAULT,
        idle_timeout: float | Default | None = DEFAULT,
        lock_timeout: float | Default = DEFAULT,
        max_engines: int | Default | None = DEFAULT,
        call_timeout: float | Default | None = DEFAULT,
        on_missing: OnMissing | Default = DEFAULT,
        python: str | os.PathLike[str] | Default | None = DEFAULT,
        repair: str | Default = DEFAULT,
    ) -> Self:
        """Returns the process's manager, made by the first call."""
        arguments = {
            "base_path": base_path,
            "engine": engine,
            "settings": settings,
            "idle_timeout": idle_timeout,
            "lock_timeout": lock_timeout,
            "max_engines": max_engines,
            "call_timeout": call_timeout,
            "on_missing": on_missing,
            "python": python,
            "repair": repair,
        }
        given = {name: value for name, value in arguments.items() if value is not DEFAULT}
        options = Options.of(given)
        with _process.construction:
            problem = _process.problem_with(cls, given)
            if problem and not _process.end_forgotten_manager():
                raise ManagerConfigurationError(problem)
            if _process.manager is not None:
                return cast("Self", _process.manager)
            options = replace(options, python=options.python and os.path.abspath(options.python))
            native = vars(options) | {"source": Source(options.settings, options.repair)}
            manager = super().__new__(cls, **{key: native[key] for key in native.keys() - {"settings", "repair"}})
            # Kept absolute, because a worker that the manager is pickled to may run elsewhere.
            manager._options = replace(options, base_path=os.path.abspath(options.base_path))
            _process.manager = manager
            return manager

    def __init__(self, *_: object, **__: object) -> None:
        """Does nothing: the options are taken where the object is made. A subclass may call it with its arguments."""

    def get_collection(
        self,
        file_id: str,
        embedding_type: str,
        collection_name: str,
        embedding_function: EmbeddingFunction[Any] | str | int | UUID | None = None,
        is_embedding: bool = False,
        *,
        user_id: str | int | UUID | None = None,
        metadata: Mapping[str, Any] | None = None,
        configuration: CreateCollectionConfiguration | None = None,
        schema: Schema | None = None,
        data_loader: DataLoader[Any] | None = None,
        on_missing: OnMissing | None = None,
    ) -> Collection:
        """Gets or creates a collection with this thread's client.

        A new collection gets ``file_id`` and ``embedding_type`` as metadata, beside what is given; the metadata of one
        that exists is left as it is.

        Args:
            file_id: First half of the instance's key.
            embedding_type: Second half of the instance's key.
            collection_name: 3 to 512 characters of ``[a-zA-Z0-9._-]``, the first and the last a letter or a digit.
            embedding_function: What turns documents into vectors. ``None``: Chroma's own default rules. A user id here
                is taken as ``user_id``.
            is_embedding: See ``get_instance``.
            user_id: See ``get_instance``.
            metadata: For a new collection.
            configuration: For a new collection, as in chromadb's ``get_or_create_collection``.
            schema: For a new collection, likewise.
            data_loader: For documents behind URIs, likewise.
            on_missing: What it means if the database is not there, as the manager's option. ``None``: what that says.
                In a database that is there, a missing collection is created whatever this is.

        Raises:
            InvalidKeyError: As from ``get_client``, and so are its other errors.
            InstanceNotFoundError: The database is not there, and ``on_missing`` does not create it.
            TypeError: ``user_id`` was given twice, or what was given is neither a user id nor an embedding function.
            ValueError: Chroma refuses the name, or the embedding function is not the collection's.
        """
        if embedding_function is not None and not callable(embedding_function):
            if isinstance(embedding_function, bool) or not isinstance(embedding_function, (str, SupportsIndex, UUID)):
                raise TypeError(
                    f"get_collection() for {file_id}/{embedding_type} got {embedding_function!r} in the place of "
                    f"embedding_function, which is neither an embedding function nor a user id (str, int or uuid.UUID)"
                )
            if user_id is not None:
                raise TypeError(
                    f"get_collection() for {file_id}/{embedding_type} got two user ids: user_id={user_id!r} and, in "
                    f"the place of embedding_function, {embedding_function!r}"
                )
            embedding_function, user_id = None, embedding_function
        client = self.get_instance(file_id, embedding_type, user_id, is_embedding, on_missing=on_missing)
        optional: dict[str, Any] = {
            "embedding_function": embedding_function,
            "configuration": configuration,
            "schema": schema,
            "data_loader": data_loader,
        }
        return client.get_or_create_collection(
            collection_name,
            metadata={"file_id": file_id, "embedding_type": embedding_type, **(metadata or {})},
            **{name: value for name, value in optional.items() if value is not None},
        )

    def delete_file(self, file_id: str) -> int:
        """Removes all databases of a file, and its directory if nothing else is in it.

        Args:
            file_id: First half of the keys.

        Returns:
            How many databases there were.

        Raises:
            InvalidKeyError: It cannot be the name of a directory.
            InstanceLockedError: As from ``delete_instance``, and so are its other errors. What was removed before stays
                removed.
        """
        directory = Path(self._get_db_path(file_id, "embedding_type")).parent
        try:
            names = sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
        except FileNotFoundError:
            return 0
        return sum(self.delete_instance(file_id, name) for name in names)

    def snapshot(self, file_id: str, embedding_type: str, destination: str | os.PathLike[str]) -> Snapshot:
        """Takes a consistent copy of a database while others use it.

        It is a directory with Chroma's own files, which any Chroma can open, and a manifest with their checksums. Calls
        of others wait while the files are copied, not while the checksums are computed.

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.
            destination: A directory that does not exist, or is empty; the ones above it are created. It appears when
                the snapshot is complete.

        Raises:
            SnapshotError: It exists, or cannot be written. Nothing is left of the attempt.
            InstanceNotFoundError: There is no such database.
            InstanceCorruptError: It is damaged.
        """
        path = os.path.abspath(os.fspath(destination))
        return Snapshot.of(path, self._manage(file_id, embedding_type, "snapshot", (path,), False))

    def restore(self, file_id: str, embedding_type: str, source: str | os.PathLike[str]) -> None:
        """Puts a snapshot in the place of a database, or of a damaged one, or of none.

        All of it or nothing: a kill in the middle leaves the database as it was, or restored. Calls under way finish
        first; handles go on, in all threads and processes, and see the restored database.

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.
            source: The directory that ``snapshot`` has made. Every file is compared with its checksum.

        Raises:
            SnapshotError: It is no snapshot, or it is damaged, or a newer Chroma has made it. The database is as it
                was.
        """
        path = os.path.abspath(os.fspath(source))
        from chroma_manager.engine.settings import refuse_newer_snapshot  # noqa: PLC0415 - imports chromadb

        refuse_newer_snapshot(Path(path))
        self._manage(file_id, embedding_type, "restore", (path,), True)

    def verify(self, file_id: str, embedding_type: str, *, repair: bool = False) -> Verification:
        """Looks whether a database is sound, and rebuilds it if asked to.

        It is where SQLite finds its file intact, every record has its vector and every vector its record, and Chroma
        can read them all. Calls of others wait meanwhile.

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.
            repair: Rebuild what is damaged from the log, the index and its checkpoint. Records whose vector is nowhere
                to be found are written to a file of JSON lines (``set_aside``), then removed from their collection.
                What is replaced is kept in the directory ``.chroma_manager`` of the database. Default ``False``.

        Raises:
            InstanceNotFoundError: There is no such database.
        """
        return Verification.of(self._manage(file_id, embedding_type, "verify", (repair,), False))

    def shutdown(self) -> None:
        """Cleans up all instances; the next construction makes a new manager, with options of its own.

        Calls under way finish first. This object, and every client it gave, raises ``ClientClosedError`` from then on.
        Calling it again does nothing.
        """
        # In hand until all is closed: a new manager must not meet the locks of the old one.
        with _process.construction:
            self._shut_down()
            if _process.manager is self:
                _process.manager = None

    def __enter__(self) -> Self:
        """Returns the manager itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shuts it down."""
        self.shutdown()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles to the manager of the process that it arrives in, with these options."""
        return _construct, (type(self), vars(self._options))

    def __repr__(self) -> str:
        """Names what tells one manager from another."""
        return f"{type(self).__name__}(base_path={self._options.base_path!r}, engine={self._options.engine!r})"


@dataclass
class _Process:
    """The manager of this process, and the lock under which it is made and shut down."""

    manager: ChromaDBManager | None = None
    # Reentrant: a signal handler may construct the manager, or shut it down, while its own thread is doing so.
    construction: threading.RLock = field(default_factory=threading.RLock)

    def renew_lock(self) -> None:
        self.construction = threading.RLock()

    def problem_with(self, cls: type[Any], given: Mapping[str, Any]) -> str | None:
        """Why the manager that there is is not what is asked for; ``None`` where it is, or there is none."""
        if self.manager is None:
            return None
        if not isinstance(self.manager, cls):
            return (
                f"this process has a {type(self.manager).__name__} already, which is no {cls.__name__}. Construct the "
                f"subclass first, or call shutdown() on the other"
            )
        differences = self.manager._options.differences(given)
        if not differences:
            return None
        return (
            f"this process has a manager already, constructed with other options: {', '.join(differences)}. Construct "
            f"it without options to get it, or call its shutdown() first"
        )

    def end_forgotten_manager(self) -> bool:
        """Shuts down a manager that the app has no reference to, nor to any client of it; tells whether it is so."""
        # Two references: the attribute, and the argument of this very call.
        if self.manager is None or sys.getrefcount(self.manager) > 2 or not self.manager._let_go_of_clients():
            return False
        _logger.info("%r, which nobody refers to, is shut down for one with other options", self.manager)
        self.manager.shutdown()
        return True


_process = _Process()

if hasattr(os, "register_at_fork"):
    # The thread that held the lock at the fork does not exist in the child.
    os.register_at_fork(after_in_child=_process.renew_lock)


def _construct(cls: type[ChromaDBManager], options: Mapping[str, Any]) -> ChromaDBManager:
    return cls(**options)
