"""Opens a database for the engine ``embedded``: the part of it that is made of Chroma's own Python.

What owns, shares and closes the database is ``src/engine/embedded.rs``, which calls this one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chromadb.api.rust import RustBindingsAPI
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, System

from chroma_manager.engine import interpreter
from chroma_manager.engine.after_fork import renew_binding
from chroma_manager.engine.isolated import tell
from chroma_manager.engine.settings import refuse_newer, system_of
from chroma_manager.errors import ManagerConfigurationError
from chroma_manager.storage.paths import DATABASE_FILE
from chroma_manager.verification.examined import note_closed
from chroma_manager.worker.database import Database
from chroma_manager.worker.maintenance import named_errors

if TYPE_CHECKING:
    from chromadb_rust_bindings import Bindings

    from chroma_manager.options import Source

_logger = logging.getLogger("chroma_manager")


def manage(source: Source | None, python: Path | None, path: Path, method: str, arguments: tuple[Any, ...]) -> Any:
    """Does a piece of work on the closed database in a directory that the caller owns.

    Args:
        source: As for ``isolated.prepare``.
        python: The option of that name: what damaged files may end is done in processes of its own.
        path: Directory of the database, existing.
        method: As for ``worker.database.Database.manage``.
        arguments: Likewise.
    """
    renew_binding()
    database = _database(source, python, path)
    if method == "snapshot":
        with named_errors(method, path):
            database.leave()
            database.look_after()
        _tell(database, path)
    return database.manage(method, arguments)()


def open_bindings(source: Source | None, python: Path | None, path: Path) -> tuple[Bindings, System]:
    """Opens the database in a directory that the caller owns.

    Args:
        source: As for ``isolated.prepare``.
        python: The option of that name: what damaged files may end is done in processes of its own.
        path: Directory of the database, existing.

    Returns:
        Chroma's binding, to which nothing else refers, and the system that its clients share.

    Raises:
        InstanceCorruptError: It is damaged, and is not to be mended, or cannot be.
        InconsistentVersionError: A newer Chroma has written the database.
        chromadb.errors.ChromaError: Chroma cannot open it.
        ImportError: In a forked child, see ``forked``.
    """
    renew_binding()
    refuse_newer(path)
    # What an engine process that was killed has left is Chroma's to open only when it is recovered.
    left = _database(source, python, path)
    left.batches.look()
    left.leave()
    left.look_after()
    _tell(left, path)
    system = system_of(source.settings if source else None, path)
    api = RustBindingsAPI(system)
    api.start()
    try:
        # As PersistentClient does: a database that cannot be used fails here, and not in the middle of something.
        api.get_tenant(DEFAULT_TENANT)
        api.get_database(DEFAULT_DATABASE, DEFAULT_TENANT)
        left.complete_batches(api.bindings)
        left.batches.check()
        return left.guarded(api.bindings), system
    finally:
        # The traceback of an error keeps this frame, but not the binding open. `stop()` would close the binding itself.
        del api.bindings


def closed(path: Path) -> None:
    """To be called when Chroma has closed the database in a directory that the caller owns: what it left is sound."""
    if (path / DATABASE_FILE).exists():
        note_closed(path)


def _tell(database: Database, path: Path) -> None:
    """Logs what was done about damage."""
    for notice in filter(None, database.take_notices().split("\n")):
        _logger.warning("%s/%s (%s): %s", path.parent.name, path.name, path, notice)


def _database(source: Source | None, python: Path | None, path: Path) -> Database:
    try:
        found = interpreter.find(python)
    except ManagerConfigurationError:
        # It is needed for a verification, which says so.
        found = None
    return Database(tell(source, path, found)[1], path)
