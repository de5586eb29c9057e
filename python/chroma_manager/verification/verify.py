"""Examines a Chroma database that nobody has open: whether each record has its vector, and whether Chroma can read it.

What the files say is compared without Chroma. What only Chroma can tell, whether it can load an index and read it, a
process of its own finds out, on a database made for it whose indexes are these: nothing here changes the
database, whatever Chroma does. ``verification/repair.py`` repairs what is found.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager.durability.checkpoint_files import problems_with_checkpoints
from chroma_manager.durability.proof import stale_vectors
from chroma_manager.storage.catalog import (
    Collection,
    all_indexes,
    connection_to,
    find_vectors,
    present_index,
    read_collections,
    settled_vectors,
)
from chroma_manager.storage.files import remove_tree
from chroma_manager.storage.paths import DATABASE_FILE, HOME, SCRATCH
from chroma_manager.storage.shortage import shortage_in

if TYPE_CHECKING:
    from collections.abc import Iterable

# What the probe may take: far more than any index needs.
PROBE_SECONDS = 120
PROBE_RECORDS_A_SECOND = 50

# Records a collection that a quick examination has Chroma read.
QUICK_RECORDS = 5

NAMED_IDS = 10

NO_INTERPRETER = (
    "no Python interpreter is found that could run a process in which Chroma reads the indexes: give ChromaDBManager "
    "the path of one as python=..."
)

SOUND = ("ok", "not checked")

TABLES = {
    *("collections", "databases", "embedding_metadata", "embeddings", "embeddings_queue", "max_seq_id"),
    *("migrations", "segments", "tenants"),
}

# What the probe's database does not have: the log, which Chroma would apply, and what takes room.
LEFT_OUT = ("embeddings_queue", "embeddings", "embedding_metadata", "embedding_metadata_array")


class Finding(NamedTuple):
    """What is known of one collection after looking at its files.

    Attributes:
        collection: What SQLite says of it.
        records: Its records once the log is applied.
        vectors: Their vectors once the log is applied, if Chroma can read the index.
        indexed: The ids that are in the index files.
        problems: What is wrong with the files, or what Chroma said.
        stale: The ids whose vector in the index files is not the one that the log says was written last.
        told: Of how many records the log tells which vector the index files must have.
    """

    collection: Collection
    records: set[str]
    vectors: set[str]
    indexed: set[str]
    problems: list[str]
    stale: frozenset[str] = frozenset()
    told: int = 0

    @property
    def is_repairable(self) -> bool:
        """Whether its log can be applied to an empty index."""
        return None not in (self.collection.vectors_segment, self.collection.records_segment) and (
            self.collection.misfits == 0
        )

    @property
    def has_only_strays(self) -> bool:
        """Whether nothing is wrong but vectors without a record."""
        return self.is_repairable and not self.problems and not self.stale and self.records < self.vectors

    @property
    def is_healthy(self) -> bool:
        """Whether each record has its vector, each vector its record, and all can be read."""
        return not self.problems and not self.stale and self.records == self.vectors


def examine(directory: Path, arguments: dict[str, Any], *, thorough: bool = True) -> dict[str, Any]:
    """Examines a database that nobody has open, and changes nothing of it.

    Args:
        directory: Where the database is.
        arguments: What ``engine_process`` is told (``isolated.prepare``).
        thorough: Whether to check SQLite's file and the checkpoints, too, and to have Chroma read every vector of the
            index files instead of a few. Either way damaged and missing index files, records without vectors, vectors
            without records, vectors older than the log's, and an index that Chroma dies of are found.

    Returns:
        ``ok``; ``problems``: a sentence each; ``sqlite``: "ok", "not checked", or what SQLite found; ``collections``:
        of each its ``name``, ``id``, ``tenant``, ``database``, ``dimension``, the numbers of ``records``, ``vectors``,
        ``missing_vectors``, ``stray_vectors`` (vectors without a record), ``stale_vectors`` (older than the log's) and
        ``recoverable`` records (those with a vector that can be found somewhere), the first ``missing_ids``, and its
        ``problems``; ``unknown``: what cannot be told, a clause each; ``repaired``: False; ``set_aside``: None.

    Raises:
        OSError: Something is short (space, descriptors); unless it is thorough, also where a file cannot be read. Or it
            is thorough, and there is no interpreter for what Chroma is to read.
    """
    sqlite, findings, problems = look(directory, arguments, thorough=thorough)
    return report(directory, sqlite, findings, problems)


def look(directory: Path, arguments: dict[str, Any], *, thorough: bool) -> tuple[str, list[Finding], list[str]]:
    """What SQLite says of its file, what is found of each collection, and what is wrong with the database as such."""
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
                sqlite = check(sql)
            missing = TABLES - {row[0] for row in sql.execute("select name from sqlite_master where type = 'table'")}
            if missing:
                problems.append(f"{DATABASE_FILE} has no table {', '.join(sorted(missing))}; it cannot be repaired")
            else:
                findings = [_look_at(directory, sql, collection, thorough) for collection in read_collections(sql)]
    except sqlite3.OperationalError as error:
        problems.append(f"{DATABASE_FILE} cannot be read ({error})")
    except (sqlite3.DatabaseError, ValueError) as error:
        sqlite = str(error)
    if sqlite not in SOUND:
        problems.append(f"{DATABASE_FILE} is damaged ({sqlite.splitlines()[0]}); a repair tries to rebuild it")
    elif not problems:
        problems += problems_with_checkpoints(directory) if thorough else []
        try:
            _probe_indexes(directory, arguments, findings, thorough)
        except sqlite3.OperationalError:
            raise  # a full disk, say: that is no damage
        except (sqlite3.DatabaseError, ChildProcessError) as error:
            if not thorough and isinstance(error, ChildProcessError):
                raise
            problems.append(f"it cannot be found out whether Chroma can read the indexes ({error})")
    return sqlite, findings, problems


def check(sql: sqlite3.Connection) -> str:
    """What SQLite says of the whole of its file: "ok", or what is wrong with it."""
    return "\n".join(str(row[0]) for row in sql.execute("pragma integrity_check(10)"))


def report(directory: Path, sqlite: str, findings: list[Finding], problems: list[str]) -> dict[str, Any]:
    """The report of what was found, in plain values."""
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


def _look_at(directory: Path, sql: sqlite3.Connection, collection: Collection, thorough: bool) -> Finding:
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
    told = {record: row for record, row in settled_vectors(collection).items() if record in indexed}
    stale = frozenset(stale_vectors(sql, index.files, told))
    return Finding(collection, records, collection.vectors_at_the_end(indexed), indexed, problems, stale, len(told))


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
    untold = len(finding.indexed) - finding.told
    what = f"collection '{finding.collection.name}': whether {untold:,} of its vectors are the ones written last"
    return [what] if untold else []


def sources_of(directory: Path, collection: Collection) -> dict[str, Any]:
    """Where the vector of each record of a collection can be found, of all places there are."""
    return find_vectors(collection, all_indexes(directory, collection))


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


def _probe_indexes(directory: Path, arguments: dict[str, Any], findings: list[Finding], thorough: bool) -> None:
    """Adds to the findings what Chroma makes of the indexes that look sound."""
    sound = {finding.collection.id: finding for finding in findings if finding.indexed and not finding.problems}
    # An app in whose own process the database is opened may have no interpreter.
    if thorough and arguments["python"] is None:
        raise OSError(NO_INTERPRETER)
    if not sound or arguments["python"] is None:
        return
    scratch = directory.absolute() / HOME / SCRATCH
    remove_tree(scratch)
    scratch.mkdir(parents=True)
    try:
        with connection_to(directory) as sql:
            _make_scratch(directory.absolute(), scratch, sql, sound.values(), thorough)
        told = {
            **arguments,
            "directory": str(scratch),
            "bindings": {**arguments["bindings"], "persist_path": str(scratch)},
            "sqlite": {**arguments["sqlite"], "url": str(scratch / DATABASE_FILE)},
        }
        problems = _probe_twice(scratch, told, [finding.collection for finding in sound.values()])
        if problems and (shortage := shortage_in(scratch)):
            raise OSError(shortage)
        for collection, problem in problems.items():
            sound[collection].problems.append(problem)
    finally:
        with contextlib.suppress(OSError):
            remove_tree(scratch)


def _probe_twice(scratch: Path, told: dict[str, Any], collections: list[Collection]) -> dict[str, str]:
    """Damage stays; what the disk or somebody with a signal has done once may not."""
    try:
        problems = probe(scratch, told, collections)
    except ChildProcessError:
        return probe(scratch, told, collections)
    return probe(scratch, told, [one for one in collections if one.id in problems]) if problems else {}


def _make_scratch(
    directory: Path, scratch: Path, sql: sqlite3.Connection, findings: Iterable[Finding], thorough: bool
) -> None:
    """A database with the indexes of another one, and records that are in them, but no log to apply to them."""
    made = sqlite3.connect(scratch / DATABASE_FILE)
    with contextlib.closing(made), made:
        made.execute("pragma synchronous = off")
        made.execute("pragma journal_mode = memory")
        for name, statement in sql.execute("select name, sql from sqlite_master where sql is not null").fetchall():
            if "fulltext_search" in name:
                continue
            made.execute(statement)
            if not statement.lower().startswith("create table") or name in LEFT_OUT:
                continue
            rows = sql.execute(f'select * from "{name}"').fetchall()
            if rows:
                made.executemany(f'insert into "{name}" values ({", ".join("?" * len(rows[0]))})', rows)
        for finding in findings:
            segment = finding.collection.records_segment
            ids = sorted(finding.indexed) if thorough else list(finding.indexed)[:QUICK_RECORDS]
            made.executemany(
                "insert into embeddings (segment_id, embedding_id, seq_id) values (?, ?, 1)",
                [(segment, record) for record in ids],
            )
            vectors = str(finding.collection.vectors_segment)
            (scratch / vectors).symlink_to(directory / vectors, target_is_directory=True)


def probe(directory: Path, arguments: dict[str, Any], collections: list[Collection]) -> dict[str, str]:
    """Has Chroma read all vectors of some collections, in processes of their own.

    The processes inherit standard input, which in an engine process is the lock: the database is theirs as long as
    they run. They end when this one does.

    Returns:
        What is wrong, by the id of the collection.

    Raises:
        ChildProcessError: A process ended before it began with a collection: it is not of an index that it died.
    """
    problems: dict[str, str] = {}
    waiting = list(collections)
    while waiting:
        seconds = PROBE_SECONDS + sum(len(one.records) for one in waiting) / PROBE_RECORDS_A_SECOND
        said, died = _run_probe(directory, arguments, waiting, seconds)
        ended = {line["ends"] for line in said if "ends" in line}
        problems |= {line["ends"]: f"Chroma cannot read it ({line['error']})" for line in said if "error" in line}
        left = [one for one in waiting if one.id not in ended]
        if left and {"begins": left[0].id} not in said:
            raise ChildProcessError(died)
        problems |= {one.id: died for one in left[:1]}
        waiting = left[1:]
    return problems


def _run_probe(
    directory: Path, arguments: dict[str, Any], collections: list[Collection], seconds: float
) -> tuple[list[dict[str, Any]], str]:
    """The lines that a probe said, and a sentence on its end."""
    told = {
        **arguments,
        "parent": os.getpid(),
        "collections": [{"id": one.id, "tenant": one.tenant, "database": one.database} for one in collections],
    }
    try:
        ended = _run(told, directory, seconds)
    except subprocess.TimeoutExpired as error:
        out, died = error.stdout or b"", f"Chroma has not read it in {seconds:.0f} seconds"
    else:
        out = ended.stdout
        last_words = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        how = f"signal {-ended.returncode}" if ended.returncode < 0 else f"exit {ended.returncode}"
        died = f"the process in which Chroma read it died ({how}: {last_words[0]})"
    return [json.loads(line) for line in out.splitlines() if line.startswith(b"{") and line.endswith(b"}")], died


def _run(told: dict[str, Any], directory: Path, seconds: float) -> subprocess.CompletedProcess[bytes]:
    # A command line has a limit, and standard input is taken.
    with tempfile.TemporaryFile("w+") as file:
        json.dump(told, file)
        file.seek(0)
        python = told["python"]
        command = [*python["command"], python["probe"], str(file.fileno())]
        return subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            timeout=seconds,
            check=False,
            pass_fds=(file.fileno(),),
            env={name: value for name, value in {**os.environ, **python["environment"]}.items() if value is not None},
        )
