"""Repairs a Chroma database that nobody has open: saves what can be saved, and throws nothing away.

A damaged index is not mended but made anew by Chroma itself, from its log. What the log does not have any more of a
record's vector is appended to it, as an upsert without document and metadata, which leaves these as they are. A record
whose vector is nowhere is written to a file and deleted through the log, too. So the steps are, in this order, and a
repair that is killed after any of them can be made again:

1. The records without a vector are written to ``.chroma_manager/set-aside-<time>.jsonl``.
2. One transaction: the log is kept (Chroma deletes no rows of it), has what was missing, and is to be applied from its
   beginning. From here on every vector is in the log.
3. The checkpoint of the index is forgotten; it is of the old one.
4. The old index files are moved to ``.chroma_manager/damaged-<time>/``.
5. Chroma, in a process of its own, applies the log.
6. The log is not kept any more, except where the mark of an opening says that it has to be.

A SQLite file that is damaged is read table by table into a new one, which replaces it if nothing was lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chroma_manager.durability.checkpoint_files import (
    new_stamp,
    problems_with_checkpoints,
    quarantine_checkpoints,
    quarantine_indexes,
)
from chroma_manager.storage.catalog import Collection, Logged, connection_to, replayed_from_nothing
from chroma_manager.storage.files import step, sync_directory, write_durably
from chroma_manager.storage.log import DELETE, KEEPS_ROWS, UPSERT, purge_setting, set_purge_setting
from chroma_manager.storage.manifest import read_manifest, write_manifest
from chroma_manager.storage.paths import DAMAGED, DATABASE_FILE, HOME, REPAIR
from chroma_manager.storage.sealed import DamagedFileError, read_sealed, write_sealed
from chroma_manager.storage.sequence_ids import sequence_id
from chroma_manager.verification.verify import SOUND, Finding, check, examine, look, probe, report, sources_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from chroma_manager.storage.hnsw_files import IndexFiles

ROWS_AT_ONCE = 500


def repair(directory: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Repairs a database that nobody has open.

    Where it fails, for want of space or because SQLite's file cannot be read, it says so and leaves the database as it
    was. Vectors of a cosine space that are in index files only come back to within rounding: the index has them
    normalized.

    Args:
        directory: Where the database is.
        arguments: What ``engine_process`` is told (``isolated.prepare``).

    Returns:
        What a thorough ``examine`` says afterwards, with ``repaired``: whether there was a repair, to its end;
        ``set_aside``: a file of JSON lines with the id, document and metadata of each record whose vector is nowhere,
        or None; and ``found``: the problems that there were.
    """
    sqlite, findings, problems = look(directory, arguments, thorough=True)
    before = report(directory, sqlite, findings, problems)
    if before["ok"]:
        return {**before, "found": []}
    stamp = new_stamp()
    set_aside, changed, said = None, False, list[str]()
    kept = directory / HOME / f"{DAMAGED}{stamp}"
    try:
        if sqlite not in SOUND:
            _rebuild_sqlite(directory, kept)
            changed = True
            sqlite, findings, problems = look(directory, arguments, thorough=True)
        damaged = [one.collection for one in findings if one.is_repairable and not one.is_healthy]
        if damaged:
            set_aside, not_rebuilt, _ = rebuild_indexes(directory, arguments, damaged, stamp)
            names = {collection.id: collection.name for collection in damaged}
            said = [f"collection '{names[key]}' is not repaired: {problem}" for key, problem in not_rebuilt.items()]
            changed = True
        if problems_with_checkpoints(directory):
            quarantine_checkpoints(directory, kept)
            changed = True
    except (sqlite3.Error, OSError) as error:
        said = [f"the repair failed: {error}; what it did not finish is as it was"]
    after = examine(directory, arguments)
    return {
        **after,
        "ok": after["ok"] and not said,
        "problems": [*after["problems"], *said],
        "repaired": changed,
        "set_aside": set_aside,
        "found": before["problems"],
    }


def rebuild_indexes(
    directory: Path, arguments: dict[str, Any], damaged: list[Collection], stamp: str
) -> tuple[str | None, dict[str, str], Path]:
    """Has Chroma make indexes anew.

    Args:
        directory: Where the database is.
        arguments: What ``engine_process`` is told (``isolated.prepare``).
        damaged: The collections whose indexes these are; their log can be applied to an empty one.
        stamp: Of this repair.

    Returns:
        Where the records are that were set aside, if any; why Chroma cannot read a collection nevertheless, by its id;
        and where the old index files are.
    """
    home = directory / HOME
    home.mkdir(exist_ok=True)
    sources = {collection.id: sources_of(directory, collection) for collection in damaged}
    with connection_to(directory) as sql:
        lost = [
            (collection, record)
            for collection in damaged
            for record in sorted(collection.records_at_the_end() - sources[collection.id].keys())
        ]
        set_aside = _set_aside(sql, home / f"set-aside-{stamp}.jsonl", lost) if lost else None
        step("set aside")
        with _remembered_purge_setting(home, sql) as found, _transaction(sql):
            _set_purge_setting(sql, KEEPS_ROWS)
            position = _last_position(sql)
            for collection in damaged:
                position = _complete_log(sql, collection, sources[collection.id], position)
                sql.execute("delete from max_seq_id where segment_id = ?", (collection.vectors_segment,))
        step("log completed")
    _forget_checkpoints(home, damaged)
    step("checkpoint forgotten")
    kept = quarantine_indexes(directory, (str(collection.vectors_segment) for collection in damaged), stamp)
    step("index moved")
    problems = probe(directory, arguments, damaged)
    step("log applied")
    _sync_indexes(directory, damaged)
    with connection_to(directory) as sql, _transaction(sql):
        _set_purge_setting(sql, found)
    (home / REPAIR).unlink()
    sync_directory(home)
    return set_aside, problems, kept


def remove_strays(directory: Path, findings: Iterable[Finding]) -> None:
    """Has Chroma remove the vectors without a record, through the log, when it next reads their collection."""
    with connection_to(directory) as sql, _transaction(sql):
        position = _last_position(sql)
        for finding in findings:
            strays = sorted(finding.vectors - finding.records)
            position = _append(sql, finding.collection, [(DELETE, record, None) for record in strays], position)
    sync_directory(directory)
    step("strays removed")


@contextlib.contextmanager
def _transaction(sql: sqlite3.Connection) -> Iterator[None]:
    sql.execute("begin immediate")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite itself may have rolled it back
            sql.execute("rollback")
        raise
    sql.execute("commit")


def _last_position(sql: sqlite3.Connection) -> int:
    """That of the last row of the log there has been, as far as anything tells."""
    rows = sql.execute("select max(seq_id) from embeddings_queue union all select seq_id from max_seq_id")
    return max(sequence_id(position) for (position,) in rows)


def _complete_log(
    sql: sqlite3.Connection, collection: Collection, sources: dict[str, Logged | IndexFiles], position: int
) -> int:
    """Appends to the log what an empty index needs besides, and returns the position of the last row."""
    records, replayed = collection.records_at_the_end(), replayed_from_nothing(collection)
    rows: list[tuple[int, str, bytes | None]] = [
        (DELETE, record, None) for record in sorted((records - sources.keys()) | (replayed.keys() - records))
    ]
    for record in sorted(records & sources.keys()):
        source = sources[record]
        if isinstance(source, Logged):
            if replayed.get(record) != source.position:
                query = "select vector from embeddings_queue where seq_id = ?"
                rows.append((UPSERT, record, sql.execute(query, (source.position,)).fetchone()[0]))
        else:
            rows.append((UPSERT, record, source.vector(record)))
        if len(rows) >= ROWS_AT_ONCE:
            position = _append(sql, collection, rows, position)
            rows = []
    return _append(sql, collection, rows, position)


def _append(
    sql: sqlite3.Connection, collection: Collection, rows: list[tuple[int, str, bytes | None]], position: int
) -> int:
    topic = f"persistent://default/default/{collection.id}"
    sql.executemany(
        "insert into embeddings_queue (seq_id, operation, topic, id, vector, encoding, metadata) "
        "values (?, ?, ?, ?, ?, ?, '{}')",
        [
            (position + i, operation, topic, record, vector, None if vector is None else "FLOAT32")
            for i, (operation, record, vector) in enumerate(rows, 1)
        ],
    )
    return position + len(rows)


def _set_aside(sql: sqlite3.Connection, file: Path, lost: list[tuple[Collection, str]]) -> str:
    """Writes records durably, one a line; returns where."""
    lines = (json.dumps(_record(sql, collection, record), ensure_ascii=False) for collection, record in lost)
    write_durably(file, "".join(line + "\n" for line in lines))
    return str(file)


def _record(sql: sqlite3.Connection, collection: Collection, record: str) -> dict[str, Any]:
    """What SQLite has of a record, as `get` would tell it."""
    values: dict[str, Any] = {}
    query = (
        "select key, string_value, int_value, float_value, bool_value from {} where id = "
        "(select id from embeddings where segment_id = ? and embedding_id = ?) order by rowid"
    )
    for key, *typed in sql.execute(query.format("embedding_metadata"), (collection.records_segment, record)):
        values[key] = _value(typed)
    with contextlib.suppress(sqlite3.OperationalError):  # an older Chroma has no table of lists
        for key, *typed in sql.execute(query.format("embedding_metadata_array"), (collection.records_segment, record)):
            values.setdefault(key, []).append(_value(typed))
    return {
        "collection": collection.name,
        "database": collection.database,
        "tenant": collection.tenant,
        "id": record,
        "document": values.pop("chroma:document", None),
        "metadata": values or None,
    }


def _value(typed: list[Any]) -> Any:
    text, number, fraction, truth = typed
    return bool(truth) if truth is not None else next((v for v in (text, number, fraction) if v is not None), None)


def _forget_checkpoints(home: Path, damaged: list[Collection]) -> None:
    """An index that is made anew has none; where a recovery comes first, it is to apply the whole log."""
    with contextlib.suppress(OSError, DamagedFileError):
        manifest = read_manifest(home) or {}
        for collection in damaged:
            manifest.pop(str(collection.vectors_segment), None)
        write_manifest(home, manifest)


def _sync_indexes(directory: Path, made: list[Collection]) -> None:
    """Chroma does not: the log is needed until the files are on the disk."""
    for collection in made:
        index = directory / str(collection.vectors_segment)
        if index.is_dir():
            for file in index.iterdir():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
            sync_directory(index)
    sync_directory(directory)


@contextlib.contextmanager
def _remembered_purge_setting(home: Path, sql: sqlite3.Connection) -> Iterator[str | None]:
    """Whether Chroma purges rows, as it was before this repair, and before others that were interrupted."""
    remembered = None
    with contextlib.suppress(DamagedFileError):
        remembered = read_sealed(home / REPAIR)
    if remembered is not None:
        yield remembered["purge_setting"]
        return
    found = purge_setting(sql) if _has_purge_setting(sql) else None
    write_sealed(home / REPAIR, {"purge_setting": found})
    try:
        yield found
    except BaseException:
        (home / REPAIR).unlink()
        raise


def _set_purge_setting(sql: sqlite3.Connection, setting: str | None) -> None:
    if _has_purge_setting(sql):
        set_purge_setting(sql, setting)


def _has_purge_setting(sql: sqlite3.Connection) -> bool:
    """Where an older Chroma has made the database it has none, and purges nothing."""
    return sql.execute("select 1 from sqlite_master where name = 'embeddings_queue_config'").fetchone() is not None


def _rebuild_sqlite(directory: Path, kept: Path) -> None:
    """Replaces SQLite's file by a new one with the same rows; the old one is kept.

    Raises:
        sqlite3.Error: Not all rows can be read; nothing is changed.
    """
    (directory / HOME).mkdir(exist_ok=True)
    new = directory / HOME / "rebuilt.sqlite3"
    new.unlink(missing_ok=True)
    try:
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
        # Of a file that is not finished nothing is needed, and so no journal is left of it.
        made.execute("pragma journal_mode = off")
        with _transaction(made):
            schema = sql.execute("select type, name, sql from sqlite_master where sql is not null").fetchall()
            # Full-text search is made from the documents; the tables in which it keeps itself come with it.
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
        said = check(made)
        if said != "ok":
            raise sqlite3.DatabaseError(f"the file made anew is damaged, too ({said})")


def _copy_table(sql: sqlite3.Connection, made: sqlite3.Connection, name: str) -> None:
    rows = sql.execute(f'select rowid, * from "{name}" not indexed')
    columns = [description[0] for description in rows.description]
    # A rowid that has a name of its own comes once under that.
    first = 1 if columns[0] in columns[1:] else 0
    listed = ", ".join(f'"{column}"' for column in columns[first:])
    places = ", ".join("?" * (len(columns) - first))
    while batch := rows.fetchmany(ROWS_AT_ONCE):
        made.executemany(f'insert into "{name}" ({listed}) values ({places})', [row[first:] for row in batch])
