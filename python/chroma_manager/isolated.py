"""What the engine ``isolated`` needs of Chroma's Python: a database's system, and what its engine process is told."""

from __future__ import annotations

import json
from pathlib import Path

import chromadb
import chromadb_rust_bindings
from chromadb.api.rust import RustBindingsAPI
from chromadb.config import Settings, System

import chroma_manager
from chroma_manager.database import DATABASE_FILE, system_of

# An engine process that nobody is connected to ends after so many seconds: the next client may come at once.
LINGER = 1.0


def prepare(settings: Settings | None, path: Path) -> tuple[System, str]:
    """The system of a database, and the arguments of its engine process.

    Args:
        settings: As for ``system_of``.
        path: Directory of the database.

    Returns:
        The system, and JSON that ``engine_process`` takes.
    """
    system = system_of(settings, path)
    known = system.settings
    arguments = {
        "packages": {
            module.__name__: str(Path(str(module.__file__)).parent)
            for module in (chromadb, chroma_manager, chromadb_rust_bindings)
        },
        "version": chromadb.__version__,
        "bindings": {
            "allow_reset": known.require("allow_reset"),
            "persist_path": str(path),
            "hnsw_cache_size": RustBindingsAPI(system).hnsw_cache_size,
        },
        "sqlite": {
            "hash_type": known.require("migrations_hash_algorithm"),
            "migration_mode": known.require("migrations"),
            "url": str(path / DATABASE_FILE),
        },
        "linger": LINGER,
    }
    return system, json.dumps(arguments)
