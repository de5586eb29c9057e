"""Opens the database of an engine process: what is recovered first, and what Chroma replays before the first call.

How a database is recovered is in `durability`. The interrupted batches that an opening completes are in
``database.py``.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from chroma_manager.durability.closing_note import read_note
from chroma_manager.worker import template
from chroma_manager.worker.binding import construct, construct_and_use, migrate

if TYPE_CHECKING:
    from pathlib import Path

    from chroma_manager.durability.batch_journal import Batches
    from chroma_manager.durability.findings import Findings
    from chroma_manager.durability.lifecycle import Lifecycle
    from chroma_manager.worker.crash_note import CrashNote
    from chroma_manager.worker.replay import Replay


class Opening:
    """The openings of one database.

    Attributes:
        is_prepared: Whether the files are recovered, and the log keeps its rows. Where that is in doubt it is reset,
            and the next opening prepares the files again.
        log_length: How many rows of the log were in no checkpoint at the last opening; ``None`` where no checkpoints
            are taken.
        notice: What to tell whoever opens the database of another program that has it open.
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        directory: Path,
        lifecycle: Lifecycle | None,
        batches: Batches,
        crashes: CrashNote,
    ) -> None:
        """Opens nothing yet.

        Args:
            arguments: What ``engine.isolated.prepare`` says.
            directory: The database's, from which the paths in the arguments are taken.
            lifecycle: What is done with its files; ``None`` where the database is in memory.
            batches: The journals of its batches.
            crashes: What earlier engine processes of it have died of.
        """
        self._arguments = arguments
        self._directory = directory
        self._lifecycle = lifecycle
        self._batches = batches
        self._crashes = crashes
        self._is_created = False
        self._replays: Replay | None = None
        self.is_prepared = False
        self.log_length: int | None = None
        self.notice: str | None = None

    @property
    def replay_seconds(self) -> float:
        """How long Chroma has replayed its log at the last opening; 0 where it reads the log in the first call."""
        return 0.0 if self._replays is None else self._replays.seconds

    def look_for_writers(self) -> None:
        """Finds out who else has the database open. To be called first, before a connection of this process has."""
        if self._lifecycle is not None and not self.is_prepared:
            self.notice = self._lifecycle.writers.notice() or self.notice

    def prepare_as_closed(self) -> bool:
        """Prepares the files of a database that is as it was closed; whether it is, and nothing is left to be found."""
        if self._lifecycle is None or self.is_prepared or self._crashes.causes:
            return False
        note = read_note(self._directory)
        if note is None:
            return False
        try:
            self._lifecycle.reopen(note)
            self._batches.begin_as(note.extents)
            self.log_length = note.log_length
        except sqlite3.Error:
            # Whatever it is, it is found out again.
            return False
        self.is_prepared = True
        return True

    def open(self, *, has_journals: bool) -> Any:
        """Chroma's binding; ``None`` where it is to be called again once Chroma has closed its files.

        Args:
            has_journals: Whether batches are journalled.
        """
        self._crashes.refuse_deadly()
        lifecycle = self._lifecycle
        if lifecycle is None:
            return construct_and_use(self._arguments, self._directory)
        if not self.is_prepared:
            try:
                if not self._prepare(lifecycle, has_journals=has_journals):
                    return None
            except sqlite3.Error as error:
                lifecycle.refuse_damaged(error)
                # Where Chroma cannot open it either, its message is better known.
                construct_and_use(self._arguments, self._directory)
                raise
        if lifecycle.is_outdated:
            migrate(self._arguments, self._directory)
            lifecycle.is_outdated = False
        bindings = self.guarded(construct_and_use(self._arguments, self._directory))
        return bindings if self._has_replayed(lifecycle.findings, bindings) else None

    def guarded(self, bindings: Any) -> Any:
        """A binding; where collections are damaged, one that refuses calls on them."""
        if self._lifecycle is None or not self._lifecycle.findings.damaged:
            return bindings
        from chroma_manager.worker.guarded_bindings import GuardedBindings  # noqa: PLC0415 - seldom needed

        return GuardedBindings(bindings, self._arguments["directory"], self._lifecycle.findings.damaged)

    def _prepare(self, lifecycle: Lifecycle, *, has_journals: bool) -> bool:
        """Recovers what was left open; ``False`` where Chroma has only now created the database."""
        lifecycle.settle()
        if lifecycle.is_new and not self._is_created:
            self._is_created = True
            new = None
            if not lifecycle.has_database:
                lifecycle.forget_removed()
                self._batches.forget()
                new = template.for_settings(self._arguments["sqlite"])
            if new is not None:
                lifecycle.create(new)
                self._batches.begin_empty()
                self.log_length = 0
                self.is_prepared = True
                return True
            # Chroma creates it. What is done before an opening is done before the second one.
            construct(self._arguments, self._directory)
            return False
        is_changed = lifecycle.before_opening(suspects=bool(self._crashes.causes))
        if lifecycle.findings.notices:
            # A repair writes to the log, and a damaged collection takes no batch.
            self._batches.inspect(lifecycle.findings.damaged)
        elif has_journals and is_changed:
            self._batches.measure_logs()
        self.log_length = lifecycle.checkpoints.log_length()
        lifecycle.use_write_ahead_log()
        self.is_prepared = True
        return True

    def _has_replayed(self, findings: Findings, bindings: Any) -> bool:
        """Has Chroma replay its log after a recovery; whether the binding can be used now."""
        if not findings.replayed or (self._replays is not None and self._replays.has_failed):
            return True
        if self._replays is None:
            from chroma_manager.worker.replay import Replay  # noqa: PLC0415 - most openings recover nothing

            self._replays = Replay(self._directory, self._batches)
        done = self._replays.run(bindings, findings.replayed)
        if done:
            findings.replayed = []
        else:
            self.is_prepared = False
        return done
