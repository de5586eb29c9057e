"""The death of an engine process: in the middle of a call, between calls, while it opens its database."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from chroma_manager import ChromaDBManager, EngineCrashedError, InstanceOpenError
from chroma_manager.options import ENGINES
from chroma_manager.worker.engine_process import CHECK
from conftest import (
    IDS,
    VECTORS,
    InCall,
    all_at_once,
    directory,
    engine_of,
    eventually,
    has_ended,
    in_thread,
    log_of,
    new_collection,
    proof_of,
    socket_of,
    suspend,
)

fcntl = pytest.importorskip("fcntl")
pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM], ids=lambda number: number.name)
def test_a_handle_goes_on_after_its_engine_has_died(manager: ChromaDBManager, number: signal.Signals) -> None:
    collection = new_collection(manager)
    client = manager.get_client("doc", "azure")
    for _ in range(3):
        engine = engine_of(manager)
        engine.send_signal(number)
        assert eventually(lambda engine=engine: has_ended(engine))
        assert collection.count() == 1
        assert in_thread(client.count_collections) == 1
    assert manager.get_client("doc", "azure") is client
    assert len(psutil.Process().children()) <= 2, "the engines that have died are left as zombies"
    manager.cleanup_all_instances()
    assert eventually(lambda: psutil.Process().children() == [])


@pytest.mark.parametrize("method", ["add", "upsert", "query", "count", "delete"])
def test_a_call_that_may_be_repeated_is_when_its_engine_dies_under_it(manager: ChromaDBManager, method: str) -> None:
    collection = new_collection(manager)
    calls = {
        "add": lambda: collection.add(ids=["2"], embeddings=[[3.0, 4.0]]),
        "upsert": lambda: collection.upsert(ids=["1"], embeddings=[[3.0, 4.0]]),
        "query": lambda: collection.query(query_embeddings=[[1.0, 2.0]], n_results=1)["ids"],
        "count": collection.count,
        "delete": lambda: collection.delete(ids=["1"]),
    }
    engine = engine_of(manager)
    call = InCall(engine, calls[method])
    engine.kill()
    outcome = call.finish()
    assert not isinstance(outcome, Exception), outcome
    assert sorted(collection.get()["ids"]) == {"add": ["1", "2"], "delete": []}.get(method, ["1"])
    assert engine_of(manager).pid != engine.pid


def test_a_call_that_may_not_be_repeated_is_an_error_that_says_so(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    engine = engine_of(manager)
    call = InCall(engine, lambda: client.create_collection("new", embedding_function=None))
    engine.kill()
    outcome = call.finish()
    assert isinstance(outcome, EngineCrashedError)
    assert "doc/azure" in str(outcome)
    assert "create_collection" in str(outcome)
    assert outcome.path == manager._get_db_path("doc", "azure")
    assert client.create_collection("next", embedding_function=None).count() == 0


def test_getting_or_creating_a_collection_is_repeated_because_one_that_exists_will_do(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    engine = engine_of(manager)
    call = InCall(engine, lambda: client.get_or_create_collection("new", embedding_function=None))
    engine.kill()
    assert call.finish().name == "new"
    assert client.count_collections() == 1


@pytest.mark.timeout(30)
def test_a_call_is_repeated_once_and_not_for_ever(manager: ChromaDBManager) -> None:
    """Under an engine that ends at every call."""
    directory = Path(manager._get_db_path("doc", "azure"))
    directory.mkdir(parents=True)
    (directory / "chroma.sqlite3").touch()
    asked = []
    with (
        tempfile.TemporaryDirectory() as short,
        socket.socket(socket.AF_UNIX) as listener,
        open(directory / ".chroma_manager.lock", "w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n{short}/engine\n{'5' * 32}\n")
        lock.flush()
        listener.bind(f"{short}/engine")
        listener.listen()

        def serve() -> None:
            while len(asked) < 2:
                stream, _ = listener.accept()
                with stream, stream.makefile("rb") as reader:
                    stream.sendall(b"CMG" + struct.pack("<BBI", 5, 1, 32) + proof_of(directory, "5" * 32))
                    # All of it: what was not sent to its end would be sent again.
                    header = reader.read(9)
                    asked.append(header[4] if reader.read(int.from_bytes(header[5:], "little")) else None)

        threading.Thread(target=serve, daemon=True).start()
        client = manager.get_client("doc", "azure")
        with pytest.raises(EngineCrashedError, match="heartbeat"):
            client.heartbeat()
        assert asked == [3, 3], "it was to be called twice"
        listener.close()
        manager.cleanup_all_instances()


def test_a_delete_with_a_limit_is_not_repeated_because_it_would_delete_others(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    collection.add(ids=list("abcd"), embeddings=np.eye(4, 2), metadatas=[{"page": 1}] * 4)
    engine = engine_of(manager)
    call = InCall(engine, lambda: collection.delete(where={"page": 1}, limit=2))
    engine.kill()
    assert isinstance(call.finish(), EngineCrashedError)
    assert collection.count() == 5


def test_an_engine_that_dies_in_a_long_write_loses_nothing_of_it(manager: ChromaDBManager) -> None:
    collection = new_collection(manager, "doc")
    collection = manager.get_collection("doc", "azure", "large")
    writer = threading.Thread(target=lambda: collection.add(ids=IDS, embeddings=VECTORS))
    writer.start()
    time.sleep(0.15)
    engine_of(manager).kill()
    writer.join(60)
    assert collection.count() == len(IDS)
    found = collection.query(query_embeddings=VECTORS[::100], n_results=1)["ids"]
    assert found == [[i] for i in IDS[::100]]


# Stands for the interpreter: the first engine process that it runs dies by its own hand, when MOMENT has come.
DYING_ONCE = """#!{python} -IS
import os, runpy, signal, sys

def die_if_first():
    try:
        os.close(os.open({died!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.{number})

sys.argv = sys.argv[sys.argv.index("-X") + 2:]
if {check!r} not in sys.argv:  # it is not only asked what it is
    {moment}
runpy.run_path(sys.argv[0], run_name="__main__")
"""

MOMENTS = {
    "before it runs": "die_if_first()",
    "as it loads Chroma": (
        "sys.addaudithook(lambda event, about: event == 'import' and about[0] == 'chromadb_rust_bindings'"
        " and die_if_first())"
    ),
    "with the database open": (
        "sys.setprofile(lambda _, event, about: event == 'c_call' and about.__name__ == 'get_database'"
        " and die_if_first())"
    ),
}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_engine_that_dies_while_it_opens_is_followed_by_another(tmp_path, runtime, moment, number) -> None:
    program, died = tmp_path / "python", tmp_path / "died"
    fields = {"died": str(died), "number": number.name, "moment": MOMENTS[moment], "check": CHECK}
    code = DYING_ONCE.format(python=sys.executable, **fields)
    program.write_text(code)
    program.chmod(0o755)
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", python=program)
    collection = new_collection(manager)
    assert died.exists()
    assert collection.count() == 1
    logs, files = log_of(manager).parent, directory(manager)
    manager.cleanup_all_instances()
    assert psutil.Process().children() == []
    assert list(logs.iterdir()) == list(files.glob("*.sock")) == []


class Killer:
    """Kills engine processes within moments of their start, until it has killed so many."""

    def __init__(self, most: int) -> None:
        self._random = random.Random(0)
        self._most = most
        self.killed: list[int] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        deadline = time.monotonic() + 60
        while len(self.killed) < self._most and time.monotonic() < deadline:
            for engine in psutil.Process().children():
                if engine.pid not in self.killed:
                    time.sleep(self._random.uniform(0, 0.1))
                    with contextlib.suppress(psutil.NoSuchProcess):
                        engine.kill()
                    self.killed.append(engine.pid)


def test_openings_whose_engines_are_killed_succeed_or_say_so_and_leave_nothing(
    manager: ChromaDBManager, runtime: Path
) -> None:
    def use(i: int) -> object:
        outcomes = []
        for n in range(4):
            try:
                outcomes.append(new_collection(manager, f"doc{i}-{n}").count())
            except (InstanceOpenError, EngineCrashedError) as error:
                outcomes.append(type(error))
        return outcomes

    killer = Killer(most=12)
    killer.thread.start()
    outcomes = all_at_once(4, use)
    killer.thread.join()
    assert len(killer.killed) >= 12
    for ours in outcomes:
        assert isinstance(ours, list), ours
        assert set(ours) <= {1, InstanceOpenError, EngineCrashedError}
    assert all_at_once(4, use) == [[1] * 4] * 4
    logs = log_of(manager, "doc0-0").parent
    manager.cleanup_all_instances()
    assert eventually(lambda: psutil.Process().children() == [])
    assert list(logs.iterdir()) == list(directory(manager).parents[1].rglob("*.sock")) == []


def test_an_engine_that_always_dies_at_its_start_is_an_error_soon_and_leaves_nothing(tmp_path, runtime) -> None:
    starts = tmp_path / "starts"
    program = tmp_path / "python"
    is_asked = f'for word; do [ "$word" = {CHECK} ] && exec {sys.executable} "$@"; done'
    program.write_text(f"#!/bin/sh\n{is_asked}\necho x >> {starts}\nkill -9 $$\n")
    program.chmod(0o755)
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", python=program)
    began = time.monotonic()
    with pytest.raises(InstanceOpenError, match="signal: 9"):
        manager.get_client("doc", "azure")
    assert time.monotonic() - began < 10
    assert len(starts.read_text().split()) < 20
    assert psutil.Process().children() == []
    assert not (tmp_path / "db").exists()
    assert list(runtime.glob("*/*")) == []


def test_a_database_that_its_owner_has_just_given_up_opens(manager) -> None:
    new_collection(manager, "warm")
    database = Path(manager._get_db_path("doc", "azure"))
    database.mkdir(parents=True)
    lock = (database / ".chroma_manager.lock").open("a+")
    fcntl.flock(lock, fcntl.LOCK_EX)
    threading.Timer(0.003, lock.close).start()
    assert new_collection(manager).count() == 1


def test_a_cleanup_after_an_engine_was_killed_leaves_no_zombie_and_no_file(manager: ChromaDBManager) -> None:
    new_collection(manager)
    socket, log = socket_of(manager), log_of(manager)
    assert socket.exists()
    assert log.exists()
    engine_of(manager).kill()
    manager.cleanup_all_instances()
    assert psutil.Process().children() == []
    assert (socket.exists(), log.exists()) == (False, False)


@pytest.mark.parametrize("next_owner", ["deletes it", "isolated", "embedded"])
def test_what_is_left_where_app_and_engine_were_killed_the_next_owner_removes(
    tmp_path: Path, runtime: Path, script, next_owner: str
) -> None:
    app = script("ChromaDBManager(base_path=base, engine='isolated').get_client('doc', 'azure'); print(1); input()")
    app.read_line()
    suspend(psutil.Process(app.process.pid))
    manager = ChromaDBManager(
        base_path=tmp_path / "db", engine="isolated" if next_owner == "deletes it" else next_owner, idle_timeout=None
    )
    left, engine = {socket_of(manager), log_of(manager)}, engine_of(manager)
    engine.kill()
    app.process.kill()
    assert eventually(lambda: has_ended(engine))
    assert set(runtime.glob("*/*")) == left
    if next_owner == "deletes it":
        assert manager.delete_instance("doc", "azure")
    else:
        manager.get_client("doc", "azure")
        assert not left & set(runtime.glob("*/*"))
        manager.shutdown()
    assert eventually(lambda: list(runtime.glob("*/*")) == [])


def test_an_error_quotes_what_the_engine_wrote_last(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    engine = engine_of(manager)
    call = InCall(engine, lambda: client.create_collection("new", embedding_function=None))
    log_of(manager).write_text("first\nthe disk is full\n")
    engine.kill()
    assert str(call.finish()).endswith("(signal: 9 (SIGKILL); first\nthe disk is full)")


def test_a_call_that_may_not_be_repeated_is_made_where_the_engine_died_before_it(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    engine = engine_of(manager)
    engine.kill()
    assert eventually(lambda: has_ended(engine))
    assert client.create_collection("new", embedding_function=None).count() == 0
