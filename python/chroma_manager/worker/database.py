"""The database of one engine process: opened, reopened, checkpointed and closed, whenever the serve loop says so.

The serve loop (``src/engine/isolated/server/executor.rs``) calls `Database`; ``engine/embedded.py`` uses it in the
app's own process. It decides what is done, and when. How files are kept from being lost is in `durability`; exclusive
maintenance is in ``maintenance.py``.

An opening should not wait for imports: what few openings need is imported where it is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chroma_manager.durability.batch_journal import Batches
from chroma_manager.durability.lifecycle import Lifecycle
from chroma_manager.storage import shortage
from chroma_manager.storage.connection import shared_connection
from chroma_manager.worker import template
from chroma_manager.worker.background_checkpoint import BackgroundCheckpoint
from chroma_manager.worker.binding import migrate
from chroma_manager.worker.crash_note import CrashNote
from chroma_manager.worker.news import News
from chroma_manager.worker.opening import Opening

if TYPE_CHECKING:
    from collections.abc import Callable

    from chroma_manager.durability.repair_outcome import RepairOutcome

# Failures of SQLite, which rolls back itself: the index files were not being written.
FAILURES_OF_SQLITE = ("Database error", "metadata segment")


class Database:
    """One database, and what is known of it while this process owns it.

    Attributes:
        keeps_journals: Whether batches are journalled.
        batches: The journals of its batches.
    """

    def __init__(self, arguments: dict[str, Any], directory: Path | None = None) -> None:
        """Opens nothing yet.

        Args:
            arguments: What ``engine.isolated.prepare`` says.
            directory: The database's. By default the working directory, which stays the same one when it is moved, and
                another one takes its place.
        """
        in_memory = arguments["bindings"]["persist_path"] is None
        repair = self._repair if arguments["repair"] == "safe" else None
        self._arguments = arguments
        self._directory = directory or Path()
        self._lifecycle = None if in_memory else Lifecycle(self._directory, template.migrations, self._examine, repair)
        self._crashes = CrashNote(self._directory)
        self.keeps_journals = not in_memory
        self.batches = Batches(self._directory)
        self.begin_batch, self.wrote = self.batches.begin, self.batches.wrote
        self.tells_news = News().tells
        self._background = BackgroundCheckpoint(arguments, self._directory)
        self.copy_in_background = self._background.copy
        self.keep_in_background = self._background.keep
        self.end_in_background = self._background.end
        self._opening = Opening(arguments, self._directory, self._lifecycle, self.batches, self._crashes)
        # Whether a call has failed in a way that may have damaged the binding, and why the last opening failed.
        self._has_failed = False
        self._failure: BaseException | None = None
        self._is_written_elsewhere = False
        self._puts_off_batches = False
        # Chroma has emptied the database, and with it its setting that the log keeps every row.
        self._is_reset = False

    @property
    def log_length(self) -> int | None:
        """How many rows of the log were in no checkpoint at the opening; ``None`` for a database in memory."""
        return self._opening.log_length

    @property
    def replay_seconds(self) -> float:
        """How long Chroma has replayed these rows then; 0 where it reads them in the first call that needs them."""
        return self._opening.replay_seconds

    def note_crashes(self) -> None:
        """Has a crash of this process noted, and reads what earlier ones have died of."""
        if self._lifecycle is not None and self._lifecycle.has_database:
            self._crashes.begin()

    def has_ended(self) -> None:
        """To be called at the end of the process."""
        self._crashes.end()

    def take_notices(self) -> str:
        """What to tell whoever opened the database, one notice a line. Each is returned once."""
        if self._lifecycle is None:
            return ""
        findings = self._lifecycle.findings
        notices, findings.notices = findings.notices, []
        notice, self._opening.notice = self._opening.notice, None
        return "\n".join([*filter(None, [notice]), *notices])

    # -- opening

    def open(self) -> Any:
        """Chroma's binding; ``None`` where it is to be called again once Chroma has closed its files."""
        self._has_failed = False
        try:
            self._opening.look_for_writers()
            with shared_connection():
                self._keep_rows_again()
                if self.keeps_journals and not self._opening.prepare_as_closed():
                    self.batches.inspect()
                    self._judge_writer()
                bindings = self._opening.open(has_journals=self.keeps_journals)
            self._failure = None
            if bindings is None or not self.complete_batches(bindings):
                return None
            self._crashes.clear()
            return bindings
        except Exception as error:
            self._failure = shortage.explained(error, self._arguments["directory"])
            if self._failure is error:
                raise
            raise self._failure from error

    def guarded(self, bindings: Any) -> Any:
        """A binding; where collections are damaged, one that refuses calls on them."""
        return self._opening.guarded(bindings)

    # -- interrupted batches

    @property
    def has_half_a_batch(self) -> bool:
        """Whether part of a batch is in the database, and the rest is not: then nothing else is written."""
        return self.batches.has_rest

    @property
    def has_interrupted_batches(self) -> bool:
        """Whether the closed database is to be opened once more, to complete what was interrupted."""
        has_database = self._lifecycle is not None and self._lifecycle.has_database
        return has_database and self.batches.are_left

    def complete_batches(self, bindings: Any) -> bool:
        """Completes interrupted batches; ``False`` where that failed.

        Then the binding is to be reopened, and the next write tries again.
        """
        if self._puts_off_batches:
            self._puts_off_batches = False
            return True
        while self.batches.has_rest:
            try:
                self.batches.complete(bindings)
            except BaseException as error:  # a panic of Chroma is not an Exception
                explained, has_failed = self.failed(error)
                if not has_failed and not isinstance(error, OSError):
                    self.batches.refused(error)
                    continue
                import traceback  # noqa: PLC0415 - takes milliseconds

                traceback.print_exc()
                self.batches.failed(explained)
                self._puts_off_batches = True
                return False
        return True

    def complete_batches_first(self, bindings: Any) -> None:
        """Completes interrupted batches, or raises the reason why that cannot be done now."""
        if not self.complete_batches(bindings):
            self.batches.check()

    # -- while the binding is open

    def was_reset(self, is_done: bool) -> None:
        """To be called when Chroma has emptied the database, which is to be reopened before the next call.

        Args:
            is_done: Whether it has not failed in between.
        """
        self._is_reset = True
        if is_done:
            self.batches.begin_empty()
        else:
            self._opening.is_prepared = False

    def begin_in_background(self) -> bool:
        """Begins a checkpoint in the background; whether it could be begun."""
        return self._lifecycle is not None and self._background.begin(self._lifecycle.findings.damaged)

    @property
    def is_background_interrupted(self) -> bool:
        """Whether the checkpoint in the background was ended because the database was to be closed."""
        return self._background.is_interrupted

    def purge_in_background(self, is_awaited: Callable[[], bool]) -> bool:
        """Purges the rows of the log that checkpoints have. Nobody writes meanwhile.

        Args:
            is_awaited: Tells whether somebody waits for the database to be closed. Then it is interrupted.

        Returns:
            Whether it has purged them.
        """
        if self._lifecycle is None or not self._lifecycle.checkpoints.may_purge or not self._background.is_there:
            return False
        extents = None
        try:
            extents = self._background.purge(is_awaited)
        finally:
            self.batches.purged(*extents or (None, None))
        return extents is not None

    # -- while the binding is closed

    def checkpoint(self) -> int | None:
        """Takes a checkpoint, unless the binding was closed because it has failed.

        Returns:
            How many records may be written before the next one; ``None`` where a checkpoint is as due as before.

        Raises:
            OSError: A batch is not complete, or a file cannot be written.
        """
        assert self._lifecycle is not None
        if self._has_failed:
            return None
        self._keep_rows_again()
        if self.has_interrupted_batches:
            raise OSError("no checkpoint is taken while a batch is not complete")
        if self._is_shared():
            self._opening.notice = self.written_elsewhere()
            return None
        return self._lifecycle.checkpoints.take()

    def manage(self, method: str, arguments: tuple[Any, ...]) -> Callable[[], Any]:
        """Does exclusive maintenance.

        Args:
            method: A verb of ``maintenance.py``: ``"snapshot"``, ``"restore"``, ``"verify"`` or ``"compact"``.
            arguments: Those of the method of ``ChromaDBManager`` with that name.

        Returns:
            A function that returns the result, and may take its time: it is called once the database can be used again.
        """
        from chroma_manager.worker import maintenance  # noqa: PLC0415 - seldom needed

        assert self._lifecycle is not None
        self._keep_rows_again()
        is_restore = method == "restore"
        if not is_restore:
            self._look_for_other_rows()
        suspects_indexes = self._has_failed and not self._opening.is_prepared
        if not is_restore and self._failure is None and self.has_half_a_batch:
            self.batches.check()
        # Whatever is done now, the next opening examines the result.
        self._opening.is_prepared = False
        closed = maintenance.ClosedDatabase(
            self._directory, self._arguments, self._lifecycle, self.batches, self._failure, suspects_indexes
        )
        with maintenance.named_errors(method, self._arguments["directory"]):
            rest = maintenance.VERBS[method](closed, *arguments)
            if is_restore or (method == "verify" and arguments[0]):
                self._crashes.clear()
            if is_restore:
                # Of collections as they were before.
                self.tells_news = News().tells
            return rest

    def named(self, method: str, error: BaseException) -> BaseException:
        """An error before, in or after `manage`, with the names of the verb and of the database."""
        from chroma_manager.worker import maintenance  # noqa: PLC0415 - seldom needed

        return maintenance.named(method, self._arguments["directory"], error)

    def leave_clean(self) -> None:
        """Leaves the database as any Chroma finds it, where an engine process was killed and did not.

        Raises:
            InstanceCorruptError: It is damaged, and is not to be repaired, or cannot be.
        """
        if self._lifecycle is not None:
            self._lifecycle.leave_clean()

    def migrate(self) -> None:
        """Has Chroma migrate a database that an older one has made, before it is opened."""
        if self._lifecycle is not None and self._lifecycle.is_outdated:
            migrate(self._arguments, self._directory)

    def examine(self) -> None:
        """Examines a database of which no checkpoints are taken, and repairs it.

        Raises:
            InstanceCorruptError: It is damaged, and is not to be repaired, or cannot be.
        """
        from chroma_manager.verification import examined  # noqa: PLC0415 - an engine process does not need it

        has_indexes = self._lifecycle is not None and self._lifecycle.has_database and not self._lifecycle.is_new
        if self._lifecycle is not None and has_indexes and not examined.is_known(self._directory):
            self._lifecycle.examine()
            examined.note(self._directory, sound=not self._lifecycle.findings.damaged)
            self.batches.inspect(self._lifecycle.findings.damaged)

    def closed(self) -> None:
        """To be called when the binding is closed for good. The next opening recovers an index that may be damaged."""
        self._look_for_other_rows()
        # With half a batch the log is needed, and the database is left as a kill would leave it.
        is_whole = self._opening.is_prepared and not self.has_interrupted_batches
        if self._lifecycle is not None and is_whole and self._lifecycle.has_database:
            is_compacted = self._arguments["compact_at_close"]
            with shared_connection():
                self._lifecycle.after_closing()
                if not is_compacted:
                    self._lifecycle.note_closing()
            if is_compacted:
                self._compact_dead(self._lifecycle)
                self._lifecycle.note_closing()

    def _compact_dead(self, lifecycle: Lifecycle) -> None:
        """Compacts the closed database if more than half of it is dead. Where that fails it is as it was."""
        from chroma_manager.storage.reclaimable import is_mostly_dead  # noqa: PLC0415 - only with this option
        from chroma_manager.worker.maintenance import HALF  # noqa: PLC0415 - likewise

        if not is_mostly_dead(self._directory):
            return
        try:
            self.manage("compact", (HALF,))
            # So that the next opening need not examine what is known to be sound.
            lifecycle.checkpoints.adopt(0)
        except Exception:  # whatever it is, the database is closed already
            import traceback  # noqa: PLC0415 - takes milliseconds

            traceback.print_exc()

    def _keep_rows_again(self) -> None:
        if self._lifecycle is not None and self._is_reset:
            self._lifecycle.after_reset()
            self._is_reset = False

    # -- failures

    def failed(self, error: BaseException) -> tuple[BaseException, bool]:
        """What a call that raised `error` is to raise; and whether the binding is to be reopened before the next."""
        if self._lifecycle is None:
            return error, False
        try:
            explained = shortage.explained(error, self._arguments["directory"])
            if not shortage.is_failure(explained):
                return explained, False
        except (MemoryError, OSError):
            explained = error
        self._has_failed = True
        self._opening.is_prepared = self._opening.is_prepared and any(part in str(error) for part in FAILURES_OF_SQLITE)
        return explained, True

    def not_synced(self, error: OSError) -> Exception:
        """What a write is to raise that was made, but may not survive a power cut."""
        from chromadb.errors import InternalError  # noqa: PLC0415 - seldom needed

        where = self._arguments["directory"]
        return InternalError(f"the directory {where} could not be synced ({error}): a power cut may undo this write")

    # -- other programs that write

    def written_elsewhere(self) -> str:
        """Another program has written to the open database, which is therefore recovered before it is used again.

        Returns:
            A notice for whoever uses the database; the next times it is empty.
        """
        assert self._lifecycle is not None
        is_noticed = self._is_written_elsewhere and self._has_failed
        self._is_written_elsewhere = self._has_failed = True
        self._opening.is_prepared = False
        if is_noticed:
            return ""
        notice = self._lifecycle.writers.note_write()
        print(notice, file=sys.stderr)
        return notice

    def _look_for_other_rows(self) -> None:
        """Finds out whether another program has written rows to the log of the closed database."""
        if self._is_written_elsewhere:
            self.batches.inspect()
            self._judge_writer()
        elif self._opening.is_prepared and self._is_shared():
            self.written_elsewhere()

    def _judge_writer(self) -> None:
        """Forgets a program that has written no row of the log: Chroma writes a setting when it opens a database."""
        if self._is_written_elsewhere and self._lifecycle is not None and not self.batches.has_other_rows:
            self._lifecycle.writers.forget()
        self._is_written_elsewhere = self.batches.has_other_rows = False

    def _is_shared(self) -> bool:
        """Whether another program has the closed database open, and has written rows of the log.

        The serve loop notices a writer between two calls; where both write all the time there is no such moment.
        """
        if self._lifecycle is None or self._lifecycle.writers.processes is None:
            return False
        self.batches.inspect()
        return self.batches.has_other_rows

    # -- what `durability` calls for damage

    def _examine(self) -> dict[str, Any]:
        from chroma_manager.verification import verify  # noqa: PLC0415 - only where another Chroma had it open

        return verify.examine(self._directory, self._arguments, thorough=False)

    def _repair(self) -> RepairOutcome:
        from chroma_manager.verification import safe_repair  # noqa: PLC0415 - only for a damaged database

        return safe_repair.repair_safely(self._directory, self._arguments)
