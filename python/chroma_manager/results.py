"""What the methods of ``ChromaDBManager`` return: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was taken."""

    path: str
    """The directory."""
    created_at: float
    """Seconds since 1970."""
    files: int
    size: int
    """Bytes of all files."""
    records: int
    """Records of all collections."""

    @classmethod
    def of(cls, path: str, manifest: dict[str, Any]) -> Snapshot:
        """What a manifest says (``durability/snapshot.py``)."""
        files = manifest["files"]
        size = sum(file["size"] for file in files.values())
        return cls(path, manifest["created_at"], len(files), size, manifest["records"])


@dataclass(frozen=True)
class CollectionReport:
    """What was found in one collection."""

    name: str
    id: str
    tenant: str
    database: str
    dimension: int | None
    """Of its vectors; ``None`` where it has none."""
    records: int
    vectors: int
    missing_vectors: int
    """Records without their vector."""
    missing_ids: tuple[str, ...]
    """The first ten of them."""
    stray_vectors: int
    """Vectors without their record."""
    stale_vectors: int
    """Vectors older than the one that the log has of their record."""
    recoverable: int
    """Records whose vector a repair finds."""
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """What ``ChromaDBManager.verify`` found, and did."""

    ok: bool
    """Whether the database is sound; after a repair: whether it is so now."""
    problems: tuple[str, ...]
    """Sentences."""
    unknown: tuple[str, ...]
    """What cannot be told, because the rows of the log that would tell are purged; a clause for each collection."""
    found: tuple[str, ...]
    """The problems that there were before a repair, and those that the opening has mended."""
    sqlite: str
    """``"ok"``, or what SQLite's integrity check says."""
    collections: tuple[CollectionReport, ...]
    repaired: bool
    """Whether something was rebuilt."""
    set_aside: str | None
    """A file of JSON lines with the records (id, document, metadata) whose vector a repair found nowhere, and which are
    therefore no longer in their collection; ``None`` where there are none."""

    @classmethod
    def of(cls, report: dict[str, Any]) -> Verification:
        """What an examination reports (``verification/verify.py``)."""
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
    """One open instance, as in ``Stats``."""

    file_id: str
    embedding_type: str
    path: str
    engine: str
    threads: int
    """Threads that hold a client of it."""
    clients: int
    """Clients that they hold: one a thread, and one for each user's session."""
    opened_at: float
    """Seconds since 1970."""
    last_used_at: float
    """Seconds since 1970: the last ``get_client``, or the last call through a client."""


class Stats(TypedDict):
    """What ``ChromaDBManager.stats`` returns. Counters begin with the manager."""

    instances: dict[str, InstanceStats]
    """Open instances by key, ``file_id/embedding_type``."""
    openings: int
    """Databases opened, again after an idle close included."""
    hits: int
    """Calls of ``get_client`` that found the thread's client."""
    cleanups: int
    """Calls of ``cleanup_instance`` and ``cleanup_all_instances``."""
    evictions: int
    """Databases closed because ``max_engines`` others were to be open."""
    errors: int
    """Databases that could not be opened."""
