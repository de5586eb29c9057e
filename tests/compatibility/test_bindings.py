"""The object in the place of Chroma's binding: Chroma's own clients over an engine process."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import chromadb_rust_bindings
import numpy as np
import psutil
import pytest
from chroma_manager import ChromaDBManager, ClientClosedError, EngineCrashedError, InstanceLockedError
from chroma_manager.options import ENGINES, LOCAL_ENGINES
from chromadb.api.rust import RustBindingsAPI
from chromadb.config import Component
from conftest import eventually, new_collection

PLACE = (chromadb.DEFAULT_TENANT, chromadb.DEFAULT_DATABASE)

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")


@pytest.fixture
def over_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever constructs `Bindings` gets ours."""
    from chroma_manager._native import Bindings

    monkeypatch.setattr(chromadb_rust_bindings, "Bindings", Bindings)
    yield
    assert eventually(lambda: psutil.Process().children() == []), "an engine outlived its client"


def engine() -> psutil.Process:
    (process,) = psutil.Process().children()
    return process


@pytest.mark.usefixtures("over_engine")
def test_a_persistent_client_keeps_its_database_in_an_engine_process(tmp_path: Path) -> None:
    with chromadb.PersistentClient(tmp_path / "db") as client:
        collection = client.create_collection("first", embedding_function=None)
        collection.add(ids=["1"], embeddings=[[1.0, 2.0]], metadatas=[{"page": 1}])
        assert engine().is_running()
        assert collection.query(query_embeddings=[[1.0, 2.0]], n_results=1)["ids"] == [["1"]]
    assert psutil.Process().children() == [], "closing does not wait for the engine"
    with chromadb.PersistentClient(tmp_path / "db") as client:
        os.kill(engine().pid, signal.SIGKILL)
        assert client.get_collection("first", embedding_function=None).count() == 1


@pytest.mark.usefixtures("over_engine")
def test_a_database_in_memory_is_not_replaced_by_an_empty_one(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with chromadb.EphemeralClient() as client:
        collection = client.create_collection("first", embedding_function=None)
        collection.add(ids=["1", "2"], embeddings=np.eye(2))
        assert collection.count() == 2
        os.kill(engine().pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(EngineCrashedError, match="count"):
                collection.count()
    assert list(tmp_path.glob("chroma-manager-*/.chroma_manager.lock")) == []


@pytest.mark.usefixtures("over_engine")
def test_what_chroma_raises_at_opening_is_raised_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "db" / "chroma.sqlite3").mkdir(parents=True)
    with pytest.raises(chromadb.errors.InternalError):
        construct(str(tmp_path / "db"))


@pytest.mark.usefixtures("over_engine")
def test_it_shares_the_rules_of_ownership(tmp_path: Path, script: Callable[..., Any]) -> None:
    holder = script(
        "manager = ChromaDBManager(base_path=base, engine='embedded'); manager.get_client('doc', 'azure')\n"
        "print('holding'); sys.stdin.readline()"
    )
    assert holder.read_line() == "holding"
    with pytest.raises(InstanceLockedError, match="doc/azure"):
        construct(str(tmp_path / "db" / "doc" / "azure"))
    holder.say()
    holder.finish()
    assert construct(str(tmp_path / "db" / "doc" / "azure")).heartbeat() > 0


@pytest.mark.usefixtures("over_engine")
def test_a_database_in_memory_keeps_more_records_than_a_checkpoint_is_taken_after() -> None:
    with chromadb.EphemeralClient() as client:
        collection = client.create_collection("many", embedding_function=None)
        rows = np.random.default_rng(0).random((5000, 8), dtype=np.float32)
        for first in range(0, 25_000, len(rows)):
            collection.add(ids=[str(first + i) for i in range(len(rows))], embeddings=rows)
        assert collection.count() == 25_000


@pytest.fixture
def newer_chroma(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in chromadb's main branch: a binding has `close()`, which `stop()` calls, and serves no call after it."""

    class NewerBindings:
        def __init__(self, **arguments: Any) -> None:
            self._bindings: Any = chromadb_bindings(**arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__dict__["_bindings"], name)

        def close(self) -> None:
            self._bindings = None

    chromadb_bindings = chromadb_rust_bindings.Bindings
    if not hasattr(chromadb_bindings, "close"):
        monkeypatch.setattr(chromadb_rust_bindings, "Bindings", NewerBindings)
    monkeypatch.setattr(RustBindingsAPI, "stop", newer_stop)


def newer_stop(self: RustBindingsAPI) -> None:
    if hasattr(self, "bindings"):
        close = getattr(self.bindings, "close", None)
        if close is not None:
            close()
        del self.bindings
    Component.stop(self)


@pytest.mark.parametrize("engine", LOCAL_ENGINES)
@pytest.mark.usefixtures("newer_chroma")
def test_a_chroma_whose_binding_is_closed_works_under_a_manager(tmp_path: Path, engine: str) -> None:
    with ChromaDBManager(base_path=tmp_path / "db", engine=engine) as manager:
        collection = new_collection(manager)
        manager.cleanup_old_instances(max_idle=0)
        assert collection.count() == 1
        collection.add(ids=["2"], embeddings=[[3.0, 4.0]])
        manager.get_client("doc", "azure").close()
        assert new_collection(manager).count() == 2
        manager.snapshot("doc", "azure", tmp_path / "snapshot")


@pytest.mark.usefixtures("over_engine")
def test_closing_it_closes_its_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(RustBindingsAPI, "stop", newer_stop)
    with chromadb.PersistentClient(tmp_path / "db") as client:
        client.create_collection("first", embedding_function=None).add(ids=["1"], embeddings=[[1.0, 2.0]])
    assert psutil.Process().children() == []
    bindings = construct(str(tmp_path / "db"))
    assert bindings.count_collections("default_tenant", "default_database") == 1
    for _ in range(2):
        bindings.close()
        assert psutil.Process().children() == []
    with pytest.raises(ClientClosedError):
        bindings.count_collections("default_tenant", "default_database")
    assert construct(str(tmp_path / "db")).count_collections("default_tenant", "default_database") == 1


@pytest.mark.usefixtures("over_engine")
def test_a_directory_that_has_no_two_names_is_refused() -> None:
    with pytest.raises(ValueError, match="a directory in a directory"):
        construct("/")


class Marker:
    """An argument whose conversion calls the app."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def __index__(self) -> int:
        self._note()
        return 1


@pytest.mark.usefixtures("over_engine")
def test_the_conversion_of_a_large_call_lets_other_threads_have_the_interpreter(tmp_path: Path) -> None:
    bindings = construct(str(tmp_path / "db"))
    turns, noted, is_done = 0, list[int](), threading.Event()

    def run() -> None:
        nonlocal turns
        while not is_done.is_set():
            turns += 1
            time.sleep(0.0005)

    other = threading.Thread(target=run)
    other.start()
    marker = Marker(lambda: noted.append(turns))
    try:
        with pytest.raises(TypeError):
            bindings.get(str(uuid.uuid4()), [marker, *["id"] * 3_000_000, marker], None, None, 0, None, [], *PLACE)
    finally:
        is_done.set()
        other.join()
    before, after = noted
    assert after - before > 10


def construct(persist_path: str) -> Any:
    config = chromadb_rust_bindings.SqliteDBConfig(
        hash_type=chromadb_rust_bindings.MigrationHash.MD5,
        migration_mode=chromadb_rust_bindings.MigrationMode.Apply,
        url=f"{persist_path}/chroma.sqlite3",
    )
    return chromadb_rust_bindings.Bindings(
        allow_reset=False, sqlite_db_config=config, hnsw_cache_size=100, persist_path=persist_path
    )


@pytest.mark.usefixtures("over_engine")
def test_what_chroma_s_does_not_have_it_has_not(tmp_path: Path) -> None:
    bindings = construct(str(tmp_path / "db"))
    with pytest.raises(AttributeError, match="no_such_method"):
        bindings.no_such_method()
