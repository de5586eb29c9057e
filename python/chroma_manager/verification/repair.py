"""Repairs a closed database: saves what can be saved, and discards nothing.

A damaged index is not patched: Chroma itself rebuilds it from its log. A vector that the log no longer has is appended
to it, as an upsert without document and metadata, which leaves these as they are. A record whose vector is nowhere to
be found is written to a file, and deleted through the log as well. The steps are, in this order, and a repair that is
killed after any of them can be repeated:

1. The records without a vector are written to ``.chroma_manager/set-aside-<time>.jsonl``.
2. One transaction: the log keeps its rows, gets the missing ones, and is to be applied from its beginning. From here on
   every vector is in the log.
3. The checkpoint of the index is removed from the manifest: it is the damaged one's.
4. The damaged index files are moved to ``.chroma_manager/damaged-<time>/``.
5. Chroma, in a process of its own, applies the log.
6. Chroma's setting for purging is put back, unless the dirty marker says that the log has to keep its rows.

A damaged SQLite file is rebuilt first (``sqlite_rebuild.py``).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chroma_manager.durability.checkpoint_files import (
    new_repair_name,
    problems_with_checkpoints,
    quarantine_checkpoints,
    quarantine_indexes,
)
from chroma_manager.storage.catalog import Collection, connection_to, immediate_transaction
from chroma_manager.storage.files import sorted_files, step, sync_directory
from chroma_manager.storage.log import DELETE, KEEPS_ROWS, UPSERT, purge_setting, set_purge_setting
from chroma_manager.storage.manifest import read_manifest, write_manifest
from chroma_manager.storage.paths import DAMAGED, HOME, REPAIR
from chroma_manager.storage.sealed import DamagedFileError, read_sealed, write_sealed
from chroma_manager.storage.sequence_ids import sequence_id
from chroma_manager.storage.vector_sources import Logged, replayed_from_nothing, sources_of
from chroma_manager.verification.lost_records import write_lost_records
from chroma_manager.verification.probing import probe
from chroma_manager.verification.sqlite_rebuild import rebuild_sqlite
from chroma_manager.verification.verify import SOUND, examine, inspect, report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from chroma_manager.storage.hnsw_files import IndexFiles
    from chroma_manager.verification.finding import Finding

ROWS_AT_ONCE = 500


def repair(directory: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Repairs a closed database.

    Where that fails, for lack of space or because SQLite's file cannot be read, the report says so, and the database is
    as it was. Vectors of a cosine space that are in index files alone come back to within rounding, because the index
    has them normalized.

    Args:
        directory: The database's.
        arguments: What an engine process is told (``engine.isolated.prepare``).

    Returns:
        What a thorough ``examine`` says afterwards, with ``repaired``: whether something was repaired; ``set_aside``: a
        file of JSON lines with the id, document and metadata of each record whose vector is nowhere, or None; and
        ``found``: the problems before the repair.
    """
    sqlite, findings, problems = inspect(directory, arguments, thorough=True)
    before = report(directory, sqlite, findings, problems)
    if before["ok"]:
        return {**before, "found": []}
    repair_name = new_repair_name()
    set_aside, changed, said = None, False, list[str]()
    kept = directory / HOME / f"{DAMAGED}{repair_name}"
    try:
        if sqlite not in SOUND:
            rebuild_sqlite(directory, kept)
            changed = True
            sqlite, findings, problems = inspect(directory, arguments, thorough=True)
        damaged = [one.collection for one in findings if one.is_repairable and not one.is_healthy]
        if damaged:
            set_aside, not_rebuilt, _ = rebuild_indexes(directory, arguments, damaged, repair_name)
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
    directory: Path, arguments: dict[str, Any], damaged: list[Collection], repair_name: str
) -> tuple[str | None, dict[str, str], Path]:
    """Has Chroma rebuild indexes.

    Args:
        directory: The database's.
        arguments: What an engine process is told (``engine.isolated.prepare``).
        damaged: Their collections, whose log can be applied to an empty index.
        repair_name: The name of this repair.

    Returns:
        The file of the records without a vector, if there are any; why Chroma still cannot read a collection, by its
        id; and the directory of the damaged index files.
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
        set_aside = write_lost_records(sql, home / f"set-aside-{repair_name}.jsonl", lost) if lost else None
        step("set aside")
        with _remembered_purge_setting(home, sql) as found, immediate_transaction(sql):
            _set_purge_setting(sql, KEEPS_ROWS)
            position = last_position(sql)
            for collection in damaged:
                position = _complete_log(sql, collection, sources[collection.id], position)
                sql.execute("delete from max_seq_id where segment_id = ?", (collection.vectors_segment,))
        step("log completed")
    _forget_checkpoints(home, damaged)
    step("checkpoint forgotten")
    kept = quarantine_indexes(directory, (str(collection.vectors_segment) for collection in damaged), repair_name)
    step("index moved")
    problems = probe(directory, arguments, damaged)
    step("log applied")
    _sync_indexes(directory, damaged)
    with connection_to(directory) as sql, immediate_transaction(sql):
        _set_purge_setting(sql, found)
    (home / REPAIR).unlink()
    sync_directory(home)
    return set_aside, problems, kept


def remove_strays(directory: Path, findings: Iterable[Finding]) -> None:
    """Deletes vectors without a record through the log: Chroma removes them when it next reads the collection."""
    with connection_to(directory) as sql, immediate_transaction(sql):
        position = last_position(sql)
        for finding in findings:
            strays = sorted(finding.vectors - finding.records)
            position = append_rows(sql, finding.collection, [(DELETE, record, None) for record in strays], position)
    sync_directory(directory)
    step("strays removed")


def last_position(sql: sqlite3.Connection) -> int:
    """The sequence id of the last row that the log has ever had, as far as can be told."""
    rows = sql.execute("select max(seq_id) from embeddings_queue union all select seq_id from max_seq_id")
    return max(sequence_id(position) for (position,) in rows)


def _complete_log(
    sql: sqlite3.Connection, collection: Collection, sources: dict[str, Logged | IndexFiles], position: int
) -> int:
    """Appends to the log what it lacks to fill an empty index, and returns the sequence id of the last row."""
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
            position = append_rows(sql, collection, rows, position)
            rows = []
    return append_rows(sql, collection, rows, position)


def append_rows(
    sql: sqlite3.Connection, collection: Collection, rows: list[tuple[int, str, bytes | None]], position: int
) -> int:
    """Appends rows to the log, each with its operation, id and vector; returns the sequence id of the last one."""
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


def _forget_checkpoints(home: Path, damaged: list[Collection]) -> None:
    """Removes the checkpoints of indexes that are rebuilt: a recovery that comes first is to apply the whole log."""
    with contextlib.suppress(OSError, DamagedFileError):
        manifest = read_manifest(home) or {}
        for collection in damaged:
            manifest.pop(str(collection.vectors_segment), None)
        write_manifest(home, manifest)


def _sync_indexes(directory: Path, made: list[Collection]) -> None:
    """Syncs index files, which Chroma does not: the log is needed until they are on the disk."""
    for collection in made:
        index = directory / str(collection.vectors_segment)
        if index.is_dir():
            for file in sorted_files(index):
                with Path(file.path).open("rb+") as opened:
                    os.fsync(opened.fileno())
            sync_directory(index)
    sync_directory(directory)


@contextlib.contextmanager
def _remembered_purge_setting(home: Path, sql: sqlite3.Connection) -> Iterator[str | None]:
    """Yields Chroma's setting for purging, as it was before this repair and before interrupted ones."""
    remembered = None
    with contextlib.suppress(DamagedFileError):
        remembered = read_sealed(home / REPAIR)
    if remembered is not None:
        yield remembered["purge_setting"]
        return
    found = found_purge_setting(sql)
    write_sealed(home / REPAIR, {"purge_setting": found})
    try:
        yield found
    except BaseException:
        (home / REPAIR).unlink()
        raise


def found_purge_setting(sql: sqlite3.Connection) -> str | None:
    """Chroma's setting for purging; ``None`` where there is none."""
    return purge_setting(sql) if _has_purge_setting(sql) else None


def _set_purge_setting(sql: sqlite3.Connection, setting: str | None) -> None:
    if _has_purge_setting(sql):
        set_purge_setting(sql, setting)


def _has_purge_setting(sql: sqlite3.Connection) -> bool:
    """Whether Chroma has such a setting. An older one has none, and purges nothing."""
    return sql.execute("select 1 from sqlite_master where name = 'embeddings_queue_config'").fetchone() is not None
