"""What an examination finds of one collection. How it is found is in ``verify.py`` and ``probing.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from chroma_manager.storage.catalog import Collection


class Finding(NamedTuple):
    """What an examination finds of one collection.

    Attributes:
        collection: What SQLite says of it.
        records: The ids of its records once the log is applied.
        vectors: The ids that have a vector once the log is applied, if Chroma can read the index.
        indexed: The ids in the index files.
        problems: What is wrong with the files, or what Chroma said.
        stale: The ids whose vector in the index files is older than the one that the log has.
        settled: For how many records the log tells which vector the index files must have.
    """

    collection: Collection
    records: set[str]
    vectors: set[str]
    indexed: set[str]
    problems: list[str]
    stale: frozenset[str] = frozenset()
    settled: int = 0

    @property
    def is_repairable(self) -> bool:
        """Whether its log can be applied to an empty index."""
        return None not in (self.collection.vectors_segment, self.collection.records_segment) and (
            self.collection.misfits == 0
        )

    @property
    def has_only_strays(self) -> bool:
        """Whether vectors without a record are all that is wrong."""
        return self.is_repairable and not self.problems and not self.stale and self.records < self.vectors

    @property
    def is_healthy(self) -> bool:
        """Whether each record has its vector, each vector its record, and all of them can be read."""
        return not self.problems and not self.stale and self.records == self.vectors
