"""Repairs what an opening finds damaged, as far as nothing is lost; of the rest it says what can be saved.

It works as ``repair.py``, durably and keeping what it replaces, but only where every record has a vector that is known
to be the one written last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chroma_manager.durability.checkpoint_files import new_repair_name
from chroma_manager.durability.repair_outcome import RepairOutcome
from chroma_manager.errors import InstanceCorruptError
from chroma_manager.storage.hnsw_files import IndexFiles
from chroma_manager.storage.vector_sources import all_indexes, find_vectors, is_certain
from chroma_manager.verification.repair import rebuild_indexes, remove_strays
from chroma_manager.verification.verify import inspect, report

if TYPE_CHECKING:
    from pathlib import Path

    from chroma_manager.verification.finding import Finding


def repair_safely(directory: Path, arguments: dict[str, Any]) -> RepairOutcome:
    """Repairs the collections of a closed database.

    Args:
        directory: The database's.
        arguments: What an engine process is told (``engine.isolated.prepare``).

    Raises:
        InstanceCorruptError: The database itself is damaged, or none of its collections is sound.
        OSError: Space or descriptors are short, or a file cannot be read. A later call completes the repair.
    """
    sqlite, findings, problems = inspect(directory, arguments, thorough=False)
    said = report(directory, sqlite, findings, problems)
    if problems or sqlite != "not checked":
        raise InstanceCorruptError("; ".join(said["problems"]))
    sentences = {one["id"]: "; ".join(one["problems"]) for one in said["collections"]}
    unsound = [one for one in findings if not one.is_healthy]
    strays = [one for one in unsound if one.has_only_strays]
    indexes = [one for one in unsound if not one.has_only_strays and _is_rebuilt_without_loss(directory, one)]
    done = []
    if strays:
        remove_strays(directory, strays)
        done += [f"{sentences[one.collection.id]}; they were removed" for one in strays]
    not_rebuilt: dict[str, str] = {}
    if indexes:
        repair_name = new_repair_name()
        _, not_rebuilt, kept = rebuild_indexes(directory, arguments, [one.collection for one in indexes], repair_name)
        done += [
            f"{sentences[one.collection.id]}; its index was rebuilt, and what was there is kept in {kept}"
            for one in indexes
            if one.collection.id not in not_rebuilt
        ]
    damaged = {
        one.collection.id: sentences[one.collection.id]
        for one in unsound
        if one not in strays and (one not in indexes or one.collection.id in not_rebuilt)
    }
    damaged |= {key: f"{damaged[key]}; its index could not be rebuilt ({why})" for key, why in not_rebuilt.items()}
    if damaged and len(damaged) == len(findings):
        raise InstanceCorruptError("; ".join(damaged.values()))
    return RepairOutcome(done, damaged)


def _is_rebuilt_without_loss(directory: Path, finding: Finding) -> bool:
    collection = finding.collection
    indexes = all_indexes(directory, collection)
    sources = find_vectors(collection, indexes)
    return (
        finding.is_repairable
        and finding.records <= sources.keys()
        and all(is_certain(record, sources[record], collection, indexes) for record in finding.records)
        # An index with one stale vector may have more, whose rows the log no longer has.
        and not (finding.stale and any(isinstance(sources[record], IndexFiles) for record in finding.records))
    )
