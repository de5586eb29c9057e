"""Where the vectors of a collection are: in its index files, in the copies of its checkpoint, in the log.

The log has the newest writes; index files lag behind. Here is which vector each record must have, and which place has
it, found without Chroma. What is done about a missing vector is decided above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from chroma_manager.storage.hnsw_files import IndexFiles
from chroma_manager.storage.log import ADD, DELETE, UPDATE, UPSERT
from chroma_manager.storage.manifest import read_manifest
from chroma_manager.storage.paths import HOME, METADATA_FILE
from chroma_manager.storage.sealed import DamagedFileError

if TYPE_CHECKING:
    from pathlib import Path

    from chroma_manager.storage.catalog import Collection, Row


class Logged(NamedTuple):
    """A vector in the log: its row, and whether that is known to have had an effect."""

    position: int
    is_certain: bool


class Index(NamedTuple):
    """Index files, and the sequence id up to which they have applied the log."""

    position: int
    files: IndexFiles


def present_index(directory: Path, collection: Collection) -> Index | None:
    """The index files of a collection; ``None`` where Chroma has not written any yet, and does not look for any."""
    path = directory / str(collection.vectors_segment)
    if collection.position == 0 and not (path / METADATA_FILE).exists():
        return None
    return Index(collection.position, _files(path, collection))


def copied_indexes(directory: Path, collection: Collection) -> list[Index]:
    """The index files of a collection in its checkpoint; in all copies, where the manifest is damaged."""
    home, segment = directory / HOME, str(collection.vectors_segment)
    try:
        checkpoint = (read_manifest(home) or {}).get(segment)
    except DamagedFileError:
        copies = {path: path.name.partition("@")[2].partition("-")[0] for path in home.glob(f"{segment}@*-*")}
    else:
        copies = {home / checkpoint.copy: str(checkpoint.position)} if checkpoint else {}
    return [
        Index(int(position), _files(path, collection))
        for path, position in copies.items()
        if position.isdigit() and path.is_dir() and not path.is_symlink()
    ]


def all_indexes(directory: Path, collection: Collection) -> list[Index]:
    """The index files of a collection, if there are any, and those in its checkpoint."""
    present = present_index(directory, collection)
    return ([present] if present else []) + copied_indexes(directory, collection)


def _files(path: Path, collection: Collection) -> IndexFiles:
    return IndexFiles(path, collection.dimension or 0, collection.is_cosine, collection.known_ids)


def sources_of(directory: Path, collection: Collection) -> dict[str, Logged | IndexFiles]:
    """Where the newest vector of each record is, in all places of a database."""
    return find_vectors(collection, all_indexes(directory, collection))


def find_vectors(collection: Collection, indexes: list[Index]) -> dict[str, Logged | IndexFiles]:
    """Where the newest vector of each record is.

    The log is preferred: it has vectors as they were written. It is read in order, and each index is considered at the
    row with which it ends. A row that adds an existing record has no effect, nor has one that updates a missing one;
    where it cannot be told whether the record existed, an index is preferred.
    """
    found: dict[str, Logged | IndexFiles] = {}
    existence = _Existence(collection)
    waiting = sorted(indexes, key=lambda index: index.position)
    for row in collection.rows:
        while waiting and waiting[0].position < row.position:
            files = waiting.pop(0).files
            _look_at(found, files)
            existence.look_at(files)
        existed = existence.before(row)
        existence.apply(row, existed)
        if row.operation == DELETE:
            found.pop(row.record, None)
        elif not collection.has_vector(row):
            continue
        elif row.operation == UPSERT or existed is (row.operation == UPDATE):
            found[row.record] = Logged(row.position, is_certain=True)
        elif row.record not in found if row.operation == ADD else existed is None:
            found[row.record] = Logged(row.position, is_certain=False)
    for index in waiting:
        _look_at(found, index.files)
    return found


class _Existence:
    """Whether records existed before rows of the log, the first of which may have been purged."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._known: dict[str, bool] = {}
        # Of records of which nothing is known.
        self._others: bool | None = None
        # The last row that adds a record, of those that the records have applied.
        self._added = {
            row.record: row.position
            for row in collection.rows
            if row.operation == ADD and row.position <= collection.applied
        }

    def before(self, row: Row) -> bool | None:
        """Whether the record of a row existed before that; ``None`` where it cannot be told."""
        changed = self._collection.records.get(row.record)
        if changed == row.position and row.operation != UPSERT:
            return row.operation == UPDATE
        if row.record in self._known:
            return self._known[row.record]
        if row.position > self._collection.applied:
            return changed is not None
        # It exists now. No row after its last change has had an effect, and nothing has added it after this row.
        if changed is not None and (changed < row.position or self._added.get(row.record, 0) < row.position):
            return True
        return self._others

    def apply(self, row: Row, existed: bool | None) -> None:
        """Notes that a row was applied."""
        if row.operation == DELETE:
            self._known[row.record] = False
        elif row.operation != UPDATE or existed:
            self._known[row.record] = True

    def look_at(self, files: IndexFiles) -> None:
        """Considers the index files that end before the next row."""
        for record in files.ids:
            self._known.setdefault(record, True)
        if files.has_all_ids:
            self._others = False


def is_certain(record: str, source: Logged | IndexFiles, collection: Collection, indexes: list[Index]) -> bool:
    """Whether the vector that was found for a record is known to be complete, and the one written last.

    Args:
        record: Its id.
        source: Where ``find_vectors`` has found its vector.
        collection: Its collection.
        indexes: Those that were searched.
    """
    if isinstance(source, Logged):
        return source.is_certain
    position = next(index.position for index in indexes if index.files is source)
    # An older copy may have an older vector, if the record has changed since.
    is_current = position >= collection.position or collection.records.get(record, position + 1) <= position
    return is_current and source.is_exact(record)


def _look_at(found: dict[str, Logged | IndexFiles], files: IndexFiles) -> None:
    for record in files.ids:
        known = found.get(record)
        if not (isinstance(known, Logged) and known.is_certain) and files.vector(record) is not None:
            found[record] = files


def settled_vectors(collection: Collection) -> dict[str, int]:
    """The row that the vector in the index files must come from, for each record of which the log tells.

    Whether a row of the log had an effect depends on whether its record existed. Where the log does not go back far
    enough to tell, the record itself may: it has the sequence id of the row that changed it last.
    """
    exists: dict[str, bool] = {}
    settled: dict[str, int] = {}
    for row in collection.rows:
        if row.position > collection.position:
            break
        if row.operation == DELETE:
            exists[row.record] = False
            settled.pop(row.record, None)
        elif not collection.has_vector(row):
            continue
        elif row.operation == UPSERT or row.position == collection.records.get(row.record):
            exists[row.record] = True
            settled[row.record] = row.position
        elif row.record not in exists:
            # The index has either this vector or an earlier one.
            settled.pop(row.record, None)
            if row.operation == ADD:
                exists[row.record] = True
        elif exists[row.record] == (row.operation == UPDATE):
            exists[row.record] = True
            settled[row.record] = row.position
    return settled


def vectors_to_come(collection: Collection) -> set[str]:
    """The records whose vector in the index files is replaced or deleted by a row of the log after these.

    It may be so already: after a kill the files can have more of the log than SQLite says.
    """
    return {
        row.record
        for row in collection.rows
        if row.position > collection.position
        and (row.operation == DELETE or (row.operation != ADD and collection.has_vector(row)))
    }


def replayed_from_nothing(collection: Collection) -> dict[str, int]:
    """The row whose vector each record has when Chroma applies the log to an empty index."""
    vectors: dict[str, int] = {}
    for row in collection.rows:
        if row.operation == DELETE:
            vectors.pop(row.record, None)
        elif row.length is None:
            continue
        elif row.operation == UPSERT or (row.operation == ADD) != (row.record in vectors):
            vectors[row.record] = row.position
    return vectors
