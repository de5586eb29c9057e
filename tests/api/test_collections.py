"""`get_collection`: the guide's call, and the call that the app in use today makes."""

from __future__ import annotations

import uuid

import chromadb.errors
import numpy as np
import pytest
from chroma_manager import ChromaDBManager
from chroma_manager.options import LOCAL_ENGINES
from chromadb.api.types import EmbeddingFunction
from chromadb.config import Settings
from conftest import Script, all_at_once, new_collection, on_every_engine


class Lengths(EmbeddingFunction):
    """An embedding function that needs nothing."""

    def __init__(self) -> None:
        pass

    def __call__(self, input):  # noqa: A002
        return [[float(len(text)), 1.0] for text in input]

    @staticmethod
    def name() -> str:
        return "lengths"

    def get_config(self):
        return {}

    @staticmethod
    def build_from_config(config):
        return Lengths()


class Others(Lengths):
    """Another one."""

    @staticmethod
    def name() -> str:
        return "others"


@on_every_engine
def test_a_new_collection_is_stamped_with_its_key(manager: ChromaDBManager) -> None:
    collection = manager.get_collection("doc", "azure", "rag_collection")
    assert collection.metadata == {"file_id": "doc", "embedding_type": "azure"}
    assert collection.count() == 0


@on_every_engine
def test_metadata_that_is_given_stands_beside_the_stamp(manager: ChromaDBManager) -> None:
    collection = manager.get_collection("doc", "azure", "rag_collection", metadata={"pages": 3})
    assert collection.metadata == {"file_id": "doc", "embedding_type": "azure", "pages": 3}


@on_every_engine
def test_the_metadata_of_a_collection_that_exists_is_left_as_it_is(manager: ChromaDBManager) -> None:
    client = manager.get_client("doc", "azure")
    client.create_collection("old", metadata={"mine": 1}, embedding_function=None)
    client.create_collection("bare", embedding_function=None)
    assert manager.get_collection("doc", "azure", "old", metadata={"new": 2}).metadata == {"mine": 1}
    assert manager.get_collection("doc", "azure", "bare").metadata is None
    assert client.get_collection("old", embedding_function=None).metadata == {"mine": 1}


@on_every_engine
def test_without_an_embedding_function_chroma_s_default_applies(manager: ChromaDBManager) -> None:
    ours = manager.get_collection("doc", "azure", "ours").configuration["embedding_function"]
    theirs = manager.get_client("doc", "azure").create_collection("theirs").configuration["embedding_function"]
    assert type(ours) is type(theirs)
    assert ours.name() == "default"


@on_every_engine
def test_an_embedding_function_is_used_and_kept(manager: ChromaDBManager) -> None:
    collection = manager.get_collection("doc", "azure", "rag_collection", Lengths())
    collection.add(ids=["a", "b"], documents=["xxx", "xxxxxxxx"])
    assert collection.query(query_texts=["xxxxxxx"], n_results=1)["ids"] == [["b"]]
    with pytest.raises(ValueError, match="lengths"):
        manager.get_collection("doc", "azure", "rag_collection", Others())


@on_every_engine
def test_a_str_in_the_place_of_the_embedding_function_is_a_user_id(manager: ChromaDBManager) -> None:
    positional = manager.get_collection("doc", "azure", "rag_collection", "ann")
    assert manager.stats()["instances"]["doc/azure"]["clients"] == 1
    manager.get_collection("doc", "azure", "rag_collection", user_id="ann")
    assert manager.stats()["instances"]["doc/azure"]["clients"] == 1
    manager.get_collection("doc", "azure", "rag_collection", "bob", is_embedding=True)
    assert manager.stats()["instances"]["doc/azure"]["clients"] == 2
    assert positional.metadata == {"file_id": "doc", "embedding_type": "azure"}


@on_every_engine
def test_the_old_manager_s_calls_work_by_position(manager: ChromaDBManager) -> None:
    """`get_collection(file_id, embedding_type, collection_name, user_id, is_embedding)`."""
    collection = manager.get_collection("doc", "azure", "rag_collection", "ann", False)
    assert manager.stats()["instances"]["doc/azure"]["clients"] == 1
    manager.get_collection("doc", "azure", "rag_collection", "bob", True)
    manager.get_collection("doc", "azure", "rag_collection", None, True)
    assert manager.stats()["instances"]["doc/azure"]["clients"] == 2, "the second is the thread's own"
    assert manager.get_collection("doc", "azure", "lengths", Lengths(), False).id != collection.id
    with pytest.raises(TypeError, match=r"is_embedding|bool"):
        manager.get_collection("doc", "azure", "rag_collection", None, "ann")


@pytest.mark.parametrize("user", [7, 0, -(10**30), uuid.UUID(int=7), np.int64(7)])
@on_every_engine
def test_a_user_id_may_be_a_number_or_a_uuid(manager: ChromaDBManager, user: object) -> None:
    client = manager.get_instance("doc", "azure", user)
    assert manager.get_instance("doc", "azure", user_id=user) is client
    assert manager.get_instance("doc", "azure", str(user)) is client
    assert manager.get_instance("doc", "azure") is not client
    collection = manager.get_collection("doc", "azure", "rag_collection", user)
    assert manager.get_collection("doc", "azure", "rag_collection", user_id=user).id == collection.id
    assert manager.stats()["instances"]["doc/azure"]["clients"] == 2
    assert client.get_collection("rag_collection", embedding_function=None).id == collection.id


@pytest.mark.parametrize("user", [True, 1.5, b"ann", ["ann"], object(), {}])
@on_every_engine
def test_what_is_no_user_id_and_no_embedding_function_is_refused(manager: ChromaDBManager, user: object) -> None:
    with pytest.raises(TypeError, match=r"user_id must be a str, an int or a uuid.UUID, not "):
        manager.get_instance("doc", "azure", user)
    with pytest.raises(TypeError, match=r"doc/azure .*neither an embedding function nor a user id"):
        manager.get_collection("doc", "azure", "rag_collection", user)
    with pytest.raises(TypeError, match=r"user_id must be a str, an int or a uuid.UUID, not "):
        manager.get_collection("doc", "azure", "rag_collection", user_id=user)
    assert manager.stats()["instances"] == {}
    assert manager.get_instance("doc", "azure", user, True) is manager.get_client("doc", "azure")


@pytest.mark.parametrize("engine", LOCAL_ENGINES)
def test_a_reset_is_allowed_by_the_settings_or_the_environment(tmp_path, monkeypatch, engine: str) -> None:
    refused = ChromaDBManager(base_path=tmp_path, engine=engine)
    new_collection(refused)
    with pytest.raises(chromadb.errors.AuthorizationError, match="Reset is disabled by config"):
        refused.get_client("doc", "azure").reset()
    refused.shutdown()
    with ChromaDBManager(base_path=tmp_path, engine=engine, settings=Settings(allow_reset=True)) as manager:
        client, kept = manager.get_client("doc", "azure"), new_collection(manager)
        other = new_collection(manager, "other")
        assert client.reset()
        assert client.list_collections() == []
        with pytest.raises(chromadb.errors.NotFoundError):
            kept.count()
        assert (new_collection(manager).count(), other.count()) == (1, 1)
    code = f"""
manager = ChromaDBManager(base_path={str(tmp_path)!r}, engine={engine!r})
print(manager.get_client("doc", "azure").reset())
"""
    monkeypatch.setenv("ALLOW_RESET", "TRUE")
    app = Script(code, tmp_path)
    assert app.finish() == "True"


@on_every_engine
def test_two_user_ids_are_refused(manager: ChromaDBManager) -> None:
    with pytest.raises(TypeError, match="doc/azure"):
        manager.get_collection("doc", "azure", "rag_collection", "ann", user_id="bob")


@on_every_engine
def test_configuration_reaches_a_new_collection(manager: ChromaDBManager) -> None:
    collection = manager.get_collection("doc", "azure", "cosine", configuration={"hnsw": {"space": "cosine"}})
    assert collection.configuration["hnsw"]["space"] == "cosine"


@on_every_engine
def test_threads_that_get_the_same_new_collection_get_one(manager: ChromaDBManager) -> None:
    collections = all_at_once(16, lambda _: manager.get_collection("doc", "azure", "rag_collection"))
    assert {str(collection.id) for collection in collections} == {str(collections[0].id)}


@on_every_engine
def test_a_name_that_chroma_refuses_is_chroma_s_error(manager: ChromaDBManager) -> None:
    with pytest.raises(Exception, match="a b") as caught:
        manager.get_collection("doc", "azure", "a b")
    assert type(caught.value).__module__.startswith(("chromadb", "builtins"))
    assert new_collection(manager).count() == 1


@on_every_engine
def test_schema_and_data_loader_reach_chroma(manager: ChromaDBManager, monkeypatch) -> None:
    client = manager.get_client("doc", "azure")
    given: dict[str, object] = {}
    monkeypatch.setattr(type(client), "get_or_create_collection", lambda self, name, **options: given.update(options))
    schema, loader = object(), object()
    manager.get_collection("doc", "azure", "rag_collection", schema=schema, data_loader=loader)
    assert given["schema"] is schema
    assert given["data_loader"] is loader
