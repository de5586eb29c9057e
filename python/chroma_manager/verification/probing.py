"""Has Chroma read the indexes of a closed database, in processes of its own, because it may die of damaged files.

The database is not touched: Chroma reads one that is made for it, whose indexes are links to these. The program that
the processes run is not known here; it is told (``engine.isolated.prepare``).
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chroma_manager.storage.catalog import Collection, connection_to
from chroma_manager.storage.files import remove_tree
from chroma_manager.storage.paths import DATABASE_FILE, HOME, SCRATCH
from chroma_manager.storage.shortage import shortage_in

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chroma_manager.verification.finding import Finding

# Seconds after which a probe counts as hanging: far more than any index needs.
PROBE_SECONDS = 120
PROBE_RECORDS_A_SECOND = 50

# How many records of a collection a quick examination has Chroma read.
QUICK_RECORDS = 5

NO_INTERPRETER = (
    "no Python interpreter is found that could run a process in which Chroma reads the indexes: give ChromaDBManager "
    "the path of one as python=..."
)

# What the probe's database has of the schema. The names of SQLite's own tables, such as `analyze` makes, begin with
# "sqlite_". Chroma has no triggers and views; those of the user might refer to what is left out.
SCHEMA = (
    "select name, sql from sqlite_master "
    "where type in ('table', 'index') and sql is not null and substr(name, 1, 7) != 'sqlite_'"
)

# Tables that the probe's database does not have: the log, which Chroma would apply, and what takes space.
LEFT_OUT = ("embeddings_queue", "embeddings", "embedding_metadata", "embedding_metadata_array")


def probe_indexes(directory: Path, arguments: dict[str, Any], findings: list[Finding], thorough: bool) -> None:
    """Has Chroma read the indexes that look sound, and adds what it says to the findings."""
    sound = {finding.collection.id: finding for finding in findings if finding.indexed and not finding.problems}
    # With the engine `embedded` an app may have no interpreter.
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
        collections = [finding.collection for finding in sound.values()]
        problems = _probe_twice(scratch, arguments_for(scratch, arguments), collections)
        if problems and (shortage := shortage_in(scratch)):
            raise OSError(shortage)
        for collection, problem in problems.items():
            sound[collection].problems.append(problem)
    finally:
        with contextlib.suppress(OSError):
            remove_tree(scratch)


def arguments_for(directory: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an engine process, for another database.

    Args:
        directory: That database's, absolute.
        arguments: Those for the database that it stands for.
    """
    return {
        **arguments,
        "directory": str(directory),
        "bindings": {**arguments["bindings"], "persist_path": str(directory)},
        "sqlite": {**arguments["sqlite"], "url": str(directory / DATABASE_FILE)},
    }


def _probe_twice(scratch: Path, arguments: dict[str, Any], collections: list[Collection]) -> dict[str, str]:
    """Probes again what has failed: damage stays, while a full disk or a signal may have passed."""
    try:
        problems = probe(scratch, arguments, collections)
    except ChildProcessError:
        return probe(scratch, arguments, collections)
    return probe(scratch, arguments, [one for one in collections if one.id in problems]) if problems else {}


def _make_scratch(
    directory: Path, scratch: Path, sql: sqlite3.Connection, findings: Iterable[Finding], thorough: bool
) -> None:
    """Makes a database with the indexes of another one and the records in them, and without a log to apply."""
    made = sqlite3.connect(scratch / DATABASE_FILE)
    with contextlib.closing(made), made:
        made.execute("pragma synchronous = off")
        made.execute("pragma journal_mode = memory")
        for name, statement in sql.execute(SCHEMA).fetchall():
            if "fulltext_search" in name or statement.lower().startswith("create virtual table"):
                continue
            made.execute(statement)
            if not statement.lower().startswith("create table") or name in LEFT_OUT:
                continue
            # Without generated columns, which a table of the user's may have.
            columns = [f'"{column}"' for _, column, *_ in sql.execute(f'pragma table_info("{name}")')]
            listed, places = ", ".join(columns), ", ".join("?" * len(columns))
            rows = sql.execute(f'select {listed} from "{name}"').fetchall()
            made.executemany(f'insert into "{name}" ({listed}) values ({places})', rows)
        for finding in findings:
            segment = finding.collection.records_segment
            ids = sorted(finding.indexed) if thorough else list(finding.indexed)[:QUICK_RECORDS]
            made.executemany(
                "insert into embeddings (segment_id, embedding_id, seq_id) values (?, ?, 1)",
                [(segment, record) for record in ids],
            )
            vectors = str(finding.collection.vectors_segment)
            (scratch / vectors).symlink_to(directory / vectors, target_is_directory=True)


def probe(
    directory: Path, arguments: dict[str, Any], collections: list[Collection], *, reconnects: bool = False
) -> dict[str, str]:
    """Has Chroma read all vectors of some collections, in processes of their own.

    They inherit standard input, which in an engine process is the lock: while they run, nobody else owns the database.
    They end when this process does.

    Args:
        directory: The database's.
        arguments: What an engine process is told (``engine.isolated.prepare``).
        collections: Those to read.
        reconnects: Whether vectors that cannot be reached are written again.

    Returns:
        What is wrong, by the id of the collection.

    Raises:
        ChildProcessError: A process ended before it began with a collection, and so not because of an index.
    """
    problems: dict[str, str] = {}
    waiting = list(collections)
    while waiting:
        seconds = PROBE_SECONDS + sum(len(one.records) for one in waiting) / PROBE_RECORDS_A_SECOND
        request = {**arguments, "parent": os.getpid(), "reconnects": reconnects}
        said, died = _run_probe(directory, request, waiting, seconds)
        ended = {line["ends"] for line in said if "ends" in line}
        problems |= {line["ends"]: f"Chroma cannot read it ({line['error']})" for line in said if "error" in line}
        left = [one for one in waiting if one.id not in ended]
        if left and {"begins": left[0].id} not in said:
            raise ChildProcessError(died)
        problems |= {one.id: died for one in left[:1]}
        waiting = left[1:]
    return problems


def _run_probe(
    directory: Path, request: dict[str, Any], collections: list[Collection], seconds: float
) -> tuple[list[dict[str, Any]], str]:
    """The lines that a probe has printed, and a sentence on how it ended."""
    listed = [
        {
            "id": one.id,
            "tenant": one.tenant,
            "database": one.database,
            "space": one.space,
            "index": one.vectors_segment,
        }
        for one in collections
    ]
    request = {**request, "collections": listed}
    try:
        ended = _run(request, directory, seconds)
    except subprocess.TimeoutExpired as error:
        out, died = error.stdout or b"", f"Chroma has not read it in {seconds:.0f} seconds"
    else:
        out = ended.stdout
        stderr_tail = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
        how = f"signal {-ended.returncode}" if ended.returncode < 0 else f"exit {ended.returncode}"
        died = f"the process in which Chroma read it died ({how}: {stderr_tail[0]})"
    return [json.loads(line) for line in out.splitlines() if line.startswith(b"{") and line.endswith(b"}")], died


def _run(request: dict[str, Any], directory: Path, seconds: float) -> subprocess.CompletedProcess[bytes]:
    # A command line is limited, and standard input is the lock.
    with tempfile.TemporaryFile("w+") as file:
        json.dump(request, file)
        file.seek(0)
        python = request["python"]
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
