"""What a directory has outside the one of Chroma's databases that is its instance: nothing of it can be copied."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT

from chroma_manager.errors import MigrationError
from chroma_manager.storage.paths import DATABASE_FILE

if TYPE_CHECKING:
    from pathlib import Path

# Chroma's API lists the databases of a tenant, but no tenants.
_COUNTS = (
    "select tenant_id, databases.name, count(*) from collections join databases on databases.id = database_id "
    "where (tenant_id, databases.name) != (?, ?) group by 1, 2 order by 1, 2"
)


class OtherDatabase(NamedTuple):
    """A database of a directory that is not its instance."""

    tenant: str
    database: str
    collections: int

    def __str__(self) -> str:
        """What a message says of it."""
        noun = "collection" if self.collections == 1 else "collections"
        return f"{self.collections:,} {noun} in tenant {self.tenant!r}, database {self.database!r}"


def others_in(directory: Path) -> list[OtherDatabase]:
    """The other databases of a directory, as far as they have collections.

    Args:
        directory: One that Chroma has opened, so that its tables are up to date. Another process may have it open, but
            not this one: two SQLite libraries in one process must not have a file open at the same time.

    Raises:
        MigrationError: It cannot be read.
    """
    file = (directory / DATABASE_FILE).absolute()
    try:
        # Read-only: an engine process looks for other programs that have its file open for writing.
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as sql:
            return [OtherDatabase(*row) for row in sql.execute(_COUNTS, (DEFAULT_TENANT, DEFAULT_DATABASE))]
    except sqlite3.Error as error:
        raise MigrationError(f"{file} cannot be read ({error}): it may have more than was copied; run again") from error
