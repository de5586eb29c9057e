"""What the tests share: a manager of their own, calls that stay inside the engine until told, and real processes."""

from __future__ import annotations

import contextlib
import multiprocessing.resource_tracker
import os
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from buckets import folder_url, objects, own_s3, proxy, s3, s3_server, url  # noqa: F401 - fixtures
from chroma_manager import ChromaDBManager
from chroma_manager.options import ENGINES, LOCAL_ENGINES, SERVER
from chroma_manager.server_options import LAYOUTS
from chroma_server import ChromaServer
from unmappable import mounted

if sys.platform != "win32":
    import fcntl

SCRIPT_SECONDS = 60

# Enough records for a write of many slices.
VECTORS = np.random.default_rng(0).random((2000, 64), dtype=np.float32)
IDS = [str(i) for i in range(len(VECTORS))]


@pytest.fixture(autouse=True)
def no_manager_is_left() -> Iterator[None]:
    """Every test begins and ends without a manager in the process, and without an engine process of it.

    One that a call has given up ends by itself.
    """
    yield
    ChromaDBManager().shutdown()
    assert eventually(lambda: not engines())


# For a test that is not about the files of a database, and so is true of the engine `server` as well.
on_every_engine = pytest.mark.parametrize("manager", ENGINES, indirect=True)


def long(*values: object) -> list[object]:
    """Values of a parameter that are left to `make test-long`, beside others that stand for them in `make test`."""
    return [pytest.param(value, marks=pytest.mark.long) for value in values]


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    """A Chroma server that the tests of this process share. Each has a tenant of its own there."""
    server = ChromaServer(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ChromaServer]:
    """A Chroma server that the test may kill."""
    server = ChromaServer(tmp_path / "server")
    yield server
    ChromaDBManager().shutdown()
    server.kill()


@pytest.fixture(params=LAYOUTS)
def remote(request: pytest.FixtureRequest, chroma_server: ChromaServer) -> ChromaDBManager:
    """A manager of each layout of the engine `server`."""
    return chroma_server.manager(layout=request.param)


@pytest.fixture(params=LOCAL_ENGINES)
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> ChromaDBManager:
    """A manager of each engine that keeps databases on the disk; of each engine with `on_every_engine`."""
    if request.param == SERVER:
        return request.getfixturevalue("chroma_server").manager(idle_timeout=None)
    return ChromaDBManager(base_path=tmp_path / "db", engine=request.param, idle_timeout=None)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's sockets and logs are, and nobody else's."""
    # Not in `tmp_path`, which is too long for an address, where the database's directory can hold no socket.
    path = Path(tempfile.mkdtemp(prefix="run"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    yield path
    shutil.rmtree(path)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made once for all workers of pytest-xdist, by the first that needs it. Nobody changes it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / f"made-{name}", root / f"done-{name}"
    with (root / f"lock-{name}").open("w") as lock:
        if sys.platform != "win32":
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


class PausingIds(Sequence[str]):
    """Ids that keep the call which reads them inside the engine: until released, or while `inside` runs.

    The engine reads its arguments one by one, through Python, in the middle of the call.
    """

    def __init__(self, inside: Callable[[], None] | None = None) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()
        self._inside = inside

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if index > 0:
            raise IndexError
        self.entered.set()
        if self._inside is not None:
            self._inside()
        else:
            assert self.released.wait(60)
        return "1"


class CallInside:
    """A thread in the middle of a call of `collection`."""

    def __init__(self, collection: object) -> None:
        self.ids = PausingIds()
        self.result: object = None
        self._collection = collection
        self.thread = threading.Thread(target=self._call)
        self.thread.start()
        assert self.ids.entered.wait(60)

    def _call(self) -> None:
        try:
            self.result = get_with(self._collection, self.ids)["ids"]
        except Exception as error:
            self.result = error

    def finish(self) -> object:
        self.ids.released.set()
        self.thread.join(60)
        return self.result


def suspend(process: psutil.Process) -> None:
    """Stops all threads of a process: when it returns they have stopped, which is a moment after the signal."""

    def has_stopped() -> bool:
        try:
            states = [task.read_text() for task in Path(f"/proc/{process.pid}/task").glob("*/stat")]
        except OSError:  # a thread has ended meanwhile
            return False
        return process.status() == psutil.STATUS_STOPPED and all(" T " in state for state in states)

    process.suspend()
    assert eventually(has_stopped)


class InCall:
    """A thread whose call is under way in a stopped engine process: it cannot have been answered."""

    def __init__(self, engine: psutil.Process, call: Callable[[], object]) -> None:
        self.outcome: object = None
        suspend(engine)
        self._call = call
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        time.sleep(0.2)
        assert self.thread.is_alive()

    def _run(self) -> None:
        try:
            self.outcome = self._call()
        except Exception as error:
            self.outcome = error

    def finish(self) -> object:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.outcome


def reader_of(path: Path, script: Callable[[str], Script]) -> Script:
    """A process that reads the SQLite file of a database in a transaction; told to go on, it ends that, and is idle."""
    reader = script(
        f"import sqlite3; sql = sqlite3.connect('file:{path}/chroma.sqlite3?mode=ro', uri=True, isolation_level=None)\n"
        "sql.execute('begin'); print(sql.execute('select count(*) from embeddings').fetchall())\n"
        "input(); sql.execute('rollback'); input()"
    )
    reader.read_line()
    return reader


def get_with(collection: object, ids: Sequence[str]) -> dict[str, object]:
    """`collection.get(ids)` without chromadb's own look at the ids, which is before the engine."""
    return collection._client._get(collection.id, ids=ids)  # type: ignore[attr-defined]


def new_collection(manager: ChromaDBManager, file_id: str = "doc") -> object:
    """A collection with one record, `1`."""
    collection = manager.get_collection(file_id, "azure", "rag_collection")
    collection.upsert(ids=["1"], embeddings=[[1.0, 2.0]], documents=["one"])
    return collection


def sql(path: Path, statement: str, *values: object) -> list[tuple]:
    """What a statement returns on the SQLite file of a closed database; what it changes is committed."""
    connection = sqlite3.connect(path / "chroma.sqlite3")
    with connection:
        rows = connection.execute(statement, values).fetchall()
    connection.close()
    return rows


def queried(manager: ChromaDBManager, statement: str) -> list[tuple]:
    """What a query finds in the SQLite file of a database, which may be open."""
    with contextlib.closing(sqlite3.connect(f"file:{directory(manager) / 'chroma.sqlite3'}?mode=ro", uri=True)) as file:
        return file.execute(statement).fetchall()


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether `condition` comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def directory(manager: ChromaDBManager, file_id: str = "doc") -> Path:
    """Of a database."""
    return Path(manager._get_db_path(file_id, "azure"))


def lock_file(manager: ChromaDBManager, file_id: str = "doc") -> list[str]:
    return (directory(manager, file_id) / ".chroma_manager.lock").read_text(errors="replace").splitlines()


def engine_of(manager: ChromaDBManager, file_id: str = "doc") -> psutil.Process:
    return psutil.Process(int(lock_file(manager, file_id)[0]))


def socket_of(manager: ChromaDBManager, file_id: str = "doc") -> Path:
    return directory(manager, file_id) / lock_file(manager, file_id)[1]


def log_of(manager: ChromaDBManager, file_id: str = "doc") -> Path:
    """The standard error of its engine process."""
    return Path(lock_file(manager, file_id)[4])


def connect(stream: socket.socket, address: Path) -> None:
    """Through a descriptor of its directory, whose path may be too long for an address."""
    descriptor = os.open(address.parent, os.O_PATH)
    try:
        stream.connect(f"/proc/self/fd/{descriptor}/{address.name}")
    finally:
        os.close(descriptor)


def proof_of(path: Path, secret: str) -> bytes:
    """What a greeting of the owner of a directory begins with."""
    found = path.stat()
    return struct.pack("<QQ", found.st_dev, found.st_ino) + bytes.fromhex(secret)


def engines() -> list[psutil.Process]:
    """Those of this process that have not ended, also those that its host has forked."""
    children = psutil.Process().children()
    for host in called(children, "chroma-host"):
        with contextlib.suppress(psutil.NoSuchProcess):
            children += host.children()
    return [engine for engine in called(children, "chroma-engine") if not has_ended(engine)]


def called(processes: Iterable[psutil.Process], name: str) -> list[psutil.Process]:
    """Those with this name. Each may end meanwhile."""
    return [process for process in processes if name_of(process) == name]


def name_of(process: psutil.Process) -> str | None:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return None


def kill_engines() -> None:
    """All that this process has started, and the host with them."""
    started = psutil.Process().children(recursive=True)
    for process in started:
        # The processes of a host end with it.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(started, 20)


def has_ended(process: psutil.Process) -> bool:
    """Whether it has, with all its threads: its first one may be a zombie while another has the files open yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return False
    return len(list(Path(f"/proc/{process.pid}/task").glob("*"))) <= 1


def files_open_in(path: Path) -> list[str]:
    """The files below `path` that this process has open."""
    return [file.path for file in psutil.Process().open_files() if file.path.startswith(str(path))]


def in_thread(call: Callable[[], object]) -> object:
    """What `call` returns or raises in a thread of its own, which has ended by then."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return results[0]


def all_at_once(count: int, call: Callable[[int], object]) -> list[object]:
    """What `call(i)` returns or raises in `count` threads that begin together."""
    barrier = threading.Barrier(count)
    results: list[object] = [None] * count

    def run(i: int) -> None:
        barrier.wait(60)
        try:
            results[i] = call(i)
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


TESTS = [str(path) for path in (Path(__file__).parent, *Path(__file__).parent.glob("*/"))]

PREAMBLE = """
{before}
import os, signal, sys, threading, time
import faulthandler; faulthandler.register(signal.SIGUSR1, all_threads=True)
sys.path[:0] = {tests!r}
from chroma_manager import *
base = {base!r}
"""


class Script:
    """A Python process of its own, which has `base` and, after what runs `before`, all of chroma_manager.

    `within` is a command that starts another one, in a namespace of its own, say.
    """

    def __init__(self, code: str, base: Path, before: str = "", within: Sequence[str] = ()) -> None:
        preamble = PREAMBLE.format(base=str(base), tests=TESTS, before=before)
        self.process = subprocess.Popen(
            # From 3.12 on Python warns of every fork of a process with threads, which is what some scripts are about.
            [*within, sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", preamble + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def read_line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.communicate()[1]
        return line

    def say(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def finish(self) -> str:
        """What it printed, after an end without a fault, a traceback, or a word on stderr."""
        try:
            out, err = self.process.communicate(timeout=SCRIPT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)
            self.process.kill()
            out, err = self.process.communicate()
        assert (self.process.returncode, err) == (0, ""), f"exit {self.process.returncode}\n{out}\n{err}"
        return out.strip()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    scripts: list[Script] = []

    def start(code: str, before: str = "") -> Script:
        scripts.append(Script(code, tmp_path / "db", before))
        return scripts[-1]

    yield start
    for started in scripts:
        started.process.kill()
        started.process.communicate()


def other_process(script: Callable[[str], Script], manager: ChromaDBManager, code: str) -> Script:
    """A script that has the same instances as `manager`."""
    return script(f"from conftest import *\nmanager = ChromaDBManager(**{vars(manager._options)!r})\n{code}")


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._other = path / "other"

    def fill(self, leave: int = 0) -> None:
        """Somebody else's file takes all space, but for `leave` bytes."""
        with self._other.open("wb", buffering=0) as other, contextlib.suppress(OSError):
            while True:
                other.write(bytes(4096))
        os.truncate(self._other, self._other.stat().st_size - leave)

    def free(self) -> None:
        self._other.unlink(missing_ok=True)

    def remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True)


@pytest.fixture
def unmappable(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system whose files cannot be mapped into shared memory."""
    if os.geteuid() or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    with mounted(tmp_path / "content", at=tmp_path / "mounted") as path:
        yield path
        ChromaDBManager().shutdown()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "none", path], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"only root can mount a small file system: {mounted.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        ChromaDBManager().shutdown()
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def no_process_of_multiprocessing_is_left() -> Iterator[None]:
    """For tests that spawn: multiprocessing starts a process for them that others would take for an engine process."""
    yield
    multiprocessing.resource_tracker._resource_tracker._stop()
