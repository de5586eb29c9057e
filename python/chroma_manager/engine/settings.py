"""What both engines need of Chroma's settings, and whether a snapshot's Chroma is too new."""

from __future__ import annotations

import contextlib
import sqlite3
from functools import cache
from pathlib import Path

from chromadb.config import Settings, System
from chromadb.db.migrations import InconsistentVersionError
from chromadb.telemetry.product import ProductTelemetryClient

from chroma_manager.errors import SnapshotError
from chroma_manager.options import changed_settings
from chroma_manager.storage.migrations import newest_migrations, refuse_newer
from chroma_manager.storage.paths import DATABASE_FILE
from chroma_manager.worker import template


def system_of(settings: Settings | None, path: Path) -> System:
    """The system that the clients of a database share.

    Args:
        settings: Chroma's settings, or ``None`` for its defaults; their path is not used.
        path: Directory of the database.
    """
    system = System(_settings_of(settings, path))
    system.instance(ProductTelemetryClient)  # type: ignore[type-abstract]  # it stands for the configured class
    return system


def refuse_newer_snapshot(source: Path) -> None:
    """Raises where a newer Chroma has made a snapshot.

    Raises:
        SnapshotError: It has. Whether the snapshot is sound is checked when it is restored.
    """
    try:
        refuse_newer(_migrations_of(source), template.migrations)
    except InconsistentVersionError as error:
        raise SnapshotError(f"{source} cannot be restored: {error}; install the Chroma that made it") from error


def _settings_of(settings: Settings | None, path: Path) -> Settings:
    # New ones would read the environment and a .env file, which takes milliseconds.
    base = _default_settings() if settings is None else settings
    return changed_settings(base, {"is_persistent": True, "persist_directory": str(path)})


@cache
def _default_settings() -> Settings:
    return Settings()


def _migrations_of(source: Path) -> dict[str, int]:
    """The newest migrations of a snapshot; empty where it is damaged."""
    file = source / DATABASE_FILE
    if not file.is_file():
        return {}
    with (
        contextlib.suppress(sqlite3.DatabaseError),
        contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database,
    ):
        return newest_migrations(database)
    return {}
