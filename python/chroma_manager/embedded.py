"""Opens a database for the engine ``embedded``: the part of it that is made of Chroma's own Python.

What owns, shares and closes the database is ``src/engine/embedded.rs``, which calls this one.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from chromadb.api.rust import RustBindingsAPI
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, Settings, System
from chromadb.db.migrations import InconsistentVersionError
from chromadb.telemetry.product import ProductTelemetryClient

from chroma_manager.forked import renew_binding

if TYPE_CHECKING:
    from chromadb_rust_bindings import Bindings

DATABASE_FILE = "chroma.sqlite3"

# What the binding of chromadb 1.5.9 writes into a new database. It is only where asking the installed one begins.
KNOWN_MIGRATIONS = {"embeddings_queue": 2, "metadb": 6, "sysdb": 9}


def open_bindings(settings: Settings | None, path: Path) -> tuple[Bindings, System]:
    """Opens the database in a directory that the caller owns.

    Args:
        settings: Chroma's settings, or ``None`` for its own; where the database is, is not taken from them.
        path: Directory of the database, existing.

    Returns:
        Chroma's binding, to which nothing else refers, and the system that its clients share.

    Raises:
        InconsistentVersionError: A newer Chroma has written the database.
        chromadb.errors.ChromaError: Chroma cannot open it.
        ImportError: In a forked child, see ``forked``.
    """
    refuse_newer(path)
    renew_binding()
    system = System(_settings_of(settings, path))
    system.instance(ProductTelemetryClient)  # type: ignore[type-abstract]  # it stands for the configured class
    api = RustBindingsAPI(system)
    api.start()
    # As PersistentClient does: a database that cannot be used fails here, and not in the middle of something.
    api.get_tenant(DEFAULT_TENANT)
    api.get_database(DEFAULT_DATABASE, DEFAULT_TENANT)
    bindings = api.bindings
    del api.bindings
    return bindings, system


def refuse_newer(path: Path) -> None:
    """Raises where a newer Chroma has migrated the database: the installed one would open it and misunderstand it."""
    found = _migrations_of(path)
    if all(version <= KNOWN_MIGRATIONS.get(name, 0) for name, version in found.items()):
        return
    known = _migrations_of_installed()
    for name, version in found.items():
        if version > known.get(name, 0):
            raise InconsistentVersionError(name, version, known.get(name, 0))


def _settings_of(settings: Settings | None, path: Path) -> Settings:
    # A copy with two fields changed: constructing one reads the environment and a .env file, for milliseconds.
    base = _default_settings() if settings is None else settings
    return base.model_copy(update={"is_persistent": True, "persist_directory": str(path)})


@cache
def _default_settings() -> Settings:
    return Settings()


def _migrations_of(path: Path) -> dict[str, int]:
    """The newest migration of each of Chroma's schemas in a database; empty where there is none yet."""
    file = path / DATABASE_FILE
    if not file.is_file() or file.stat().st_size == 0:
        return {}
    # Chroma's binding is not open now: two SQLite libraries in one process must not have a file open at once.
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        has_table = "select count(*) from sqlite_master where type = 'table' and name = 'migrations'"
        if not database.execute(has_table).fetchone()[0]:
            return {}
        rows = database.execute("select dir, max(version) from migrations group by dir").fetchall()
    return cast("dict[str, int]", dict(rows))


@cache
def _migrations_of_installed() -> dict[str, int]:
    """What the installed Chroma writes into a new database: nothing else in the package tells."""
    with tempfile.TemporaryDirectory(prefix="chroma-manager-") as directory:
        api = RustBindingsAPI(System(Settings(is_persistent=True, persist_directory=directory)))
        api.start()
        api.stop()
        return _migrations_of(Path(directory))
