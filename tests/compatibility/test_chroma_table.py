"""The table of Chroma's methods (``src/chroma/``) against the installed Chroma: a new Chroma is one edit there."""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import chromadb
import chromadb_rust_bindings
import psutil
import pytest
from chroma_manager import ChromaDBManager, EngineCrashedError
from chroma_manager._native import chroma_methods
from chroma_manager.options import ENGINES
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT
from conftest import InCall, kill_engines

INSTALLED = tuple(map(int, chromadb.__version__.split(".")[:3]))

# Where the header of an SQLite file has the count of the transactions that have changed it.
CHANGES = slice(24, 28)

PLACE = (DEFAULT_TENANT, DEFAULT_DATABASE)
CONFIGURATION = '{"hnsw":{}}'
IDS = [str(i) for i in range(50)]
VECTORS = [[float(i), 1.0] for i in range(50)]
REST = (None, None, None, *PLACE)


class Method(NamedTuple):
    """What the table says of a method."""

    name: str
    since: str | None
    parameters: list[tuple[str, str | None, bool]]
    writes: bool
    releases_interpreter: bool
    changes_catalogue: bool


def is_installed(since: str | None) -> bool:
    return since is None or tuple(map(int, since.split("."))) <= INSTALLED


TABLE = {row[0]: Method(*row) for row in chroma_methods()}
HERE = [method for method in TABLE.values() if is_installed(method.since)]


def test_the_table_has_the_methods_of_the_binding() -> None:
    # The next Chroma's `close` is not forwarded: a connection has one of its own.
    found = {name for name in dir(chromadb_rust_bindings.Bindings) if not name.startswith("_")} - {"close"}
    assert {method.name for method in HERE} == found


@pytest.mark.parametrize("method", HERE, ids=lambda method: method.name)
def test_a_method_takes_the_parameters_of_the_table(method: Method) -> None:
    _, *found = inspect.signature(getattr(chromadb_rust_bindings.Bindings, method.name)).parameters.values()
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in found)
    parameters = [(name, is_none) for name, since, is_none in method.parameters if is_installed(since)]
    assert [(parameter.name, parameter.default is None) for parameter in found] == parameters


class Bystander:
    """A thread that notes that it could run: only if the interpreter was released, for it is never taken away."""

    def __init__(self) -> None:
        self._go, self.has_run = threading.Lock(), False
        self._go.acquire()
        self._is_over = False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._is_over:
            self._go.acquire()
            self.has_run = True

    def __enter__(self) -> Bystander:
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        sys.setswitchinterval(self._interval)
        self._is_over = True
        self._go.release()
        self._thread.join()

    def runs_during(self, call: Callable[[], object]) -> bool:
        self.has_run = False
        self._go.release()
        call()
        could_run = self.has_run
        while not self.has_run:
            time.sleep(0.001)
        return could_run


class Chroma(NamedTuple):
    """The stock binding, and a database with a collection."""

    bindings: Any
    collection: str
    file: Path

    def changes(self) -> bytes:
        return self.file.read_bytes()[CHANGES]

    def catalogue(self) -> list[object]:
        """The databases, what is known of each collection besides its records, and the first new tenant."""
        known: list[object] = [database.name for database in self.bindings.list_databases(None, 0, DEFAULT_TENANT)]
        names = ("id", "name", "configuration", "schema", "metadata", "dimension")
        collections = self.bindings.list_collections(None, 0, *PLACE)
        known += [[getattr(collection, name) for name in names] for collection in collections]
        with contextlib.suppress(chromadb.errors.NotFoundError):
            known.append(self.bindings.get_tenant("tenant-0").name)
        return known


@pytest.fixture
def chroma(tmp_path: Path) -> Iterator[Chroma]:
    with chromadb.PersistentClient(tmp_path, chromadb.Settings(allow_reset=True, anonymized_telemetry=False)) as client:
        collection = client.create_collection("first", embedding_function=None)
        collection.add(ids=IDS, embeddings=VECTORS)
        yield Chroma(client._server.bindings, str(collection.id), tmp_path / "chroma.sqlite3")


# A call of each that does what it can do, with a number that is another one each time.
CALLS: dict[str, Callable[[Chroma, int], tuple[Any, ...]]] = {
    "add": lambda chroma, i: ([f"new {i}"], chroma.collection, [[1.0, 2.0]], *REST),
    "count": lambda chroma, _: (chroma.collection, *PLACE),
    "count_collections": lambda *_: PLACE,
    "create_collection": lambda _, i: (f"made-{i}", CONFIGURATION, None, None, False, *PLACE),
    "create_database": lambda _, i: (f"database-{i}", DEFAULT_TENANT),
    "create_tenant": lambda _, i: (f"tenant-{i}",),
    "delete": lambda chroma, i: (chroma.collection, [IDS[i]]),
    "delete_collection": lambda _, i: (f"kept-{i}", *PLACE),
    "delete_database": lambda _, i: (f"kept-{i}", DEFAULT_TENANT),
    "get": lambda chroma, _: (chroma.collection, IDS, None, None, 0, None, ["embeddings"], *PLACE),
    "get_collection": lambda *_: ("first", *PLACE),
    "get_collection_by_id": lambda chroma, _: (chroma.collection, *PLACE),
    "get_database": lambda *_: (DEFAULT_DATABASE, DEFAULT_TENANT),
    "get_max_batch_size": lambda *_: (),
    "get_tenant": lambda *_: (DEFAULT_TENANT,),
    "get_version": lambda *_: (),
    "heartbeat": lambda *_: (),
    "list_collections": lambda *_: (None, 0, *PLACE),
    "list_databases": lambda *_: (None, 0, DEFAULT_TENANT),
    "query": lambda chroma, _: (chroma.collection, None, VECTORS, 9, None, None, ["distances"], *PLACE),
    "reset": lambda *_: (),
    "update": lambda chroma, i: (chroma.collection, [IDS[i]], [[2.0, float(i)]], *REST),
    "update_collection": lambda chroma, i: (chroma.collection, f"renamed-{i}", None, None),
    "upsert": lambda chroma, i: (chroma.collection, [IDS[i]], [[3.0, float(i)]], *REST),
}

# What is called again until the bystander could run, which takes the system a moment.
TIMES = 20


@pytest.mark.parametrize("method", HERE, ids=lambda method: method.name)
def test_a_method_writes_and_releases_the_interpreter_as_the_table_says(chroma: Chroma, method: Method) -> None:
    for i in range(TIMES if method.name.startswith("delete_") else 0):
        chroma.bindings.create_collection(f"kept-{i}", CONFIGURATION, None, None, False, *PLACE)
        chroma.bindings.create_database(f"kept-{i}", DEFAULT_TENANT)
    function, before = getattr(chroma.bindings, method.name), chroma.changes()
    calls = [CALLS[method.name](chroma, i) for i in range(1 if method.name == "reset" else TIMES)]
    with Bystander() as bystander:
        could_run = [bystander.runs_during(lambda call=call: function(*call)) for call in calls]
    assert any(could_run) == method.releases_interpreter
    assert (chroma.changes() != before) == method.writes


@pytest.mark.parametrize("method", HERE, ids=lambda method: method.name)
def test_a_method_changes_the_catalogue_as_the_table_says(chroma: Chroma, method: Method) -> None:
    chroma.bindings.create_collection("kept-0", CONFIGURATION, None, None, False, *PLACE)
    chroma.bindings.create_database("kept-0", DEFAULT_TENANT)
    before = chroma.catalogue()
    getattr(chroma.bindings, method.name)(*CALLS[method.name](chroma, 0))
    assert (chroma.catalogue() != before) == method.changes_catalogue


isolated = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    """A client over an engine process."""
    with ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None) as manager:
        yield manager.get_client("doc", "azure")


def with_keywords(client: Any, method: str, **arguments: Any) -> Any:
    """Calls the binding with every argument by name, as Chroma itself does not."""
    return getattr(client._server.bindings, method)(**arguments)


@isolated
def test_a_sliced_call_with_keywords_is_completed_after_a_kill(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = client.create_collection("first", embedding_function=None)
    kill_engines()
    monkeypatch.setenv("CHROMA_MANAGER_KILL_AT", "slice 1 taken")
    ids, vectors = [str(i) for i in range(400)], [[float(i), 1.0] for i in range(400)]
    with pytest.raises(EngineCrashedError, match="add"):
        with_keywords(client, "add", collection_id=str(collection.id), embeddings=vectors, ids=ids)
    monkeypatch.delenv("CHROMA_MANAGER_KILL_AT")
    assert sorted(collection.get()["ids"]) == sorted(ids)


REPEATED = [
    ("create_collection", {"name": "second", "get_or_create": True}, True),
    ("create_collection", {"name": "second", "get_or_create": False}, False),
    ("delete", {"ids": ["1"]}, True),
    ("delete", {"ids": ["1"], "limit": None}, True),
    ("delete", {"where": '{"page": 1}', "limit": 1}, False),
]


@isolated
@pytest.mark.parametrize(("method", "arguments", "is_repeated"), REPEATED)
def test_a_call_with_keywords_is_repeated_where_that_is_safe(client, method, arguments, is_repeated: bool) -> None:
    known = [name for name, since, _ in TABLE[method].parameters if is_installed(since)]
    if not set(arguments) <= set(known):
        pytest.skip("this Chroma has no such argument")
    if method == "create_collection":
        arguments = {"configuration_json_str": CONFIGURATION, **arguments}
    else:
        collection = client.create_collection("first", embedding_function=None)
        collection.add(ids=["1", "2"], embeddings=[[1.0], [2.0]], metadatas=[{"page": 1}, {"page": 1}])
        arguments = {"collection_id": str(collection.id), **arguments}
    (engine,) = psutil.Process().children()
    call = InCall(engine, lambda: with_keywords(client, method, **arguments))
    engine.kill()
    assert isinstance(call.finish(), EngineCrashedError) != is_repeated
