"""Copies an instance, collection by collection, and compares the copy with it.

A record is written if the destination has none of its id, or another one. So a copy that was interrupted goes on where
it was, and one that is complete writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT

from chroma_manager.errors import MigrationError
from chroma_manager.migration.collections import StoredCollection, collections_of, create_like, differences
from chroma_manager.migration.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chroma_manager.client import ManagedClient
    from chroma_manager.engine.server.names import Key
    from chroma_manager.migration.places import Place
    from chroma_manager.migration.records import Record

# Records that are read and written at once, at most: the destination may take fewer, or fewer bytes (`writing.py`).
LARGEST_BATCH = 1000


class Copied(NamedTuple):
    """What was copied of an instance. Both sides are equal."""

    collections: int
    records: int
    written: int


def copy(key: Key, source: Place, destination: Place, tell: Callable[[str], None]) -> Copied:
    """Copies an instance, and compares.

    Args:
        key: Its key, which is the same on both sides.
        source: Where it is.
        destination: Where it is to be; it is created if need be.
        tell: Called with how far it is before each batch.

    Raises:
        MigrationError: The destination has something else under the same names, the source has changed meanwhile, or
            it has collections outside the instance, which are no part of the copy.
        ChromaManagerError: One of them cannot be opened, reached or closed. What was copied stays, and another call
            goes on.
    """
    with source.opened(key, may_create=False) as origin, destination.opened(key, may_create=True) as copy_of_it:
        copied = _copy(key, origin, copy_of_it, tell)
    _refuse_others(key, source)
    return copied


def _copy(key: Key, origin: ManagedClient, copy_of_it: ManagedClient, tell: Callable[[str], None]) -> Copied:
    there = collections_of(copy_of_it)
    batch = min(LARGEST_BATCH, *(client.get_max_batch_size() for client in (origin, copy_of_it)))
    originals = collections_of(origin)
    records = written = 0
    for name, original in originals.items():
        target = there.get(name) or create_like(copy_of_it, original.model)
        _refuse_different(key, original, target)
        ids = original.ids(batch)
        pair = _Pair(key, original, target, ids, batch, tell)
        written += pair.write()
        pair.compare()
        records += len(ids)
    _compare_names(key, origin, copy_of_it, there)
    return Copied(len(originals), records, written)


@dataclass(frozen=True)
class _Pair:
    """A collection and its copy."""

    key: Key
    original: StoredCollection
    target: StoredCollection
    ids: list[str]
    batch: int
    tell: Callable[[str], None]

    def write(self) -> int:
        """Writes what is missing or different; returns how many records."""
        written = 0
        writer = Writer(self.target)
        is_empty = self.target.count() == 0
        for some in self._batches("copied"):
            records = self.original.read(some)
            present = {} if is_empty else self.target.read(some)
            missing = {name: record for name, record in records.items() if not self._is_same(record, present.get(name))}
            # Written over an older record, one without a document would get that of the older one. After a kill between
            # the two calls the copy has none, which the next run writes.
            outdated = [name for name in missing if name in present and missing[name].lacks_a_part_of(present[name])]
            if outdated:
                self.target.delete(outdated)
            writer.write(missing)
            written += len(missing)
        return written

    def compare(self) -> None:
        """Raises unless both have the same records."""
        where = f"collection {self.original.name!r} of {self.key}"
        counts = self.original.count(), self.target.count()
        if counts != (len(self.ids), len(self.ids)):
            raise MigrationError(
                f"{where} has {counts[0]:,} records, and its copy {counts[1]:,}: either the source has changed "
                f"meanwhile, and another run copies the rest, or the copy has records of its own, which are left alone"
            )
        for some in self._batches("compared"):
            records, copies = self.original.read(some), self.target.read(some)
            different = [
                name for name in some if name not in records or not self._is_same(records[name], copies.get(name))
            ]
            if different:
                raise MigrationError(
                    f"{where} and its copy differ in {len(different):,} records, such as {different[0]!r}: the source "
                    f"has changed meanwhile, and another run copies what is new"
                )

    def _is_same(self, record: Record, copied: Record | None) -> bool:
        return record.is_same(copied, is_rounded=self.original.rounds_vectors)

    def _batches(self, done: str) -> Iterator[list[str]]:
        for begin in range(0, len(self.ids), self.batch):
            self.tell(f"{self.original.name}: {begin:,} of {len(self.ids):,} records {done}")
            yield self.ids[begin : begin + self.batch]


def _refuse_different(key: Key, original: StoredCollection, target: StoredCollection) -> None:
    problems = differences(original.model, target.model)
    if problems:
        raise MigrationError(
            f"collection {original.name!r} of {key} exists where it is to be copied to, and is another one: "
            f"{'; '.join(problems)}. Delete one of them, or give it another name"
        )


def _compare_names(
    key: Key, origin: ManagedClient, copy_of_it: ManagedClient, before: dict[str, StoredCollection]
) -> None:
    names, copies = collections_of(origin).keys(), collections_of(copy_of_it).keys()
    if names == copies:
        return
    others = sorted(copies - names)
    if others and set(others) <= before.keys():
        raise MigrationError(f"{key} has collections of its own where it is to be copied to: {', '.join(others)}")
    raise MigrationError(f"the collections of {key} have changed meanwhile; another run copies what is new")


def _refuse_others(key: Key, source: Place) -> None:
    """Raises where an instance is not all that its directory has: whoever trusts the copy may remove the source."""
    others = source.outside(key)
    if others:
        raise MigrationError(
            f"{key} has more than can be copied: {'; '.join(map(str, others))}. Copy that by hand, for example to an "
            f"instance for each database: set_tenant(TENANT, DATABASE) takes a client of the source to it. All that "
            f"is in tenant {DEFAULT_TENANT!r}, database {DEFAULT_DATABASE!r} is copied"
        )
