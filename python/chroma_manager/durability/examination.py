"""Examines a closed database that is not recovered from its checkpoints, and has damage repaired.

`verification` examines and repairs; it is passed in, because it lies above. Here is what comes before a repair: index
files that were damaged while the database was closed come back from their copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chroma_manager.durability import recovery
from chroma_manager.durability.checkpoint_files import new_repair_name, quarantine_indexes
from chroma_manager.errors import InstanceCorruptError
from chroma_manager.storage.connection import transaction
from chroma_manager.storage.files import step
from chroma_manager.storage.log import vector_segments
from chroma_manager.storage.manifest import read_manifest
from chroma_manager.storage.paths import DATABASE_FILE, HOME
from chroma_manager.storage.sealed import DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chroma_manager.durability.findings import Findings
    from chroma_manager.durability.repair_outcome import RepairOutcome


def examine_and_repair(
    directory: Path,
    findings: Findings,
    examine: Callable[[], dict[str, Any]],
    repair: Callable[[], RepairOutcome] | None,
    unrecovered: list[str] | None = None,
) -> None:
    """Examines the database, and has damage repaired as far as nothing is lost.

    Args:
        directory: The database's.
        findings: Where what was repaired, and what remains damaged, is reported.
        examine: Reports what is wrong with it (``verification.verify.examine``).
        repair: Repairs it (``verification.safe_repair``); ``None`` where damage is to be refused.
        unrecovered: Of a database that was left open, why it could not be recovered; ``None`` where it was closed.

    Raises:
        InstanceCorruptError: It is damaged, and is not to be repaired, or cannot be.
    """
    findings.damaged = {}
    report = examine()
    if not report["ok"] and unrecovered is None and _comes_back_from_copies(directory, findings, report):
        report = examine()
    if report["ok"]:
        return
    reasons = unrecovered or []
    if repair is None:
        raise InstanceCorruptError("; ".join([*reasons, *report["problems"]]))
    try:
        outcome = repair()
    except InstanceCorruptError as error:
        raise InstanceCorruptError("; ".join([*reasons, str(error)])) from error
    for sentence in outcome.done:
        findings.notify(sentence)
    findings.refuse(outcome.damaged)


def _comes_back_from_copies(directory: Path, findings: Findings, report: dict[str, Any]) -> bool:
    """Recovers damaged indexes of a database in which nothing but their files has changed: the copies are as good.

    Returns:
        Whether there are any.
    """
    try:
        manifest = read_manifest(directory / HOME)
    except DamagedFileError:
        return False
    if manifest is None:
        return False
    damaged = {one["id"] for one in report["collections"] if one["problems"]}
    with transaction(directory / DATABASE_FILE) as sql:
        segments = [
            segment
            for segment in vector_segments(sql)
            if segment.collection in damaged
            and segment.position == (manifest[segment.id].position if segment.id in manifest else 0)
        ]
    problems = recovery.problems_with(directory, segments, manifest)
    recovered = [segment for segment in segments if segment.id not in problems]
    if not recovered:
        return False
    kept = quarantine_indexes(directory, (segment.id for segment in recovered), new_repair_name())
    step("damaged index set aside")
    recovery.recover(directory, recovered, findings)
    collections = {segment.collection for segment in recovered}
    for one in report["collections"]:
        if one["id"] in collections:
            found = "; ".join(one["problems"])
            findings.notify(f"{found}; it was recovered from checkpoint and log, and what was there is kept in {kept}")
    return True
