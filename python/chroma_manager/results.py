"""What the methods of ``ChromaDBManager`` return: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was taken."""

    path: str
    """Its directory, absolute; in a bucket the URL of its manifest."""
    created_at: float
    """Seconds since 1970."""
    files: int
    """How many files it has, without the manifest."""
    size: int
    """Bytes of these files."""
    records: int
    """How many records all collections have."""
    sent: int | None = None
    """How many bytes of the files were sent to the bucket, which had the others; ``None`` for a directory, and where
    the snapshot was taken before."""

    @property
    def reused(self) -> int | None:
        """How many bytes of the files the bucket had; ``None`` where ``sent`` is."""
        return None if self.sent is None else self.size - self.sent

    @classmethod
    def of(cls, path: str, manifest: dict[str, Any], sent: int | None = None) -> Snapshot:
        """The snapshot that a manifest describes (``durability/snapshot.py``)."""
        files = manifest["files"]
        size = sum(file["size"] for file in files.values())
        return cls(path, manifest["created_at"], len(files), size, manifest["records"], sent)


@dataclass(frozen=True)
class Pruned:
    """What ``ChromaDBManager.prune`` has removed from a bucket."""

    snapshots: int
    """How many snapshots."""
    files: int
    """How many files that no other snapshot has."""
    size: int
    """Bytes of these files."""


@dataclass(frozen=True)
class Compaction:
    """What ``ChromaDBManager.compact`` has achieved."""

    size_before: int
    """Bytes of Chroma's own files, its SQLite file and its indexes; without those of the checkpoint's copies."""
    size_after: int
    """Bytes of these files now."""
    records: int
    """How many records all collections have."""
    deleted_vectors: int
    """How many deleted vectors the indexes had that were rebuilt."""
    rebuilt_indexes: int
    """How many indexes were rebuilt; those without a deleted vector stay as they were."""


@dataclass(frozen=True)
class CollectionReport:
    """What ``verify`` found in one collection."""

    name: str
    id: str
    tenant: str
    database: str
    dimension: int | None
    """Numbers in each of its vectors; ``None`` where it has none."""
    records: int
    """How many records it has."""
    vectors: int
    """How many vectors its index has, once the log is applied."""
    missing_vectors: int
    """How many records have no vector."""
    missing_ids: tuple[str, ...]
    """The ids of the first ten of these, sorted."""
    stray_vectors: int
    """How many vectors have no record."""
    stale_vectors: int
    """How many vectors are older than the one that the log has for their record."""
    recoverable: int
    """For how many records a repair finds the vector."""
    problems: tuple[str, ...]
    """Sentences on what is wrong; empty for a sound collection."""


@dataclass(frozen=True)
class Verification:
    """What ``ChromaDBManager.verify`` found and repaired."""

    ok: bool
    """Whether the database is sound, after the repair if there was one."""
    problems: tuple[str, ...]
    """Sentences on what is wrong; empty for a sound database."""
    unknown: tuple[str, ...]
    """Clauses on what cannot be told, because the rows of the log that would tell are purged."""
    found: tuple[str, ...]
    """The problems before the repair, and those that the opening of the database has repaired."""
    sqlite: str
    """``"ok"``, or what SQLite's integrity check reports."""
    collections: tuple[CollectionReport, ...]
    repaired: bool
    """Whether something was rebuilt."""
    set_aside: str | None
    """A file of JSON lines with the records (id, document, metadata) whose vector the repair found nowhere, and which
    it has removed from their collection; ``None`` where there are none."""

    @classmethod
    def of(cls, report: dict[str, Any]) -> Verification:
        """The result for the report of an examination (``verification/verify.py``)."""
        collections = tuple(
            CollectionReport(
                **collection | {name: tuple(collection[name]) for name in ("missing_ids", "problems")},
            )
            for collection in report["collections"]
        )
        return cls(
            report["ok"],
            tuple(report["problems"]),
            tuple(report["unknown"]),
            tuple(report.get("found", report["problems"])),
            report["sqlite"],
            collections,
            report["repaired"],
            report["set_aside"],
        )


class InstanceStats(TypedDict):
    """One open instance, in ``Stats``."""

    file_id: str
    embedding_type: str
    path: str
    """Its directory; with ``"server"`` the URL of the server, and the key."""
    engine: str
    """``"isolated"``, ``"embedded"`` or ``"server"``."""
    threads: int
    """How many threads hold a client of it."""
    clients: int
    """How many clients they hold: one for each thread, and one for each user session."""
    opened_at: float
    """Seconds since 1970."""
    last_used_at: float
    """Seconds since 1970, of the last ``get_client`` or the last call through a client."""
    memory: int | None
    """Bytes of its engine process (PSS), which other apps may share; ``None`` with ``embedded``, and where it is
    unknown."""
    deleted_vectors: int | None
    """How many deleted vectors the files of its indexes have, as of the last checkpoint; ``None`` where there is none,
    and with ``embedded`` (``chroma-manager list`` tells, once it is closed)."""
    reclaimable: int | None
    """About how many bytes ``compact`` would give back: those of deleted vectors, and free pages of SQLite; ``None``
    likewise."""


class Stats(TypedDict):
    """What ``ChromaDBManager.stats`` returns. Counters start at 0 when the manager is constructed."""

    instances: dict[str, InstanceStats]
    """Open instances by key, ``file_id/embedding_type``."""
    openings: int
    """Databases opened, including those reopened after an idle close."""
    hits: int
    """Calls of ``get_client`` that found the thread's client."""
    cleanups: int
    """Calls of ``cleanup_instance`` and ``cleanup_all_instances``."""
    evictions: int
    """Databases closed to keep within ``max_engines`` and ``max_memory``."""
    errors: int
    """Databases that could not be opened."""
