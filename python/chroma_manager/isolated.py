"""What the engine ``isolated`` needs of Chroma's Python: a database's system, and what its engine process is told."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chromadb
import chromadb_rust_bindings
from chromadb.api.rust import RustBindingsAPI

import chroma_manager
from chroma_manager.database import system_of
from chroma_manager.layout import DATABASE_FILE
from chroma_manager.options import REPAIRS, Source

if TYPE_CHECKING:
    from chromadb.config import System
    from chromadb_rust_bindings import SqliteDBConfig

# The working directory of an engine process is its database's: what it writes goes there, or nowhere, even if another
# directory has taken its place.
HERE = "."

# An engine process that nobody is connected to ends after so many seconds: the next client may come at once.
LINGER = 1.0


@dataclass(frozen=True)
class BindingsArguments:
    """What ``chromadb_rust_bindings.Bindings`` is constructed with, as far as it can be told."""

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

    Chroma's ``SqliteDBConfig`` cannot be read. It is taken for what Chroma's API makes of its default settings: the
    file is ``chroma.sqlite3`` in the directory, migrations are hashed with MD5, and applied. A database in memory gets
    a new directory, for its lock.
    """
    directory = os.path.abspath(persist_path) if persist_path else tempfile.mkdtemp(prefix="chroma-manager-")
    return BindingsArguments(allow_reset, hnsw_cache_size, persist_path is None), directory


def prepare(source: Source | BindingsArguments | None, path: Path) -> tuple[System | None, str, bool]:
    """The system of a database, and the arguments of its engine process.

    Args:
        source: What a manager opens its databases with; ``None`` for the default; or what stands for it where there is
            no manager.
        path: Directory of the database.

    Returns:
        The system, JSON that ``engine_process`` takes, and whether the database is in memory.
    """
    if isinstance(source, BindingsArguments):
        in_memory = source.is_in_memory
        bindings = {
            "allow_reset": source.allow_reset,
            "hnsw_cache_size": source.hnsw_cache_size,
            "persist_path": None if in_memory else HERE,
        }
        sqlite = {"hash_type": "md5", "migration_mode": "apply", "url": None if in_memory else DATABASE_FILE}
        return None, _arguments(path, bindings, sqlite, REPAIRS[0]), in_memory
    settings, repair = source or Source(None, REPAIRS[0])
    system = system_of(settings, path)
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
    return system, _arguments(path, bindings, sqlite, repair), False


def _arguments(path: Path, bindings: dict[str, Any], sqlite: dict[str, Any], repair: str) -> str:
    packages = {
        module.__name__: os.path.dirname(os.path.abspath(str(module.__file__)))
        for module in (chromadb, chroma_manager, chromadb_rust_bindings)
    }
    return json.dumps(
        {
            "packages": packages,
            "version": chromadb.__version__,
            "directory": str(path),
            "bindings": bindings,
            "sqlite": sqlite,
            "linger": LINGER,
            "repair": repair,
        }
    )
