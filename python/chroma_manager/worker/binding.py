"""Constructs Chroma's binding for a database, from what ``engine.isolated.prepare`` says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chroma_manager.storage.connection import release_shared_connection

if TYPE_CHECKING:
    from pathlib import Path


def construct(arguments: dict[str, Any], directory: Path) -> Any:
    """Chroma's binding, which has opened the database, or created it.

    Args:
        arguments: What ``engine.isolated.prepare`` says.
        directory: The database's, from which the paths in the arguments are taken.
    """
    release_shared_connection()
    import chromadb_rust_bindings as chroma  # noqa: PLC0415 - where it cannot be loaded, that is an error of this opening

    def within(path: str | None) -> str | None:
        return None if path is None else str(directory / path)

    sqlite, bindings = arguments["sqlite"], arguments["bindings"]
    config = chroma.SqliteDBConfig(
        hash_type=chroma.MigrationHash.MD5 if sqlite["hash_type"] == "md5" else chroma.MigrationHash.SHA256,
        migration_mode=(
            chroma.MigrationMode.Apply if sqlite["migration_mode"] == "apply" else chroma.MigrationMode.Validate
        ),
        url=within(sqlite["url"]),
    )
    return chroma.Bindings(sqlite_db_config=config, **{**bindings, "persist_path": within(bindings["persist_path"])})


def migrate(arguments: dict[str, Any], directory: Path) -> None:
    """Has Chroma migrate a database that an older one has made, with a binding that is dropped.

    One that has migrated it may go on with what it knew of the tables: the first `get` of a database of Chroma 0.4.24
    failed in 56 of 400 of them on a busy machine (``ColumnNotFound``), and in none of a second binding.

    Args:
        arguments: As for ``construct``.
        directory: The database's.
    """
    construct(arguments, directory)


def construct_and_use(arguments: dict[str, Any], directory: Path) -> Any:
    """The binding of a database that can be used: one that cannot be fails here, as in ``PersistentClient``."""
    bindings = construct(arguments, directory)
    bindings.get_tenant("default_tenant")
    bindings.get_database("default_database", "default_tenant")
    return bindings
