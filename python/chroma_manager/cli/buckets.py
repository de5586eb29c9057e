"""What ``chroma-manager snapshots`` and ``prune`` do to a bucket. No database is opened for that."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from chroma_manager.bucket.repository import Keep, Repository
from chroma_manager.cli.output import DONE, FAILED, Result, complain, counted, megabytes, print_result
from chroma_manager.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta


class Place(NamedTuple):
    """A bucket, with options for obstore; and the names of one instance, or ``None`` for all."""

    url: str
    options: Mapping[str, str]
    only: tuple[str, str] | None


def list_snapshots(place: Place, *, as_json: bool) -> int:
    """Prints the snapshots of a bucket; returns the exit code."""

    def work(repository: Repository, file_id: str, embedding_type: str) -> list[Result]:
        found, problems = repository.snapshots(file_id, embedding_type)
        results = [Result(FAILED, f"{file_id}/{embedding_type}: {problem}") for problem in problems]
        for one in found:
            time = datetime.fromtimestamp(one.created_at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
            parts = [f"{file_id}/{embedding_type}", time, counted(one.records, "record"), megabytes(one.size), one.path]
            results.append(Result(DONE, "  ".join(parts), {"url": one.path} | asdict(one)))
        return results

    return _work(place, work, as_json=as_json)


def prune(place: Place, keep: int | None, keep_for: timedelta | None, *, as_json: bool) -> int:
    """Prunes the instances of a bucket; returns the exit code."""
    kept = Keep.of(keep, keep_for, least=0)
    assert kept is not None

    def work(repository: Repository, file_id: str, embedding_type: str) -> list[Result]:
        done = repository.prune(file_id, embedding_type, kept)
        removed = f"{counted(done.snapshots, 'snapshot')}, {counted(done.files, 'file')}, {megabytes(done.size)}"
        return [Result(DONE, f"{file_id}/{embedding_type}: {removed} removed", asdict(done))]

    return _work(place, work, as_json=as_json)


def instances_of(repository: Repository) -> tuple[list[tuple[str, str]], int]:
    """The instances in a bucket, and the exit code so far. What else is there is named on stderr, and left out."""
    instances, problems = repository.instances()
    for problem in problems:
        complain(str(problem))
    return instances, FAILED if problems else DONE


def _work(place: Place, work: Callable[[Repository, str, str], list[Result]], *, as_json: bool) -> int:
    """Does the work for one instance after the other, even where it has failed for one; returns the exit code."""
    repository = Repository(place.url.rstrip("/"), place.options)
    instances, code = ([place.only], DONE) if place.only else instances_of(repository)
    for file_id, embedding_type in instances:
        names = {"file_id": file_id, "embedding_type": embedding_type}
        try:
            results = work(repository, file_id, embedding_type)
        except SnapshotError as error:
            results = [Result(FAILED, f"{file_id}/{embedding_type}: {error}")]
        for result in results:
            code = max(code, result.code)
            if result.code == FAILED:
                complain(result.text)
            else:
                print_result(names, result, as_json)
    return code
