"""Nothing lost: what an engine process does to a database before Chroma opens it, and while Chroma has it closed.

Chroma rewrites its index files in place, without a sync and without a look at the result, and then purges the rows of
its log that could rebuild them. Here the log keeps its rows until a copy of the index files is proven to hold them:

- While the database is open there is a dirty marker, and Chroma is told to purge nothing.
- A checkpoint is a copy of the index files with the sequence id up to which they have applied the log, named in a
  manifest. Index files and copy are synced, and the copy is read back and compared with the log (``proof.py``); only
  then are the rows before that id purged. An index that does not pass is recovered.
- A dirty marker at the opening was left by a process that did not close the database, which is then recovered
  (``recovery.py``).

Everything here runs while Chroma has the database closed: two SQLite libraries in one process must not have a file open
at the same time. It runs in the engine process, which loads no more than it needs.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chroma_manager.durability import other_programs, restore
from chroma_manager.durability.copies import (
    copy_changed,
    copy_index,
    indexed_segments,
    only_named_copies,
    remove_unneeded,
)
from chroma_manager.errors import InstanceCorruptError, InstanceLockedError, InstanceOpenError
from chroma_manager.storage.dirty_marker import DirtyMarker, read_marker, remove_marker, write_marker
from chroma_manager.storage.files import make_directory, remove_tree, step, write_durably
from chroma_manager.storage.log import (
    KEEPS_ROWS,
    PURGES_ROWS,
    VectorSegment,
    count_rows,
    purge_rows,
    purge_setting,
    purges,
    set_purge_setting,
    transaction,
    vector_segments,
)
from chroma_manager.storage.manifest import Manifest, fingerprint_of_files, read_manifest, write_manifest
from chroma_manager.storage.paths import (
    CHECKPOINT,
    DAMAGED,
    DATABASE_FILE,
    HOME,
    JOURNAL_NAME,
    REPAIR,
    WRITTEN_ELSEWHERE,
)
from chroma_manager.storage.sealed import DamagedFileError, read_sealed
from chroma_manager.storage.sequence_ids import mend_positions, refuse_unknown_segments

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from chroma_manager.durability.reconnect import Replayed
    from chroma_manager.durability.repair_outcome import RepairOutcome

# Rows of the log after which a checkpoint is due, if it is not for the time that they took (``turns.rs``); for a large
# database, a part of its records.
SHORTEST_LOG = 20_000
PART_OF_RECORDS = 4

# Rows that Chroma's index files do not contain, and so no checkpoint: it rewrites them every so many records.
ROWS_IN_NO_INDEX = 1_000

# The last is missing where an older Chroma has made the database.
TABLES = {"embeddings", "embeddings_queue", "max_seq_id", "segments", "embeddings_queue_config"}

TABLES_OF_POSITIONS = {"embeddings_queue", "max_seq_id", "segments"}


class Checkpoints:
    """The checkpoints, the log and the dirty marker of one database, whose directory this process owns.

    Attributes:
        replayed: What Chroma has yet to replay after a recovery; whoever has it do so empties the list.
        mended: What was found to be damaged and is not any more, in sentences.
        damaged: What is wrong with the collections that stay damaged, and what can be saved of them, by their id. Their
            indexes are left alone.
        notices: What whoever opens the database is to be told, in sentences; whoever tells it empties the list.
    """

    DATABASE_ERRORS = sqlite3.Error
    REFUSAL = InstanceOpenError
    DAMAGE = (sqlite3.Error, InstanceCorruptError, DamagedFileError)

    def __init__(
        self, directory: Path, examine: Callable[[], dict[str, Any]], mend: Callable[[], RepairOutcome] | None
    ) -> None:
        """Touches nothing.

        Args:
            directory: Of the database.
            examine: Reports what is wrong with the closed database (``verification.examine``).
            mend: Mends it (``mending.mend``); ``None`` where damage is to be refused.
        """
        self._directory = directory
        self._examine, self._mend = examine, mend
        self._database = directory / DATABASE_FILE
        self._home = directory / HOME
        self._marker: DirtyMarker | None = None
        self._rebuilt: set[str] = set()
        self._unrecoverable: list[str] = []
        self.replayed: list[Replayed] = []
        self.mended: list[str] = []
        self.damaged: dict[str, str] = {}
        self.notices: list[str] = []

    @staticmethod
    def refuse_damaged(error: sqlite3.Error) -> None:
        """Raises ``InstanceCorruptError`` where SQLite has found its file damaged, or none of its own."""
        # What has other reasons (no space, no permission) is of classes derived from it.
        if type(error) is sqlite3.DatabaseError:
            raise InstanceCorruptError(f"{DATABASE_FILE} is damaged ({error})") from error

    @property
    def has_database(self) -> bool:
        """Whether it has not been removed."""
        return self._database.exists()

    @property
    def is_new(self) -> bool:
        """Whether Chroma has not created the tables that are needed here: then it is to open the database first."""
        return not self._tables() >= TABLES

    def _tables(self) -> set[str]:
        if not self._database.exists() or self._database.stat().st_size == 0:
            return set()
        with transaction(self._database) as sql:
            return {row[0] for row in sql.execute("select name from sqlite_master where type = 'table'")}

    @property
    def indexes(self) -> list[str]:
        """Names of the directories of the vector indexes that have files."""
        return [segment.id for segment in indexed_segments(self._directory)]

    def _sound_segments(self) -> list[VectorSegment]:
        """The segments that have index files, but those of collections that stay damaged."""
        return [one for one in indexed_segments(self._directory) if one.collection not in self.damaged]

    @property
    def records(self) -> int:
        """How many records there are, in all collections."""
        with transaction(self._database) as sql:
            return int(sql.execute("select count(*) from embeddings").fetchone()[0])

    def log_length(self) -> int:
        """How many rows of the log the next checkpoint could make purgeable."""
        manifest: Manifest = {}
        with contextlib.suppress(DamagedFileError):
            manifest = read_manifest(self._home) or {}
        with transaction(self._database) as sql:
            lengths = [
                count_rows(sql, segment, manifest[segment.id].position if segment.id in manifest else 0)
                for segment in vector_segments(sql)
                if segment.collection not in self.damaged
            ]
        return sum(max(0, length - ROWS_IN_NO_INDEX) for length in lengths)

    def settle(self) -> None:
        """To be called first: what others have left is put into the form that all else here, and Chroma, expects.

        Raises:
            InstanceOpenError: It is not known here what is in it.
        """
        self._refuse_writers()
        if restore.finish(self._directory):
            self._marker = None
        if self._tables() >= TABLES_OF_POSITIONS:
            with transaction(self._database) as sql:
                refuse_unknown_segments(sql)
                mend_positions(sql, self._directory)

    def _refuse_writers(self) -> None:
        """Raises while another program has the database open that was seen to write to it."""
        flag = self._home / WRITTEN_ELSEWHERE
        if not os.path.lexists(flag):
            return
        writers = self.writers
        if writers is not None:
            said = other_programs.REFUSED.format(who=other_programs.named(writers))
            raise InstanceLockedError(said, writers[0] if writers else None)
        # Whatever it has left is recovered: the database was left open here.
        self._marker = None
        remove_tree(flag)

    @property
    def writers(self) -> list[int] | None:
        """The other processes that have the closed database open for writing, as far as they can be seen."""
        return other_programs.writers_of(self._database) if self._database.exists() else None

    def notice(self) -> str | None:
        """What is to be said before the closed database is opened, if another program has it open."""
        writers = self.writers
        return None if writers is None else other_programs.OPEN.format(who=other_programs.named(writers))

    def written_elsewhere(self) -> str:
        """Another program has written to the open database: takes note of it, and returns what is to be said."""
        make_directory(self._home)
        write_durably(self._home / WRITTEN_ELSEWHERE, "")
        writers = other_programs.visible_writers_of(self._database)
        return other_programs.WRITTEN.format(who=other_programs.named(writers) if writers else other_programs.CLOSED)

    def forget_writer(self) -> None:
        """What the other program has written changes no index."""
        remove_tree(self._home / WRITTEN_ELSEWHERE)

    def before_opening(self, *, suspects: bool = False) -> None:
        """Recovers where the last owner did not close the database, and sees to it that the log keeps its rows.

        Args:
            suspects: Whether the index files are not to be believed, because Chroma has died of something.

        Raises:
            InstanceCorruptError: It is damaged, and cannot be recovered or mended.
        """
        make_directory(self._home)
        self.damaged = {}
        generation = self._generation()
        if generation and self._recovers(generation, suspects=suspects) and not suspects:
            return
        if generation or suspects or self._is_foreign():
            self.look_after(generation)
            self._adopt(generation)
        self._mark(self._found_setting(generation))

    def after_closing(self) -> None:
        """Takes a checkpoint and leaves the database as any Chroma finds it."""
        self.take(is_last=True)
        self._unmark()

    def leave(self, *, suspects: bool = False) -> None:
        """Leaves the closed database as any Chroma finds it, whoever had it open last.

        Args:
            suspects: Whether the index files are not to be believed, because Chroma has failed.

        Raises:
            InstanceCorruptError: It was left open, is damaged, and cannot be recovered.
        """
        self.settle()
        generation = self._generation()
        if not generation:
            return
        make_directory(self._home)
        if self._marker is not None and not suspects:
            self.after_closing()
        else:
            if not self._recovers(generation):
                self.look_after(generation)
            self._unmark()

    def restore(self, copy: Callable[[Path], None]) -> None:
        """Puts another database in the place of this one, as ``restore.restore`` does."""
        restore.restore(self._directory, copy)
        self._marker = None

    def take(self, *, is_last: bool = False) -> int:
        """Takes a checkpoint of the indexes that have changed, and purges the rows of the log that it makes needless.

        Where the copy of an index is not proven to hold what its rows say, the index is recovered, and the rows stay.

        Args:
            is_last: Whether the database is closed for good afterwards.

        Returns:
            How many records may be written before the next one.
        """
        manifest = read_manifest(self._home) or {}
        with only_named_copies(self._home):
            copied, unproven = copy_changed(self._directory, manifest, self._sound_segments())
            write_manifest(self._home, {**copied, **self._copies_of_damaged(manifest)})
            step("manifest written")
        for segment, problem in unproven:
            self._note(f"the index {segment.id} was not what the log says ({problem}), and is recovered from it")
        self._rebuild([segment for segment, _ in unproven], is_last)
        self._purge()
        return max(SHORTEST_LOG, self.records // PART_OF_RECORDS)

    def _rebuild(self, unproven: list[VectorSegment], is_last: bool) -> None:
        """Recovers indexes that are not proven; while the database is open only once, for it would not help again."""
        segments = [segment for segment in unproven if is_last or segment.id not in self._rebuilt]
        self._rebuilt |= {segment.id for segment in unproven}
        if not segments:
            return
        problems = self._problems_with_recovering(segments, read_manifest(self._home) or {})
        for problem in problems.values():
            self._note(f"an index cannot be recovered ({problem}); no row of the log is purged")
        self._recover([segment for segment in segments if segment.id not in problems])

    def _problems_with_recovering(self, segments: list[VectorSegment], manifest: Manifest) -> dict[str, str]:
        """Why segments cannot be recovered from their checkpoints and the log, by their id."""
        with transaction(self._database) as sql:
            problems = {
                segment.id: self._recovery.why_not(sql, self._home, segment, manifest.get(segment.id))
                for segment in segments
            }
        return {segment: problem for segment, problem in problems.items() if problem is not None}

    def _adopt(self, generation: int) -> None:
        """Begins with what another Chroma, which purges its log as it likes, has left, and was found to be sound."""
        self._set_damaged_manifest_aside()
        known = read_manifest(self._home) or {}
        with only_named_copies(self._home):
            manifest = {segment.id: copy_index(self._directory, segment) for segment in self._sound_segments()}
            manifest |= self._copies_of_damaged(known)
            write_manifest(self._home, manifest)
            step("manifest written")
        if purges(self._found_setting(generation)):
            self._purge()

    def _copies_of_damaged(self, manifest: Manifest) -> Manifest:
        """The copies of indexes that stay damaged, without index files: vectors may be saved from them."""
        with transaction(self._database) as sql:
            damaged = {one.id for one in vector_segments(sql) if one.collection in self.damaged}
        return {key: copy._replace(files={}) for key, copy in manifest.items() if key in damaged}

    def _generation(self) -> int:
        """That of the dirty marker under which the database was left open; 0 where it was closed, or there is none."""
        if not self._database.exists():
            return 0
        with transaction(self._database) as sql:
            return int(sql.execute("pragma user_version").fetchone()[0])

    def _found_setting(self, generation: int) -> str | None:
        """Chroma's setting for purging, as it was before an engine process opened the database."""
        if self._marker is not None:
            return self._marker.purge_setting
        with contextlib.suppress(DamagedFileError):
            repair = read_sealed(self._home / REPAIR)
            if repair is not None:
                interrupted: str | None = repair["purge_setting"]
                return interrupted
        with transaction(self._database) as sql:
            setting = purge_setting(sql)
        # The marker that would tell is lost: Chroma's default.
        return PURGES_ROWS if generation and setting == KEEPS_ROWS else setting

    def _mark(self, found: str | None) -> None:
        marker = DirtyMarker.new(found)
        write_marker(self._home, marker)
        (self._home / REPAIR).unlink(missing_ok=True)
        step("marked")
        with transaction(self._database) as sql:
            set_purge_setting(sql, KEEPS_ROWS)
            sql.execute(f"pragma user_version = {marker.generation}")
        self._marker = marker
        step("log kept")

    def _unmark(self) -> None:
        found = self._found_setting(self._generation())
        with transaction(self._database) as sql:
            set_purge_setting(sql, found)
            sql.execute("pragma user_version = 0")
        step("log not kept")
        remove_marker(self._home)
        self._marker = None
        step("unmarked")

    def _recovers(self, generation: int, *, suspects: bool = False) -> bool:
        """Recovers the indexes of a database that was left open whose checkpoint and log are whole; whether all are."""
        self._unrecoverable = []
        try:
            manifest = read_manifest(self._home) or {}
            marker = self._marker_of(generation)
        except DamagedFileError as error:
            self._unrecoverable = [str(error)]
            return False
        recovery = self._recovery
        with transaction(self._database) as sql:
            segments, is_purged = vector_segments(sql), recovery.is_purged(sql)
            is_another = any(recovery.is_of_another_history(sql, one, manifest.get(one.id)) for one in segments)
        if is_purged:
            self._unrecoverable = ["another program has purged its log"]
        elif is_another:
            self._unrecoverable = [recovery.ANOTHER_HISTORY]
        elif marker is None and any(checkpoint.row is None for checkpoint in manifest.values()):
            self._unrecoverable = ["nothing tells whether its checkpoints are of this database"]
        if self._unrecoverable:
            return False
        problems = self._problems_with_recovering(segments, manifest)
        self._unrecoverable = list(problems.values())
        # Which of its copies are of this very database the rows of the log tell; all else the marker has to.
        if marker is None:
            marker = DirtyMarker.new(self._found_setting(generation))._replace(generation=generation, boot="")
            write_marker(self._home, marker)
        self._marker = marker
        recovered = [segment for segment in segments if segment.id not in problems]
        self._recover(recovered, trusts_times=marker.is_of_this_boot and not suspects)
        return not problems

    def _marker_of(self, generation: int) -> DirtyMarker | None:
        """The dirty marker, if there is one and it is that of this database."""
        try:
            marker = read_marker(self._home)
        except DamagedFileError as error:
            self._note(f"{error}; the log and the checkpoints tell as much")
            return None
        return marker if marker is not None and marker.generation == generation else None

    def _recover(self, segments: list[VectorSegment], *, trusts_times: bool = False) -> None:
        """Recovers the indexes of some segments."""
        if not segments:
            return
        manifest = read_manifest(self._home) or {}
        remove_unneeded(self._home, manifest)
        with transaction(self._database) as sql:
            recovered, replayed = self._recovery.recover(
                sql, self._directory, self._home, manifest, segments, trusts_times=trusts_times
            )
        step("positions set back")
        write_manifest(self._home, recovered)
        collections = {segment.collection for segment in segments}
        self.replayed = [*(one for one in self.replayed if one.collection not in collections), *replayed]

    def _is_foreign(self) -> bool:
        """Whether another Chroma has made or changed the closed database since the last checkpoint."""
        try:
            manifest = read_manifest(self._home)
        except DamagedFileError:
            return True
        if manifest is None:
            with transaction(self._database) as sql:
                return bool(vector_segments(sql))
        indexed = indexed_segments(self._directory)
        return {segment.id for segment in indexed} != manifest.keys() or not all(
            self._is_at(manifest, segment) for segment in indexed
        )

    def _is_at(self, manifest: Manifest, segment: VectorSegment) -> bool:
        """Whether the index files of a segment are those of its checkpoint, as far as sizes and times tell."""
        checkpoint = manifest.get(segment.id)
        files = fingerprint_of_files(self._directory / segment.id)
        return checkpoint is not None and checkpoint.stands_for(segment.position, files)

    def look_after(self, generation: int = 0) -> None:
        """Examines a closed database that is not to be recovered from its checkpoints, and has damage mended.

        Args:
            generation: That of its dirty marker.

        Raises:
            InstanceCorruptError: It is damaged, and is not to be mended, or cannot be.
        """
        self.damaged = {}
        report = self._examine()
        if not report["ok"] and not generation and self._comes_back_from_copies(report):
            report = self._examine()
        if report["ok"]:
            return
        if self._mend is None:
            raise InstanceCorruptError("; ".join([*self._unrecoverable, *report["problems"]]))
        try:
            done, self.damaged = self._mend()
        except InstanceCorruptError as error:
            raise InstanceCorruptError("; ".join([*self._unrecoverable, str(error)])) from error
        for sentence in done:
            self._notice(sentence)
        self.replayed = [one for one in self.replayed if one.collection not in self.damaged]
        self.notices += [f"{sentence}; calls on it are refused" for sentence in self.damaged.values()]

    def _comes_back_from_copies(self, report: dict[str, Any]) -> bool:
        """Recovers indexes of a closed database of which nothing but the files has changed: their copies are as good.

        Returns:
            Whether there are any.
        """
        try:
            manifest = read_manifest(self._home)
        except DamagedFileError:
            return False
        if manifest is None:
            return False
        damaged = {one["id"] for one in report["collections"] if one["problems"]}
        with transaction(self._database) as sql:
            segments = [
                segment
                for segment in vector_segments(sql)
                if segment.collection in damaged
                and segment.position == (manifest[segment.id].position if segment.id in manifest else 0)
            ]
        problems = self._problems_with_recovering(segments, manifest)
        recovered = [segment for segment in segments if segment.id not in problems]
        if not recovered:
            return False
        from chroma_manager.durability.checkpoint_files import new_stamp, set_indexes_aside  # noqa: PLC0415 - seldom needed

        kept = set_indexes_aside(self._directory, (segment.id for segment in recovered), new_stamp())
        step("damaged index set aside")
        self._recover(recovered)
        collections = {segment.collection for segment in recovered}
        for one in report["collections"]:
            if one["id"] in collections:
                said = "; ".join(one["problems"])
                self._notice(f"{said}; it was recovered from checkpoint and log, and what was there is kept in {kept}")
        return True

    def _notice(self, sentence: str) -> None:
        """What whoever opens the database is to be told, and whoever verifies it."""
        self.mended.append(sentence)
        self.notices.append(sentence)

    def _purge(self) -> None:
        """Purges the rows that the checkpoints and the records have applied, if Chroma was found to do so.

        None goes while a batch is not complete: how much of it there is, the log tells.
        """
        if any(JOURNAL_NAME.fullmatch(path.name) for path in self._home.iterdir()):
            return
        manifest = read_manifest(self._home) or {}
        if self._marker is None or purges(self._marker.purge_setting):
            with transaction(self._database) as sql:
                # Without files a copy is that of an index that stays damaged.
                purge_rows(sql, {segment: copy.position for segment, copy in manifest.items() if copy.files})
        step("log shortened")

    def _set_damaged_manifest_aside(self) -> None:
        try:
            read_manifest(self._home)
        except DamagedFileError as error:
            self._note(f"{error}; the database was found sound, and begins with a new one")
            error.file.rename(self._home / f"{DAMAGED}{os.urandom(4).hex()}-{CHECKPOINT}")

    @property
    def _recovery(self) -> ModuleType:
        from chroma_manager.durability import recovery  # noqa: PLC0415 - most openings do not need it

        return recovery

    def _note(self, sentence: str) -> None:
        self.mended.append(sentence)
        print(sentence, file=sys.stderr)
