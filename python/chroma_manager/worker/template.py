"""An empty database, as Chroma creates it: made once in a host, and copied to where a new database is wanted.

Two databases that one Chroma creates with the same settings have the same content, and a copy takes a millisecond where
Chroma takes fourteen. Without a template Chroma creates the database itself.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chroma_manager.storage.connection import transaction
from chroma_manager.storage.files import remove_tree
from chroma_manager.storage.log import KEEPS_ROWS, set_purge_setting
from chroma_manager.storage.migrations import newest_migrations
from chroma_manager.storage.paths import DATABASE_FILE
from chroma_manager.worker.binding import construct_and_use

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

# With which settings the template is made; others are seldom used.
SQLITE = {"hash_type": "md5", "migration_mode": "apply", "url": DATABASE_FILE}
BINDINGS = {"allow_reset": False, "hnsw_cache_size": 1, "persist_path": "."}

# Chroma closes its file in threads of its own.
CLOSES_WITHIN = 5.0
PAUSE = 0.002


class _Template:
    """The template of this process.

    Attributes:
        content: The SQLite file; ``None`` where there is no template.
    """

    content: bytes | None = None


def keep(content: bytes) -> None:
    """Has this process, and those that it forks, use a template."""
    _Template.content = content


def for_settings(sqlite: Mapping[str, Any]) -> bytes | None:
    """The template of a database with these settings, whose log keeps its rows; ``None`` where there is none."""
    return _Template.content if sqlite == SQLITE else None


def make() -> bytes:
    """Has Chroma create a database, in a process that ends afterwards; its SQLite file."""

    def content(file: Path) -> bytes:
        with transaction(file) as sql:
            set_purge_setting(sql, KEEPS_ROWS)
        return file.read_bytes()

    return _made(content)


def migrations() -> dict[str, int]:
    """Those that the installed Chroma applies to a new database; the package does not say them."""

    def applied(file: Path) -> dict[str, int]:
        with transaction(file) as sql:
            return newest_migrations(sql)

    return _made(applied)


def _made(read: Callable[[Path], T]) -> T:
    """What is read of a database that Chroma has created, and closed."""
    directory = Path(os.environ.get("TMPDIR") or "/tmp") / f"chroma-manager-{os.urandom(8).hex()}"
    directory.mkdir(0o700)
    try:
        construct_and_use({"sqlite": SQLITE, "bindings": BINDINGS}, directory)
        file = directory / DATABASE_FILE
        ends = time.monotonic() + CLOSES_WITHIN
        while _is_open(file) and time.monotonic() < ends:
            time.sleep(PAUSE)
        return read(file)
    finally:
        remove_tree(directory)


def _is_open(file: Path) -> bool:
    """Whether this process has a file open."""
    descriptors = Path("/proc/self/fd")
    return any(os.path.realpath(descriptors / name) == str(file) for name in os.listdir(descriptors))
