"""Another program that has the database open, and writes to it, is noticed and named, and nothing is lost by it."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager, ChromaManagerError, InstanceLockedError
from chroma_manager.durability import other_programs
from chroma_manager.options import ENGINES
from conftest import Script, directory, eventually, files_open_in, kill_engines

pytestmark = pytest.mark.skipif(
    "isolated" not in ENGINES or sys.platform != "linux", reason="the engine, or what tells who it is, is not there"
)

# More than Chroma keeps out of its index files.
COUNT = 1050
OURS, THEIRS = np.random.default_rng(0).random((2, COUNT, 4), dtype=np.float32)

STOCK = """
import chromadb, numpy as np
client = chromadb.PersistentClient(base + "/doc/azure")
collection = client.get_or_create_collection("vectors", embedding_function=None)
print("open", flush=True)
theirs = np.random.default_rng(0).random((2, 1050, 4), dtype=np.float32)[1]
for line in sys.stdin:
    first, last = map(int, line.split())
    collection.add(ids=[f"theirs {i}" for i in range(first, last)], embeddings=theirs[first:last])
    print("written", flush=True)
client.close()
"""


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed database with index files."""
    path = tmp_path_factory.mktemp("prepared") / "database"
    with chromadb.PersistentClient(path) as client:
        collection = client.create_collection("vectors", embedding_function=None)
        add_ours(collection, 0, COUNT - 50)
    return path


@pytest.fixture
def ours(manager: ChromaDBManager, prepared: Path) -> chromadb.Collection:
    """With a checkpoint, and writes since."""
    shutil.copytree(prepared, directory(manager))
    collection = collection_of(manager)
    add_ours(collection, COUNT - 50, COUNT)
    return collection


@pytest.fixture
def stranger(ours: chromadb.Collection, script: Callable[..., Script]) -> Script:
    """A process with stock Chroma that has the same database open."""
    return start(script)


def start(script: Callable[..., Script]) -> Script:
    started = script(STOCK)
    assert started.read_line() == "open"
    return started


def collection_of(manager: ChromaDBManager) -> chromadb.Collection:
    return manager.get_collection("doc", "azure", "vectors")


def add_ours(collection: chromadb.Collection, first: int, last: int) -> None:
    collection.add(ids=[f"ours {i}" for i in range(first, last)], embeddings=OURS[first:last])


def write(stranger: Script, first: int = 0, last: int = COUNT) -> None:
    stranger.say(f"{first} {last}")
    assert stranger.read_line() == "written"


def end(stranger: Script) -> None:
    stranger.finish()


def checkpoint(manager: ChromaDBManager) -> list[str]:
    """The copies of index files that it consists of."""
    content = json.loads((directory(manager) / ".chroma_manager" / "checkpoint.json").read_text())["content"]
    assert content
    return [index["copy"] for index in content.values()]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def assert_found(collection: chromadb.Collection, theirs: int = COUNT, count: int = COUNT) -> None:
    expected = {f"ours {i}": OURS[i] for i in range(count)} | {f"theirs {i}": THEIRS[i] for i in range(theirs)}
    got = collection.get(include=["embeddings"])
    vectors = dict(zip(got["ids"], got["embeddings"], strict=True))
    assert vectors.keys() == expected.keys()
    assert all(np.array_equal(vectors[i], vector) for i, vector in expected.items())
    nearest = collection.query(query_embeddings=np.array(list(expected.values())), n_results=1, include=[])["ids"]
    assert sum(found != [i] for i, found in zip(expected, nearest, strict=True)) <= 2


def assert_sound(manager: ChromaDBManager, theirs: int = COUNT, count: int = COUNT) -> None:
    """Here, after a closing, and with stock Chroma."""
    assert_found(collection_of(manager), theirs, count)
    verification = manager.verify("doc", "azure")
    assert (verification.ok, verification.problems) == (True, ())
    manager.cleanup_all_instances()
    assert not (directory(manager) / ".chroma_manager" / "open").exists()
    with chromadb.PersistentClient(directory(manager)) as client:
        assert_found(client.get_collection("vectors", embedding_function=None), theirs, count)


def test_a_program_that_writes_beside_is_refused_by_name_and_goes_into_no_checkpoint(
    manager: ChromaDBManager, ours: chromadb.Collection, stranger: Script, caplog: pytest.LogCaptureFixture
) -> None:
    before = checkpoint(manager)
    write(stranger)
    for call in (ours.count, lambda: ours.add(ids=["not"], embeddings=OURS[:1]), ours.count):
        with pytest.raises(InstanceLockedError, match=rf"doc/azure .*process {stranger.process.pid}\b") as caught:
            call()
        assert caught.value.pid == stranger.process.pid
    for work in (lambda: manager.snapshot("doc", "azure", "elsewhere"), lambda: manager.verify("doc", "azure")):
        with pytest.raises(InstanceLockedError, match=rf"doc/azure .*process {stranger.process.pid}\b"):
            work()
    manager.cleanup_all_instances()
    assert checkpoint(manager) == before
    end(stranger)
    assert_sound(manager)


def test_handles_go_on_when_a_program_that_wrote_has_gone(
    manager: ChromaDBManager,
    ours: chromadb.Collection,
    stranger: Script,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    before = checkpoint(manager)
    write(stranger)
    end(stranger)
    assert_found(ours)
    (warning,) = warnings(caplog)
    assert "doc/azure" in warning
    assert "another program has written" in warning
    assert checkpoint(manager) == before
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    with chromadb.PersistentClient(tmp_path / "snapshot") as client:
        assert_found(client.get_collection("vectors", embedding_function=None))
    assert_sound(manager)


def test_what_was_written_beside_before_a_closing_is_in_no_checkpoint(
    manager: ChromaDBManager, ours: chromadb.Collection, stranger: Script
) -> None:
    before = checkpoint(manager)
    write(stranger)
    manager.cleanup_all_instances()
    assert checkpoint(manager) == before
    end(stranger)
    assert_sound(manager)


def test_a_program_that_only_has_it_open_is_named_in_a_warning(
    manager: ChromaDBManager, ours: chromadb.Collection, script: Callable[..., Script], caplog: pytest.LogCaptureFixture
) -> None:
    client = manager.get_client("doc", "azure")
    # With a collection its rows of the log go: nobody else has removed them.
    client.create_collection("deleted").add(ids=["1"], embeddings=[[1.0]])
    client.delete_collection("deleted")
    manager.cleanup_all_instances()
    before = start(script)
    # One that only reads the file is none of them.
    with (directory(manager) / "chroma.sqlite3").open("rb"):
        assert_found(collection_of(manager), theirs=0)
    (warning,) = warnings(caplog)
    assert "doc/azure" in warning
    assert f"process {before.process.pid} " in warning
    end(before)
    caplog.clear()
    client = manager.get_client("doc", "azure")
    client.create_collection("deleted").add(ids=["1"], embeddings=[[1.0]])
    client.delete_collection("deleted")
    # Chroma writes a setting when it opens a database, but no record.
    meanwhile = start(script)
    assert_found(collection_of(manager), theirs=0)
    assert f"process {meanwhile.process.pid} " in warnings(caplog)[0]
    end(meanwhile)
    assert_sound(manager, theirs=0)


def test_nothing_is_lost_where_both_write_at_once_and_the_engine_is_killed(
    manager: ChromaDBManager, ours: chromadb.Collection, stranger: Script
) -> None:
    errors: list[Exception] = []

    def write_ours() -> None:
        for n in range(0, COUNT, 50):
            try:
                ours.upsert(ids=[f"ours {i}" for i in range(n, n + 50)], embeddings=OURS[n : n + 50])
            except ChromaManagerError as error:
                errors.append(error)
                return

    writer = threading.Thread(target=write_ours)
    writer.start()
    for n in range(0, COUNT, 105):
        write(stranger, n, n + 105)
    writer.join(60)
    # Noticed by the first call that begins when no other one is in flight, unless all came in the middle of others.
    with contextlib.suppress(InstanceLockedError):
        ours.count()
    kill_engines()
    end(stranger)
    assert all(isinstance(error, InstanceLockedError) for error in errors)
    assert_sound(manager)


@pytest.fixture
def server(manager: ChromaDBManager, ours: chromadb.Collection) -> Iterator[tuple[chromadb.api.ClientAPI, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("chroma")
    command = [program, "run", "--path", directory(manager), "--port", str(port), "--host", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert eventually(lambda: answers(port))
            yield chromadb.HttpClient("127.0.0.1", port), process.pid
        finally:
            process.kill()


def answers(port: int) -> bool:
    with socket.socket() as stream:
        return stream.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_of_chroma_that_writes_beside_is_named(
    manager: ChromaDBManager, ours: chromadb.Collection, server: tuple[chromadb.api.ClientAPI, int]
) -> None:
    client, pid = server
    before = checkpoint(manager)
    theirs = client.get_collection("vectors", embedding_function=None)
    theirs.add(ids=[f"theirs {i}" for i in range(COUNT)], embeddings=THEIRS)
    with pytest.raises(InstanceLockedError, match=rf"doc/azure .*process {pid} \(.*chroma.* run"):
        ours.count()
    assert checkpoint(manager) == before


def test_rows_of_others_are_found_before_a_checkpoint_where_no_moment_was_quiet(
    prepared: Path, script: Callable[..., Script], tmp_path: Path
) -> None:
    """As where both write all the time: here nobody looks between two calls."""
    from chroma_manager.engine.isolated import prepare
    from chroma_manager.worker.database import Database

    path = tmp_path / "db" / "doc" / "azure"
    shutil.copytree(prepared, path)
    database = Database(json.loads(prepare(None, path)[1]), path)
    bindings = database.open()
    stranger = start(script)
    write(stranger)
    del bindings
    assert eventually(lambda: files_open_in(path) == [])
    assert database.checkpoint() is None
    with pytest.raises(InstanceLockedError, match=rf"process {stranger.process.pid}\b"):
        database.open()
    end(stranger)
    bindings = database.open()
    (collection,) = bindings.list_collections(None, None, "default_tenant", "default_database")
    assert bindings.count(str(collection.id), "default_tenant", "default_database") == COUNT - 50 + COUNT


def test_a_program_is_named_with_its_arguments_wherever_it_is_installed(tmp_path: Path) -> None:
    program = tmp_path / "deep" / ("d" * 150) / "sleep"
    program.parent.mkdir(parents=True)
    program.symlink_to(shutil.which("sleep") or "")
    with subprocess.Popen([program, "60"]) as process:
        try:
            # It is started before its command line is its own.
            assert eventually(lambda: other_programs.named([process.pid]) == f"process {process.pid} (sleep 60)")
        finally:
            process.kill()
