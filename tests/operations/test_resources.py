"""What is missing is named, nothing acknowledged is lost, and the same handles go on once it is there again.

Each cause is real: a small file system that fills up, one that is read-only, a directory that not even root may write,
and limits of descriptors, processes and memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from chroma_manager import ChromaDBManager, ChromaManagerError, EngineProtocolError, InstanceOpenError
from chroma_manager.options import ENGINES, LOCAL_ENGINES
from chromadb.errors import InternalError, InvalidArgumentError
from conftest import (
    Disk,
    all_at_once,
    directory,
    engine_of,
    eventually,
    has_ended,
    kill_engines,
    log_of,
    new_collection,
    sql,
)
from model import Model, vectors

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

MB = 1 << 20
DISK_FULL = r"No space left on device|disk is full"


@pytest.fixture
def manager(disk: Disk, runtime: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=disk.path / "db", engine="isolated", idle_timeout=None)


class Records(Model):
    """A model of a collection some of whose writes fail: each of those has taken effect, or has not, as a whole."""

    def __init__(self, manager: ChromaDBManager, name: str = "model") -> None:
        super().__init__(manager, name)
        self.uncertain: list[dict[str, np.ndarray]] = []
        self.handle = self.collection()

    def collection(self) -> object:  # type: ignore[override]
        return self.__dict__.get("handle") or super().collection()

    def add_until_it_fails(self, count: int = 200) -> Exception:
        for _ in range(200):
            error = self.try_to_add(count)
            if error is not None:
                return error
        raise AssertionError("nothing failed")

    def try_to_add(self, count: int) -> Exception | None:
        ids = [f"{self.seed}-{i}" for i in range(count)]
        try:
            self.write("add", ids)
        except Exception as error:
            self.uncertain.append(dict(zip(ids, vectors(self.seed, count), strict=True)))
            return error
        return None

    def assert_is_there(self) -> None:
        for batch in self.uncertain:
            if self.handle.get(ids=[next(iter(batch))], include=[])["ids"]:
                self.records |= batch
        self.uncertain = []
        super().assert_is_there()


def assert_nothing_is_left(manager: ChromaDBManager, runtime: Path) -> None:
    """After all is closed: no process, no socket, no log, and in the directory what a closed database has."""
    manager.cleanup_all_instances()
    assert eventually(lambda: psutil.Process().children() == [])
    assert [path for path in runtime.glob("*/*") if path.exists()] == []
    home = directory(manager) / ".chroma_manager"
    copies = {entry["copy"] for entry in json.loads((home / "checkpoint.json").read_text())["content"].values()}
    assert {path.name for path in home.iterdir()} == {"checkpoint.json", "closed.json", *copies}
    found = {path.name for path in directory(manager).iterdir() if path.is_file()}
    assert found == {"chroma.sqlite3", ".chroma_manager.lock"}


@pytest.mark.parametrize("leave", [0, 200_000, 400_000, 800_000])
def test_a_disk_that_the_writes_fill(manager: ChromaDBManager, disk: Disk, runtime: Path, leave: int) -> None:
    model = Records(manager)
    model.add(2000)
    disk.fill(leave)
    # Twice: the first failure must not be what the second one stumbles over.
    for _ in range(2):
        error = model.add_until_it_fails()
        # Where an index could not be written it is recovered, and for that there is no space either.
        assert isinstance(error, (InternalError, InstanceOpenError))
        assert "No space left on device" in str(error)
        assert str(directory(manager)) in str(error)
    disk.free()
    model.add(1500)
    model.assert_is_there()
    kill_engines()
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


def test_threads_that_write_to_a_full_disk_do_not_wait_for_each_other_for_ever(
    manager: ChromaDBManager, disk: Disk, runtime: Path
) -> None:
    model = Records(manager)
    model.add(2000)
    disk.fill()
    model.add_until_it_fails()
    rows, acknowledged, failed = vectors(0, 300), [], []

    def write(thread: int) -> None:
        for n in range(4):
            ids = [f"{thread}-{n}-{i}" for i in range(300)]
            try:
                manager.get_collection("doc", "azure", "other").add(ids=ids, embeddings=rows)
                acknowledged.extend(ids)
            except (InternalError, ChromaManagerError) as error:
                failed.append(error)

    assert all_at_once(4, write) == [None] * 4
    assert failed
    # Those that waited for their turn when another one failed were made again.
    assert not [error for error in failed if isinstance(error, EngineProtocolError)]
    disk.free()
    assert set(acknowledged) <= set(manager.get_collection("doc", "azure", "other").get(include=[])["ids"])
    model.add(10)
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


def add_large(manager: ChromaDBManager, count: int = 200, first: int = 0) -> None:
    """A write that the log refuses on a full disk, before any index has seen it."""
    rows = np.ones((count, 1024), dtype=np.float32)
    ids = [str(i) for i in range(first, first + count)]
    manager.get_collection("doc", "azure", "large").upsert(ids=ids, embeddings=rows)


@pytest.mark.parametrize("engine", LOCAL_ENGINES)
def test_reads_go_on_where_writes_are_refused_for_want_of_space(disk: Disk, runtime: Path, engine: str) -> None:
    manager = ChromaDBManager(base_path=disk.path / "db", engine=engine, idle_timeout=None)
    model = Records(manager)
    model.add(2000)
    manager.get_collection("doc", "azure", "large")
    disk.fill(64_000)  # Chroma needs some pages to open a database, and writes one at each opening
    # Several: each must find no transaction open that the one before has left.
    for _ in range(4):
        with pytest.raises(InternalError, match="No space left on device") as caught:
            add_large(manager)
        assert str(directory(manager)) in str(caught.value)
        model.assert_is_there()
    disk.free()
    add_large(manager)
    model.add(10)
    model.assert_is_there()
    manager.cleanup_all_instances()
    assert manager.get_collection("doc", "azure", "large").count() == 200
    assert not list(directory(manager).glob("*.probe"))


@pytest.mark.long
def test_a_call_that_hangs_in_a_failed_engine_is_made_by_the_next(unmappable: Path) -> None:
    # With a write-ahead log no other program could keep a read waiting.
    manager = ChromaDBManager(base_path=unmappable / "db", engine="isolated", idle_timeout=None)
    model = Records(manager)
    model.add(1500)
    engine = engine_of(manager)
    bindings = manager.get_client("doc", "azure")._server.bindings
    with contextlib.closing(sqlite3.connect(directory(manager) / "chroma.sqlite3")) as other:
        other.execute("begin exclusive")
        call = threading.Thread(target=model.handle.get)
        call.start()
        time.sleep(0.5)
        # The name stands in the error, which is all that tells a failure from others.
        with pytest.raises(AttributeError):
            getattr(bindings, "Error in compaction")()
        assert eventually(lambda: has_ended(engine))
        assert call.is_alive()
    call.join(20)
    assert not call.is_alive()
    model.assert_is_there()


def test_an_engine_that_is_killed_on_a_full_disk_recovers_once_there_is_space(
    manager: ChromaDBManager, disk: Disk, runtime: Path
) -> None:
    model = Records(manager)
    model.add(2500)
    disk.fill(200_000)
    model.add_until_it_fails()
    kill_engines()
    with contextlib.suppress(InstanceOpenError, InternalError):
        model.handle.get()
    kill_engines()
    disk.free()
    model.assert_is_there()
    model.add(10)
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


def test_a_database_that_cannot_be_created_on_a_full_disk_leaves_nothing(
    manager: ChromaDBManager, disk: Disk, runtime: Path
) -> None:
    disk.fill()
    with pytest.raises(InstanceOpenError, match=DISK_FULL) as caught:
        manager.get_client("doc", "azure")
    assert caught.value.path == str(directory(manager))
    assert not (disk.path / "db").exists()
    assert list(runtime.glob("*/*")) == []
    disk.free()
    model = Records(manager)
    model.add(10)
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


def test_a_database_that_cannot_be_opened_on_a_full_disk_opens_once_there_is_space(
    manager: ChromaDBManager, disk: Disk, runtime: Path
) -> None:
    model = Records(manager)
    model.add(2500)
    manager.cleanup_all_instances()
    disk.fill()
    with pytest.raises(InstanceOpenError, match=DISK_FULL) as caught:
        manager.get_client("doc", "azure")
    assert caught.value.path == str(directory(manager))
    disk.free()
    model.handle = manager.get_collection("doc", "azure", "model")
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


@pytest.mark.long
def test_a_checkpoint_that_finds_no_space_is_given_up_and_work_goes_on(
    manager: ChromaDBManager, disk: Disk, runtime: Path
) -> None:
    model = Records(manager)
    for batch in range(4):
        model.add(4500)
        add_large(manager, 300, first=300 * batch)
    index = sum(path.stat().st_size for path in directory(manager).glob("[!.]*/*.bin"))
    log = log_of(manager)
    # When the database is closed for the checkpoint, its write-ahead log is removed.
    disk.fill(index - 100_000 - (directory(manager) / "chroma.sqlite3-wal").stat().st_size)
    for _ in range(4):
        model.add(600)
    assert eventually(lambda: "No space left on device" in log.read_text())
    model.assert_is_there()
    model.add(10)
    assert [path.name for path in (directory(manager) / ".chroma_manager").iterdir()] == ["open"]
    disk.free()
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


@pytest.mark.parametrize("leave", [0, 100_000])
def test_a_database_that_cannot_be_closed_on_a_full_disk_keeps_its_log_and_no_half_copy(
    manager: ChromaDBManager, disk: Disk, runtime: Path, leave: int
) -> None:
    model = Records(manager)
    model.add(2500)
    disk.fill(leave)
    manager.cleanup_all_instances()
    assert [path.name for path in (directory(manager) / ".chroma_manager").iterdir()] == ["open"]
    disk.free()
    model.handle = manager.get_collection("doc", "azure", "model")
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


def test_a_recovery_that_finds_no_space_is_repeated_later(manager: ChromaDBManager, disk: Disk, runtime: Path) -> None:
    model = Records(manager)
    model.add(2500)
    manager.cleanup_all_instances()
    model.handle = manager.get_collection("doc", "azure", "model")
    model.add(1200)
    kill_engines()
    for file in directory(manager).glob("[!.]*/*.bin"):
        os.truncate(file, 50)
    # Otherwise the opening would have the space of the write-ahead log.
    sql(directory(manager), "select 1")
    disk.fill()
    for _ in range(2):
        # It finds none to put the index back, or none to replay the log.
        with pytest.raises((InstanceOpenError, InternalError), match=DISK_FULL):
            model.handle.get()
    disk.free()
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


def test_a_read_only_file_system_is_named_at_opening(manager: ChromaDBManager, disk: Disk, runtime: Path) -> None:
    model = Records(manager)
    model.add(10)
    manager.cleanup_all_instances()
    disk.remount("ro")
    for file_id in ("doc", "new"):
        with pytest.raises(InstanceOpenError, match="Read-only file system") as caught:
            manager.get_client(file_id, "azure")
        assert caught.value.path == manager._get_db_path(file_id, "azure")
    disk.remount("rw")
    model.handle = manager.get_collection("doc", "azure", "model")
    model.assert_is_there()
    assert not (disk.path / "db" / "new").exists()
    assert_nothing_is_left(manager, runtime)


@pytest.fixture
def forbid(disk: Disk) -> Iterator[Callable[[Path], None]]:
    """Makes a file or a directory one that not even root may change; undone at the end."""
    forbidden: list[Path] = []

    def make(path: Path) -> None:
        done = subprocess.run(["chattr", "+i", path], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the file system knows no immutable directories: {done.stderr.strip()}")
        forbidden.append(path)

    yield make
    for path in forbidden:
        if path.exists():
            allow(path)


def allow(path: Path) -> None:
    subprocess.run(["chattr", "-i", path], check=True)


def test_a_directory_that_may_not_be_written_is_named_and_used_again_once_it_may(
    manager: ChromaDBManager, forbid: Callable[[Path], None], runtime: Path
) -> None:
    model = Records(manager)
    model.add(1500)
    other = Records(manager, "other")
    forbid(directory(manager))
    # All that is needed for it is open.
    model.add(1500)
    error = other.add_until_it_fails()
    assert isinstance(error, InternalError)
    assert f"in {directory(manager)} (Operation not permitted)" in str(error)
    with pytest.raises(InstanceOpenError, match="Operation not permitted"):
        model.handle.count()
    allow(directory(manager))
    model.add(10)
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


def test_a_database_may_not_be_created_where_nothing_may_be_written(
    manager: ChromaDBManager, disk: Disk, forbid: Callable[[Path], None], runtime: Path
) -> None:
    forbid(disk.path)
    with pytest.raises(InstanceOpenError, match="Operation not permitted") as caught:
        manager.get_client("doc", "azure")
    assert caught.value.path == str(directory(manager))
    allow(disk.path)
    model = Records(manager)
    model.add(10)
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


@pytest.mark.parametrize("spare", range(4))
def test_an_engine_without_descriptors_fails_or_ends_and_the_next_call_is_served(
    manager: ChromaDBManager, runtime: Path, spare: int
) -> None:
    model = Records(manager)
    model.add(1500)
    engine = engine_of(manager)
    limits = resource.prlimit(engine.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(engine.pid, resource.RLIMIT_NOFILE, (engine.num_fds() + spare, limits[1]))
    error = model.try_to_add(1500)
    assert error is None or isinstance(error, (InternalError, InvalidArgumentError, ChromaManagerError))
    assert error is None or str(directory(manager)) in str(error)
    if engine.is_running():
        resource.prlimit(engine.pid, resource.RLIMIT_NOFILE, limits)
    model.add(10)
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


def test_an_engine_without_memory_fails_or_ends_and_the_next_call_is_served(
    manager: ChromaDBManager, runtime: Path
) -> None:
    model = Records(manager)
    model.add(1500)
    engine = engine_of(manager)
    resource.prlimit(engine.pid, resource.RLIMIT_AS, (engine.memory_info().vms, -1))
    failed = False
    try:
        add_large(manager, 1000)
    except (InternalError, InvalidArgumentError, ChromaManagerError, MemoryError):
        failed = True
    assert failed or has_ended(engine)
    if engine.is_running():
        resource.prlimit(engine.pid, resource.RLIMIT_AS, (-1, -1))
    add_large(manager)
    model.assert_is_there()
    assert_nothing_is_left(manager, runtime)


def test_an_app_without_descriptors_fails_to_open_and_goes_on_once_there_are(script, runtime: Path) -> None:
    code = """
import resource
from conftest import new_collection
manager = ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None)
first = new_collection(manager, "first")
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
used = len(os.listdir("/proc/self/fd")) - 1
for spare in range(3):
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, limits[1]))
    try: print(first.count(), manager.get_client(f"doc{spare}", "azure"))
    except InstanceOpenError as error:
        is_named = "Too many open files" in str(error) or "unable to open database file" in str(error)
        print(error.path.endswith(f"doc{spare}/azure"), is_named)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    print(first.count(), new_collection(manager, f"doc{spare}").count())
    manager.cleanup_instance(f"doc{spare}", "azure")
manager.cleanup_all_instances()
"""
    assert script(code).finish().splitlines() == ["True True", "1 1"] * 3
    assert list(runtime.glob("*/*")) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user, and itself again")
def test_an_app_that_may_start_no_process_fails_to_open_and_goes_on_once_it_may(script, runtime: Path) -> None:
    runtime.chmod(0o777)
    code = """
import resource
from conftest import new_collection
base = os.environ["XDG_RUNTIME_DIR"] + "/db"  # its parents are open to that user
os.makedirs(base)
os.chmod(base, 0o777)
manager = ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None)
first = new_collection(manager, "first")
limits = resource.getrlimit(resource.RLIMIT_NPROC)
os.setresuid(65534, 65534, 0)  # root may always have more
resource.setrlimit(resource.RLIMIT_NPROC, (0, limits[1]))
try: manager.get_client("doc", "azure")
except InstanceOpenError as error: print(error)
os.setresuid(0, 0, 0)
resource.setrlimit(resource.RLIMIT_NPROC, limits)
print(os.listdir(base), first.count(), new_collection(manager).count())
manager.cleanup_all_instances()
"""
    error, counts = script(code).finish().splitlines()
    assert "cannot open doc/azure" in error
    assert "RLIMIT_NPROC" in error
    assert 'engine="embedded" needs none' in error
    assert counts == "['first'] 1 1"
    assert list(runtime.glob("chroma-manager-*/*")) == []


@pytest.mark.parametrize("verb", ["compact", "verify", "snapshot"])
def test_a_file_that_cannot_be_removed_before_exclusive_maintenance_is_an_error_with_names(
    manager: ChromaDBManager, forbid: Callable[[Path], None], tmp_path: Path, verb: str
) -> None:
    collection = new_collection(manager)
    arguments = [str(tmp_path / "snapshot")] if verb == "snapshot" else []
    # The journal of a batch that was not begun.
    left = directory(manager) / ".chroma_manager/batch-1-2.new"
    left.touch()
    forbid(left)
    with pytest.raises(ChromaManagerError, match=rf"{verb}\(\).*doc/azure.*Operation not permitted"):
        getattr(manager, verb)("doc", "azure", *arguments)
    allow(left)
    assert collection.count() == 1
    getattr(manager, verb)("doc", "azure", *arguments)
    assert collection.count() == 1
