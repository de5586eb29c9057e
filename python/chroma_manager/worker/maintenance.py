"""Exclusive maintenance of a database that Chroma has closed: a function for each verb.

Each does what needs the closed database, and returns a function with the rest, which may take its time: it is called
once the database can be used again, and returns the result. When they run, ``database.py`` decides.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager.errors import (
    ChromaManagerError,
    CompactionError,
    InstanceCorruptError,
    InstanceLockedError,
    InstanceOpenError,
    SnapshotError,
)
from chroma_manager.storage.sealed import DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chroma_manager.durability.batch_journal import Batches
    from chroma_manager.durability.lifecycle import Lifecycle

# What is raised where a database cannot be read because it is damaged.
DAMAGE = (sqlite3.Error, InstanceCorruptError, DamagedFileError)


class ClosedDatabase(NamedTuple):
    """What a verb works on.

    Attributes:
        directory: The database's, as this process names it.
        arguments: What ``engine.isolated.prepare`` says.
        lifecycle: What is done with its files.
        batches: The journals of its batches.
        failure: Why it could not be opened; ``None`` where it was open.
        suspects_indexes: Whether a write has failed in the index files, so that they are recovered before they are
            copied or examined.
    """

    directory: Path
    arguments: dict[str, Any]
    lifecycle: Lifecycle
    batches: Batches
    failure: BaseException | None
    suspects_indexes: bool


def snapshot(database: ClosedDatabase, destination: str) -> Callable[[], dict[str, Any]]:
    """Copies the database, as ``ChromaDBManager.snapshot`` says."""
    from chroma_manager.durability import snapshot as snapshots  # noqa: PLC0415 - most processes take none

    lifecycle = database.lifecycle
    _leave_whole(database)
    about = {"chroma": database.arguments["version"], "records": lifecycle.checkpoints.records}
    return snapshots.take(database.directory, lifecycle.indexes(), Path(destination), about)


def _leave_whole(database: ClosedDatabase) -> None:
    """Leaves the database as any Chroma finds it, with all of it in files that are copied.

    Raises:
        InstanceCorruptError: It is damaged.
        InstanceLockedError: A program that reads it keeps some of it in SQLite's write-ahead log.
    """
    _leave_sound(database)
    database.lifecycle.writers.wait_for_readers()


def _leave_sound(database: ClosedDatabase) -> None:
    """Leaves the database as any Chroma finds it.

    Raises:
        InstanceCorruptError: It is damaged.
    """
    if database.failure is not None:
        raise database.failure
    database.lifecycle.leave_clean(suspects=database.suspects_indexes)
    database.lifecycle.forget_deleted()
    damaged = database.lifecycle.findings.damaged
    if damaged:
        raise InstanceCorruptError(
            f"{database.arguments['directory']} is damaged: {'; '.join(damaged.values())}. Repair it "
            f"first: ChromaDBManager's verify(..., repair=True)"
        )


def restore(database: ClosedDatabase, source: str) -> Callable[[], None]:
    """Replaces the database by a snapshot, as ``ChromaDBManager.restore`` says."""
    from chroma_manager.durability import snapshot as snapshots  # noqa: PLC0415 - most processes restore none

    database.lifecycle.restore(lambda target: snapshots.copy_verified(Path(source), target))
    database.batches.forget()
    return lambda: None


def verify(database: ClosedDatabase, repair: bool) -> Callable[[], dict[str, Any]]:
    """Examines the database, and repairs it if asked to, as ``ChromaDBManager.verify`` says."""
    from chroma_manager.verification import repair as repairs  # noqa: PLC0415 - most processes verify nothing
    from chroma_manager.verification import verify as verification  # noqa: PLC0415 - likewise

    lifecycle = database.lifecycle
    # Where SQLite cannot read it, or nothing can be recovered, the examination finds that.
    with contextlib.suppress(*DAMAGE):
        lifecycle.leave_clean(suspects=database.suspects_indexes)
    examine = repairs.repair if repair else verification.examine
    report = examine(database.directory, database.arguments)
    report["found"] = [*lifecycle.findings.repaired, *report.get("found", report["problems"])]
    lifecycle.findings.repaired = []
    if report["set_aside"] is not None:
        report["set_aside"] = os.path.join(database.arguments["directory"], report["set_aside"])
    return lambda: report


# As `least`, what a closing takes: it compacts a database of which more than half is dead.
HALF = 0.5


def compact(database: ClosedDatabase, least: float = 0.0) -> Callable[[], dict[str, int]]:
    """Replaces the database by a compacted copy, as ``ChromaDBManager.compact`` says.

    Args:
        database: The database.
        least: An index is rebuilt if more than this part of its vectors, from 0 to 1, is deleted.
    """
    from chroma_manager.storage.reclaimable import size_of  # noqa: PLC0415 - most processes compact nothing
    from chroma_manager.verification import compaction  # noqa: PLC0415 - likewise

    directory, lifecycle = database.directory, database.lifecycle
    writer = lifecycle.writers.notice()
    if writer is not None:
        raise InstanceLockedError(writer, next(iter(lifecycle.writers.processes or []), None))
    _leave_whole(database)
    before, planned = size_of(directory), compaction.plan(directory, database.arguments, least)
    lifecycle.restore(
        lambda new: compaction.build(directory, database.arguments, planned, new), kept=planned.kept, fills_links=True
    )
    report = {
        "size_before": before,
        "size_after": size_of(directory),
        "records": lifecycle.checkpoints.records,
        "deleted_vectors": planned.deleted,
        "rebuilt_indexes": len(planned.rebuilt),
    }
    return lambda: report


VERBS: dict[str, Callable[..., Callable[[], Any]]] = {
    "snapshot": snapshot,
    "restore": restore,
    "verify": verify,
    "compact": compact,
}

# What is raised where a verb fails.
FAILURES: dict[str, type[ChromaManagerError]] = {"verify": InstanceOpenError, "compact": CompactionError}


@contextlib.contextmanager
def named_errors(verb: str, directory: str | Path) -> Iterator[None]:
    """Turns an error of the work into one that names the verb and the database; one that does so already passes."""
    try:
        yield
    except Exception as error:
        replacement = named(verb, directory, error)
        if replacement is error:
            raise
        raise replacement from error


def named(verb: str, directory: str | Path, error: BaseException) -> BaseException:
    """An error of the work as ``named_errors`` raises it."""
    has_names = isinstance(error, ChromaManagerError) and type(error) is not InstanceOpenError
    if has_names or not isinstance(error, (OSError, *DAMAGE, InstanceOpenError)):
        return error
    failure = FAILURES.get(verb, SnapshotError)
    return failure(f"{verb}() of the database in {directory} failed: {type(error).__name__}: {error}")
