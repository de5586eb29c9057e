"""The vector stores of LangChain, LlamaIndex, mem0 and crewAI over our clients: that they work, and what ends them.

    make stores

These are large to install, and so no part of `make test`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path

os.environ |= {"CREWAI_DISABLE_TELEMETRY": "true", "MEM0_TELEMETRY": "False", "OTEL_SDK_DISABLED": "true"}

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager, ClientClosedError

KEY = ("doc", "azure")


class Embedding(chromadb.EmbeddingFunction[list[str]]):
    """A vector of the letters of a text."""

    def __init__(self) -> None:
        """Has no options."""

    def __call__(self, input: list[str]) -> list[np.ndarray]:  # noqa: A002 - chromadb's name
        return [np.array([text.count(letter) + 0.1 for letter in "abc"], dtype=np.float32) for text in input]

    @staticmethod
    def name() -> str:
        return "letters"

    def get_config(self) -> dict[str, object]:
        return {}


@pytest.fixture
def manager(tmp_path: Path):
    with ChromaDBManager(base_path=tmp_path / "db", idle_timeout=None) as manager:
        yield manager


def langchain(manager: ChromaDBManager) -> Callable[[], str]:
    from langchain_chroma import Chroma
    from langchain_core.embeddings import Embeddings

    class Letters(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [row.tolist() for row in Embedding()(texts)]

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    store = Chroma(client=manager.get_client(*KEY), collection_name="store", embedding_function=Letters())
    store.add_texts(["aaa", "bbb"])
    return lambda: store.similarity_search("a", k=1)[0].page_content


def llama_index(manager: ChromaDBManager) -> Callable[[], str]:
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import VectorStoreQuery
    from llama_index.vector_stores.chroma import ChromaVectorStore

    store = ChromaVectorStore(chroma_collection=manager.get_collection(*KEY, "store"))
    store.add([TextNode(text=text, embedding=Embedding()([text])[0].tolist()) for text in ("aaa", "bbb")])
    query = VectorStoreQuery(query_embedding=Embedding()(["a"])[0].tolist(), similarity_top_k=1)
    return lambda: store.query(query).nodes[0].text


def mem0(manager: ChromaDBManager) -> Callable[[], str]:
    from mem0.vector_stores.chroma import ChromaDB

    store = ChromaDB("store", client=manager.get_client(*KEY))
    texts = ["aaa", "bbb"]
    vectors = [row.tolist() for row in Embedding()(texts)]
    store.insert(vectors, payloads=[{"data": text} for text in texts], ids=texts)
    return lambda: store.search("a", [Embedding()(["a"])[0].tolist()], top_k=1)[0].id


def crewai(manager: ChromaDBManager) -> Callable[[], str]:
    from crewai.rag.chromadb.client import ChromaDBClient

    store = ChromaDBClient(manager.get_client(*KEY), Embedding(), default_score_threshold=0.0)
    store.create_collection(collection_name="store")
    store.add_documents(collection_name="store", documents=[{"content": text} for text in ("aaa", "bbb")])
    return lambda: store.search(collection_name="store", query="a", limit=1)[0]["content"]


@pytest.fixture(params=[langchain, llama_index, mem0, crewai], ids=lambda make: make.__name__)
def search(request: pytest.FixtureRequest, manager: ChromaDBManager) -> Callable[[], str]:
    return request.param(manager)


def test_a_store_takes_a_client_or_a_collection(search: Callable[[], str]) -> None:
    assert search() == "aaa"


def test_a_store_goes_on_after_its_database_was_closed_for_being_idle(manager, search) -> None:
    assert manager.cleanup_old_instances(max_idle=0) == 1
    assert search() == "aaa"


@pytest.mark.parametrize("cleanup", ["cleanup", "cleanup_all_instances", "cleanup_instance"])
def test_a_store_that_is_kept_beyond_a_cleanup_has_ended(manager, search, cleanup: str) -> None:
    getattr(manager, cleanup)(*(KEY if cleanup == "cleanup_instance" else ()))
    # crewAI wraps what a search raises.
    with pytest.raises(Exception, match="get_client") as caught:
        search()
    raised = caught.value
    assert isinstance(raised, ClientClosedError) or isinstance(
        raised.__cause__ or raised.__context__, ClientClosedError
    )


def test_haystack_opens_a_database_of_its_own() -> None:
    from haystack_integrations.document_stores.chroma import ChromaDocumentStore

    parameters = inspect.signature(ChromaDocumentStore.__init__).parameters
    assert not {"client", "collection", "chroma_client", "chroma_collection"} & parameters.keys()
