"""The engine process: one database, served over one socket. Run as a program by ``src/engine/isolated/process.rs``.

It is started with its lock as standard input, its listening socket as standard output and its log as standard error,
and loads Chroma's binding and nothing else of chromadb: importing all of it takes a second and 60 MB.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chroma_manager.durability.checkpoint import Checkpoints
    from chroma_manager.durability.repair_outcome import RepairOutcome

LOCK, LISTENER = 0, 1

NAME = "chroma-engine"

# As the first argument it has the program say on which interpreter it runs, if all that it needs can be imported.
CHECK = "check"

# They tell a process to end: it finishes what it does, and closes the database.
ENDING = (signal.SIGTERM, signal.SIGHUP)

# What a recovery may take longer, so that all that Chroma has replayed is found.
SECONDS_FOR_RECALL = 5.0

# A checkpoint is taken after a replay that took so many seconds, or of more than so many rows.
LONG_REPLAY = 1.0
LONG_LOG = 5_000

# Failures of SQLite, which takes back what it did itself; the files of the indexes were not being written.
FAILURES_OF_SQLITE = ("Database error", "metadata segment")


def main() -> None:
    """Opens the database, serves it until nobody needs it, closes it."""
    _find_own_package()
    from chroma_manager.worker.packages import find_without_running  # noqa: PLC0415 - it can be found only now

    if sys.argv[1] == CHECK:
        told = json.loads(sys.argv[2])
        find_without_running(told["packages"], told["version"])
        _check()
        return
    # The app's Ctrl-C is the app's; it tells us by going away.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # By this name the first process of a container knows what it is left with; there is no /proc on macOS.
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(NAME)
    # Until it is known how to end.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    sys.stdout = sys.stderr
    arguments, socket, log = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    find_without_running(arguments["packages"], arguments["version"])
    from chroma_manager._native import close_inherited  # noqa: PLC0415 - it can be found only now

    # Whoever waits for the end of the app, or for its port, waits for the last one who has a descriptor of it.
    close_inherited()
    if not _is_owner():
        sys.exit("the directory was replaced while its engine process started")
    try:
        _serve(arguments, socket, log)
    finally:
        # The socket may have another name by now; then it is gone already.
        for left in filter(None, (socket, log)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)


def _is_owner() -> bool:
    """Whether the working directory is the one whose lock was inherited."""
    from chroma_manager.storage.paths import LOCK_FILE  # noqa: PLC0415 - it can be found only now

    try:
        return os.path.samestat(os.fstat(LOCK), os.lstat(LOCK_FILE))
    except FileNotFoundError:
        return False


def _find_own_package() -> None:
    """Makes the modules of this package importable without running its ``__init__``, which is for an app."""
    package = sys.modules["chroma_manager"] = ModuleType("chroma_manager")
    package.__path__ = [str(Path(__file__).parents[1])]


def _check() -> None:
    """Prints the name and version of the interpreter, once it has imported what an engine process does."""
    import sqlite3  # noqa: F401, PLC0415

    import chromadb.errors  # noqa: F401, PLC0415
    import chromadb_rust_bindings  # noqa: F401, PLC0415

    from chroma_manager._native import serve  # noqa: F401, PLC0415

    print(json.dumps([sys.implementation.name, *sys.version_info[:2]]), flush=True)


def _serve(arguments: dict[str, Any], socket: str, log: str) -> None:
    from chroma_manager._native import serve  # noqa: PLC0415 - it can be found only now

    # One that the app ignores (SIGHUP under nohup) is ignored here as well.
    signals: list[int] = [ending for ending in ENDING if signal.getsignal(ending) != signal.SIG_IGN]
    inherited = (LOCK, LISTENER, socket, log or None)
    database = Database(arguments)
    database.expect_crashes()
    serve(inherited, arguments["directory"], arguments["linger"], database, signals)
    database.has_ended()


class Database:
    """What the serve loop opens, closes, and has a checkpoint taken of.

    Attributes:
        log_length: How many rows of the log were in no checkpoint when it was opened; ``None`` where none are taken,
            because the database is in memory.
    """

    def __init__(self, arguments: dict[str, Any], directory: Path | None = None) -> None:
        """Opens nothing yet.

        Args:
            arguments: What ``isolated.prepare`` says.
            directory: Of the database. By default the working directory, even where that has been moved and another one
                is in its place.
        """
        from chroma_manager.durability.batch_journal import Batches  # noqa: PLC0415 - it can be found only now
        from chroma_manager.durability.checkpoint import Checkpoints  # noqa: PLC0415 - it can be found only now
        from chroma_manager.storage import shortage  # noqa: PLC0415 - it can be found only now
        from chroma_manager.storage.paths import CRASHES, HOME  # noqa: PLC0415 - it can be found only now
        from chroma_manager.worker.crash_note import CrashNote  # noqa: PLC0415 - it can be found only now

        self._shortage = shortage
        self._arguments = arguments
        self._is_created = False
        self._is_prepared = False
        self._has_failed = False
        self._has_not_replayed = False
        self._is_due = False
        self._suspects = False
        self._notice: str | None = None
        self._is_written_elsewhere = False
        self.log_length: int | None = None
        in_memory = arguments["bindings"]["persist_path"] is None
        self._failure: BaseException | None = None
        self._directory = directory or Path()
        mend = self._mend if arguments["repair"] == "safe" else None
        self._checkpoints = None if in_memory else Checkpoints(self._directory, self._examine, mend)
        self._crash_note, self._crashes = CrashNote(self._directory / HOME / CRASHES), list[str]()
        self.keeps_journals = not in_memory
        self.batches = Batches(self._directory)
        self.begin_batch, self.wrote = self.batches.begin, self.batches.wrote
        self._puts_off_batches = False

    def expect_crashes(self) -> None:
        """Has this process note what it dies of, and finds out what those before it have died of."""
        if self._checkpoints is not None and self._checkpoints.has_database:
            self._crashes = self._crash_note.begin()

    def has_ended(self) -> None:
        """To be called at the end of the process."""
        self._crash_note.end()

    def take_notices(self) -> str:
        """What whoever has opened the database is to be told, a line each. It is told once."""
        if self._checkpoints is None:
            return ""
        notices, self._checkpoints.notices = self._checkpoints.notices, []
        notice, self._notice = self._notice, None
        return "\n".join([*filter(None, [notice]), *notices])

    def open(self) -> Any:
        """Chroma's binding; ``None`` where it is to be called again when Chroma has closed its files."""
        self._has_failed = False
        try:
            if self.keeps_journals:
                self.batches.look()
                self._judge_writer()
            bindings = self._open()
            self._failure = None
            if bindings is None or not self.complete_batches(bindings):
                return None
            self._crash_note.clear()
            self._crashes = []
            return bindings
        except Exception as error:
            self._failure = self._shortage.explained(error, self._arguments["directory"])
            if self._failure is error:
                raise
            raise self._failure from error

    def complete_batches(self, bindings: Any) -> bool:
        """``False`` where that has failed: the binding is to be opened anew, and it is tried again before a write."""
        if self._puts_off_batches:
            self._puts_off_batches = False
            return True
        while self.batches.has_rest:
            try:
                self.batches.complete(bindings)
            except BaseException as error:  # a panic of Chroma is no Exception
                explained, has_failed = self.failed(error)
                if not has_failed and not isinstance(error, OSError):
                    self.batches.refused(error)
                    continue
                traceback.print_exc()
                self.batches.failed(explained)
                self._puts_off_batches = True
                return False
        return True

    @property
    def has_half_a_batch(self) -> bool:
        """Whether part of a batch is in the database, and the rest is not: then nothing else is written."""
        return self.batches.has_rest

    @property
    def has_interrupted_batches(self) -> bool:
        """Whether the closed database is to be opened once more, to complete what was interrupted."""
        has_database = self._checkpoints is not None and self._checkpoints.has_database
        return has_database and self.batches.are_left

    def complete_batches_first(self, bindings: Any) -> None:
        """Completes what was interrupted, or raises why that cannot be done now."""
        if not self.complete_batches(bindings):
            self.batches.check()

    def _open(self) -> Any:
        self._refuse_deadly()
        if self._checkpoints is not None and not self._is_prepared:
            try:
                self._notice = self._checkpoints.notice() or self._notice
                self._checkpoints.settle()
                if self._checkpoints.is_new and not self._is_created:
                    # It is Chroma that creates a database; what is done before it is opened is done the second time.
                    self._is_created = True
                    self._construct()
                    return None
                self._checkpoints.before_opening(suspects=bool(self._crashes))
                if self._checkpoints.notices:
                    # Mending writes to the log, and a damaged collection takes no batch.
                    self.batches.look(self._checkpoints.damaged)
                elif self.keeps_journals:
                    self.batches.measure_logs()
                self.log_length = self._checkpoints.log_length()
                self._is_prepared = True
            except self._checkpoints.DATABASE_ERRORS as error:
                self._checkpoints.refuse_damaged(error)
                self._construct_and_use()  # Where Chroma cannot open it either, what it says is better known.
                raise
        if self._checkpoints is not None and self._is_due:
            self._take_checkpoint(self._checkpoints)
            if self.keeps_journals:
                self.batches.measure_logs()
        bindings = self.guarded(self._construct_and_use())
        if self._checkpoints is None or not self._checkpoints.replayed or self._has_not_replayed:
            return bindings
        try:
            return bindings if self._replay(self._checkpoints, bindings) else None
        except BaseException:  # a panic of Chroma is no Exception
            traceback.print_exc()
            # The index is to be recovered again. It is tried once: what is wrong (a full disk, say) is then for whoever
            # calls to be told.
            self._has_not_replayed = True
            self._is_prepared = self._is_due = False
            return None

    def _refuse_deadly(self) -> None:
        """Raises where Chroma has ended two processes that opened the database: it would end this one, too."""
        from chroma_manager.errors import InstanceCorruptError  # noqa: PLC0415 - it can be found only now
        from chroma_manager.worker.crash_note import PASSING  # noqa: PLC0415 - it can be found only now

        causes = [cause for cause in self._crashes if cause not in PASSING]
        if len(causes) > 1:
            self._crash_note.keep_one(causes[-1])
            raise InstanceCorruptError(
                f"Chroma dies when it opens it ({causes[-1]}), although its index files look as they should"
            )

    def guarded(self, bindings: Any) -> Any:
        """A binding; where collections are damaged, one that refuses calls on them."""
        if self._checkpoints is None or not self._checkpoints.damaged:
            return bindings
        from chroma_manager.worker.guarded_bindings import GuardedBindings  # noqa: PLC0415 - it can be found only now

        return GuardedBindings(bindings, self._arguments["directory"], self._checkpoints.damaged)

    def _replay(self, checkpoints: Checkpoints, bindings: Any) -> bool:
        """Has Chroma replay its log; ``False`` where a checkpoint is to be taken before it goes on."""
        from chroma_manager.durability import reconnect  # noqa: PLC0415 - it can be found only now

        began = time.monotonic()
        reconnect.replay(bindings, checkpoints.replayed)
        is_long = time.monotonic() - began > LONG_REPLAY or (self.log_length or 0) > LONG_LOG
        # A batch that is to be completed first is found by its place in the log.
        if is_long and not self._is_due and not self.has_half_a_batch:
            # A process that is killed again would have to do all of it again, and each time more.
            self._is_due = True
            return False
        self._is_due = False
        replayed, checkpoints.replayed = checkpoints.replayed, []
        reconnect.connect(bindings, replayed, SECONDS_FOR_RECALL)
        return True

    def _take_checkpoint(self, checkpoints: Checkpoints) -> None:
        """After a recovery. Where it cannot be taken, nothing is lost: the log is all there."""
        try:
            checkpoints.take()
        except (OSError, checkpoints.DATABASE_ERRORS):
            traceback.print_exc()
        self.log_length = checkpoints.log_length()

    def checkpoint(self) -> int | None:
        """Takes a checkpoint while the binding is closed, unless it was closed because it has failed.

        Returns:
            How many records may be written before the next; ``None`` where it is as due as before.
        """
        assert self._checkpoints is not None
        if self._has_failed:
            return None
        if self.has_interrupted_batches:
            raise OSError("no checkpoint is taken while a batch is not complete")
        if self._is_shared():
            self._notice = self.written_elsewhere()
            return None
        return self._checkpoints.take()

    def manage(self, method: str, arguments: tuple[Any, ...]) -> Callable[[], Any]:
        """Does a piece of work while the binding is closed.

        Args:
            method: ``"snapshot"`` (not where the database could not be opened), ``"restore"`` or ``"verify"``.
            arguments: Those of the methods of these names, of ``ChromaDBManager``.

        Returns:
            What returns the result, and may take its time: it is called when the database can be used again.
        """
        assert self._checkpoints is not None
        if method != "restore":
            self._look_for_other_rows()
        # A write has failed in the index files: what they hold is recovered before anybody copies or examines it.
        self._suspects = self._has_failed and not self._is_prepared
        work: dict[str, Callable[..., Callable[[], Any]]] = {
            "snapshot": self._snapshot,
            "restore": self._restore,
            "verify": self._verify,
        }
        if method != "restore" and self._failure is None and self.has_half_a_batch:
            self.batches.check()
        # Whatever it does, the next opening looks at what is there.
        self._is_prepared = False
        with self.naming(method):
            result = work[method](self._checkpoints, *arguments)
            if method == "restore" or (method == "verify" and arguments[0]):
                self._crash_note.clear()
                self._crashes = []
            return result

    @contextlib.contextmanager
    def naming(self, method: str) -> Iterator[None]:
        """Gives what is raised in a piece of work the name of the work and of the database."""
        assert self._checkpoints is not None
        try:
            yield
        except (OSError, *self._checkpoints.DAMAGE, self._checkpoints.REFUSAL) as error:
            from chroma_manager.errors import ChromaManagerError, InstanceOpenError, SnapshotError  # noqa: PLC0415

            if isinstance(error, ChromaManagerError) and type(error) is not InstanceOpenError:
                raise
            failure = InstanceOpenError if method == "verify" else SnapshotError
            where = self._arguments["directory"]
            raise failure(f"{method}() of the database in {where} failed: {type(error).__name__}: {error}") from error

    def _snapshot(self, checkpoints: Checkpoints, destination: str) -> Callable[[], Any]:
        from chroma_manager.durability import snapshot  # noqa: PLC0415 - it can be found only now

        if self._failure is not None:
            raise self._failure
        checkpoints.leave(suspects=self._suspects)
        if checkpoints.damaged:
            from chroma_manager.errors import InstanceCorruptError  # noqa: PLC0415 - it can be found only now

            raise InstanceCorruptError(
                f"{self._arguments['directory']} is damaged: {'; '.join(checkpoints.damaged.values())}. Repair it "
                f"first: ChromaDBManager's verify(..., repair=True)"
            )
        about = {"chroma": self._arguments["version"], "records": checkpoints.records}
        return snapshot.take(self._directory, checkpoints.indexes, Path(destination), about)

    def _restore(self, checkpoints: Checkpoints, source: str) -> Callable[[], Any]:
        from chroma_manager.durability import snapshot  # noqa: PLC0415 - it can be found only now

        checkpoints.restore(lambda target: snapshot.copy_verified(Path(source), target))
        self.batches.forget()
        return lambda: None

    def _verify(self, checkpoints: Checkpoints, repair: bool) -> Callable[[], Any]:
        from chroma_manager.verification import repair as repairing  # noqa: PLC0415 - it can be found only now
        from chroma_manager.verification import verify  # noqa: PLC0415 - it can be found only now

        # Where SQLite cannot read it, or nothing can be recovered, that is what is found.
        with contextlib.suppress(*checkpoints.DAMAGE):
            checkpoints.leave(suspects=self._suspects)
        work = repairing.repair if repair else verify.examine
        report = work(self._directory, self._arguments)
        report["found"] = [*checkpoints.mended, *report.get("found", report["problems"])]
        checkpoints.mended = []
        if report["set_aside"] is not None:
            report["set_aside"] = os.path.join(self._arguments["directory"], report["set_aside"])
        return lambda: report

    def _examine(self) -> dict[str, Any]:
        from chroma_manager.verification import verify  # noqa: PLC0415 - it can be found only now

        return verify.examine(self._directory, self._arguments, thorough=False)

    def _mend(self) -> RepairOutcome:
        from chroma_manager.verification import safe_repair  # noqa: PLC0415 - it can be found only now

        return safe_repair.mend(self._directory, self._arguments)

    def leave(self) -> None:
        """Leaves the closed database as any Chroma finds it, if an engine process that was killed did not.

        Raises:
            InstanceCorruptError: It is damaged, and is not to be mended, or cannot be.
        """
        if self._checkpoints is not None:
            self._checkpoints.leave()

    def look_after(self) -> None:
        """Examines the closed database where no checkpoints are taken of it, and mends it.

        Raises:
            InstanceCorruptError: It is damaged, and is not to be mended, or cannot be.
        """
        from chroma_manager.verification import examined  # noqa: PLC0415 - it can be found only now

        has_indexes = self._checkpoints is not None and self._checkpoints.has_database and not self._checkpoints.is_new
        if self._checkpoints is not None and has_indexes and not examined.is_known(self._directory):
            self._checkpoints.look_after()
            examined.note(self._directory, sound=not self._checkpoints.damaged)
            self.batches.look(self._checkpoints.damaged)

    def closed(self) -> None:
        """To be called when the binding is closed for good. An index that may be damaged is for the next opening."""
        self._look_for_other_rows()
        # With half a batch the log is needed, and is left as a kill would leave it.
        is_whole = self._is_prepared and not self.has_interrupted_batches
        if self._checkpoints is not None and is_whole and self._checkpoints.has_database:
            self._checkpoints.after_closing()

    def failed(self, error: BaseException) -> tuple[BaseException, bool]:
        """What a call is to raise that raised `error`, and whether the binding is to be opened anew before the next."""
        if self._checkpoints is None:
            return error, False
        try:
            explained = self._shortage.explained(error, self._arguments["directory"])
            if not self._shortage.is_failure(explained):
                return explained, False
        except (MemoryError, OSError):
            explained = error
        self._has_failed = True
        self._is_prepared = self._is_prepared and any(part in str(error) for part in FAILURES_OF_SQLITE)
        return explained, True

    def written_elsewhere(self) -> str:
        """Another program has written to the database while it was open: it is to be recovered before it is used again.

        Returns:
            What whoever uses it is to be told, the first time; then nothing.
        """
        assert self._checkpoints is not None
        is_said = self._is_written_elsewhere and self._has_failed
        self._is_written_elsewhere = self._has_failed = True
        self._is_prepared = False
        if is_said:
            return ""
        said = self._checkpoints.written_elsewhere()
        print(said, file=sys.stderr)
        return said

    def _look_for_other_rows(self) -> None:
        """Finds out, while the database is closed, whether another program has written what is not to be believed."""
        if self._is_written_elsewhere:
            self.batches.look()
            self._judge_writer()
        elif self._is_prepared and self._is_shared():
            self.written_elsewhere()

    def _judge_writer(self) -> None:
        """A program that has written nothing to the log (Chroma writes a setting when it opens it) is no danger yet."""
        if self._is_written_elsewhere and self._checkpoints is not None and not self.batches.has_other_rows:
            self._checkpoints.forget_writer()
        self._is_written_elsewhere = self.batches.has_other_rows = False

    def _is_shared(self) -> bool:
        """Whether another program has the closed database open, and not all rows of the log are from here.

        So it is found where both write at every moment, and no call begins when no other one is in flight.
        """
        if self._checkpoints is None or self._checkpoints.writers is None:
            return False
        self.batches.look()
        return self.batches.has_other_rows

    def not_synced(self, error: OSError) -> Exception:
        """What a write is to raise that was made, but may not survive a power cut."""
        from chromadb.errors import InternalError  # noqa: PLC0415 - it can be found only now

        where = self._arguments["directory"]
        return InternalError(f"the directory {where} could not be synced ({error}): a power cut may undo this write")

    def _construct_and_use(self) -> Any:
        bindings = self._construct()
        # As PersistentClient does: a database that cannot be used fails here, and not in the middle of something.
        bindings.get_tenant("default_tenant")
        bindings.get_database("default_database", "default_tenant")
        return bindings

    def _construct(self) -> Any:
        import chromadb_rust_bindings as chroma  # noqa: PLC0415 - it can be found only now

        sqlite = self._arguments["sqlite"]
        config = chroma.SqliteDBConfig(
            hash_type=chroma.MigrationHash.MD5 if sqlite["hash_type"] == "md5" else chroma.MigrationHash.SHA256,
            migration_mode=(
                chroma.MigrationMode.Apply if sqlite["migration_mode"] == "apply" else chroma.MigrationMode.Validate
            ),
            url=self._within(sqlite["url"]),
        )
        bindings = self._arguments["bindings"]
        return chroma.Bindings(
            sqlite_db_config=config, **{**bindings, "persist_path": self._within(bindings["persist_path"])}
        )

    def _within(self, path: str | None) -> str | None:
        return None if path is None else str(self._directory / path)


if __name__ == "__main__":
    main()
    # Threads of connections may be waiting for words that do not come.
    os._exit(0)
