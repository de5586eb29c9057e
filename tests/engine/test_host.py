"""The host forks engine processes that are as good as started ones, and nothing depends on it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chromadb
import psutil
import pytest
from chroma_manager import ChromaDBManager, InstanceOpenError
from chroma_manager.options import ENGINES
from conftest import (
    InCall,
    Script,
    all_at_once,
    called,
    directory,
    engine_of,
    engines,
    eventually,
    has_ended,
    new_collection,
    suspend,
)

pytestmark = pytest.mark.skipif(
    "isolated" not in ENGINES or sys.platform != "linux", reason="on this system engine processes are started"
)


SKIPPED = re.compile(r"chroma\.sqlite3|\.bin$|\.log$")
STATUS = ("Umask", "Uid", "Gid", "Groups", "SigIgn", "SigBlk", "SigCgt", "Seccomp")


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


def hosts() -> list[psutil.Process]:
    return called(psutil.Process().children(), "chroma-host")


def is_forked(manager: ChromaDBManager, file_id: str) -> bool:
    parent = engine_of(manager, file_id).parent()
    return parent is not None and parent.name() == "chroma-host"


def is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return False


@pytest.fixture
def host(manager: ChromaDBManager) -> psutil.Process:
    """A host that forks."""
    new_collection(manager, "first")
    new_collection(manager, "second")
    numbers = iter(range(1000))

    def forks() -> bool:
        file_id = f"warm{next(numbers)}"
        new_collection(manager, file_id)
        was_forked = is_forked(manager, file_id)
        manager.cleanup_instance(file_id, "azure")
        return was_forked

    assert eventually(forks)
    (host,) = hosts()
    return host


def test_an_app_with_one_database_has_none(manager: ChromaDBManager) -> None:
    # One that an earlier test has shared with another process ends some seconds after that.
    assert eventually(lambda: not psutil.Process().children())
    for _ in range(3):
        assert new_collection(manager).count() == 1
        assert psutil.Process().children() == [engine_of(manager)]
        manager.cleanup_instance("doc", "azure")


def test_of_many_databases_that_are_opened_at_once_one_starts_an_interpreter(manager: ChromaDBManager) -> None:
    outcomes = all_at_once(8, lambda i: new_collection(manager, f"doc{i}").count())
    assert outcomes == [1] * 8
    assert [is_forked(manager, f"doc{i}") for i in range(8)].count(False) == 1
    assert len(hosts()) == 1


def test_it_forks_engine_processes_and_ends_with_the_last_of_them(
    manager: ChromaDBManager, host: psutil.Process
) -> None:
    outcomes = all_at_once(6, lambda i: new_collection(manager, f"doc{i}").count())
    assert outcomes == [1] * 6
    assert all(is_forked(manager, f"doc{i}") for i in range(6))
    assert host.num_threads() == 1
    assert not any(is_zombie(child) for child in host.children())
    manager.cleanup_all_instances()
    assert psutil.Process().children(recursive=True) == []
    assert not host.is_running()


def test_a_forked_engine_process_is_like_a_started_one(manager: ChromaDBManager, host: psutil.Process) -> None:
    new_collection(manager)
    assert is_forked(manager, "doc")

    def found(file_id: str) -> dict[str, object]:
        engine, place = engine_of(manager, file_id), str(directory(manager, file_id))
        descriptors = {int(link.name): os.readlink(link) for link in Path(f"/proc/{engine.pid}/fd").iterdir()}
        status = Path(f"/proc/{engine.pid}/status").read_text().splitlines()
        return {
            "name": engine.name(),
            "is in its directory": engine.cwd() == place,
            "has a group": os.getpgid(engine.pid) == engine.pid,
            "standard": [descriptors[i].replace(place, "").split(":")[0].rsplit("/", 1)[0] for i in range(3)],
            # Chroma opens as many files as it likes.
            "descriptors": {
                name.replace(place, "").split(":")[0] for name in descriptors.values() if not SKIPPED.search(name)
            },
            "status": [line for line in status if line.startswith(STATUS)],
        }

    # A started one has opened its database more often.
    new_collection(manager, "first").count()
    for what, forked in found("doc").items():
        assert eventually(lambda what=what: found("doc")[what] == found("first")[what]), (
            what,
            forked,
            found("first")[what],
        )


def test_an_engine_process_outlives_the_host_and_another_one_takes_its_place(
    manager: ChromaDBManager, host: psutil.Process
) -> None:
    collection = new_collection(manager)
    engine = engine_of(manager)
    host.kill()
    assert eventually(lambda: has_ended(host))
    collection.add(ids=["2"], embeddings=[[3.0, 4.0]])
    assert engine_of(manager) == engine
    assert new_collection(manager, "other").count() == 1
    assert new_collection(manager, "another").count() == 1
    assert eventually(lambda: len(hosts()) == 1)
    assert hosts() != [host]
    engine.kill()
    assert eventually(lambda: has_ended(engine))
    assert sorted(collection.get()["ids"]) == ["1", "2"]
    manager.cleanup_all_instances()
    assert psutil.Process().children(recursive=True) == []


def test_what_a_forked_engine_process_died_of_is_told(manager: ChromaDBManager, host: psutil.Process, caplog) -> None:
    collection = new_collection(manager)
    engine = engine_of(manager)
    call = InCall(engine, collection.count)
    engine.kill()
    assert call.finish() == 1
    assert "signal: 9 (SIGKILL)" in caplog.text
    assert eventually(lambda: not any(is_zombie(child) for child in host.children()))


def forked_ahead(host: psutil.Process) -> psutil.Process:
    """The process that waits for the next request, at the app's socket. The one that makes the template has none."""

    def waits(process: psutil.Process) -> bool:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{process.pid}/fd/0").startswith("socket:")
        return False

    def waiting() -> list[psutil.Process]:
        return list(filter(waits, called(host.children(), "chroma-host")))

    assert eventually(lambda: len(waiting()) == 1)
    return waiting()[0]


def test_one_that_hangs_is_ended_and_what_it_forks_too_late_touches_nothing(
    manager: ChromaDBManager, host: psutil.Process
) -> None:
    forked_ahead(host)
    suspend(host)
    new_collection(manager, "ahead")
    assert is_forked(manager, "ahead")
    began = time.monotonic()
    collection = new_collection(manager)
    assert time.monotonic() - began < 15
    assert not is_forked(manager, "doc")
    assert eventually(lambda: has_ended(host))
    collection.add(ids=["2"], embeddings=[[3.0, 4.0]])
    assert len([engine for engine in engines() if engine.cwd() == str(directory(manager))]) == 1
    assert sorted(collection.get()["ids"]) == ["1", "2"]


@pytest.mark.parametrize("harm", ["suspended", "killed"])
def test_nothing_depends_on_the_process_that_is_forked_ahead(
    manager: ChromaDBManager, host: psutil.Process, harm: str
) -> None:
    ahead = forked_ahead(host)
    if harm == "killed":
        ahead.kill()
        assert eventually(lambda: has_ended(ahead))
    else:
        suspend(ahead)
    began = time.monotonic()
    collection = new_collection(manager)
    assert time.monotonic() - began < 15
    assert is_forked(manager, "doc") == (harm == "killed")
    if harm == "suspended":
        # It finds that its host has been given up.
        ahead.resume()
        assert eventually(lambda: has_ended(ahead))
    assert len([engine for engine in engines() if engine.cwd() == str(directory(manager))]) == 1
    assert collection.get()["ids"] == ["1"]


def test_the_process_that_is_forked_ahead_ends_with_its_host(host: psutil.Process) -> None:
    ahead = forked_ahead(host)
    assert not has_ended(ahead)
    host.kill()
    assert eventually(lambda: has_ended(ahead))


def test_it_keeps_nothing_of_the_app_open(script: Callable[..., Script]) -> None:
    code = """
reader, writer = os.pipe()
os.set_inheritable(writer, True)
"""
    started = script(code + APP + "sys.stdin.readline()\nos.close(writer)\nprint(os.read(reader, 1))\n")
    started.read_line()
    started.say()
    assert started.finish() == "b''"


@pytest.mark.parametrize("pause", [0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06])
def test_a_host_that_is_killed_at_any_moment_of_an_opening_costs_no_more_than_time(
    manager: ChromaDBManager, host: psutil.Process, pause: float
) -> None:
    def kill() -> None:
        time.sleep(pause)
        host.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = all_at_once(3, lambda i: new_collection(manager, f"doc{i}").count())
    killer.join()
    assert outcomes == [1] * 3
    for i in range(3):
        path = str(directory(manager, f"doc{i}"))
        assert len([engine for engine in psutil.process_iter(["name", "cwd"]) if engine.info["cwd"] == path]) == 1
        assert new_collection(manager, f"doc{i}").get()["ids"] == ["1"]
    manager.cleanup_all_instances()
    assert psutil.Process().children(recursive=True) == []


APP = """
from conftest import *
manager = ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None)
for i in range(100):
    new_collection(manager, f"doc{i}")
    parent = engine_of(manager, f"doc{i}").parent()
    if parent.name() == "chroma-host":
        break
print(parent.pid, i, flush=True)
"""


@pytest.fixture
def app(script: Callable[..., Script]) -> tuple[Script, psutil.Process, str]:
    """An app with a host, and the last database that it has opened."""
    started = script(APP + "sys.stdin.readline()\n")
    pid, number = started.read_line().split()
    return started, psutil.Process(int(pid)), f"doc{number}"


def test_it_ends_when_the_app_is_killed_and_its_engine_processes_finish(
    app: tuple[Script, psutil.Process, str], manager: ChromaDBManager
) -> None:
    script, host, file_id = app
    engine = engine_of(manager, file_id)
    script.process.kill()
    assert eventually(lambda: has_ended(host))
    # Nobody needs it any more, so it closes its database.
    assert eventually(lambda: has_ended(engine))
    assert not (directory(manager, file_id) / ".chroma_manager" / "open").exists()
    assert new_collection(manager, file_id).get()["ids"] == ["1"]


def test_it_ends_with_an_app_whose_forked_child_goes_on(script: Callable[..., Script]) -> None:
    started = script(
        APP + "pid = os.fork()\nif pid == 0: time.sleep(60); os._exit(0)\nprint(pid, flush=True)\nos._exit(0)\n"
    )
    pid, _ = started.read_line().split()
    host = psutil.Process(int(pid))
    child = psutil.Process(int(started.read_line()))
    assert eventually(lambda: has_ended(host))
    assert child.is_running()
    child.kill()


def test_a_forked_child_of_the_app_has_one_of_its_own(script: Callable[..., Script]) -> None:
    code = """
pid = os.fork()
if pid == 0:
    for i in range(100, 104): assert new_collection(manager, f"doc{i}").count() == 1
    manager.cleanup_all_instances()
    os._exit(0)
_, status = os.waitpid(pid, 0)
new_collection(manager, "after")
print(status, engine_of(manager, "after").parent() == parent)
"""
    started = script(APP + code)
    started.read_line()
    assert started.finish() == "0 True"


def test_what_the_app_changes_counts_for_the_next_engine_process(
    manager: ChromaDBManager, host: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def umask(file_id: str) -> str:
        status = Path(f"/proc/{engine_of(manager, file_id).pid}/status").read_text()
        return next(line.split()[1] for line in status.splitlines() if line.startswith("Umask"))

    monkeypatch.setenv("CHROMA_MANAGER_KILL_AT", "log not kept")
    new_collection(manager)
    monkeypatch.delenv("CHROMA_MANAGER_KILL_AT")
    assert is_forked(manager, "doc")
    manager.cleanup_instance("doc", "azure")
    assert (directory(manager) / ".chroma_manager" / "open").exists(), "the variable did not reach it"
    before = os.umask(0o027)
    try:
        new_collection(manager)
        assert umask("doc") == "0027"
    finally:
        os.umask(before)
    new_collection(manager, "other")
    assert umask("other") == f"{before:04o}"


def test_there_is_none_where_the_user_wants_none(manager: ChromaDBManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_MANAGER_START", "spawn")
    for i in range(4):
        new_collection(manager, f"doc{i}")
    assert hosts() == []
    assert {engine.ppid() for engine in engines()} == {os.getpid()}


def content(path: Path) -> tuple[list[str], str, int]:
    connection = sqlite3.connect(path / "chroma.sqlite3")
    # Every opening of Chroma's adds one of these rows.
    dump = [line for line in connection.iterdump() if not line.startswith('INSERT INTO "acquire_write"')]
    (mode,), (version,) = (connection.execute(f"pragma {name}").fetchone() for name in ("journal_mode", "user_version"))
    connection.close()
    return dump, mode, version


def test_a_new_database_of_a_forked_engine_process_is_what_chroma_creates(
    manager: ChromaDBManager, host: psutil.Process, tmp_path: Path
) -> None:
    for i in range(3):
        manager.get_client(f"doc{i}", "azure")
        manager.cleanup_instance(f"doc{i}", "azure")
    with chromadb.PersistentClient(tmp_path / "stock"):
        pass
    stock = content(tmp_path / "stock")
    assert [content(directory(manager, f"doc{i}")) == stock for i in range(3)] == [True] * 3


def children(pid: int | str) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


@contextlib.contextmanager
def suspended_once(reached: Callable[[int], list[int]]) -> Iterator[list[int]]:
    """Suspends the host once it has processes that are looked for, and tells them at the end."""
    found = list[int]()

    def watch() -> None:
        ends = time.monotonic() + 20
        while not found and time.monotonic() < ends:
            for child in children("self"):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{child}/comm").read_text() == "chroma-host\n" and (now := reached(child)):
                        os.kill(child, signal.SIGSTOP)
                        found.extend(now)
            time.sleep(0.001)

    watches = threading.Thread(target=watch)
    watches.start()
    yield found
    watches.join()


def test_the_process_that_makes_the_template_waits_for_no_host_that_has_ended(manager: ChromaDBManager) -> None:
    with suspended_once(children) as makers:
        new_collection(manager, "first")
        new_collection(manager, "second")
    (maker,) = map(psutil.Process, makers)
    (host,) = hosts()
    began = time.monotonic()
    manager.cleanup_all_instances()
    assert time.monotonic() - began < 10
    assert has_ended(host)
    assert eventually(lambda: has_ended(maker))


def test_one_that_hangs_before_it_is_ready_is_waited_for_once(manager: ChromaDBManager) -> None:
    began = time.monotonic()
    with suspended_once(lambda host: [host]) as found:
        outcomes = all_at_once(4, lambda i: new_collection(manager, f"doc{i}").count())
    assert len(found) == 1
    assert outcomes == [1] * 4
    assert not any(is_forked(manager, f"doc{i}") for i in range(4))
    assert time.monotonic() - began < 15
    began = time.monotonic()
    assert new_collection(manager, "late").count() == 1
    assert time.monotonic() - began < 2


def test_a_new_database_is_a_copy_of_the_template(
    manager: ChromaDBManager, host: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(1000))

    def opens() -> bool:
        with contextlib.suppress(InstanceOpenError):
            return new_collection(manager, f"doc{next(numbers)}").count() == 1
        return False

    # A step of every other opening; and the template takes its time.
    monkeypatch.setenv("CHROMA_MANAGER_KILL_AT", "write-ahead log on")
    assert eventually(opens)
    monkeypatch.delenv("CHROMA_MANAGER_KILL_AT")
    for step in ("marked", "created"):
        monkeypatch.setenv("CHROMA_MANAGER_KILL_AT", step)
        # A database that is there is opened after the death of the process that has created it.
        assert opens() == (step == "created")
        monkeypatch.delenv("CHROMA_MANAGER_KILL_AT")
    for i in range(next(numbers)):
        assert new_collection(manager, f"doc{i}").get()["ids"] == ["1"]
