"""Opens databases for the engine ``embedded``, with Chroma's own Python.

The Rust half (``src/engine/embedded.rs``) owns, shares and closes them, and calls this file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chromadb.api.rust import RustBindingsAPI
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, System

from chroma_manager.engine import interpreter
from chroma_manager.engine.after_fork import renew_binding
from chroma_manager.engine.isolated import describe
from chroma_manager.engine.settings import system_of
from chroma_manager.errors import ManagerConfigurationError
from chroma_manager.storage.paths import DATABASE_FILE
from chroma_manager.storage.reclaimable import is_mostly_dead
from chroma_manager.verification.examined import note_closed
from chroma_manager.worker.database import Database
from chroma_manager.worker.maintenance import HALF, named_errors

if TYPE_CHECKING:
    from chromadb_rust_bindings import Bindings

    from chroma_manager.options import Source

_logger = logging.getLogger("chroma_manager")


def manage(source: Source | None, python: Path | None, path: Path, method: str, arguments: tuple[Any, ...]) -> Any:
    """Does exclusive maintenance of the database in a directory that the caller owns.

    Args:
        source: As for ``isolated.prepare``.
        python: The option of that name: Chroma reads files that may be damaged in processes of its own.
        path: Directory of the database, which exists.
        method: As for ``worker.database.Database.manage``.
        arguments: Likewise.
    """
    renew_binding()
    database = _database(source, python, path)
    if method in ("snapshot", "compact"):
        with named_errors(method, path):
            database.leave_clean()
            database.examine()
        _log_notices(database, path)
    done = database.manage(method, arguments)()
    if method == "compact":
        # All of it was compared with what was there.
        note_closed(path)
    return done


def open_bindings(source: Source | None, python: Path | None, path: Path) -> tuple[Bindings, System]:
    """Opens the database in a directory that the caller owns.

    Args:
        source: As for ``isolated.prepare``.
        python: The option of that name: Chroma reads files that may be damaged in processes of its own.
        path: Directory of the database, which exists.

    Returns:
        Chroma's binding, to which nothing else refers, and the system that its clients share.

    Raises:
        InstanceCorruptError: It is damaged, and is not to be repaired, or cannot be.
        InconsistentVersionError: A newer Chroma has written the database.
        chromadb.errors.ChromaError: Chroma cannot open it.
        ImportError: In a forked child; see ``after_fork``.
    """
    renew_binding()
    # A database that a killed engine process has left open is recovered before Chroma opens it.
    database = _database(source, python, path)
    database.batches.inspect()
    database.leave_clean()
    database.examine()
    database.migrate()
    _log_notices(database, path)
    system = system_of(source.settings if source else None, path)
    api = RustBindingsAPI(system)
    api.start()
    try:
        # As in PersistentClient, a database that cannot be used fails here, and not in the middle of a call.
        api.get_tenant(DEFAULT_TENANT)
        api.get_database(DEFAULT_DATABASE, DEFAULT_TENANT)
        database.complete_batches(api.bindings)
        database.batches.check()
        return database.guarded(api.bindings), system
    finally:
        # The traceback of an error keeps this frame, which must not keep the binding open. `stop()` would close it.
        del api.bindings


def closed(source: Source | None, python: Path | None, path: Path) -> None:
    """Notes that Chroma has closed the database in a directory that the caller owns, which it leaves sound.

    Where the option `compact_at_close` is on, and more than half of the database is dead, it is compacted.

    Args:
        source: As for ``isolated.prepare``.
        python: As for ``manage``.
        path: Directory of the database.
    """
    if not (path / DATABASE_FILE).exists():
        return
    note_closed(path)
    if source is not None and source.compact_at_close and is_mostly_dead(path):
        try:
            manage(source, python, path, "compact", (HALF,))
        except Exception as error:  # whatever it is, the database is closed already
            _logger.warning("%s/%s (%s) is not compacted: %s", path.parent.name, path.name, path, error)


def _log_notices(database: Database, path: Path) -> None:
    """Logs what was done about damage."""
    for notice in filter(None, database.take_notices().split("\n")):
        _logger.warning("%s/%s (%s): %s", path.parent.name, path.name, path, notice)


def _database(source: Source | None, python: Path | None, path: Path) -> Database:
    try:
        found = interpreter.find(python)
    except ManagerConfigurationError:
        # Only a verification needs it, and says so.
        found = None
    return Database(describe(source, path, found)[1], path)
