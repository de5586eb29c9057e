"""A collection that is known is got without asking, and whatever changes it, in whichever process, is noticed."""

from __future__ import annotations

import contextlib
import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import psutil
import pytest
from chroma_manager import ChromaDBManager, ClientClosedError, InstanceNotFoundError
from chroma_manager.options import ENGINES
from chromadb.config import Settings
from conftest import (
    InCall,
    Script,
    all_at_once,
    directory,
    engine_of,
    engines,
    eventually,
    has_ended,
    in_thread,
    kill_engines,
    new_collection,
    suspend,
)

# Without the page of memory that an engine process shares, collections are asked for every time.
known_only = pytest.mark.skipif(
    "isolated" not in ENGINES or psutil.LINUX is False, reason="nothing is known without asking on this system"
)

KEY = ("doc", "azure", "rag_collection")

# With which a manager asks for it.
METADATA = {"file_id": "doc", "embedding_type": "azure"}


class Asking:
    """How often a database was asked for a collection."""

    def __init__(self) -> None:
        self.times = 0

    def about(self, call: Callable[[], Any]) -> bool:
        """Whether `call` asks."""
        before = self.times
        call()
        return self.times > before


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Asking:
    asking = Asking()
    original = chromadb.api.client.Client.get_or_create_collection

    def asked(client: Any, *arguments: Any, **keywords: Any) -> Any:
        asking.times += 1
        return original(client, *arguments, **keywords)

    monkeypatch.setattr(chromadb.api.client.Client, "get_or_create_collection", asked)
    return asking


@pytest.fixture
def isolated(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(
        base_path=tmp_path / "db", engine="isolated", idle_timeout=None, settings=Settings(allow_reset=True)
    )


def get(manager: ChromaDBManager) -> Any:
    return manager.get_collection(*KEY)


def known(manager: ChromaDBManager) -> Any:
    """The collection, which this thread knows from now on."""
    new_collection(manager)
    get(manager)
    return get(manager)


def fresh(manager: ChromaDBManager) -> Any:
    """The collection as the database has it."""
    return manager.get_client("doc", "azure").get_collection("rag_collection")


@known_only
def test_a_known_collection_is_got_without_asking(isolated: ChromaDBManager, asking: Asking) -> None:
    known(isolated)
    assert not asking.about(lambda: get(isolated))
    assert vars(get(isolated)).keys() == vars(fresh(isolated)).keys()
    assert get(isolated).get_model() == fresh(isolated).get_model()
    assert get(isolated).count() == 1


@known_only
def test_what_one_thread_knows_another_need_not_ask_for(isolated: ChromaDBManager, asking: Asking) -> None:
    known(isolated)
    clients = isolated.stats()["instances"]["doc/azure"]["clients"]

    def ask() -> None:
        assert not asking.about(lambda: get(isolated))
        collection, client = get(isolated), isolated.get_client("doc", "azure")
        assert collection._client is client._server
        assert collection.count() == 1
        client.close()
        with pytest.raises(ClientClosedError):
            collection.count()

    in_thread(ask)
    # The clients of threads that have ended are not kept for the sake of what they have asked for.
    in_thread(lambda: isolated.get_collection("doc", "azure", "second"))
    gc.collect()
    assert isolated.stats()["instances"]["doc/azure"]["clients"] == clients
    assert get(isolated).count() == 1


@known_only
def test_threads_with_embedding_functions_of_their_own_do_not_forget_each_others(isolated, asking: Asking) -> None:
    functions = Lengths(), Lengths()
    for function in functions * 2:
        isolated.get_collection("doc", "azure", "lengths", function)
    for function in functions * 2:
        assert not asking.about(lambda function=function: isolated.get_collection("doc", "azure", "lengths", function))


@known_only
def test_a_known_collection_is_got_while_its_engine_process_does_nothing(isolated, asking: Asking) -> None:
    known(isolated)
    engine = engine_of(isolated)
    suspend(engine)
    try:
        assert not asking.about(lambda: get(isolated))
    finally:
        engine.resume()


def test_a_collection_that_was_got_again_is_one_of_its_own(manager: ChromaDBManager) -> None:
    known(manager)
    one, other = get(manager), get(manager)
    assert one is not other
    one.metadata["page"] = 7
    one._embedding_function = None
    one.configuration["hnsw"]["ef_search"] = 7
    assert other.configuration["hnsw"]["ef_search"] == get(manager).configuration["hnsw"]["ef_search"] == 100
    assert "page" not in other.metadata
    assert "page" not in get(manager).metadata
    assert get(manager)._embedding_function is not None
    one.modify(name="renamed")
    assert other.name == "rag_collection"
    assert get(manager).id != one.id


def renamed(client: Any) -> None:
    client.get_collection("rag_collection").modify(name="other")


def recreated(client: Any) -> None:
    client.delete_collection("rag_collection")
    client.create_collection("rag_collection", metadata={"made": "anew"})


def restored(client: Any) -> None:
    manager = ChromaDBManager()
    manager.restore("doc", "azure", Path(manager._options.base_path).with_name("snapshot"))


CHANGES: dict[str, Callable[[Any], object]] = {
    "deleted": lambda client: client.delete_collection("rag_collection"),
    "renamed": renamed,
    "created anew": recreated,
    "given other metadata": lambda client: client.get_collection("rag_collection").modify(metadata={"page": 1}),
    "configured": lambda client: client.get_collection("rag_collection").modify(
        configuration={"hnsw": {"ef_search": 77}}
    ),
    "written to, with metadata that are new": lambda client: client.get_collection("rag_collection").upsert(
        ids=["2"], embeddings=[[1.0, 2.0]], metadatas=[{"page": 1}]
    ),
    "written to, with metadata of another type": lambda client: client.get_collection("rag_collection").update(
        ids=["1"], metadatas=[{"known": "text"}]
    ),
    "emptied": lambda client: client.reset(),
    "restored": restored,
}

IN_PROCESS = """
from test_known_collections import CHANGES
from chromadb.config import Settings
manager = ChromaDBManager(base_path=base, engine="isolated", settings=Settings(allow_reset=True))
client = manager.get_client("doc", "azure")
client.heartbeat()
print("ready")
CHANGES[sys.stdin.readline().strip()](client)
print("changed")
sys.stdin.readline()
"""


@known_only
def test_what_is_new_to_a_database_that_was_restored_is_noticed(isolated: ChromaDBManager, tmp_path: Path) -> None:
    get(isolated)
    isolated.snapshot("doc", "azure", tmp_path / "snapshot")
    get(isolated).add(ids=["1"], embeddings=[[1.0, 2.0]])
    isolated.restore("doc", "azure", tmp_path / "snapshot")
    get(isolated).add(ids=["1"], embeddings=[[1.0, 2.0, 3.0]])
    assert get(isolated).get_model() == fresh(isolated).get_model()


WHO = ("this thread", "another thread", "another process")
SOON = [(who, change) for who in WHO for change in CHANGES if who != WHO[-1] or change in ("deleted", "restored")]
LATER = [pytest.param(WHO[-1], change, marks=pytest.mark.long) for change in CHANGES if (WHO[-1], change) not in SOON]


@known_only
@pytest.mark.parametrize(("who", "change"), [*SOON, *LATER])
def test_a_collection_that_somebody_has_changed_is_noticed(isolated, asking, script, change: str, who: str) -> None:
    new_collection(isolated).update(ids=["1"], metadatas=[{"known": 1}])
    isolated.snapshot("doc", "azure", directory(isolated).parents[1].with_name("snapshot"))
    get(isolated).modify(metadata={"since": "the snapshot"})
    other: Script | None = None
    if who == "another process":
        other = script(IN_PROCESS)
        assert other.read_line() == "ready"
    before = known(isolated).get_model()
    assert not asking.about(lambda: get(isolated))
    if other:
        other.say(change)
        assert other.read_line() == "changed"
    elif who == "another thread":
        changed = in_thread(lambda: CHANGES[change](isolated.get_client("doc", "azure")))
        assert not isinstance(changed, BaseException), changed
    else:
        CHANGES[change](isolated.get_client("doc", "azure"))
    after = get(isolated)
    assert after.get_model() == fresh(isolated).get_model() != before
    assert get(isolated).count() == fresh(isolated).count()
    get(isolated)
    assert not asking.about(lambda: get(isolated)), "known again"


@known_only
def test_what_changes_nothing_leaves_a_collection_known(isolated: ChromaDBManager, asking: Asking) -> None:
    collection = known(isolated)
    for call in (
        lambda: collection.add(ids=["2"], embeddings=[[3.0, 4.0]], documents=["two"]),
        lambda: collection.delete(ids=["2"]),
        lambda: collection.query(query_embeddings=[[1.0, 2.0]]),
        lambda: isolated.get_client("doc", "azure").list_collections(),
        lambda: in_thread(lambda: get(isolated)),
        lambda: in_thread(lambda: isolated.get_client("doc", "azure").get_collection("rag_collection")),
    ):
        call()
        assert not asking.about(lambda: get(isolated))


@known_only
def test_a_new_collection_is_a_change_and_one_that_exists_is_none(isolated: ChromaDBManager) -> None:
    known(isolated)
    client: Any = isolated.get_client("doc", "azure")
    connection = client._server.bindings
    catalogue = connection.catalogue()
    client.get_or_create_collection("rag_collection")
    assert connection.is_current(catalogue)
    client.get_or_create_collection("second")
    assert not connection.is_current(catalogue)


@known_only
def test_the_first_records_of_a_collection_are_noticed(isolated: ChromaDBManager, asking: Asking) -> None:
    get(isolated), get(isolated)
    assert not asking.about(lambda: get(isolated))
    assert get(isolated).get_model().dimension is None
    in_thread(lambda: get(isolated).add(ids=["1"], embeddings=[[1.0, 2.0, 3.0]]))
    assert get(isolated).get_model().dimension == 3


@known_only
def test_a_write_that_was_refused_hides_no_later_one(isolated: ChromaDBManager) -> None:
    collection = known(isolated)
    with pytest.raises(Exception, match="dimension"):
        collection.add(ids=["2"], embeddings=[[1.0]], metadatas=[{"page": 1}])
    get(isolated), get(isolated)
    collection.add(ids=["2"], embeddings=[[1.0, 2.0]], metadatas=[{"page": 1}])
    assert get(isolated).get_model() == fresh(isolated).get_model()


@known_only
def test_a_long_write_with_new_metadata_is_noticed(isolated: ChromaDBManager) -> None:
    collection = known(isolated)
    vectors = np.ones((1000, 2), dtype=np.float32)
    collection.add(
        ids=[f"n{i}" for i in range(1000)], embeddings=vectors, metadatas=[{f"k{i}": i} for i in range(1000)]
    )
    assert get(isolated).get_model() == fresh(isolated).get_model()


@known_only
@pytest.mark.parametrize("learns", [False, True])
def test_a_change_while_a_collection_is_asked_for_makes_the_answer_outdated(isolated, monkeypatch, learns) -> None:
    new_collection(isolated)
    original = chromadb.api.client.Client.get_or_create_collection
    deletions = [1]
    client: Any = isolated.get_client("doc", "azure")

    def delete() -> None:
        isolated.get_client("doc", "azure").delete_collection("rag_collection")
        # Another thread with the same client, which knows the new collection by then.
        for _ in range(3 if learns else 0):
            client.known_or_created("rag_collection", METADATA)

    def overtaken(client: Any, *arguments: Any, **keywords: Any) -> Any:
        collection = original(client, *arguments, **keywords)
        if deletions:
            deletions.pop()
            assert in_thread(delete) is None
        return collection

    monkeypatch.setattr(chromadb.api.client.Client, "get_or_create_collection", overtaken)
    outdated = get(isolated)
    assert get(isolated).id != outdated.id
    assert get(isolated).count() == 0


@known_only
def test_the_death_of_an_engine_process_is_noticed(isolated: ChromaDBManager, asking: Asking, script) -> None:
    before = known(isolated)
    (engine,) = engines()
    kill_engines()
    assert has_ended(engine)
    other = script("""
with ChromaDBManager(base_path=base, engine="isolated") as manager:
    manager.get_client("doc", "azure").delete_collection("rag_collection")
""")
    assert other.finish() == ""
    assert asking.about(lambda: get(isolated))
    assert get(isolated).id == fresh(isolated).id != before.id
    assert not asking.about(lambda: get(isolated))
    kill_engines()
    assert asking.about(lambda: get(isolated))


def test_a_removed_database_is_created_again(manager: ChromaDBManager) -> None:
    before = known(manager)
    shutil.rmtree(directory(manager).parent)
    collection = get(manager)
    assert collection.id != before.id
    assert collection.count() == 0
    assert (directory(manager) / "chroma.sqlite3").exists()


@pytest.mark.parametrize("how", ["removed", "moved", "its files alone"])
def test_a_database_that_was_put_in_the_place_is_got(manager: ChromaDBManager, tmp_path: Path, how: str) -> None:
    new_collection(manager)
    manager.cleanup_all_instances()
    backup = shutil.copytree(directory(manager), tmp_path / "backup", ignore=shutil.ignore_patterns(".chroma_manager*"))
    with chromadb.PersistentClient(backup) as client:
        client.delete_collection("rag_collection")
        put = client.create_collection("rag_collection")
    known(manager)
    if how == "removed":
        shutil.rmtree(directory(manager))
    elif how == "moved":
        directory(manager).rename(tmp_path / "moved")
    else:
        for entry in directory(manager).glob("[!.]*"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.copytree(backup, directory(manager), dirs_exist_ok=True)
    assert get(manager).id == put.id
    assert get(manager).count() == 0


def test_a_handle_that_was_known_brings_nothing_back(manager: ChromaDBManager) -> None:
    """As after a look that asks: `get_client` and `get_collection` create a database, and not what they return."""
    collection = known(manager)
    client = manager.get_client("doc", "azure")
    get(manager)
    shutil.rmtree(directory(manager))
    for call in (client.list_collections, collection.count):
        with pytest.raises(InstanceNotFoundError):
            call()
    assert not directory(manager).exists()


def test_after_a_cleanup_a_collection_is_got_from_an_open_database(manager: ChromaDBManager, asking: Asking) -> None:
    before = known(manager)
    manager.cleanup_instance("doc", "azure")
    assert asking.about(lambda: get(manager))
    assert list(manager.stats()["instances"]) == ["doc/azure"]
    with pytest.raises(ClientClosedError):
        before.count()
    known(manager)
    in_thread(manager.cleanup_all_instances)
    assert get(manager).count() == 1
    known(manager)
    assert manager.delete_instance("doc", "azure")
    assert get(manager).count() == 0


def test_a_client_that_was_closed_knows_nothing(manager: ChromaDBManager, asking: Asking) -> None:
    known(manager)
    client = manager.get_client("doc", "azure")
    client.close()
    with pytest.raises(ClientClosedError):
        client.known_or_created("rag_collection", METADATA)
    assert get(manager).count() == 1


@known_only
def test_a_client_whose_cleanup_waits_for_a_call_knows_nothing(isolated: ChromaDBManager) -> None:
    collection, engine = known(isolated), engine_of(isolated)
    client: Any = isolated.get_client("doc", "azure")
    # So that a socket is idle while another one is in use.
    calls = [InCall(engine, collection.count) for _ in range(2)]
    engine.resume()
    assert [call.finish() for call in calls] == [1, 1]
    assert client.known_or_created("rag_collection", METADATA).id == collection.id
    call = InCall(engine, collection.count)
    cleanup = threading.Thread(target=isolated.cleanup_all_instances)
    cleanup.start()
    assert eventually(lambda: isolated.stats()["instances"]["doc/azure"]["clients"] == 0)
    with pytest.raises(ClientClosedError):
        client.known_or_created("rag_collection", METADATA)
    engine.resume()
    assert call.finish() == 1
    cleanup.join(60)


@pytest.mark.parametrize("how", ["idle", "evicted"])
def test_a_database_that_was_closed_is_opened(manager: ChromaDBManager, asking: Asking, how: str) -> None:
    known(manager)
    if how == "idle":
        assert manager.cleanup_old_instances(max_idle=0) == 1
    else:
        options = {**vars(manager._options), "max_engines": 1}
        manager.shutdown()
        manager = ChromaDBManager(**options)
        known(manager)
        manager.get_client("other", "azure")
    assert "doc/azure" not in manager.stats()["instances"]
    assert asking.about(lambda: get(manager))
    assert list(manager.stats()["instances"]) == ["doc/azure"]


def test_getting_a_known_collection_is_a_use(manager: ChromaDBManager) -> None:
    known(manager)
    before = manager.stats()["instances"]["doc/azure"]["last_used_at"]
    time.sleep(0.05)
    get(manager)
    assert manager.stats()["instances"]["doc/azure"]["last_used_at"] >= before + 0.04


@known_only
def test_a_child_of_a_fork_asks_and_what_it_changes_is_noticed(script: Callable[..., Script]) -> None:
    code = """
from conftest import *
import chromadb
manager = ChromaDBManager(base_path=base, engine="isolated")
asked, original = [], chromadb.api.client.Client.get_or_create_collection
def ask(*arguments, **keywords):
    asked.append(1)
    return original(*arguments, **keywords)
chromadb.api.client.Client.get_or_create_collection = ask
def get():
    return manager.get_collection("doc", "azure", "rag_collection")
new_collection(manager); get()
client = manager.get_client("doc", "azure")
asked.clear()
before = get()
assert asked == []
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    try:
        assert before.id == get().id and asked == [1]
        # The client of the parent, whose knowledge was inherited.
        assert client.known_or_created("rag_collection", before.metadata).id == before.id and asked == [1, 1]
        get(); get()
        manager.get_client("doc", "azure").delete_collection("rag_collection")
        assert get().id != before.id
        os._exit(0)
    except BaseException as error:
        print("child:", type(error).__name__, error, flush=True)
        os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
assert get().id != before.id
print(get().count())
"""
    assert script(code).finish() == "0"


def test_no_thread_gets_a_collection_whose_deletion_has_returned(manager: ChromaDBManager) -> None:
    new_collection(manager)
    deleted: set[str] = set()
    is_over = threading.Event()
    outdated: list[str] = []
    looks = [0] * 4

    def look(i: int) -> None:
        if i == len(looks):
            client = manager.get_client("doc", "azure")
            for _ in range(60):
                gone = str(get(manager).id)
                client.delete_collection("rag_collection")
                deleted.add(gone)
                time.sleep(0.01)
            is_over.set()
        while not is_over.is_set():
            already = frozenset(deleted)
            found = str(get(manager).id)
            looks[i] += 1
            if found in already:
                outdated.append(found)

    outcomes = all_at_once(len(looks) + 1, look)
    is_over.set()
    assert outcomes == [None] * len(outcomes)
    assert outdated == []
    assert all(looks)


class Lengths(chromadb.EmbeddingFunction):  # type: ignore[type-arg]
    def __init__(self) -> None:
        pass

    def __call__(self, input: Any) -> Any:  # noqa: A002
        return [np.array([len(text), 1.0], dtype=np.float32) for text in input]

    @staticmethod
    def name() -> str:
        return "lengths"

    @staticmethod
    def build_from_config(config: Any) -> Lengths:
        return Lengths()

    def get_config(self) -> dict[str, Any]:
        return {}


@known_only
def test_what_is_asked_for_in_another_way_is_asked_for(isolated: ChromaDBManager, asking: Asking) -> None:
    function, loader = Lengths(), lambda uris: uris
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"data_loader": loader},
        {"metadata": {"page": 1}},
        {"metadata": {"page": 2}},
        {"metadata": {"pages": [1, 2]}},
        {"configuration": {}},
    )
    isolated.get_collection(*KEY)
    for way in ways:
        assert asking.about(lambda way=way: isolated.get_collection(*KEY, **way)), way
    assert isolated.get_collection(*KEY, data_loader=loader)._data_loader is loader
    with pytest.raises(ValueError, match="mbedding function"):
        isolated.get_collection(*KEY, function)
    for way in ({"metadata": {"page": 1}}, {"data_loader": loader}):
        isolated.get_collection(*KEY, **way)
        assert not asking.about(lambda way=way: isolated.get_collection(*KEY, **{**way, **{}}))
    lengths = ("doc", "azure", "lengths", function)
    isolated.get_collection(*lengths), isolated.get_collection(*lengths)
    assert not asking.about(lambda: isolated.get_collection(*lengths))
    assert asking.about(lambda: isolated.get_collection(*lengths[:-1], Lengths()))


@known_only
def test_an_embedding_function_is_not_kept_for_the_sake_of_a_known_collection(isolated: ChromaDBManager) -> None:
    function = Lengths()
    for _ in range(3):
        isolated.get_collection("doc", "azure", "lengths", function)
    gone = weakref.ref(function)
    del function
    gc.collect()
    assert gone() is None
    assert isolated.get_collection("doc", "azure", "lengths")._embedding_function is not None


@known_only
def test_a_client_that_was_sent_to_another_database_asks_there(isolated: ChromaDBManager) -> None:
    before = known(isolated)
    client: Any = isolated.get_client("doc", "azure")
    client._admin_client.create_database("second")
    client.set_database("second")
    get(isolated)
    assert get(isolated).id != before.id
    assert get(isolated).database == "second"
    client.set_database("default_database")
    assert get(isolated).id == before.id


@known_only
def test_what_is_known_does_not_grow_with_collections_that_are_gone(isolated: ChromaDBManager) -> None:
    client: Any = isolated.get_client("doc", "azure")
    for i in range(20):
        name = f"collection-{i}"
        for _ in range(3):
            isolated.get_collection("doc", "azure", name)
        client.delete_collection(name)
    assert len(client._known) <= 2


@known_only
def test_what_is_known_does_not_grow_with_what_it_is_asked_for_with(isolated: ChromaDBManager) -> None:
    client: Any = isolated.get_client("doc", "azure")
    for i in range(20):
        isolated.get_collection("doc", "azure", "lengths", Lengths(), metadata={"page": i})
        isolated.get_collection(*KEY, metadata={"page": i})
    gc.collect()
    assert len(client._known) <= 2


@pytest.fixture(autouse=True)
def no_engine_is_stopped() -> Iterator[None]:
    yield
    for engine in engines():
        with contextlib.suppress(psutil.NoSuchProcess):
            if engine.status() == psutil.STATUS_STOPPED:
                engine.resume()
