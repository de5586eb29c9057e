"""Nothing waits for ever: whatever hangs, fails, is removed, forks or is told to end meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chromadb
import numpy as np
import psutil
import pytest
from chroma_manager import CallTimeoutError, ChromaDBManager, ChromaManagerError
from chroma_manager.options import ENGINES, LOCAL_ENGINES
from conftest import (
    IDS,
    InCall,
    all_at_once,
    called,
    directory,
    engine_of,
    eventually,
    has_ended,
    in_thread,
    lock_file,
    long,
    new_collection,
    socket_of,
    suspend,
)

# What is bounded by a second or two, and would otherwise wait for ever, or for the sixty seconds of an engine process
# that starts: long enough for any machine.
SOON = 20.0

# Of a write that takes seconds.
LONG_IDS = [str(i) for i in range(5000)]

pytestmark = [
    pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system"),
    pytest.mark.timeout(60),
]


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


@pytest.fixture
def bounded(tmp_path: Path) -> ChromaDBManager:
    """A manager whose calls may take a second."""
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None, call_timeout=1)


@contextlib.contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    suspend(process)
    try:
        yield
    finally:
        process.resume()


def seconds(call: Callable[[], object]) -> float:
    """How long it takes, to its return."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


def seconds_to_timeout(call: Callable[[], object], match: str | None = None) -> float:
    """How long it takes, to its `CallTimeoutError`."""

    def raises() -> None:
        with pytest.raises(CallTimeoutError, match=match):
            call()

    return seconds(raises)


def test_a_directory_is_removed_and_moved_under_threads_that_add_and_query(manager: ChromaDBManager) -> None:
    """A call waited until a failure was cleared, which the end would have done, which waited for the call."""
    stop = time.monotonic() + 8
    made = [0] * 12

    def work(k: int) -> None:
        rng = np.random.default_rng(k)
        i = 0
        while time.monotonic() < stop:
            i += 1
            with contextlib.suppress(ChromaManagerError, Exception):
                collection = manager.get_collection("doc", "azure", "busy")
                if k % 2:
                    collection.add(ids=[f"{k}-{i}-{j}" for j in range(20)], embeddings=rng.random((20, 16)))
                else:
                    collection.query(query_embeddings=rng.random((1, 16)), n_results=3)
                made[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(made))]
    for thread in threads:
        thread.start()
    moved = 0
    while time.monotonic() < stop:
        time.sleep(0.2)
        if moved % 2:
            shutil.rmtree(directory(manager).parent, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                directory(manager).parent.rename(f"{directory(manager).parent}-{moved}")
        moved += 1
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(made) > 0


def test_a_call_timeout_bounds_connecting_to_an_engine_that_hangs(bounded: ChromaDBManager) -> None:
    collection = new_collection(bounded)
    with suspended(engine_of(bounded)):
        # The first one leaves its socket; the others have to connect.
        for _ in range(3):
            assert seconds_to_timeout(collection.count, match=r"count\(\) of doc/azure .* call_timeout=1") < SOON
    assert collection.count() == 1


def test_a_call_timeout_bounds_connecting_where_nobody_accepts_and_the_backlog_is_full(bounded) -> None:
    collection = new_collection(bounded)
    with suspended(engine_of(bounded)), contextlib.ExitStack() as waiting:
        with pytest.raises(CallTimeoutError):
            collection.count()
        for _ in range(10_000):
            client = waiting.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(connectable(bounded))
            except BlockingIOError:
                break
        else:
            pytest.fail("the backlog has no end")
        assert 0.9 < seconds_to_timeout(collection.count) < SOON
    assert collection.count() == 1


def connectable(manager: ChromaDBManager) -> str:
    """The address of an engine, from wherever this process is."""
    address = socket_of(manager)
    return str(address if address.is_absolute() else directory(manager) / address)


def test_a_call_timeout_bounds_the_start_of_an_engine_and_the_call_that_is_repeated(bounded, monkeypatch) -> None:
    collection = new_collection(bounded)
    engine = engine_of(bounded)
    call = InCall(engine, collection.count)
    # The next one is stopped before it can greet.
    engine.kill()

    def stop_the_next() -> None:
        me = psutil.Process()
        assert eventually(lambda: any(child.pid != engine.pid for child in me.children()))
        next(child for child in me.children() if child.pid != engine.pid).suspend()

    stops = threading.Thread(target=stop_the_next)
    stops.start()
    began = time.monotonic()
    outcome = call.finish()
    assert time.monotonic() - began < SOON
    stops.join()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.resume()
    # Where it greeted before it was stopped, and answered, that is no fault.
    assert isinstance(outcome, CallTimeoutError) or outcome == 1
    assert eventually(lambda: collection.count() == 1)


def test_ctrl_c_ends_a_cleanup_that_waits_for_an_engine_that_hangs(script) -> None:
    code = """
from conftest import *
manager = ChromaDBManager(base_path=base, engine="isolated")
new_collection(manager)
engine = engine_of(manager)
suspend(engine)
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.5)
began = time.monotonic()
try:
    manager.cleanup_instance("doc", "azure")
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - began < 20, manager.stats()["instances"])
engine.resume()
print(new_collection(manager).count())
"""
    assert script(code).finish().splitlines() == ["interrupted True {}", "1"]


def test_calls_of_many_threads_end_where_what_has_failed_cannot_be_reopened(manager: ChromaDBManager) -> None:
    """They were told to make their calls again, and again, and kept the engine from ending by it."""
    collection = new_collection(manager)
    database = directory(manager) / "chroma.sqlite3"
    kept = database.read_bytes()
    stop = time.monotonic() + 1.5

    def calls(k: int) -> None:
        while time.monotonic() < stop:
            with contextlib.suppress(Exception, BaseException):
                collection.add(ids=[f"{k}"], embeddings=[[1.0, 2.0]]) if k % 2 else collection.count()

    def damage() -> None:
        time.sleep(0.3)
        with open(database, "r+b") as file:  # the same file, so that it is in its place
            file.write(b"no database any more" * 100)

    damages = threading.Thread(target=damage)
    damages.start()
    assert seconds(lambda: all_at_once(16, calls)) < 30
    damages.join()
    manager.cleanup_all_instances()
    with open(database, "r+b") as file:
        file.write(kept)
        file.truncate()
    (directory(manager) / "chroma.sqlite3-journal").unlink(missing_ok=True)


WRITER = """
from conftest import *
manager = ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None)
collection = manager.get_collection("doc", "azure", "rag_collection")
"""


def left(manager: ChromaDBManager) -> list[str]:
    """What an engine process has left behind."""
    runtime = socket_of(manager).parent if socket_of(manager).is_absolute() else directory(manager)
    return sorted(path.name for path in runtime.glob("*.sock"))


@pytest.fixture
def heeds() -> Iterator[None]:
    """These tests may run under nohup, and an engine process ignores what its app does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, *long(signal.SIGHUP)])
@pytest.mark.parametrize("whose", ["process", "group"])
def test_an_engine_that_is_told_to_end_finishes_its_write_and_the_app_goes_on(manager, number, whose, heeds) -> None:
    collection = new_collection(manager)
    engine, address = engine_of(manager), socket_of(manager)
    log = Path(connectable(manager)).with_suffix(".log")
    # Of many slices, under way when the signal comes.
    collection = manager.get_collection("doc", "azure", "large")
    vectors = np.random.default_rng(0).random((len(LONG_IDS), 256), dtype=np.float32)
    outcomes: list[object] = []
    write = threading.Thread(
        target=lambda: outcomes.append(in_thread(lambda: collection.add(ids=LONG_IDS, embeddings=vectors)))
    )
    before = cpu(engine)
    write.start()
    assert eventually(lambda: cpu(engine) > before + 0.3)
    assert write.is_alive()
    (os.killpg if whose == "group" else os.kill)(engine.pid, number)

    def is_whole() -> bool:
        """Reads go to the next engine, when the write has ended. Until it notices the signal, this one answers."""
        count = collection.count()
        assert count == len(LONG_IDS) or lock_file(manager)[0] == str(engine.pid)
        return count == len(LONG_IDS)

    assert eventually(is_whole, 60)
    write.join(30)
    assert outcomes == [None]
    assert eventually(lambda: has_ended(engine))
    assert not Path(connectable_of(manager, address)).exists()
    assert not log.exists()
    # Where the engine that ended has answered all so far, there is no other one yet.
    assert collection.get(ids=[LONG_IDS[-1]])["ids"] == [LONG_IDS[-1]]
    assert engine_of(manager) != engine


def connectable_of(manager: ChromaDBManager, address: Path) -> str:
    return str(address if address.is_absolute() else directory(manager) / address)


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def test_a_call_that_cannot_be_repeated_is_not_lost_in_an_engine_that_is_told_to_end(manager) -> None:
    client = manager.get_client("doc", "azure")
    names = [f"collection_{i}" for i in range(24)]
    for i, name in enumerate(names):
        if i % 6 == 3:
            engine_of(manager).terminate()
        client.create_collection(name, embedding_function=None)
    assert sorted(collection.name for collection in client.list_collections()) == sorted(names)


def test_an_app_and_its_engine_that_are_told_to_end_together_lose_nothing(manager, script) -> None:
    app = script(
        WRITER
        + """
for i in range(10_000):
    collection.add(ids=[str(i)], embeddings=[[float(i), 1.0]])
    print(i, flush=True)
"""
    )
    for _ in range(30):
        app.read_line()
    engine = engine_of(manager)
    engine.terminate()
    app.process.terminate()
    out, _ = app.process.communicate(timeout=30)
    acknowledged = 29 + len(out.split())
    assert eventually(lambda: has_ended(engine), seconds=25)
    collection = manager.get_collection("doc", "azure", "rag_collection")
    assert collection.count() >= acknowledged


def test_an_engine_that_is_not_ready_in_time_ends_nevertheless(manager: ChromaDBManager) -> None:
    """Told to end while a client does not read its answer."""
    collection = new_collection(manager)
    engine = engine_of(manager)
    with suspended(engine):
        call = InCall(engine, collection.count)
        engine.terminate()
    assert call.finish() == 1
    assert eventually(lambda: has_ended(engine))


PIDS = Path("/sys/fs/cgroup/pids")


@pytest.fixture
def pids_limit() -> Iterator[Callable[[psutil.Process, int | None], None]]:
    """Limits how many threads a process may have, those that it has left alone; `None` for no limit."""
    parent = PIDS if PIDS.is_dir() else Path("/sys/fs/cgroup")
    group = parent / f"chroma-manager-{os.getpid()}"
    try:
        group.mkdir()
        if not (group / "pids.max").exists():
            (parent / "cgroup.subtree_control").write_text("+pids")
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    members = []

    def limit(process: psutil.Process, most: int | None) -> None:
        (group / "cgroup.procs").write_text(str(process.pid))
        (group / "pids.max").write_text("max" if most is None else str(most))
        members.append(process.pid)

    yield limit
    for pid in members:
        with contextlib.suppress(OSError):
            (parent / "cgroup.procs").write_text(str(pid))
    assert eventually(lambda: not (group / "cgroup.procs").read_text().split())
    group.rmdir()


def test_calls_to_an_engine_that_can_start_no_thread_end_and_are_made_once_it_can(manager, pids_limit) -> None:
    collection = new_collection(manager)
    pids_limit(engine_of(manager), 1)

    def call(k: int) -> object:
        return collection.upsert(ids=[str(k)], embeddings=[[1.0, 2.0]])

    # They share the connections that there are. Chroma may want a thread of its own, and says so.
    for outcome in all_at_once(8, call):
        assert outcome is None or isinstance(outcome, chromadb.errors.ChromaError | ChromaManagerError), outcome
    pids_limit(engine_of(manager), None)
    assert all_at_once(8, call) == [None] * 8
    assert collection.count() == 8


@pytest.mark.long
def test_who_cannot_be_connected_for_want_of_threads_is_told_so(manager, pids_limit, script) -> None:
    new_collection(manager)
    engine = engine_of(manager)
    pids_limit(engine, 1)
    other = script(
        """
from conftest import *
manager = ChromaDBManager(base_path=base, engine="isolated")
began = time.monotonic()
try:
    manager.get_client("doc", "azure")
except InstanceOpenError as error:
    print("pids.max" in str(error), time.monotonic() - began < 30)
sys.stdin.readline()
print(manager.get_client("doc", "azure").count_collections())
"""
    )
    assert other.read_line() == "True True"
    pids_limit(engine, None)
    other.say()
    assert other.finish() == "1"
    assert engine_of(manager) == engine


def test_an_opening_waits_until_an_engine_process_can_be_started(pids_limit, script) -> None:
    app = script(
        """
manager = ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None)
print("made")
sys.stdin.readline()
print(manager.get_client("doc", "azure").count_collections())
"""
    )
    assert app.read_line() == "made"
    pids_limit(psutil.Process(app.process.pid), 1)
    app.say()
    time.sleep(0.5)  # what it has created by then, it has removed again
    pids_limit(psutil.Process(app.process.pid), None)
    assert app.finish() == "0"


FORKS = """
from conftest import *
manager = ChromaDBManager(base_path=base, engine=engine)
collection = new_collection(manager)

def fork(within=None):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            if within:
                within()
            other = ChromaDBManager().get_collection(f"of-{os.getpid()}", "azure", "rag_collection")
            other.add(ids=["1", "2"], embeddings=[[1.0, 2.0], [3.0, 4.0]])
            assert other.count() == 2
            ChromaDBManager().cleanup_all_instances()
            os._exit(0)
        except BaseException as error:
            print("child:", type(error).__name__, error, flush=True)
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
"""


@pytest.mark.parametrize("engine", [LOCAL_ENGINES[0], *long(*LOCAL_ENGINES[1:])])
def test_two_threads_that_fork_at_once_in_the_middle_of_work_have_children_that_work(script, engine) -> None:
    code = """
stop = time.monotonic() + 2
def works(k):
    i = 0
    while time.monotonic() < stop:
        i += 1
        collection.upsert(ids=[f"{k}-{i % 5}"], embeddings=[[1.0, 2.0]])
        if i % 10 == 0:
            manager.cleanup_old_instances(max_idle=0)
def forks(k):
    while time.monotonic() < stop:
        fork()
def run(k):
    (works if k < 2 else forks)(k)
print([outcome for outcome in all_at_once(4, run) if outcome is not None])
print(collection.count() > 0)
"""
    assert script(f"engine = {engine!r}\n{FORKS}{code}").finish().splitlines() == ["[]", "True"]


def test_a_fork_in_a_hook_of_a_fork_lets_work_begin_after_the_last_of_them(script) -> None:
    code = """
depth = 0
def again():
    global depth
    if depth < 1:
        depth += 1
        fork()
        depth -= 1
os.register_at_fork(before=again)
fork()
print(collection.count())
"""
    assert script(f"engine = 'isolated'\n{FORKS}{code}").finish() == "1"


def test_a_call_that_waits_for_a_permit_is_bounded(tmp_path: Path) -> None:
    manager = ChromaDBManager(
        base_path=tmp_path / "db", engine="isolated", idle_timeout=None, call_timeout=2, max_engines=1
    )
    other = new_collection(manager, "other")
    collection = new_collection(manager)
    engine = engine_of(manager)
    call = InCall(engine, collection.count)
    try:
        assert seconds_to_timeout(other.count, match=r"count\(\) of other/azure") < SOON
    finally:
        engine.resume()
    assert isinstance(call.finish(), CallTimeoutError | int)
    # The process was given up while it hung. The next manager reaps it.
    manager.shutdown()
    assert eventually(lambda: has_ended(engine))
    ChromaDBManager(base_path=tmp_path / "another", engine="isolated")
    assert not called(psutil.Process().children(), "chroma-engine")
    assert not called(psutil.Process().children(), "chroma-host")


def test_readers_go_on_while_somebody_waits_for_a_long_write_to_end(manager: ChromaDBManager, tmp_path: Path) -> None:
    """A snapshot, here; a checkpoint that is due waits in the same way."""
    collection = manager.get_collection("doc", "azure", "large")
    large = np.random.default_rng(0).random((2, 500, 768), dtype=np.float32)
    collection.add(ids=IDS[:500], embeddings=large[0])
    ended: dict[str, float] = {}

    def run(name: str, call: Callable[[], object]) -> threading.Thread:
        def runs() -> None:
            call()
            ended[name] = time.monotonic()

        thread = threading.Thread(target=runs)
        thread.start()
        return thread

    used = cpu(engine_of(manager))
    write = run("write", lambda: collection.upsert(ids=IDS[:500], embeddings=large[1]))
    assert eventually(lambda: cpu(engine_of(manager)) > used + 0.2)
    snapshot = run("snapshot", lambda: manager.snapshot("doc", "azure", tmp_path / "snapshot"))
    time.sleep(0.2)
    reads = []
    while write.is_alive() and len(reads) < 5:
        collection.get(ids=["0"], include=[])
        reads.append(time.monotonic())
    write.join(60)
    snapshot.join(60)
    assert len([read for read in reads if read < ended["write"]]) >= 3
    assert ended["snapshot"] > ended["write"]


def test_who_asks_for_a_client_waits_for_no_engine_that_hangs_longer_than_a_call_may_take(bounded, script) -> None:
    new_collection(bounded)
    other = script(
        """
manager = ChromaDBManager(base_path=base, engine="isolated", call_timeout=1)
sys.stdin.readline()
began = time.monotonic()
try:
    manager.get_client("doc", "azure")
except CallTimeoutError as error:
    print(time.monotonic() - began < 20)
"""
    )
    with suspended(engine_of(bounded)):
        other.say()
        assert other.finish() == "True"
