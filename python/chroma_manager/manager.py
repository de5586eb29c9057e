"""``ChromaDBManager``, of which a process has one: its options, its collections, and the care of databases.

The native base class (``src/manager.rs``) knows which thread holds which client, and what is open. The file is long
because its docstrings are the reference of the public API.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, cast
from uuid import UUID

from chroma_manager._native import Manager
from chroma_manager.bucket.addresses import address_of, is_url
from chroma_manager.errors import InvalidKeyError, ManagerConfigurationError, SnapshotError
from chroma_manager.options import DEFAULT, SERVER, Default, Options
from chroma_manager.results import Compaction, Pruned, Snapshot, Stats, Verification
from chroma_manager.storage.reclaimable import at_checkpoint
from chroma_manager.storage.temporary import remove_abandoned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta
    from types import TracebackType

    from chromadb.api.collection_configuration import CreateCollectionConfiguration
    from chromadb.api.models.Collection import Collection
    from chromadb.api.types import DataLoader, EmbeddingFunction, Schema
    from chromadb.config import Settings
    from typing_extensions import Self

    from chroma_manager.bucket.repository import Repository
    from chroma_manager.client import ManagedClient
    from chroma_manager.engine.server.server import ChromaServer
    from chroma_manager.options import OnMissing

_logger = logging.getLogger("chroma_manager")


class ChromaDBManager(Manager):
    """Gives every thread its own client of every database, and owns the databases under them.

    A process has one manager: constructing it again returns the same object. Options count at the first construction.
    Any part of an app gets the manager by constructing it without options, or with the same ones.

    Args:
        base_path: Directory of all databases; that of an instance is ``base_path/file_id/embedding_type``. A relative
            path starts at the working directory of the first construction. Default ``"./chroma_db"``.
        engine: What executes the clients' calls. ``"isolated"`` (default on Linux and macOS) runs Chroma's own engine
            in a process of its own for each database; ``"embedded"`` (default elsewhere) runs it in this process;
            ``"server"`` has a Chroma server execute them, where each instance is a database of its own. ``base_path``
            is not used then.
        settings: ``chromadb.config.Settings`` of all databases; their path or server is not used. With
            ``Settings(allow_reset=True)`` a client's ``reset()`` empties its database, for all threads and processes.
            Default: what chromadb reads from the environment, where ``ALLOW_RESET=TRUE`` allows it as well.
        idle_timeout: Seconds after which an unused database is closed. Its clients and collections stay usable, and
            reopen it. ``None`` for never. Default 300.
        lock_timeout: Seconds to wait for another process to release a database before ``InstanceLockedError``.
            Default 0.
        max_engines: How many databases this process has open at most. To open one more, the least recently used one
            without a call in flight is closed, as soon as there is one. Its clients and collections stay usable, and
            reopen it. ``None`` for no bound. Default 128, as with ``isolated`` each has a process of 12 MB; with
            ``server`` no bound.
        call_timeout: Seconds that a call to a database may take before ``CallTimeoutError``, with ``isolated`` and
            ``server``: finding or starting its engine process, and being retried, included. Of an opening by
            ``get_client`` it bounds how long a server, or an engine process that is there already, may take to answer.
            ``None`` for no limit. Default ``None``.
        on_missing: What ``get_client``, ``get_instance`` and ``get_collection`` do about a missing database.
            ``"create"`` (default): create it. ``"error"``: raise ``InstanceNotFoundError``. Or a callable, which is
            called with ``file_id``, ``embedding_type`` and a new, empty directory (``pathlib.Path``), and writes there
            the files of the database: ``chroma.sqlite3`` and the directories of the indexes. When it returns, they
            become the database as a whole. It is called once, while other threads of this process that ask for the
            database wait. An exception is raised to the caller, and the next call tries again. Instead it may call
            ``restore``, or build the database with ``get_collection(..., on_missing="create")``. With ``server`` there
            is no directory, and a callable is refused.
        python: Path of the interpreter that runs engine processes, and the processes in which Chroma reads for a
            verification and builds for a compaction. It must be of this interpreter's version (3.11, say), and be able
            to import the app's chromadb and chroma_manager, or have the same versions installed. For an app without an
            interpreter of its own: a frozen one, or a program that embeds Python. ``None`` (default) for the app's
            own: at ``sys.executable``, or below ``sys.prefix`` and ``sys.base_prefix``.
        repair: What an opening does about a damaged database. ``"safe"`` (default): whatever can be rebuilt without
            losing anything is rebuilt and logged as a warning, and the damaged files are quarantined in
            ``.chroma_manager/damaged-*`` of the database. Calls on a collection that cannot be rebuilt are refused
            (``InstanceCorruptError``), and the others work. ``"never"``: a database with any damage is refused.
        max_memory: Bytes that the engine processes of this app may have together, with ``isolated`` on Linux. When they
            have more, idle ones are closed as with ``max_engines``, the largest first, until the others fit. Idle is
            one without a call in flight that was not used for two seconds, so databases that are in use may exceed it.
            It is compared every two seconds with the memory that the system counts (PSS: what processes share is
            divided among them). ``None`` for no limit. Default ``None``.
        compact_at_close: Whether a database is compacted when it is closed in an orderly way, as by ``compact``, if
            more than half of an index, or of its SQLite file, and at least 1 MiB, is dead. The closing then takes as
            long as that; whoever opens the database meanwhile waits, and ``cleanup_instance`` and the end of the app
            wait for 30 seconds at most. A failure is only logged. Default ``False``.
        restore_from: URL of a bucket with snapshots (``gs://``, ``s3://``, ``az://`` or ``file://``; see ``snapshot``).
            A database that is missing locally is restored from its newest snapshot there, once, while other threads and
            processes that ask for it wait; ``on_missing`` says what is done about one that has no snapshot either. If
            that cannot be found out, or the snapshot is damaged, ``SnapshotError`` is raised, and nothing is created.
            A database that was removed with ``delete_instance`` is restored by the next ``get_client``, unless its
            snapshots are removed, too (``prune``). ``None`` (default) for no bucket.
        bucket_options: Options of obstore for all buckets, such as ``{"endpoint": "http://127.0.0.1:9000",
            "allow_http": "true"}``, which override what it reads from the environment (``AWS_*``, ``GOOGLE_*``,
            ``AZURE_*``). ``None`` (default) for the environment alone.
        host: With ``engine="server"``, as all that follow: name or address of the Chroma server, or its URL, which then
            has port and path as well, but no password. Default ``"localhost"``.
        port: Its port. Default 8000.
        ssl: Whether it is asked by HTTPS. ``Settings(chroma_server_ssl_verify=...)`` names other certificates than the
            usual ones. Default ``False``.
        headers: Sent with each request: ``{"Authorization": "Bearer ..."}``, say. Printable ASCII. Default ``None``.
        tenant: The tenant of all instances, which is created if need be. Default ``"default_tenant"``; with
            ``api_key`` the one that it belongs to, which the server is asked for once.
        database: The database of all instances with ``layout="collection"``, which is created if need be. Default
            ``"default_database"``.
        layout: ``"database"`` (default) makes a database for each instance. ``"collection"`` keeps all instances in one
            database, for servers that bound the number of databases: the names of their collections begin with that of
            the instance there, and a client sees and takes them without it.
        api_key: An API key of Chroma Cloud. Without ``host`` the server is Chroma Cloud's. Default ``None``.
        cloud_host: Another host than Chroma Cloud's, for ``api_key``.
        cloud_port: Its port. Default 443.
        enable_ssl: Whether it is asked by HTTPS. Default ``True``.
        max_connections: How many connections to the server this process has at most. They are shared by all threads,
            and kept. Default 64.
        connect_timeout: Seconds to wait for a connection to be made. Default 5.
        read_timeout: Seconds to wait for more of an answer, or for one of the connections while all are in use. A call
            that waits for longer raises ``ServerUnavailableError``. Default 60.
        retry_timeout: Seconds for which a call is repeated while the server is away, or too busy, with growing, random
            pauses: reads, writes of records, and what was never sent. 0 for never. Default 30.

    Raises:
        ManagerConfigurationError: An option is invalid, or differs from that of the process's manager. (A manager to
            which the app has no reference, nor to any of its clients and collections, is shut down instead.)

    As a context manager, it is shut down at the end of the block.
    """

    _options: Options
    _server: ChromaServer | None = None

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
        max_memory: int | Default | None = DEFAULT,
        compact_at_close: bool | Default = DEFAULT,
        restore_from: str | Default | None = DEFAULT,
        bucket_options: Mapping[str, str] | Default | None = DEFAULT,
        host: str | Default | None = DEFAULT,
        port: int | Default = DEFAULT,
        ssl: bool | Default = DEFAULT,
        headers: Mapping[str, str] | Default | None = DEFAULT,
        tenant: str | Default | None = DEFAULT,
        database: str | Default | None = DEFAULT,
        layout: str | Default = DEFAULT,
        api_key: str | Default | None = DEFAULT,
        cloud_host: str | Default = DEFAULT,
        cloud_port: int | Default = DEFAULT,
        enable_ssl: bool | Default = DEFAULT,
        max_connections: int | Default = DEFAULT,
        connect_timeout: float | Default = DEFAULT,
        read_timeout: float | Default = DEFAULT,
        retry_timeout: float | Default = DEFAULT,
    ) -> Self:
        """Returns the process's manager, which the first call makes.

        The first call also imports chromadb, which takes a second.
        """
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
            "max_memory": max_memory,
            "compact_at_close": compact_at_close,
            "restore_from": restore_from,
            "bucket_options": bucket_options,
            "host": host,
            "port": port,
            "ssl": ssl,
            "headers": headers,
            "tenant": tenant,
            "database": database,
            "layout": layout,
            "api_key": api_key,
            "cloud_host": cloud_host,
            "cloud_port": cloud_port,
            "enable_ssl": enable_ssl,
            "max_connections": max_connections,
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            "retry_timeout": retry_timeout,
        }
        given = {name: value for name, value in arguments.items() if value is not DEFAULT}
        options = Options.of(given)
        if _process.manager is None:
            _import_all(options.engine)
        with _process.construction:
            problem = _process.problem_with(cls, given)
            if problem and not _process.end_forgotten_manager():
                raise ManagerConfigurationError(problem)
            if _process.manager is not None:
                return cast("Self", _process.manager)
            options = replace(options, python=options.python and os.path.abspath(options.python))
            server = _server_of(options)
            manager = super().__new__(
                cls, **options.native, source=server or options.source, restore=_restoring(options)
            )
            manager._server = server
            # Kept absolute, because a worker process to which the manager is pickled may run elsewhere.
            manager._options = replace(options, base_path=os.path.abspath(options.base_path))
            _process.manager = manager
            return manager

    def __init__(self, *_: object, **__: object) -> None:
        """Does nothing: ``__new__`` takes the options. A subclass may call it with its arguments."""

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

        A new collection gets ``file_id`` and ``embedding_type`` as metadata, besides what is given. The metadata of an
        existing one stays as it is.

        To get a collection again, in any thread, takes microseconds with ``isolated`` on Linux, as long as no thread
        or process has changed the collections of the database. Every call returns an object of its own.

        Args:
            file_id: First half of the instance's key.
            embedding_type: Second half of the instance's key.
            collection_name: 3 to 512 characters of ``[a-zA-Z0-9._-]``, the first and the last a letter or a digit.
            embedding_function: Turns documents into vectors. ``None`` for Chroma's default. A user id here counts as
                ``user_id``.
            is_embedding: See ``get_instance``.
            user_id: See ``get_instance``.
            metadata: For a new collection.
            configuration: For a new collection, as in chromadb's ``get_or_create_collection``.
            schema: For a new collection, as in chromadb's ``get_or_create_collection``.
            data_loader: For documents behind URIs, as in chromadb's ``get_or_create_collection``.
            on_missing: What to do about a missing database, as the manager's option; ``None`` for that option. In an
                existing database a missing collection is always created.

        Raises:
            InvalidKeyError: As from ``get_client``, whose other errors it raises as well.
            InstanceNotFoundError: The database is missing, and ``on_missing`` does not create it.
            TypeError: There are two user ids, or ``embedding_function`` is neither an embedding function nor a user id.
            ValueError: Chroma refuses the name, or the collection has another embedding function.
        """
        if embedding_function is not None and not callable(embedding_function):
            if isinstance(embedding_function, bool) or not isinstance(embedding_function, (str, SupportsIndex, UUID)):
                raise TypeError(
                    f"get_collection() for {file_id}/{embedding_type} got {embedding_function!r} as "
                    f"embedding_function, which is neither an embedding function nor a user id (str, int or uuid.UUID)"
                )
            if user_id is not None:
                raise TypeError(
                    f"get_collection() for {file_id}/{embedding_type} got two user ids: user_id={user_id!r} and, as "
                    f"embedding_function, {embedding_function!r}"
                )
            embedding_function, user_id = None, embedding_function
        instance = self.get_instance(file_id, embedding_type, user_id, is_embedding, on_missing=on_missing)
        client = cast("ManagedClient", instance)
        metadata = {"file_id": file_id, "embedding_type": embedding_type, **(metadata or {})}
        if configuration is None and schema is None:
            return client.known_or_created(collection_name, metadata, embedding_function, data_loader)
        optional: dict[str, Any] = {
            "embedding_function": embedding_function,
            "configuration": configuration,
            "schema": schema,
            "data_loader": data_loader,
        }
        return client.get_or_create_collection(
            collection_name, metadata=metadata, **{name: value for name, value in optional.items() if value is not None}
        )

    def delete_file(self, file_id: str) -> int:
        """Removes all databases of a file, and the file's directory if nothing else is in it.

        Args:
            file_id: First half of the keys.

        Returns:
            How many databases were removed.

        Raises:
            InvalidKeyError: It cannot be the name of a directory.
            InstanceLockedError: As from ``delete_instance``, whose other errors it raises as well. Databases that were
                removed before stay removed.
        """
        # Raises for an impossible name.
        directory = Path(self._get_db_path(file_id, "embedding_type")).parent
        if self._server is not None:
            keys = self._server.instances(with_remains=True)
            names = sorted(key.embedding_type for key in keys if key.file_id == file_id)
        else:
            # They hold what is to be deleted, too.
            remove_abandoned(directory)
            try:
                names = sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
            except FileNotFoundError:
                return 0
        deleted = 0
        for name in names:
            # A directory that no database can have is not one.
            with contextlib.suppress(InvalidKeyError):
                deleted += self.delete_instance(file_id, name)
        return deleted

    def snapshot(
        self,
        file_id: str,
        embedding_type: str,
        destination: str | os.PathLike[str],
        *,
        keep: int | None = None,
        keep_for: timedelta | None = None,
    ) -> Snapshot:
        """Takes a consistent copy of a database while others use it.

        A snapshot is a directory with Chroma's own files, which any Chroma can open, and a manifest with their
        checksums. Other calls wait while the files are copied, but not while the checksums are computed.

        Or it is in a bucket, below a URL that any number of databases share. A file that the bucket has is not sent
        again. The copy is beside the database until it is sent. The snapshot exists when all of it was sent
        (``docs/buckets.md``).

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.
            destination: A directory that does not exist, or is empty; missing parents are created. It appears when the
                snapshot is complete. Or a URL: ``gs://``, ``s3://``, ``az://`` or ``file://``.
            keep: With a URL, how many snapshots of this database are kept, besides those of the last day: the newest
                of the others. Older ones are removed. ``None`` (default) for all; 1 if only ``keep_for`` is given.
            keep_for: With a URL, for how long snapshots are kept in any case. ``None`` (default) for no time.

        Raises:
            SnapshotError: The destination is not empty, or cannot be written or reached. Nothing is left behind but
                files in a bucket, which the next snapshot uses.
            InstanceNotFoundError: There is no such database.
            InstanceCorruptError: The database is damaged.
            InstanceLockedError: A program that does not go through a manager is in the middle of a transaction on the
                database, for longer than a second. Nothing is lost; repeat the call when it has ended.
            ValueError: ``keep`` or ``keep_for`` is invalid, or given with a directory.
        """
        if is_url(destination):
            from chroma_manager.bucket.repository import Keep  # noqa: PLC0415 - an extra

            kept = Keep.of(keep, keep_for)
            directory = Path(self._get_db_path(file_id, embedding_type))

            def copy(target: str) -> dict[str, Any]:
                return cast("dict[str, Any]", self._snapshot(file_id, embedding_type, target))

            return self._repository(str(destination)).take(file_id, embedding_type, directory, copy, kept)
        if keep is not None or keep_for is not None:
            raise ValueError(f"keep and keep_for are for snapshots in a bucket, and {destination} is a directory")
        path = os.path.abspath(os.fspath(destination))
        return Snapshot.of(path, self._snapshot(file_id, embedding_type, path))

    def restore(self, file_id: str, embedding_type: str, source: str | os.PathLike[str]) -> None:
        """Replaces a database, which may be damaged or missing, by a snapshot.

        All of it or nothing: a kill in between leaves the database as it was, or restored. Calls in flight finish
        first. Handles stay usable, in all threads and processes, and see the restored database.

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.
            source: The directory of a snapshot; or the URL of a bucket, for the newest snapshot of this database there,
                or of a manifest (``Snapshot.path``), for that snapshot. Every file is compared with its checksum.

        Raises:
            SnapshotError: The source is not a snapshot, is damaged or out of reach, was made by a newer Chroma, or is
                the directory of the database. The database is as it was.
        """
        from chroma_manager.durability.snapshot import copy_verified  # noqa: PLC0415 - seldom needed
        from chroma_manager.engine.settings import refuse_newer_snapshot  # noqa: PLC0415 - imports chromadb

        directory = Path(self._get_db_path(file_id, embedding_type))

        def put(path: str) -> None:
            if os.path.realpath(path) == os.path.realpath(directory):
                raise SnapshotError(f"{path} cannot be restored to itself: opening it would change it. Name a database")
            refuse_newer_snapshot(Path(path))
            self._restore(file_id, embedding_type, path, lambda target: copy_verified(Path(path), Path(target)))

        if is_url(source):
            named = address_of(str(source)).snapshot
            self._repository(str(source)).restore(file_id, embedding_type, directory, put, named and str(source))
        else:
            put(os.path.abspath(os.fspath(source)))

    def prune(
        self,
        url: str,
        file_id: str,
        embedding_type: str,
        *,
        keep: int | None = None,
        keep_for: timedelta | None = None,
    ) -> Pruned:
        """Removes old snapshots of a database from a bucket, and the files that no other snapshot has.

        The snapshots of the last day stay, and so do files that were written within two days: somebody may be taking a
        snapshot that relies on them. With ``keep=0`` everything of the database is removed, whatever its age; no
        snapshot of it must be taken meanwhile.

        Args:
            url: Of the bucket, as for ``snapshot``.
            file_id: First half of the key. The database need not exist.
            embedding_type: Second half of the key.
            keep: As for ``snapshot``, or 0.
            keep_for: As for ``snapshot``.

        Raises:
            SnapshotError: The bucket cannot be reached, or has a damaged manifest, so that it is not known which files
                are in use.
            ValueError: ``keep`` or ``keep_for`` is invalid, or neither is given.
        """
        from chroma_manager.bucket.repository import Keep  # noqa: PLC0415 - an extra

        self._get_instance_key(file_id, embedding_type)  # raises for names that are none
        kept = Keep.of(keep, keep_for, least=0)
        if kept is None:
            raise ValueError("prune() needs keep or keep_for, to know what is to stay")
        return self._repository(url).prune(file_id, embedding_type, kept)

    def compact(self, file_id: str, embedding_type: str) -> Compaction:
        """Makes the files of a database smaller after deletions and updates.

        Chroma keeps deleted vectors in the files of its indexes, where they slow down updates and queries, and free
        pages in its SQLite file. A compaction builds those indexes anew from the records that there are, with the
        settings that they have, and writes SQLite's file anew. All vectors are compared before the new files take the
        place of the old ones, as a whole: a kill in between leaves the database as it was, or compacted. Other calls
        wait meanwhile, for longer than it takes to add the records that are left. Handles stay usable, in all threads
        and processes.

        Until it is done it needs space for a copy of SQLite's file, and for the new files.
        ``stats()`` and ``chroma-manager list`` tell what it would give back. See also the option ``compact_at_close``.

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.

        Raises:
            CompactionError: It failed, for lack of space, say. The database is as it was.
            InstanceNotFoundError: There is no such database.
            InstanceCorruptError: The database is damaged. Repair it first.
            InstanceLockedError: A program that does not go through a manager has the database open for writing, or
                reads it in a transaction that lasts longer than a second.
        """
        return Compaction(**self._compact(file_id, embedding_type))

    def verify(self, file_id: str, embedding_type: str, *, repair: bool = False) -> Verification:
        """Checks whether a database is sound, and repairs it if asked to.

        A database is sound if SQLite finds its file intact, every record has its vector and every vector its record,
        and Chroma can read all of them. Other calls wait meanwhile.

        Args:
            file_id: First half of the key.
            embedding_type: Second half of the key.
            repair: Rebuild what is damaged from the log, the index and its checkpoint. Records whose vector is nowhere
                to be found are written to a file of JSON lines (``set_aside``), and removed from their collection.
                Damaged files are quarantined in the directory ``.chroma_manager`` of the database. Default ``False``.

        Raises:
            InstanceNotFoundError: There is no such database.
        """
        return Verification.of(self._verify(file_id, embedding_type, bool(repair)))

    def stats(self) -> Stats:
        """What is open now, and what has happened since the manager was constructed."""
        stats = super().stats()
        for instance in stats["instances"].values():
            # With `embedded`, closing a file that Chroma has open would release the locks of its SQLite.
            known = at_checkpoint(Path(instance["path"])) if instance["engine"] == "isolated" else None
            instance["deleted_vectors"], instance["reclaimable"] = known or (None, None)
        return stats

    def shutdown(self) -> None:
        """Cleans up all instances; the next construction makes a new manager, with options of its own.

        Calls in flight finish first. From then on this object, and every client of it, raises ``ClientClosedError``.
        Calling it again does nothing.
        """
        # Held until everything is closed: a new manager must not meet the locks of the old one.
        with _process.construction:
            self._shut_down()
            if self._server is not None:
                self._server.close()
            if _process.manager is self:
                _process.manager = None

    def _repository(self, url: str) -> Repository:
        from chroma_manager.bucket.repository import Repository  # noqa: PLC0415 - an extra

        return Repository(address_of(url).repository, self._options.bucket_options or {})

    def __enter__(self) -> Self:
        """Returns the manager itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shuts it down."""
        self.shutdown()

    def __reduce__(self) -> tuple[Any, ...]:
        """Unpickles as the manager of the other process, with these options."""
        return _construct, (type(self), vars(self._options))

    def __repr__(self) -> str:
        """The class, and the options that identify a manager."""
        options = self._options
        place = f"url={options.url!r}" if self._server is not None else f"base_path={options.base_path!r}"
        return f"{type(self).__name__}({place}, engine={options.engine!r})"


@dataclass
class _Process:
    """The manager of this process, and the lock under which it is constructed and shut down."""

    manager: ChromaDBManager | None = None
    # Reentrant: a signal handler may construct the manager, or shut it down, while its thread is doing so.
    construction: threading.RLock = field(default_factory=threading.RLock)

    def renew_lock(self) -> None:
        self.construction = threading.RLock()

    def problem_with(self, cls: type[Any], given: Mapping[str, Any]) -> str | None:
        """Why the present manager cannot be the one that is asked for; ``None`` where it can, or there is none."""
        if self.manager is None:
            return None
        if not isinstance(self.manager, cls):
            return (
                f"this process has a {type(self.manager).__name__} already, which is not a {cls.__name__}. Construct "
                f"the subclass first, or call shutdown() on the other"
            )
        differences = self.manager._options.differences(given)
        if not differences:
            return None
        return (
            f"this process has a manager already, constructed with other options: {', '.join(differences)}. Construct "
            f"it without options to get it, or call its shutdown() first"
        )

    def end_forgotten_manager(self) -> bool:
        """Shuts down a manager if the app has no reference to it, nor to any client of it; whether it did."""
        # Two references: the attribute, and the argument of this very call.
        if self.manager is None or sys.getrefcount(self.manager) > 2 or not self.manager._let_go_of_clients():
            return False
        _logger.info("%r, to which there is no reference, is shut down for one with other options", self.manager)
        self.manager.shutdown()
        return True


_process = _Process()

if hasattr(os, "register_at_fork"):
    # The thread that held the lock at the fork does not exist in the child.
    os.register_at_fork(after_in_child=_process.renew_lock)


def _restoring(options: Options) -> Callable[[str, str, Path], bool] | None:
    """What restores a missing database, if anything does."""
    if options.restore_from is None:
        return None
    if importlib.util.find_spec("obstore") is None:
        raise ManagerConfigurationError(
            f"restore_from={options.restore_from!r} needs obstore, which is not installed: "
            f"pip install 'chroma-manager[bucket]'"
        )
    from chroma_manager.bucket.repository import Repository  # noqa: PLC0415 - an extra

    return Repository(options.restore_from, options.bucket_options or {}).provide


def _import_all(engine: str) -> None:
    """Imports what a first opening needs.

    It takes a second, and the garbage collector stops the app for a tenth of one meanwhile. When an app makes its
    manager, nobody waits yet.
    """
    importlib.import_module(f"chroma_manager.engine.{engine}")
    importlib.import_module("chroma_manager.client")


def _server_of(options: Options) -> ChromaServer | None:
    """The server that a manager with these options uses, if it uses one."""
    if options.engine != SERVER:
        return None
    from chroma_manager.engine.server.server import ChromaServer  # noqa: PLC0415 - imports chromadb

    return ChromaServer(options)


def _construct(cls: type[ChromaDBManager], options: Mapping[str, Any]) -> ChromaDBManager:
    return cls(**options)
