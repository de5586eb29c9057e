"""Every thread has its own client of every instance, for as long as the thread lives."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chroma_manager.engine.embedded
import chromadb
import chromadb.api.client
import pytest
from chroma_manager import ChromaDBManager, ClientClosedError
from conftest import all_at_once, in_thread, new_collection, on_every_engine


class Racing:
    """A binding whose reads fail of what a write beside them does, as Chroma's do now and then."""

    def __init__(self, bindings: object) -> None:
        self.bindings = bindings
        self.left: dict[str, int] = {}
        self.failed = 0
        self.problem = "Error executing plan: Internal error: Error finding id"

    def __getattr__(self, name: str) -> object:
        if self.left.get(name, 0) == 0:
            return getattr(self.bindings, name)
        self.left[name] -= 1
        self.failed += 1
        raise chromadb.errors.InternalError(self.problem)


@pytest.fixture
def racing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ChromaDBManager, list[Racing]]:
    opened: list[Racing] = []
    open_bindings = chroma_manager.engine.embedded.open_bindings

    def open_racing(*arguments: object) -> tuple[Racing, object]:
        bindings, system = open_bindings(*arguments)
        opened.append(Racing(bindings))
        return opened[-1], system

    monkeypatch.setattr(chroma_manager.engine.embedded, "open_bindings", open_racing)
    return ChromaDBManager(base_path=tmp_path / "db", engine="embedded"), opened


def holders(manager: ChromaDBManager, key: str = "doc/azure") -> tuple[int, int]:
    instance = manager.stats()["instances"][key]
    return instance["threads"], instance["clients"]


@on_every_engine
def test_a_thread_gets_the_same_object_at_every_call(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    assert all(manager.get_client("doc", "azure") is client for _ in range(100))


@on_every_engine
def test_every_other_thread_gets_another_object(manager: ChromaDBManager) -> None:
    clients = all_at_once(8, lambda _: manager.get_client("doc", "azure"))
    clients.append(manager.get_client("doc", "azure"))
    assert len({id(client) for client in clients}) == 9
    assert manager.stats()["openings"] == 1


@on_every_engine
def test_another_file_or_embedding_type_is_another_database(manager: ChromaDBManager) -> None:
    new_collection(manager)
    assert manager.get_client("doc", "openai").list_collections() == []
    assert manager.get_client("doc2", "azure").list_collections() == []
    assert manager.get_client("doc", "azure").count_collections() == 1


def test_a_client_is_a_chromadb_client(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    assert isinstance(client, chromadb.api.client.Client)
    assert isinstance(client, chromadb.api.ClientAPI)
    assert client.get_version() == chromadb.__version__
    assert client.get_max_batch_size() > 5000
    assert client.tenant == chromadb.DEFAULT_TENANT
    assert client.database == chromadb.DEFAULT_DATABASE


def test_tenants_and_databases_work_as_with_chromadb(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    client._admin_client.create_database("second")
    client.set_database("second")
    client.create_collection("there", embedding_function=None)
    with pytest.raises(chromadb.errors.NotFoundError):
        client.set_database("third")
    client.set_database(chromadb.DEFAULT_DATABASE)
    assert client.list_collections() == []
    with pytest.raises(chromadb.errors.NotFoundError, match="nobody"):
        client.set_tenant("nobody")


@on_every_engine
def test_what_one_thread_writes_another_reads(manager: ChromaDBManager) -> None:
    new_collection(manager)
    ids = in_thread(lambda: manager.get_collection("doc", "azure", "rag_collection").get()["ids"])
    assert ids == ["1"]


@on_every_engine
def test_a_client_can_be_used_from_another_thread(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    assert in_thread(collection.count) == 1


@on_every_engine
def test_when_a_thread_ends_its_clients_are_released_at_once(manager: ChromaDBManager) -> None:
    new_collection(manager)
    for _ in range(3):
        seen = in_thread(lambda: (manager.get_client("doc", "azure"), holders(manager))[1])
        assert seen == (2, 2)
        assert holders(manager) == (1, 1)
    client = in_thread(lambda: weakref.ref(manager.get_client("doc", "azure")))
    assert client() is None, "something still holds the client of a thread that has ended"


@on_every_engine
def test_the_instance_stays_open_when_its_last_thread_ends(manager: ChromaDBManager) -> None:
    for _ in range(5):
        in_thread(lambda: new_collection(manager))
    assert manager.stats()["openings"] == 1
    assert holders(manager) == (0, 0)


@on_every_engine
def test_a_client_that_outlives_its_thread_goes_on(manager: ChromaDBManager) -> None:
    collection = in_thread(lambda: new_collection(manager))
    assert collection.count() == 1


@on_every_engine
def test_threads_of_a_pool_keep_their_clients_between_tasks(manager: ChromaDBManager) -> None:
    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda _: (threading.get_ident(), id(manager.get_client("doc", "azure"))), range(64)))
        assert len(set(seen)) == len({thread for thread, _ in seen})
        assert holders(manager)[0] == len(set(seen))
    assert holders(manager) == (0, 0)


@on_every_engine
def test_clearing_a_thread_s_clients_leaves_those_of_the_others(manager: ChromaDBManager) -> None:
    mine = manager.get_client("doc", "azure")
    collection = new_collection(manager)
    go, cleared = threading.Event(), threading.Event()
    others: list[bool] = []

    def other() -> None:
        client = manager.get_client("doc", "azure")
        go.set()
        assert cleared.wait(60)
        others.append(manager.get_client("doc", "azure") is client)

    thread = threading.Thread(target=other)
    thread.start()
    assert go.wait(60)
    manager._clear_thread_local_clients()
    assert holders(manager) == (1, 1)
    cleared.set()
    thread.join(60)
    assert others == [True]
    assert manager.get_client("doc", "azure") is not mine
    assert collection.count() == 1, "no database was closed"
    assert manager.stats()["openings"] == 1


@on_every_engine
def test_a_user_s_session_is_a_client_of_its_own(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    ann, bob = manager.get_instance("doc", "azure", "ann"), manager.get_instance("doc", "azure", user_id="bob")
    assert len({id(client), id(ann), id(bob)}) == 3
    assert manager.get_instance("doc", "azure", "ann") is ann
    assert manager.get_instance("doc", "azure") is client
    assert manager.get_instance("doc", "azure", "") is client
    assert manager.get_instance("doc", "azure", "ann", True) is client
    assert manager.get_instance("doc", "azure", user_id="bob", is_embedding=True) is client
    assert holders(manager) == (1, 3)
    assert manager.stats()["openings"] == 1


def test_a_user_id_is_no_path(manager: ChromaDBManager, tmp_path) -> None:
    client = manager.get_instance("doc", "azure", "../../etc/passwd\n")
    assert client.heartbeat() > 0
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == ["doc"]


@on_every_engine
def test_closing_a_client_closes_it_alone(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    session = manager.get_instance("doc", "azure", "ann")
    with manager.get_client("doc", "azure") as client:
        pass
    client.close()
    for call in (collection.count, client.heartbeat, client.list_collections, lambda: client.set_tenant("x")):
        with pytest.raises(ClientClosedError, match="doc/azure"):
            call()
    assert session.count_collections() == 1
    fresh = manager.get_client("doc", "azure")
    assert fresh is not client
    assert fresh.count_collections() == 1


@on_every_engine
def test_a_client_closed_by_another_thread_is_not_handed_out_again(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    in_thread(client.close)
    assert manager.get_client("doc", "azure") is not client


@on_every_engine
def test_clients_are_freed_by_counting_alone(manager: ChromaDBManager) -> None:
    gc.disable()
    try:
        client = weakref.ref(manager.get_client("doc", "azure"))
        manager.cleanup_all_instances()
        assert client() is None
    finally:
        gc.enable()


@on_every_engine
def test_a_client_whose_instance_is_cleaned_up_while_it_is_made_is_not_handed_out(manager, monkeypatch) -> None:
    import chroma_manager.client

    make = chroma_manager.client.make_client

    def clean_up_and_make(*arguments: object) -> object:
        monkeypatch.undo()
        manager.cleanup_instance("doc", "azure")
        return make(*arguments)

    monkeypatch.setattr(chroma_manager.client, "make_client", clean_up_and_make)
    client = manager.get_client("doc", "azure")
    assert client.count_collections() == 0
    assert manager.get_client("doc", "azure") is client
    assert manager.stats()["openings"] == 2


def test_a_read_that_fails_of_a_write_beside_it_is_made_again(racing) -> None:
    manager, opened = racing
    collection = new_collection(manager)
    for call in (lambda: collection.query(query_embeddings=[[1.0, 2.0]])["ids"], lambda: [collection.get()["ids"]]):
        opened[0].left = {"query": 3, "get": 3}
        assert call() == [["1"]]
    assert opened[0].failed == 6
    assert len(opened) == 1, "the database was opened anew for it"


def test_a_read_that_fails_again_and_again_says_so(racing) -> None:
    manager, opened = racing
    collection = new_collection(manager)
    opened[0].left = {"query": 100}
    with pytest.raises(chromadb.errors.InternalError, match="finding id"):
        collection.query(query_embeddings=[[1.0, 2.0]])
    assert opened[0].failed == 11
    assert len(opened) == 1


def test_what_else_fails_is_not_made_again(racing) -> None:
    manager, opened = racing
    collection = new_collection(manager)
    opened[0].left = {"delete": 1}
    with pytest.raises(chromadb.errors.InternalError, match="finding id"):
        collection.delete(ids=["1"])
    opened[0].left, opened[0].problem = {"query": 1}, "Error executing plan: Internal error: Error querying knn"
    with pytest.raises(chromadb.errors.InternalError, match="querying knn"):
        collection.query(query_embeddings=[[1.0, 2.0]])
    assert collection.count() == 1
    assert len(opened) == 2, "what has failed in itself is opened anew"
