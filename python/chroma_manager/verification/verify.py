"""Examines a closed database: whether each record has its vector, and whether Chroma can read all of them.

Files are compared without Chroma. Whether Chroma can load an index and read it, only Chroma can tell, in a process of
its own (``probing.py``). Nothing here changes the database; ``repair.py`` repairs what is found.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from chroma_manager.durability.checkpoint_files import problems_with_checkpoints
from chroma_manager.durability.proof import stale_vectors
from chroma_manager.storage.catalog import Collection, connection_to, integrity, read_collections
from chroma_manager.storage.paths import DATABASE_FILE, HOME
from chroma_manager.storage.vector_sources import present_index, settled_vectors, sources_of, vectors_to_come
from chroma_manager.verification.finding import Finding
from chroma_manager.verification.probing import probe_indexes

if TYPE_CHECKING:
    from pathlib import Path

NAMED_IDS = 10

SOUND = ("ok", "not checked")

TABLES = {
    *("collections", "databases", "embedding_metadata", "embeddings", "embeddings_queue", "max_seq_id"),
    *("migrations", "segments", "tenants"),
}


def examine(directory: Path, arguments: dict[str, Any], *, thorough: bool = True) -> dict[str, Any]:
    """Examines a closed database, and changes nothing in it.

    Args:
        directory: The database's.
        arguments: What an engine process is told (``engine.isolated.prepare``).
        thorough: Whether to check SQLite's file and the checkpoints as well, and to have Chroma read every vector of
            the index files instead of a few. Either way it finds damaged and missing index files, records without
            vectors, vectors without records, vectors older than the log's, and an index that Chroma dies of.

    Returns:
        ``ok``; ``problems``: sentences; ``sqlite``: "ok", "not checked", or what SQLite found; ``collections``: the
        ``name``, ``id``, ``tenant``, ``database`` and ``dimension`` of each, the numbers of its ``records``,
        ``vectors``, ``missing_vectors``, ``stray_vectors`` (vectors without a record), ``stale_vectors`` (older than
        the log's) and ``recoverable`` records (whose vector is somewhere), the first ``missing_ids``, and its
        ``problems``; ``unknown``: clauses on what cannot be told; ``repaired``: False; ``set_aside``: None.

    Raises:
        OSError: Space or descriptors are short. In a quick examination also: a file cannot be read. In a thorough one
            also: there is no interpreter on which Chroma could read the indexes.
    """
    sqlite, findings, problems = inspect(directory, arguments, thorough=thorough)
    return report(directory, sqlite, findings, problems)


def inspect(directory: Path, arguments: dict[str, Any], *, thorough: bool) -> tuple[str, list[Finding], list[str]]:
    """What SQLite says of its file, what is found in each collection, and what is wrong with the database itself."""
    sqlite, findings, problems = "not checked", list[Finding](), list[str]()
    database = directory / DATABASE_FILE
    if not database.exists() or database.stat().st_size == 0:
        indexes = [entry for entry in directory.glob("*/header.bin") if entry.parent.name != HOME]
        if indexes:
            problems.append(f"{DATABASE_FILE} is missing, and there are {len(indexes)} indexes; it cannot be repaired")
        return sqlite, findings, problems
    try:
        with connection_to(directory) as sql:
            if thorough:
                sqlite = integrity(sql)
            missing = TABLES - {row[0] for row in sql.execute("select name from sqlite_master where type = 'table'")}
            if missing:
                problems.append(f"{DATABASE_FILE} has no table {', '.join(sorted(missing))}; it cannot be repaired")
            else:
                findings = [
                    _inspect_collection(directory, sql, collection, thorough) for collection in read_collections(sql)
                ]
    except sqlite3.OperationalError as error:
        problems.append(f"{DATABASE_FILE} cannot be read ({error})")
    except (sqlite3.DatabaseError, ValueError) as error:
        sqlite = str(error)
    if sqlite not in SOUND:
        problems.append(f"{DATABASE_FILE} is damaged ({sqlite.splitlines()[0]}); a repair tries to rebuild it")
    elif not problems:
        problems += problems_with_checkpoints(directory) if thorough else []
        try:
            probe_indexes(directory, arguments, findings, thorough)
        except sqlite3.OperationalError:
            raise  # a full disk, say, which is not damage
        except (sqlite3.DatabaseError, ChildProcessError) as error:
            if not thorough and isinstance(error, ChildProcessError):
                raise
            problems.append(f"it cannot be found out whether Chroma can read the indexes ({error})")
    return sqlite, findings, problems


def report(directory: Path, sqlite: str, findings: list[Finding], problems: list[str]) -> dict[str, Any]:
    """The report on what was found, in plain values."""
    collections = [_describe(directory, finding) for finding in findings]
    said = [*problems, *(problem for described in collections for problem in described["problems"])]
    return {
        "ok": not said,
        "problems": said,
        "sqlite": sqlite,
        "collections": collections,
        "unknown": [sentence for finding in findings for sentence in _unknown(finding)],
        "repaired": False,
        "set_aside": None,
    }


def _inspect_collection(directory: Path, sql: sqlite3.Connection, collection: Collection, thorough: bool) -> Finding:
    records = collection.records_at_the_end()
    if collection.vectors_segment is None or collection.records_segment is None:
        return Finding(collection, records, set(), set(), ["it has no segments and cannot be repaired"])
    problems = []
    if collection.misfits:
        problems.append(f"{collection.misfits:,} vectors of its log have another dimension; it cannot be repaired")
    index = present_index(directory, collection)
    if index is None:
        return Finding(collection, records, collection.vectors_at_the_end(set()), set(), problems)
    if index.files.unread is not None and not thorough:
        raise index.files.unread
    if index.files.problems:
        problems.append(f"its index is damaged ({'; '.join(index.files.problems)})")
    indexed = index.files.ids
    settled = {record: row for record, row in settled_vectors(collection).items() if record in indexed}
    coming = vectors_to_come(collection)
    lasting = {record: row for record, row in settled.items() if record not in coming}
    stale = frozenset(stale_vectors(sql, index.files, lasting))
    return Finding(collection, records, collection.vectors_at_the_end(indexed), indexed, problems, stale, len(settled))


def _describe(directory: Path, finding: Finding) -> dict[str, Any]:
    collection = finding.collection
    missing, stray = finding.records - finding.vectors, finding.vectors - finding.records
    recoverable = len(finding.records)
    if not finding.is_healthy:
        recoverable = len(finding.records & sources_of(directory, collection).keys())
    return {
        "name": collection.name,
        "id": collection.id,
        "tenant": collection.tenant,
        "database": collection.database,
        "records": len(finding.records),
        "vectors": len(finding.vectors),
        "dimension": collection.dimension,
        "missing_vectors": len(missing),
        "missing_ids": sorted(missing)[:NAMED_IDS],
        "stray_vectors": len(stray),
        "stale_vectors": len(finding.stale),
        "recoverable": recoverable,
        "problems": _sentences(finding, len(missing), len(stray), recoverable),
    }


def _unknown(finding: Finding) -> list[str]:
    unsettled = len(finding.indexed) - finding.settled
    what = f"collection '{finding.collection.name}': whether {unsettled:,} of its vectors are the ones written last"
    return [what] if unsettled else []


def _sentences(finding: Finding, missing: int, stray: int, recoverable: int) -> list[str]:
    said = list(finding.problems)
    if missing:
        said.append(f"{missing:,} of {len(finding.records):,} records have no vector")
    if stray:
        said.append(f"{stray:,} vectors have no record")
    if finding.stale:
        said.append(f"{len(finding.stale):,} vectors are older than those that the log has")
    if not said:
        return []
    found = finding.collection
    where = "" if found.database == "default_database" else f" (database '{found.database}', tenant '{found.tenant}')"
    return [
        f"collection '{found.name}'{where}: {', '.join(said)}; {recoverable:,} of {len(finding.records):,} vectors can "
        f"be rebuilt from the log and the index files, documents and metadata of all {len(finding.records):,} are there"
    ]
