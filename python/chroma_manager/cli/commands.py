"""What ``chroma-manager list``, ``verify``, ``snapshot`` and ``restore`` do to the databases under a path.

The arguments are in cli.py. Results go to stdout, a line for each database; failures and progress to stderr. ``list``
only looks; the others have the manager do the work, so that an app that has the database open goes on.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import sys
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager.durability.snapshot import MANIFEST
from chroma_manager.errors import ChromaManagerError
from chroma_manager.manager import ChromaDBManager
from chroma_manager.results import Verification
from chroma_manager.storage.paths import DATABASE_FILE, HOME, INDEX_NAME, LOCK_FILE

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Exit codes, from good to bad: of several databases the worst one counts.
DONE, FAILED, DAMAGED = 0, 1, 3

_MISSING = (f"{DATABASE_FILE} is missing, without which the indexes are worth nothing: restore a snapshot",)
WITHOUT_RECORDS = Verification(False, _MISSING, (), _MISSING, "missing", (), False, None)


# How long to wait for a writer before the records of a database are not known.
COUNT_SECONDS = 1.0

# Where SQLite's header says how it writes, and what it says of a write-ahead log.
WRITE_FORMAT, WRITE_AHEAD = slice(18, 20), b"\2\2"


class MaintenanceError(ChromaManagerError):
    """A path is not what a command can work on; the message says why."""


@dataclass(frozen=True)
class Access:
    """How the manager gets at a database: ``engine`` and ``lock_timeout`` of ``ChromaDBManager``."""

    engine: str
    lock_timeout: float


class Database(NamedTuple):
    """A directory ``base_path/file_id/embedding_type``, absolute; of a database, or of its snapshot."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> Database:
        """The one of a path as the user gives it.

        Raises:
            MaintenanceError: It is too near to the root to have a key.
        """
        # Links are not followed: the key is what the app calls it.
        database = cls(Path(os.path.abspath(path)))
        if not database.file_id:
            raise MaintenanceError(f"{printable(path)} cannot be a database: one is at BASE/FILE_ID/EMBEDDING_TYPE")
        return database

    @property
    def file_id(self) -> str:
        """First half of the key."""
        return self.path.parent.name

    @property
    def embedding_type(self) -> str:
        """Second half of the key."""
        return self.path.name

    @property
    def base_path(self) -> Path:
        """That of its manager."""
        return self.path.parent.parent

    @property
    def key(self) -> str:
        """As messages name it."""
        return f"{self.file_id}/{self.embedding_type}"

    @property
    def names(self) -> dict[str, str]:
        """What tells which one it is, in JSON."""
        return {"file_id": self.file_id, "embedding_type": self.embedding_type, "path": str(self.path)}


@dataclass(frozen=True)
class Result:
    """What came of the work on one database: an exit code, a line, and what ``--json`` says besides its names."""

    code: int
    text: str
    values: dict[str, Any] = field(default_factory=dict)


def list_databases(path: Path, *, as_json: bool) -> int:
    """Prints what there is under a path; opens nothing, and changes nothing."""
    databases, code = _find(path, _is_database)
    width = max((len(printable(database.key)) for database in databases), default=0)
    for database in databases:
        records, size, (is_open, pid) = _records(database.path), _size(database.path), _owner(database.path)
        where = {None: "open or not: unknown", False: "closed", True: f"open in process {'?' if pid is None else pid}"}
        text = f"{printable(database.key):<{width}}  {_counted(records, 'record')}  {_bytes(size)}  {where[is_open]}"
        _print(database, Result(DONE, text, {"records": records, "size": size, "open": is_open, "pid": pid}), as_json)
    return code


def verify(path: Path, access: Access, *, repair: bool, as_json: bool) -> int:
    """Verifies the database or databases of a path, and repairs them if asked to."""

    def work(manager: ChromaDBManager, database: Database) -> Result:
        _refuse_snapshot(database)
        if (database.path / DATABASE_FILE).exists():
            verification = manager.verify(database.file_id, database.embedding_type, repair=repair)
        else:
            verification = WITHOUT_RECORDS
        text = f"{database.key}: {_described(verification)}"
        return Result(DONE if verification.ok else DAMAGED, text, asdict(verification))

    databases, code = _find(path, _is_database)
    return max(code, _work("verifying", databases, access, work, as_json=as_json))


def snapshot(path: Path, destination: Path, access: Access) -> int:
    """Takes a snapshot of the database of a path to a directory, or of each of several to one of its own in there."""

    def work(manager: ChromaDBManager, database: Database) -> Result:
        _refuse_snapshot(database)
        target = destination if is_one else destination / database.file_id / database.embedding_type
        taken = manager.snapshot(database.file_id, database.embedding_type, target)
        what = f"{_counted(taken.records, 'record')}, {_counted(taken.files, 'file')}, {_bytes(taken.size)}"
        return Result(DONE, f"{database.key}: {what}, in {taken.path}")

    is_one = _is_database(path)
    databases, code = _find(path, _is_database)
    return max(code, _work("taking a snapshot of", databases, access, work))


def restore(source: Path, path: Path, access: Access) -> int:
    """Restores a snapshot to the directory of a database, or each of several to its own under a base path."""
    snapshots, code = _find(source, _is_snapshot)
    is_one = _is_snapshot(source)
    sources = {Database.at(path if is_one else path / one.file_id / one.embedding_type): one.path for one in snapshots}

    def work(manager: ChromaDBManager, database: Database) -> Result:
        _refuse_foreign(database.path)
        manager.restore(database.file_id, database.embedding_type, sources[database])
        return Result(DONE, f"{database.key}: restored from {sources[database]}")

    return max(code, _work("restoring", list(sources), access, work))


def _find(path: Path, is_one: Callable[[Path], bool]) -> tuple[list[Database], int]:
    """The databases or snapshots of a path, by key, and whether one may have been missed.

    Raises:
        MaintenanceError: There is none.
    """
    if is_one(path):
        return [Database.at(path)], DONE
    errors: list[OSError] = []
    parents = _subdirectories(Path(os.path.abspath(path)), errors)
    below = [directory for parent in parents for directory in _subdirectories(parent, errors)]
    found = []
    for directory in below:
        try:
            found += [Database(directory)] if is_one(directory) else []
        except OSError as error:
            errors.append(error)
    for failure in errors:
        _complain(str(failure))
    if not found and not errors:
        what = "snapshot" if is_one is _is_snapshot else f"database (FILE_ID/EMBEDDING_TYPE/{DATABASE_FILE})"
        raise MaintenanceError(f"there is no {what} in {printable(path)}")
    return found, FAILED if errors else DONE


def _subdirectories(directory: Path, errors: list[OSError]) -> list[Path]:
    try:
        return sorted(entry for entry in directory.iterdir() if entry.is_dir())
    except OSError as error:
        errors.append(error)
        return []


def _is_database(directory: Path) -> bool:
    # An index alone is one whose records were lost, which is not to be passed over in silence.
    return (directory / DATABASE_FILE).is_file() or any(directory.glob("*/header.bin"))


def _is_snapshot(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def _refuse_snapshot(database: Database) -> None:
    # To open it would be to change it, and its checksums would be those of something else.
    if _is_snapshot(database.path) and not (database.path / HOME).exists():
        raise MaintenanceError(f"{database.path} is a snapshot, which is not opened; restore it to where it may be")


def _refuse_foreign(directory: Path) -> None:
    # All directories in there would be removed: in the base path of an app, all its databases.
    for entry in _subdirectories(directory, []):
        if not entry.name.startswith(".") and not INDEX_NAME.fullmatch(entry.name):
            raise MaintenanceError(
                f"{directory} is not the directory of one database: it has {entry.name!r}, which is no index. Name "
                f"BASE/FILE_ID/EMBEDDING_TYPE"
            )


def _work(
    title: str,
    databases: Sequence[Database],
    access: Access,
    work: Callable[[ChromaDBManager, Database], Result],
    *,
    as_json: bool = False,
) -> int:
    """Does a piece of work to one database after the other, whatever becomes of the ones before."""
    if not databases:
        return DONE
    code = DONE
    base_path = databases[0].base_path
    with (
        ChromaDBManager(
            base_path=base_path, engine=access.engine, lock_timeout=access.lock_timeout, repair="never"
        ) as manager,
        _progress(title, len(databases)) as begin,
    ):
        for database in databases:
            begin(printable(database.key))
            result = _attempt(manager, database, work)
            code = max(code, result.code)
            if result.code == FAILED:
                _complain(result.text)
            if result.code != FAILED or as_json:
                _print(database, result, as_json)
    return code


def _attempt(
    manager: ChromaDBManager, database: Database, work: Callable[[ChromaDBManager, Database], Result]
) -> Result:
    try:
        result = work(manager, database)
        # Hundreds of them would be hundreds of engine processes.
        manager.cleanup_instance(database.file_id, database.embedding_type)
    except Exception as error:  # Chroma's and SQLite's too: the next database has its turn whatever it is
        message = str(error) if isinstance(error, ChromaManagerError) else f"{type(error).__name__}: {error}"
        named = message if database.key in message else f"{database.key}: {message}"
        return Result(FAILED, named, {"error": message})
    return result


def _described(verification: Verification) -> str:
    records = sum(collection.records for collection in verification.collections)
    state = "damaged" if not verification.ok else "repaired" if verification.repaired else "sound"
    parts = [state, _counted(len(verification.collections), "collection"), _counted(records, "record")]
    said = [", ".join(parts)]
    if verification.problems:
        said.append("; ".join(verification.problems))
    if verification.repaired:
        said.append(f"what was repaired: {'; '.join(verification.found)}")
    if verification.set_aside is not None:
        said.append(f"records without a vector were set aside in {verification.set_aside}")
    return "; ".join(said)


def _records(directory: Path) -> int | None:
    """How many records all collections have; ``None`` where it cannot be read now."""
    file = directory / DATABASE_FILE
    statement = (
        "select count(*) from embeddings where segment_id in "
        "(select segments.id from segments join collections on collections.id = segments.collection)"
    )
    try:
        with file.open("rb") as header:
            # Even who only reads makes files beside it.
            if header.read(WRITE_FORMAT.stop)[WRITE_FORMAT] == WRITE_AHEAD:
                return None
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=COUNT_SECONDS)) as sql:
            return int(sql.execute(statement).fetchone()[0])
    except (sqlite3.Error, OSError):
        return None


def _size(directory: Path) -> int:
    """Bytes of all files, as far as they can be seen."""
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            # Gone meanwhile, where an app is at work.
            with suppress(OSError):
                size += os.lstat(os.path.join(folder, name)).st_size
    return size


def _owner(directory: Path) -> tuple[bool | None, int | None]:
    """Whether a process has a database open (``None``: it cannot be told), and which one, where it says so."""
    try:
        with open(directory / LOCK_FILE, "rb", opener=_open_at_once) as file:
            # Not touched where nobody has signed it: whoever wants to open the database must find it free.
            if not file.read(1) or not _is_locked(file.fileno()):
                return False, None
            file.seek(0)
            pid, _, _ = file.read(4096).partition(b"\n")
            return True, int(pid) if pid.isdigit() else None
    except FileNotFoundError:
        return False, None
    except OSError:
        # On Windows what is locked cannot be read.
        return True if sys.platform == "win32" else None, None


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file: what is in its place may be a link, or a FIFO that nobody writes to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _is_locked(descriptor: int) -> bool:
    if sys.platform == "win32":
        return False
    try:
        # Shared, and for a moment: the signature may be that of an owner who was killed.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _print(database: Database, result: Result, as_json: bool) -> None:
    print(json.dumps(database.names | result.values) if as_json else printable(result.text), flush=True)


def _complain(message: str) -> None:
    print(f"chroma-manager: {printable(message)}", file=sys.stderr)


def printable(text: str | Path) -> str:
    """Returns it on one line that does nothing to a terminal: the names of directories may be anything."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(text))


def _counted(number: int | None, noun: str) -> str:
    return f"{'?' if number is None else f'{number:,}'} {noun}{'' if number == 1 else 's'}"


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Gives what is to be called with each key when its turn comes; it tells a terminal, and nobody else."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra
        from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
    except ModuleNotFoundError:
        numbers = itertools.count(1)
        yield lambda key: print(f"{title} {key} ({next(numbers)} of {total})", file=sys.stderr)
        return
    done = itertools.count()
    description = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), description, MofNCompleteColumn(), TimeElapsedColumn())
    # What is printed meanwhile goes through the bar, lest they overwrite each other; not where it is piped.
    is_shared = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=is_shared) as bar:
        task = bar.add_task(title, total=total)
        yield lambda key: bar.update(task, description=f"{title} {key}", completed=next(done))
