"""Which migrations of Chroma's a database has: a newer Chroma has applied some that the installed one does not know.

Only for a database that Chroma has closed: two SQLite libraries in one process must not have a file open at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping

# Those that chromadb 1.5.9 applies to a new database. Beyond these the installed one is asked.
KNOWN_MIGRATIONS = {"embeddings_queue": 2, "metadb": 6, "sysdb": 10}


def newest_migrations(sql: sqlite3.Connection) -> dict[str, int]:
    """The newest migration of each of Chroma's schemas; empty for a new database."""
    has_table = "select count(*) from sqlite_master where type = 'table' and name = 'migrations'"
    if not sql.execute(has_table).fetchone()[0]:
        return {}
    return dict(sql.execute("select dir, max(version) from migrations group by dir").fetchall())


def are_outdated(found: Mapping[str, int], installed: Callable[[], Mapping[str, int]]) -> bool:
    """Whether the installed Chroma migrates a database when it opens it.

    Args:
        found: The newest migrations of the database.
        installed: Says which the installed Chroma applies to a new database.
    """
    if not found or all(found.get(name, 0) >= version for name, version in KNOWN_MIGRATIONS.items()):
        return False
    return any(found.get(name, 0) < version for name, version in installed().items())


def refuse_newer(found: Mapping[str, int], installed: Callable[[], Mapping[str, int]]) -> None:
    """Raises where a newer Chroma has migrated a database, which the installed one would open and misread.

    Args:
        found: The newest migrations of the database.
        installed: Says which the installed Chroma applies to a new database.

    Raises:
        InconsistentVersionError: It has.
    """
    if all(version <= KNOWN_MIGRATIONS.get(name, 0) for name, version in found.items()):
        return
    known = installed()
    for name, version in found.items():
        if version > known.get(name, 0):
            from chromadb.db.migrations import InconsistentVersionError  # noqa: PLC0415 - takes a second

            raise InconsistentVersionError(name, version, known.get(name, 0))
