"""The engine `isolated`: a process for each database, shared by all apps, whose death is noticed and mended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import chromadb.errors
import numpy as np
import psutil
import pytest
from chroma_manager import CallTimeoutError, ChromaDBManager, InstanceLockedError, InstanceOpenError
from chroma_manager.options import ENGINES
from conftest import (
    IDS,
    VECTORS,
    InCall,
    all_at_once,
    directory,
    engine_of,
    engines,
    eventually,
    files_open_in,
    has_ended,
    log_of,
    new_collection,
    socket_of,
    suspend,
)

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


def test_a_database_lives_in_a_process_of_its_own(manager: ChromaDBManager) -> None:
    threads = psutil.Process().num_threads()
    new_collection(manager)
    engine = engine_of(manager)
    assert engine.ppid() == os.getpid()
    assert psutil.Process().num_threads() == threads
    assert files_open_in(Path(manager._get_db_path("doc", "azure"))) == []
    assert "chromadb/__init__" not in " ".join(engine.cmdline())


def test_after_cleanup_no_process_no_socket_and_no_log_is_left(manager: ChromaDBManager) -> None:
    new_collection(manager)
    engine, socket, log = engine_of(manager), socket_of(manager), log_of(manager)
    assert socket.exists()
    assert log.exists()
    manager.cleanup_instance("doc", "azure")
    assert has_ended(engine)
    assert eventually(lambda: psutil.Process().children() == [])
    assert (socket.exists(), log.exists()) == (False, False)
    shutil.rmtree(Path(manager._get_db_path("doc", "azure")).parent)
    assert new_collection(manager).get()["ids"] == ["1"]


def test_a_cleanup_closes_the_sockets_of_all_threads(manager: ChromaDBManager) -> None:
    new_collection(manager, "warm")
    manager.cleanup_all_instances()
    process = psutil.Process()
    before = process.num_fds()
    collection = new_collection(manager)
    engine = engine_of(manager)
    calls = [InCall(engine, collection.count) for _ in range(3)]
    engine.resume()
    assert [call.finish() for call in calls] == [1, 1, 1]
    assert process.num_fds() == before + 3
    manager.cleanup_all_instances()
    assert process.num_fds() == before


@pytest.mark.parametrize("method", ["add", "upsert"])
def test_reads_get_a_turn_in_a_long_write(manager: ChromaDBManager, method: str) -> None:
    collection = new_collection(manager)
    large = manager.get_collection("doc", "azure", "large")
    writer = threading.Thread(target=lambda: getattr(large, method)(ids=IDS, embeddings=VECTORS))
    writer.start()
    counts = []
    while writer.is_alive():
        counts.append(large.count())
        assert collection.count() == 1
    writer.join()
    assert len(set(counts)) > 2, "no read came between the slices of the write"


def test_a_query_that_comes_into_a_long_write_is_answered_before_its_end(manager: ChromaDBManager) -> None:
    """Nobody else was there when the write began, so its slices are large until then."""
    large = manager.get_collection("doc", "azure", "large")
    vectors = np.random.default_rng(0).random((4_000, 256), dtype=np.float32)
    large.add(ids=["first"], embeddings=vectors[:1])
    writer = threading.Thread(target=lambda: large.add(ids=[str(i) for i in range(len(vectors))], embeddings=vectors))
    writer.start()
    # A call that asks whether the write has begun would be the one that comes.
    journals = directory(manager) / ".chroma_manager"
    assert eventually(lambda: [path for path in journals.glob("batch-*") if path.suffix == ""] != [])
    counts = []
    while writer.is_alive():
        assert large.query(query_embeddings=vectors[:1], n_results=1)["ids"] != [[]]
        counts.append(large.count())
    assert counts[0] < len(vectors), "the query has waited for the end of the write"
    assert len(set(counts)) > 5, "few slices were made while somebody was there"


def test_ctrl_c_ends_a_call_at_once(script) -> None:
    code = """
from conftest import *
import psutil
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = new_collection(manager)
engine = psutil.Process().children()[0]
suspend(engine)
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    collection.count()
except KeyboardInterrupt:
    print("interrupted")
engine.resume()
print(collection.count())
"""
    assert script(code).finish().splitlines() == ["interrupted", "1"]


def test_a_cleanup_after_an_interrupted_call_lets_the_engine_end_its_work(script) -> None:
    code = """
import numpy as np, psutil
from conftest import eventually
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = manager.get_collection("doc", "azure", "rag_collection")

def interrupt():
    # Before it has begun it would be dropped.
    eventually(lambda: collection.count() > 0, 60)
    os.kill(os.getpid(), signal.SIGALRM)

signal.signal(signal.SIGALRM, signal.default_int_handler)
threading.Thread(target=interrupt).start()
vectors = np.random.rand(3000, 256).astype(np.float32)
try:
    collection.add(ids=[str(i) for i in range(3000)], embeddings=vectors)
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")
engine = psutil.Process().children()[0]
manager.cleanup_instance("doc", "azure")
print(psutil.Process().children(), engine.is_running())
collection = manager.get_collection("doc", "azure", "rag_collection")
print(collection.count(), collection.query(query_embeddings=vectors[:1], n_results=1)["ids"])
"""
    assert script(code).finish().splitlines() == ["interrupted", "[] False", "3000 [['0']]"]


def test_a_cleanup_without_a_socket_waits_for_the_end_of_an_engine_that_another_started(tmp_path, script) -> None:
    starter = script(
        "manager = ChromaDBManager(base_path=base, engine='isolated'); manager.get_client('doc', 'azure')\n"
        "print('started'); sys.stdin.readline()"
    )
    assert starter.read_line() == "started"
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", call_timeout=0.2)
    collection = new_collection(manager)
    starter.process.kill()
    starter.process.wait()
    engine = engine_of(manager)
    suspend(engine)
    with pytest.raises(CallTimeoutError):
        collection.count()
    engine.resume()
    manager.cleanup_all_instances()
    assert eventually(lambda: has_ended(engine), seconds=0.5), "it ended by itself, a second later"


def test_processes_share_one_owner(manager: ChromaDBManager, script) -> None:
    code = """
import numpy as np
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = manager.get_collection("doc", "azure", "rag_collection")
print("ready"); k = sys.stdin.readline().strip()
for i in range(20):
    collection.add(ids=[f"{k}-{i}-{j}" for j in range(20)], embeddings=np.full((20, 2), i, dtype=np.float32))
print("written"); sys.stdin.readline()
print(collection.count())
"""
    others = [script(code) for _ in range(3)]
    for other in others:
        assert other.read_line() == "ready"
    collection = new_collection(manager)
    for k, other in enumerate(others):
        other.say(str(k))
    for i in range(20):
        collection.add(ids=[f"mine-{i}"], embeddings=[[1.0, 2.0]])
    for other in others:
        assert other.read_line() == "written"
    assert collection.count() == 1 + 20 + 3 * 400
    engine = engine_of(manager)
    manager.cleanup_all_instances()
    assert not has_ended(engine), "the others still use it"
    for other in others:
        other.say()
        assert other.finish() == "1221"
    assert eventually(lambda: has_ended(engine))


def test_threads_of_several_processes_that_open_at_the_same_moment_find_one_engine_also_after_its_death(
    manager, script
) -> None:
    # Whoever calls before the system has closed the killed engine's sockets repeats its call, and warns of it.
    code = """
from conftest import all_at_once
import logging; logging.disable(logging.WARNING)  # that a call is repeated
manager = ChromaDBManager(base_path=base, engine="isolated")
print("ready"); sys.stdin.readline()
outcomes = all_at_once(5, lambda _: manager.get_client("doc", "azure").heartbeat() > 0)
print(outcomes == [True] * 5 or outcomes)
sys.stdin.readline()
outcomes = all_at_once(5, lambda _: manager.get_client("doc", "azure").heartbeat() > 0)
print(outcomes == [True] * 5 or outcomes)
"""
    others = [script(code) for _ in range(3)]

    def all_open_it() -> None:
        for other in others:
            other.say()
        assert all_at_once(5, lambda _: manager.get_client("doc", "azure").heartbeat() > 0) == [True] * 5
        for other in others:
            assert other.read_line() == "True"

    for other in others:
        assert other.read_line() == "ready"
    all_open_it()
    engine = engine_of(manager)
    engine.kill()
    all_open_it()
    assert engine_of(manager) != engine
    for other in others:
        other.finish()


def test_processes_that_come_and_go_hand_a_database_to_each_other_without_an_error(manager, script) -> None:
    code = """
manager = ChromaDBManager(base_path=base, engine="isolated")
k = sys.stdin.readline().strip()
for i in range(15):
    collection = manager.get_collection("doc", "azure", "rag_collection")
    collection.add(ids=[f"{k}-{i}"], embeddings=[[1.0, i]])
    assert collection.get(ids=[f"{k}-{i}"])["ids"] == [f"{k}-{i}"]
    manager.cleanup_instance("doc", "azure")
print("done")
"""
    others = [script(code) for _ in range(3)]
    for k, other in enumerate(others):
        other.say(str(k))
    for i in range(15):
        manager.get_collection("doc", "azure", "rag_collection").add(ids=[f"mine-{i}"], embeddings=[[1.0, i]])
        manager.cleanup_instance("doc", "azure")
    for other in others:
        assert other.finish() == "done"
    assert manager.get_collection("doc", "azure", "rag_collection").count() == 4 * 15


def test_an_engine_outlives_its_app_s_kill_ends_its_write_and_goes(manager: ChromaDBManager, script) -> None:
    code = """
import numpy as np
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = manager.get_collection("doc", "azure", "rag_collection")
print("ready")
n = 0
while True:
    collection.add(ids=[f"{n}-{i}" for i in range(50)], embeddings=np.random.rand(50, 2))
    n += 1
    print(n)
"""
    app = script(code)
    assert app.read_line() == "ready"
    engine = engine_of(manager)
    while int(acknowledged := app.read_line()) < 10:
        pass
    app.process.kill()
    collection = manager.get_collection("doc", "azure", "rag_collection")
    assert collection.count() >= int(acknowledged) * 50
    manager.cleanup_all_instances()
    assert eventually(lambda: has_ended(engine))


def test_a_forked_child_shares_the_engine_and_leaves_it_to_the_parent(script) -> None:
    code = """
from conftest import *
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = new_collection(manager)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    try:
        assert collection.count() == 1
        mine = manager.get_collection("doc", "azure", "rag_collection")
        mine.add(ids=["child", "child2"], embeddings=[[1.0, 3.0]] * 2)
        assert mine.query(query_embeddings=[[1.0, 2.0]], n_results=1)["ids"] == [["1"]]
        new_collection(manager, "other").add(ids=["2", "3"], embeddings=[[1.0, 2.0]] * 2)
        manager.cleanup_all_instances()
        os._exit(0)
    except BaseException as error:
        print("child:", repr(error), flush=True)
        os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
collection.add(ids=["2"], embeddings=[[1.0, 2.0]])
print(collection.get()["ids"])
"""
    assert script(code).finish() == "['1', 'child', 'child2', '2']"


def test_an_engine_and_an_app_with_the_database_in_its_own_process_keep_each_other_out(manager, script) -> None:
    holder = script(
        "manager = ChromaDBManager(base_path=base, engine='embedded'); manager.get_client('doc', 'azure')\n"
        "print('holding'); sys.stdin.readline()"
    )
    assert holder.read_line() == "holding"
    with pytest.raises(InstanceLockedError) as caught:
        manager.get_client("doc", "azure")
    assert caught.value.pid == holder.process.pid
    holder.say()
    holder.finish()
    assert new_collection(manager).count() == 1
    refused = script(
        "manager = ChromaDBManager(base_path=base, engine='embedded')\n"
        "try: manager.get_client('doc', 'azure')\n"
        "except InstanceLockedError as error: print(error.pid)"
    )
    assert refused.finish() == str(engine_of(manager).pid)


def test_a_process_that_cannot_be_started_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", python=program)
    manager.get_client("other", "azure")
    program.unlink()
    with pytest.raises(InstanceOpenError, match='engine="embedded"') as caught:
        manager.get_client("doc", "azure")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert [path.name for path in (tmp_path / "db").iterdir()] == ["other"]


def test_a_file_that_is_no_database_is_chroma_s_error_under_ours(manager: ChromaDBManager) -> None:
    directory = Path(manager._get_db_path("doc", "azure"))
    directory.mkdir(parents=True)
    (directory / "chroma.sqlite3").mkdir()
    with pytest.raises(InstanceOpenError, match="doc/azure") as caught:
        manager.get_client("doc", "azure")
    assert isinstance(caught.value.__cause__, chromadb.errors.InternalError)
    (directory / "chroma.sqlite3").rmdir()
    assert new_collection(manager).count() == 1


@pytest.mark.parametrize("place", ["directory", "runtime"])
def test_a_socket_lets_only_this_user_in_and_a_log_is_where_only_this_user_can_get_at_it(
    manager: ChromaDBManager, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("CHROMA_MANAGER_SOCKETS", place)
    new_collection(manager)
    assert (socket_of(manager).parent == directory(manager)) == (place == "directory")
    assert socket_of(manager).stat().st_mode & 0o777 == 0o600
    logs = log_of(manager).parent.stat()
    assert (logs.st_mode & 0o777, logs.st_uid) == (0o700, os.getuid())


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_MANAGER_SOCKETS", "directory")
    # A place of its own that others can enter.
    place = tempfile.TemporaryDirectory(dir="/tmp")
    Path(place.name).chmod(0o755)
    manager = ChromaDBManager(base_path=place.name, engine="isolated", idle_timeout=None)
    collection = new_collection(manager)
    address = socket_of(manager)
    code = """
import os, socket, sys
os.setuid(65534)
stream = socket.socket(socket.AF_UNIX)
try:
    stream.connect(sys.argv[1])
    print(stream.recv(9))
except PermissionError:
    print("no way in")
"""

    def as_nobody() -> str:
        command = [sys.executable, "-I", "-S", "-c", code, str(address)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    assert as_nobody() == "no way in"
    address.chmod(0o777)
    assert as_nobody() == "b''", "it was greeted"
    assert collection.count() == 1
    manager.cleanup_all_instances()
    place.cleanup()


def test_an_engine_that_nobody_calls_does_not_run(manager: ChromaDBManager) -> None:
    new_collection(manager)
    engine = engine_of(manager)

    def switches() -> int:
        return sum(
            int(line.split()[1])
            for status in Path(f"/proc/{engine.pid}/task").glob("*/status")
            for line in status.read_text().splitlines()
            if line.startswith("voluntary_ctxt_switches")
        )

    time.sleep(1.2)
    before = switches()
    time.sleep(1)
    assert switches() - before < 20


def test_a_log_does_not_grow_for_ever(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    log = log_of(manager)
    sizes = []
    for _ in range(1500):
        # Chroma panics here, and says so.
        with pytest.raises(chromadb.errors.InternalError):
            client.create_collection("panics", metadata={"list": [1]}, embedding_function=None)
        sizes.append(log.stat().st_size)
    assert max(sizes) > 100_000, "it says nothing that could grow"
    assert max(sizes) < 300_000
    assert sizes != sorted(sizes)


def test_a_call_that_takes_too_long_is_left(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", call_timeout=0.3)
    collection = new_collection(manager)
    engine = engine_of(manager)
    suspend(engine)
    begun = time.monotonic()
    with pytest.raises(CallTimeoutError, match=r"count\(\) of doc/azure .* call_timeout=0.3") as caught:
        collection.count()
    assert 0.3 <= time.monotonic() - begun < 5
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.file_id == "doc"
    engine.resume()
    assert collection.count() == 1
    assert engine_of(manager) == engine


@pytest.mark.timeout(30)
def test_a_call_that_cannot_even_be_sent_in_time_is_left(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", call_timeout=0.3)
    collection = new_collection(manager)
    large = manager.get_collection("doc", "azure", "large")
    engine = engine_of(manager)
    suspend(engine)
    with pytest.raises(CallTimeoutError, match=r"add\(\)"):
        # More than a socket holds.
        large.add(ids=IDS, embeddings=VECTORS)
    engine.resume()
    assert (large.count(), collection.count()) == (0, 1)


def test_many_files_leave_no_process_descriptor_or_socket_behind(manager: ChromaDBManager, runtime: Path) -> None:
    new_collection(manager, "warm")
    manager.cleanup_all_instances()
    process = psutil.Process()
    before = process.num_fds(), process.num_threads()
    for i in range(30):
        new_collection(manager, f"doc{i}")
        if i % 3 == 0:
            manager.cleanup_instance(f"doc{i}", "azure")
    assert len(engines()) == 20
    manager.cleanup_all_instances()
    assert eventually(lambda: process.children() == [])
    assert (process.num_fds(), process.num_threads()) == before
    assert list(runtime.glob("*/*")) == list(directory(manager).parents[1].rglob("*.sock")) == []
