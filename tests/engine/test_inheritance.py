"""What an engine process has of the app that has started it: three descriptors, and nothing that outlives the app.

Each database here is open in another process, too, so its engine process goes on when the one that started it ends.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import workers
from chroma_manager import ChromaDBManager
from chroma_manager.options import ENGINES
from conftest import engine_of, eventually, has_ended, new_collection

pytestmark = [
    pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system"),
    pytest.mark.usefixtures("no_process_of_multiprocessing_is_left"),
]

SPAWN = multiprocessing.get_context("spawn")

# Whoever is not told by then is not told as long as the engine process lives.
TOLD_WITHIN = 5


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


def descriptors(process: psutil.Process) -> dict[int, str]:
    return {int(link.name): os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()}


def test_an_engine_process_has_no_descriptor_of_the_app(manager: ChromaDBManager, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    listener = socket.create_server(("127.0.0.1", 0))
    file = (tmp_path / "file").open("w")
    kept = [reader, writer, listener.fileno(), file.fileno()]
    # One that is far from the others.
    kept.append(os.dup2(writer, 900))
    for descriptor in kept:
        os.set_inheritable(descriptor, True)
    new_collection(manager)
    inherited = {os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in kept}
    assert not inherited & set(descriptors(engine_of(manager)).values())
    os.close(writer)
    os.close(900)
    assert select.select([reader], [], [], TOLD_WITHIN)[0], "the end of the writer is not seen"
    address = listener.getsockname()
    listener.close()
    socket.create_server(address).close()
    os.close(reader)
    file.close()


def test_the_end_of_a_spawned_child_is_seen_at_once(manager: ChromaDBManager, tmp_path: Path) -> None:
    ours, theirs = SPAWN.Pipe()
    child = SPAWN.Process(target=workers.add_and_end, args=(str(tmp_path / "db"), theirs))
    child.start()
    assert ours.recv() == ["1"]
    assert new_collection(manager).get()["ids"] == ["1"]
    assert engine_of(manager).ppid() == child.pid
    ours.send("end")
    assert multiprocessing.connection.wait([child.sentinel], TOLD_WITHIN) == [child.sentinel]
    child.join(TOLD_WITHIN)
    assert child.exitcode == -signal.SIGKILL
    assert new_collection(manager).get()["ids"] == ["1"]


def test_a_process_pool_sees_a_killed_worker_at_once(manager: ChromaDBManager, tmp_path: Path) -> None:
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=SPAWN)
    assert pool.submit(workers.add, str(tmp_path / "db")).result(60) == ["1"]
    collection = new_collection(manager)
    engine = engine_of(manager)
    assert engine.ppid() != os.getpid()
    killed = pool.submit(os.kill, next(iter(pool._processes)), signal.SIGKILL)
    with pytest.raises(concurrent.futures.process.BrokenProcessPool):
        killed.result(TOLD_WITHIN)
    pool.shutdown()
    assert engine_of(manager) == engine
    assert collection.get()["ids"] == ["1"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def server(command: list[str], base: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A web server with workers that have the database under `base`."""
    environment = {**os.environ, "BASE": str(base), "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            kill_with_workers(process)


def kill_with_workers(process: subprocess.Popen[bytes]) -> None:
    """As the system does that is short of memory."""
    tree = list[psutil.Process]()
    with contextlib.suppress(psutil.NoSuchProcess):
        tree += [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            if "engine_process" not in " ".join(each.cmdline()):
                each.kill()
    process.wait()


def answer_of(port: int, process: subprocess.Popen[bytes]) -> str:
    answers: list[str] = []

    def has_answered() -> bool:
        assert process.poll() is None, process.communicate()[0].decode()
        with contextlib.suppress(OSError):
            answers.append(urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read().decode())
        return bool(answers)

    assert eventually(has_answered, 60)
    return answers[0]


UVICORN = [sys.executable, "-m", "uvicorn", "--workers", "2", "--log-level", "warning", "workers:asgi", "--port"]
UWSGI = [str(Path(sys.executable).with_name("uwsgi")), "--master", "--workers", "2", "--enable-threads", "--need-app"]


@pytest.mark.parametrize("name", ["uvicorn", "uwsgi"])
def test_the_port_of_a_server_that_was_killed_is_free_at_once(manager: ChromaDBManager, tmp_path, name: str) -> None:
    port = free_port()
    command = {
        "uvicorn": [*UVICORN, str(port)],
        "uwsgi": [*UWSGI, "--home", sys.prefix, "--module", "workers", "--http-socket", f"127.0.0.1:{port}"],
    }[name]
    with server(command, tmp_path / "db") as process:
        assert answer_of(port, process) == "1"
        collection = new_collection(manager)
        engine = engine_of(manager)
        started_by = engine.ppid()
        assert started_by != os.getpid()
        kill_with_workers(process)
        assert eventually(lambda: not psutil.pid_exists(started_by))
        # As the server does that takes its place.
        socket.create_server(("127.0.0.1", port)).close()
    assert engine_of(manager) == engine
    assert collection.get()["ids"] == ["1"]
    manager.cleanup_all_instances()
    assert eventually(lambda: has_ended(engine))
