"""What ``chroma-manager verify``, ``snapshot``, ``restore`` and ``compact`` do to the databases of a path.

They have the manager do the work, so that an app that has a database open goes on. The arguments are in
``arguments.py``, ``list`` is in ``listing.py``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chroma_manager.bucket.repository import Repository
from chroma_manager.cli.buckets import instances_of
from chroma_manager.cli.output import (
    DAMAGED,
    DONE,
    FAILED,
    Result,
    complain,
    counted,
    megabytes,
    print_result,
    printable,
    progress,
)
from chroma_manager.cli.paths import (
    DatabasePath,
    UnsuitablePathError,
    find,
    is_database,
    is_snapshot,
    refuse_foreign,
    refuse_snapshot,
)
from chroma_manager.errors import ChromaManagerError
from chroma_manager.manager import ChromaDBManager
from chroma_manager.results import Verification
from chroma_manager.storage.paths import DATABASE_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import timedelta

_MISSING = (f"{DATABASE_FILE} is missing, without which the indexes are worth nothing: restore a snapshot",)
WITHOUT_RECORDS = Verification(False, _MISSING, (), _MISSING, "missing", (), False, None)


@dataclass(frozen=True)
class Access:
    """How databases and buckets are opened: options of ``ChromaDBManager``."""

    engine: str
    lock_timeout: float
    bucket_options: Mapping[str, str] = field(default_factory=dict)


def verify(path: Path, access: Access, *, repair: bool, as_json: bool) -> int:
    """Verifies the databases of a path, and repairs them if asked to; returns the exit code."""

    def work(manager: ChromaDBManager, database: DatabasePath) -> Result:
        refuse_snapshot(database)
        if (database.path / DATABASE_FILE).exists():
            verification = manager.verify(database.file_id, database.embedding_type, repair=repair)
        else:
            verification = WITHOUT_RECORDS
        text = f"{database.key}: {_described(verification)}"
        return Result(DONE if verification.ok else DAMAGED, text, asdict(verification))

    databases, code = find(path, is_database)
    return max(code, _work("verifying", databases, access, work, as_json=as_json))


def snapshot(
    path: Path, destination: Path | str, access: Access, *, keep: int | None, keep_for: timedelta | None
) -> int:
    """Takes snapshots of the databases of a path, to a bucket; or to a directory, of several to one each in there."""

    def work(manager: ChromaDBManager, database: DatabasePath) -> Result:
        refuse_snapshot(database)
        target = destination
        if isinstance(destination, Path) and not is_one:
            target = destination / database.file_id / database.embedding_type
        taken = manager.snapshot(database.file_id, database.embedding_type, target, keep=keep, keep_for=keep_for)
        what = f"{counted(taken.records, 'record')}, {counted(taken.files, 'file')}, {megabytes(taken.size)}"
        sent = "" if taken.sent is None else f", {megabytes(taken.sent)} of it sent"
        return Result(DONE, f"{database.key}: {what}{sent}, in {taken.path}")

    is_one = is_database(path)
    databases, code = find(path, is_database)
    return max(code, _work("taking a snapshot of", databases, access, work))


def restore(source: Path | str, path: Path, access: Access, *, every: bool) -> int:
    """Restores a snapshot to the directory of a database, or each of several under a base path."""
    code = DONE
    sources: dict[DatabasePath, Path | str]
    if isinstance(source, Path):
        snapshots, code = find(source, is_snapshot)
        is_one = is_snapshot(source)
        if not is_one and is_database(path):
            raise UnsuitablePathError(
                f"{path} is a database; name a base path for {counted(len(snapshots), 'snapshot')}"
            )
        sources = {
            DatabasePath.at(path if is_one else path / one.file_id / one.embedding_type): one.path for one in snapshots
        }
    elif every:
        instances, code = instances_of(Repository(source, access.bucket_options))
        sources = {DatabasePath.at(path.joinpath(*names)): source for names in instances}
    else:
        sources = {DatabasePath.at(path): source}

    def work(manager: ChromaDBManager, database: DatabasePath) -> Result:
        refuse_snapshot(database)
        refuse_foreign(database.path)
        manager.restore(database.file_id, database.embedding_type, sources[database])
        return Result(DONE, f"{database.key}: restored from {sources[database]}")

    return max(code, _work("restoring", list(sources), access, work))


def compact(path: Path, access: Access, *, as_json: bool) -> int:
    """Compacts the databases of a path; returns the exit code."""

    def work(manager: ChromaDBManager, database: DatabasePath) -> Result:
        refuse_snapshot(database)
        done = manager.compact(database.file_id, database.embedding_type)
        sizes = f"{megabytes(done.size_before)} before, {megabytes(done.size_after)} now"
        removed = f"{counted(done.deleted_vectors, 'deleted vector')} removed"
        return Result(DONE, f"{database.key}: {counted(done.records, 'record')}, {removed}, {sizes}", asdict(done))

    databases, code = find(path, is_database)
    return max(code, _work("compacting", databases, access, work, as_json=as_json))


def _work(
    title: str,
    databases: Sequence[DatabasePath],
    access: Access,
    work: Callable[[ChromaDBManager, DatabasePath], Result],
    *,
    as_json: bool = False,
) -> int:
    """Does the work for one database after the other, even where it has failed for one; returns the exit code."""
    if not databases:
        return DONE
    code = DONE
    base_path = databases[0].base_path
    with (
        ChromaDBManager(
            base_path=base_path,
            engine=access.engine,
            lock_timeout=access.lock_timeout,
            repair="never",
            bucket_options=access.bucket_options,
        ) as manager,
        progress(title, len(databases)) as shown,
    ):
        for database in databases:
            shown.begin(printable(database.key))
            result = _attempt(manager, database, work)
            code = max(code, result.code)
            if result.code == FAILED:
                complain(result.text)
            if result.code != FAILED or as_json:
                print_result(database.names, result, as_json)
    return code


def _attempt(
    manager: ChromaDBManager, database: DatabasePath, work: Callable[[ChromaDBManager, DatabasePath], Result]
) -> Result:
    try:
        result = work(manager, database)
        # Left open, hundreds of databases would be hundreds of engine processes.
        manager.cleanup_instance(database.file_id, database.embedding_type)
    except Exception as error:  # of Chroma or SQLite, too: the next database has its turn
        message = str(error) if isinstance(error, ChromaManagerError) else f"{type(error).__name__}: {error}"
        named = message if database.key in message else f"{database.key}: {message}"
        return Result(FAILED, named, {"error": message})
    return result


def _described(verification: Verification) -> str:
    records = sum(collection.records for collection in verification.collections)
    state = "damaged" if not verification.ok else "repaired" if verification.repaired else "sound"
    parts = [state, counted(len(verification.collections), "collection"), counted(records, "record")]
    said = [", ".join(parts)]
    if verification.problems:
        said.append("; ".join(verification.problems))
    if verification.repaired:
        said.append(f"what was repaired: {'; '.join(verification.found)}")
    if verification.set_aside is not None:
        said.append(f"records without a vector were set aside in {verification.set_aside}")
    return "; ".join(said)
