"""What the engine ``isolated`` needs from Chroma's Python: a system, and the arguments of an engine process."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chromadb
from chromadb.api.rust import RustBindingsAPI

from chroma_manager.engine import interpreter
from chroma_manager.engine.settings import system_of
from chroma_manager.options import REPAIRS, Source
from chroma_manager.storage.paths import DATABASE_FILE
from chroma_manager.worker.engine_process import CHECKPOINT, HOST

if TYPE_CHECKING:
    from chromadb.config import System
    from chromadb_rust_bindings import SqliteDBConfig

    from chroma_manager.engine.interpreter import Interpreter

# The working directory of an engine process is its database's. So it never writes into another directory that has taken
# the place of its own.
HERE = "."

# An engine process without connections ends after so many seconds, because the next client may come at once.
LINGER = 1.0

DEFAULT_SOURCE = Source(None, REPAIRS[0])


@dataclass(frozen=True)
class BindingsArguments:
    """What ``chromadb_rust_bindings.Bindings`` is constructed with, as far as that can be read."""

    allow_reset: bool
    hnsw_cache_size: int
    is_in_memory: bool


def source_of_bindings(
    allow_reset: bool,
    sqlite_db_config: SqliteDBConfig,  # noqa: ARG001 - it does not say what is in it
    hnsw_cache_size: int,
    persist_path: str | None,
) -> tuple[BindingsArguments, str]:
    """What ``prepare`` takes, and a directory, from the arguments of ``chromadb_rust_bindings.Bindings``.

    Chroma's ``SqliteDBConfig`` cannot be read. It is assumed to be that of Chroma's default settings: the file is
    ``chroma.sqlite3`` in the directory, migrations are hashed with MD5, and applied. A database in memory gets a new
    directory for its lock.
    """
    directory = os.path.abspath(persist_path) if persist_path else tempfile.mkdtemp(prefix="chroma-manager-")
    return BindingsArguments(allow_reset, hnsw_cache_size, persist_path is None), directory


def prepare(
    source: Source | BindingsArguments | None, path: Path, python: Path | None = None
) -> tuple[System | None, str, bool, tuple[list[str], dict[str, str | None], list[str]]]:
    """The system of a database, and how its engine process is run.

    Args:
        source: What a manager opens its databases with; ``None`` for the default; or its replacement where there is no
            manager.
        path: Directory of the database.
        python: The option of that name.

    Returns:
        The system; the arguments of the engine process, as JSON; whether the database is in memory; the command that
        runs ``engine_process.py``, the changes to its environment, and the arguments with which it is a host.

    Raises:
        ManagerConfigurationError: There is no interpreter for it.
    """
    found = interpreter.find(python)
    system, arguments, in_memory = describe(source, path, found)
    host = [HOST, json.dumps({"packages": found.packages, "version": chromadb.__version__})]
    return system, json.dumps(arguments), in_memory, ([*found.command, found.script], dict(found.environment), host)


def describe(
    source: Source | BindingsArguments | None, path: Path, found: Interpreter | None
) -> tuple[System | None, dict[str, Any], bool]:
    """The system of a database, the arguments of its engine process, and whether the database is in memory.

    Args:
        source: As for ``prepare``.
        path: Directory of the database.
        found: The interpreter for it and for the programs that it starts; ``None`` in an app's own process that has
            none, and cannot start such programs.
    """
    if isinstance(source, BindingsArguments):
        in_memory = source.is_in_memory
        bindings = {
            "allow_reset": source.allow_reset,
            "hnsw_cache_size": source.hnsw_cache_size,
            "persist_path": None if in_memory else HERE,
        }
        sqlite = {"hash_type": "md5", "migration_mode": "apply", "url": None if in_memory else DATABASE_FILE}
        return None, _arguments(path, bindings, sqlite, DEFAULT_SOURCE, found), in_memory
    source = source or DEFAULT_SOURCE
    system = system_of(source.settings, path)
    known = system.settings
    bindings = {
        "allow_reset": known.require("allow_reset"),
        "hnsw_cache_size": RustBindingsAPI(system).hnsw_cache_size,
        "persist_path": HERE,
    }
    sqlite = {
        "hash_type": known.require("migrations_hash_algorithm"),
        "migration_mode": known.require("migrations"),
        "url": DATABASE_FILE,
    }
    return system, _arguments(path, bindings, sqlite, source, found), False


def _arguments(
    path: Path, bindings: dict[str, Any], sqlite: dict[str, Any], source: Source, found: Interpreter | None
) -> dict[str, Any]:
    return {
        "packages": found and found.packages,
        "python": found
        and {
            "command": found.command,
            "environment": found.environment,
            "probe": found.probe,
            "checkpoint": [found.script, CHECKPOINT],
        },
        "version": chromadb.__version__,
        "directory": str(path),
        "bindings": bindings,
        "sqlite": sqlite,
        "linger": LINGER,
        "repair": source.repair,
        "compact_at_close": source.compact_at_close,
    }
