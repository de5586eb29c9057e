"""Rebuilds a damaged SQLite file: its tables are read row by row into a new file, which replaces it if none is lost."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from chroma_manager.storage.catalog import connection_to, immediate_transaction, integrity
from chroma_manager.storage.files import step, sync_directory
from chroma_manager.storage.journal_mode import ROLLBACK_JOURNAL, change_journal_mode
from chroma_manager.storage.paths import DATABASE_FILE, HOME

if TYPE_CHECKING:
    from pathlib import Path

ROWS_AT_ONCE = 500


def rebuild_sqlite(directory: Path, kept: Path) -> None:
    """Replaces the SQLite file by a new one with the same rows; the damaged one is quarantined.

    Raises:
        sqlite3.Error: Not all rows can be read. Nothing is changed.
    """
    (directory / HOME).mkdir(exist_ok=True)
    new = directory / HOME / "rebuilt.sqlite3"
    new.unlink(missing_ok=True)
    try:
        # A write-ahead log that stayed would be taken for that of the new file.
        if not change_journal_mode(directory / DATABASE_FILE, ROLLBACK_JOURNAL):
            raise sqlite3.OperationalError("another program has the database open")
        with connection_to(directory) as sql:
            _copy_rows(sql, new)
        step("tables copied")
        kept.mkdir(exist_ok=True)
        os.link(directory / DATABASE_FILE, kept / DATABASE_FILE)
        sync_directory(kept)
        sync_directory(kept.parent)
        new.rename(directory / DATABASE_FILE)
        sync_directory(directory)
    finally:
        new.unlink(missing_ok=True)


def _copy_rows(sql: sqlite3.Connection, new: Path) -> None:
    made = sqlite3.connect(new, isolation_level=None)
    with contextlib.closing(made):
        # An unfinished file is of no use, and needs no journal.
        made.execute("pragma journal_mode = off")
        with immediate_transaction(made):
            # What begins with "sqlite_" is SQLite's own, and nobody else can create it: `analyze` makes statistics.
            schema = sql.execute(
                "select type, name, sql from sqlite_master where sql is not null and substr(name, 1, 7) != 'sqlite_'"
            ).fetchall()
            # Full-text search is rebuilt from the documents; it creates its own tables.
            tables = [
                row for row in schema if row[0] == "table" and not row[1].startswith("embedding_fulltext_search_")
            ]
            for _, name, statement in tables:
                made.execute(statement)
                if not name.startswith("embedding_fulltext_search"):
                    _copy_table(sql, made, name)
            for kind, _, statement in schema:
                if kind != "table":
                    made.execute(statement)
            if any(name == "embedding_fulltext_search" for _, name, _ in tables):
                made.execute(
                    "insert into embedding_fulltext_search (rowid, string_value) "
                    "select id, string_value from embedding_metadata where key = 'chroma:document'"
                )
        said = integrity(made)
        if said != "ok":
            raise sqlite3.DatabaseError(f"the rebuilt file is damaged, too ({said})")


def _copy_table(sql: sqlite3.Connection, made: sqlite3.Connection, name: str) -> None:
    rows = sql.execute(f'select rowid, * from "{name}" not indexed')
    columns = [description[0] for description in rows.description]
    # A rowid that has a name is listed once, under that name.
    first = 1 if columns[0] in columns[1:] else 0
    listed = ", ".join(f'"{column}"' for column in columns[first:])
    places = ", ".join("?" * (len(columns) - first))
    while batch := rows.fetchmany(ROWS_AT_ONCE):
        made.executemany(f'insert into "{name}" ({listed}) values ({places})', [row[first:] for row in batch])
