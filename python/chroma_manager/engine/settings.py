"""What both engines need before an opening: a database's settings, and whether its Chroma is too new."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from functools import cache
from pathlib import Path
from typing import cast

from chromadb.api.rust import RustBindingsAPI
from chromadb.config import Settings, System
from chromadb.db.migrations import InconsistentVersionError
from chromadb.telemetry.product import ProductTelemetryClient

from chroma_manager.errors import SnapshotError
from chroma_manager.storage.paths import DATABASE_FILE

# The migrations that chromadb 1.5.9 applies to a new database. Beyond these the installed one is asked.
KNOWN_MIGRATIONS = {"embeddings_queue": 2, "metadb": 6, "sysdb": 10}


def system_of(settings: Settings | None, path: Path) -> System:
    """The system that the clients of a database share.

    Args:
        settings: Chroma's settings, or ``None`` for its defaults; their path is not used.
        path: Directory of the database.
    """
    system = System(_settings_of(settings, path))
    system.instance(ProductTelemetryClient)  # type: ignore[type-abstract]  # it stands for the configured class
    return system


def refuse_newer(path: Path, mode: str = "rw") -> None:
    """Raises where a newer Chroma has migrated the database, which the installed one would open and misread.

    Raises:
        InconsistentVersionError: It has.
    """
    try:
        found = _migrations_of(path, mode)
    except sqlite3.DatabaseError:
        return  # Whoever opens it will say what is wrong with it.
    if all(version <= KNOWN_MIGRATIONS.get(name, 0) for name, version in found.items()):
        return
    known = _migrations_of_installed()
    for name, version in found.items():
        if version > known.get(name, 0):
            raise InconsistentVersionError(name, version, known.get(name, 0))


def refuse_newer_snapshot(source: Path) -> None:
    """Raises where a newer Chroma has made a snapshot.

    Raises:
        SnapshotError: It has. Whether the snapshot is sound is checked when it is restored.
    """
    try:
        refuse_newer(source, mode="ro")
    except InconsistentVersionError as error:
        raise SnapshotError(f"{source} cannot be restored: {error}; install the Chroma that made it") from error


def _settings_of(settings: Settings | None, path: Path) -> Settings:
    # A copy with two fields changed: a new one reads the environment and a .env file, which takes milliseconds.
    base = _default_settings() if settings is None else settings
    # Up to chromadb 1.5.2 they are pydantic 1's, where the method has another name.
    copy = base.model_copy if hasattr(base, "model_copy") else base.copy
    return copy(update={"is_persistent": True, "persist_directory": str(path)})


@cache
def _default_settings() -> Settings:
    return Settings()


def _migrations_of(path: Path, mode: str = "rw") -> dict[str, int]:
    """The newest migration of each of Chroma's schemas in a database; empty for a new database."""
    file = path / DATABASE_FILE
    if not file.is_file() or file.stat().st_size == 0:
        return {}
    # Only while Chroma's binding is closed: two SQLite libraries in one process must not have a file open at once.
    # Opened for writing, because a killed writer may have left a transaction that has to be rolled back first.
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode={mode}", uri=True)) as database:
        has_table = "select count(*) from sqlite_master where type = 'table' and name = 'migrations'"
        if not database.execute(has_table).fetchone()[0]:
            return {}
        rows = database.execute("select dir, max(version) from migrations group by dir").fetchall()
    return cast("dict[str, int]", dict(rows))


@cache
def _migrations_of_installed() -> dict[str, int]:
    """The migrations that the installed Chroma applies to a new database; the package does not say them."""
    with tempfile.TemporaryDirectory(prefix="chroma-manager-") as directory:
        api = RustBindingsAPI(System(Settings(is_persistent=True, persist_directory=directory)))
        api.start()
        api.stop()
        return _migrations_of(Path(directory))
