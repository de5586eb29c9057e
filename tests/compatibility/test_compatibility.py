"""Chroma's behaviour is kept: random calls have the same results and exceptions on stock Chroma and on ours."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager
from chroma_manager.options import LOCAL_ENGINES
from chromadb.config import Settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SETTINGS = Settings(anonymized_telemetry=False, allow_reset=True)
NUMBER = itertools.count()
EXAMPLES = int(os.environ.get("COMPATIBILITY_EXAMPLES", "20"))

texts = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.sampled_from(["first", "second", "a b", "x", "été", "..", "a" * 600])
databases = st.sampled_from(["default_tenant", "default_database", "other", "x", "ö"])
ids = st.lists(st.one_of(st.sampled_from("abcdef"), texts), min_size=0, max_size=5)
floats = st.floats(width=32, allow_nan=False, min_value=-100, max_value=100)
vectors = st.lists(st.one_of(floats, st.sampled_from([math.nan, math.inf, 0.0])), min_size=2, max_size=3)
scalars = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), texts, st.none()
)
plain_metadata = st.one_of(st.none(), st.dictionaries(st.sampled_from(["k", "page", "ä", ""]), scalars))
lists = st.one_of(
    st.lists(st.integers(-9, 9), max_size=3), st.lists(st.booleans(), max_size=3), st.lists(texts, max_size=3)
)
metadata = st.one_of(st.none(), st.dictionaries(st.sampled_from(["k", "page", "ä", ""]), st.one_of(scalars, lists)))
where = st.one_of(
    st.none(),
    st.builds(lambda op, value: {"page": {op: value}}, st.sampled_from(["$eq", "$gt", "$in", "$bad"]), scalars),
    st.just({"$and": [{"page": {"$gte": 1}}, {"k": {"$ne": "x"}}]}),
)
includes = st.lists(st.sampled_from(["embeddings", "documents", "metadatas", "distances", "uris"]), unique=True)


def of_each(count: int, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), st.lists(values, min_size=count, max_size=count))


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    chosen = draw(ids)
    drawn = {
        "ids": chosen,
        "embeddings": draw(of_each(len(chosen), st.one_of(st.tuples(floats, floats).map(list), vectors))),
        "documents": draw(of_each(len(chosen), texts)),
        "metadatas": draw(of_each(len(chosen), metadata)),
        "uris": draw(of_each(len(chosen), texts)),
    }
    return {name: value for name, value in drawn.items() if value is not None}


calls = st.one_of(
    st.tuples(st.just("client"), st.sampled_from(["list_collections", "count_collections", "reset"]), st.just({})),
    st.tuples(
        st.just("client"),
        st.sampled_from(["create_collection", "get_or_create_collection"]),
        st.fixed_dictionaries({"name": names, "metadata": plain_metadata, "embedding_function": st.none()}),
    ),
    st.tuples(
        st.just("client"),
        st.sampled_from(["delete_collection", "get_collection"]),
        st.fixed_dictionaries({"name": names}),
    ),
    st.tuples(
        st.just("admin"),
        st.sampled_from(["create_database", "get_database", "delete_database"]),
        st.fixed_dictionaries({"name": databases}, optional={"tenant": databases}),
    ),
    st.tuples(
        st.just("admin"), st.sampled_from(["create_tenant", "get_tenant"]), st.fixed_dictionaries({"name": databases})
    ),
    st.tuples(
        st.just("admin"),
        st.just("list_databases"),
        st.fixed_dictionaries(
            {}, optional={"tenant": databases, "limit": st.integers(0, 3), "offset": st.integers(0, 3)}
        ),
    ),
    st.tuples(
        st.just("client"), st.just("set_tenant"), st.fixed_dictionaries({"tenant": databases, "database": databases})
    ),
    st.tuples(st.just("client"), st.just("set_database"), st.fixed_dictionaries({"database": databases})),
    st.tuples(st.just("client"), st.sampled_from(["get_max_batch_size", "get_version"]), st.just({})),
    st.tuples(st.just("collection"), st.sampled_from(["add", "upsert", "update"]), records()),
    st.tuples(st.just("collection"), st.sampled_from(["count", "peek"]), st.just({})),
    st.tuples(
        st.just("collection"),
        st.just("get"),
        st.fixed_dictionaries(
            {}, optional={"ids": ids, "where": where, "include": includes, "limit": st.integers(0, 3)}
        ),
    ),
    st.tuples(
        st.just("collection"),
        st.just("query"),
        st.fixed_dictionaries(
            # Finite, and all results: which of several at the same distance it returns is not the same every time.
            {"query_embeddings": st.lists(st.lists(floats, min_size=2, max_size=3), max_size=2)},
            optional={"n_results": st.sampled_from([-1, 0, 20]), "where": where, "include": includes},
        ),
    ),
    st.tuples(
        st.just("collection"), st.just("delete"), st.fixed_dictionaries({}, optional={"ids": ids, "where": where})
    ),
    st.tuples(st.just("collection"), st.just("modify"), st.fixed_dictionaries({}, optional={"name": names})),
)


class Chroma:
    """A client, and a collection of two dimensions with a few records."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.admin = client._admin_client
        self.collection = client.get_or_create_collection("base", embedding_function=None)
        self.collection.add(
            ids=list("abc"), embeddings=[[1, 2], [3, 4], [-1, 0.5]], metadatas=[{"page": i, "k": "v"} for i in range(3)]
        )

    def outcome(self, target: str, method: str, arguments: dict[str, Any]) -> Any:
        try:
            return comparable(getattr(getattr(self, target), method)(**arguments))
        except Exception as error:
            # Of several complaints Chroma itself begins with any, and of what one is about too.
            text = UUID.sub("<id>", str(error)).removeprefix("Validation error: ")
            complaints = sorted(re.split(r"[\n,\[\]{} ]+", text))
            return type(error).__module__, type(error).__qualname__, complaints


def comparable(value: Any) -> Any:
    """What must be the same of a result, its types included."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        # Chroma lists collections in the order of their ids, which are random.
        is_of_collections = bool(value) and isinstance(value[0], chromadb.Collection)
        return [comparable(item) for item in (sorted(value, key=lambda c: c.name) if is_of_collections else value)]
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, [repr(float(item)) for item in value.ravel()]
    if isinstance(value, chromadb.Collection):
        return "collection", value.name, comparable(value.metadata), comparable(value.configuration_json)
    if isinstance(value, float):
        return "float", repr(value)
    return type(value).__name__, value


@pytest.fixture(params=LOCAL_ENGINES)
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "ours", engine=request.param, settings=SETTINGS)


@settings(
    max_examples=EXAMPLES,
    # The same calls every time, unless new ones are looked for (make compare).
    derandomize="COMPATIBILITY_RANDOM" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sequence=st.lists(calls, min_size=1, max_size=12))
def test_random_calls_have_the_same_outcomes_as_with_stock_chroma(manager, tmp_path: Path, sequence) -> None:
    name = f"doc{next(NUMBER)}"
    with chromadb.PersistentClient(tmp_path / "theirs" / name, SETTINGS) as client:
        theirs, ours = Chroma(client), Chroma(manager.get_client(name, "azure"))
        for target, method, arguments in sequence:
            expected = theirs.outcome(target, method, arguments)
            assert ours.outcome(target, method, arguments) == expected, (target, method, arguments)
    manager.cleanup_instance(name, "azure")


# What concerns more than the instance: other tests use the same server.
OF_THE_SERVER = ("reset", "set_tenant", "set_database")


def leads_elsewhere(arguments: dict[str, Any]) -> bool:
    """Whether stock Chroma asks for another path: a name is in the URL as it is, and ".." leads to the database."""
    name = arguments.get("name")
    return isinstance(name, str) and (bool(set(name) & set("/?#%\\")) or name.strip(".") == "")


@settings(
    max_examples=EXAMPLES // 3,
    derandomize="COMPATIBILITY_RANDOM" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sequence=st.lists(calls, min_size=1, max_size=12))
def test_random_calls_have_the_same_outcomes_as_with_stock_chroma_s_client_of_a_server(chroma_server, sequence) -> None:
    with chroma_server.manager() as manager:
        ours = Chroma(manager.get_client("doc", "azure"))
        ours.admin.create_database("theirs", ours.client.tenant)
        with chroma_server.client(ours.client.tenant, "theirs") as client:
            theirs = Chroma(client)
            for target, method, arguments in sequence:
                if target != "admin" and method not in OF_THE_SERVER and not leads_elsewhere(arguments):
                    expected = theirs.outcome(target, method, arguments)
                    assert ours.outcome(target, method, arguments) == expected, (target, method, arguments)


@pytest.fixture
def chromas(manager: ChromaDBManager, tmp_path: Path) -> Iterator[tuple[Chroma, Chroma]]:
    """Stock Chroma and ours."""
    with chromadb.PersistentClient(tmp_path / "theirs", SETTINGS) as client:
        yield Chroma(client), Chroma(manager.get_client("doc", "azure"))


def assert_same(chromas: tuple[Chroma, Chroma], method: str, **arguments: Any) -> None:
    theirs, ours = (chroma.outcome("collection", method, arguments) for chroma in chromas)
    assert ours == theirs


def test_the_largest_batch_and_one_more(chromas) -> None:
    size = chromas[0].client.get_max_batch_size()
    assert chromas[1].client.get_max_batch_size() == size
    for count in (size, size + 1):
        records = [f"{count}-{i}" for i in range(count)]
        assert_same(chromas, "add", ids=records, embeddings=np.ones((count, 2), dtype=np.float32))
        assert_same(chromas, "count")
    assert_same(chromas, "get", ids=["a", "5462-1", f"{size}-0", f"{size}-{size - 1}"], include=["embeddings"])


@pytest.mark.long
def test_a_hundred_thousand_ids(chromas) -> None:
    assert_same(chromas, "get", ids=[str(i) for i in range(100_000)] + ["a"])
    assert_same(chromas, "delete", ids=[str(i) for i in range(100_000)] + ["a"])


@pytest.mark.parametrize("kind", ["float64", "float16", "int32", "uint8", "float32"])
def test_vectors_of_every_kind_of_number(chromas, kind: str) -> None:
    matrix = (np.arange(8).reshape(4, 2) / (1 if "int" in kind else 3)).astype(kind)
    assert_same(chromas, "upsert", ids=list("abxy"), embeddings=matrix)
    assert_same(chromas, "upsert", ids=list("pq"), embeddings=[matrix[0], matrix[3]])
    assert_same(chromas, "get", include=["embeddings"])
    assert_same(chromas, "query", query_embeddings=matrix[1], include=["embeddings", "distances"])


def test_vectors_that_are_no_numbers_or_infinite(chromas) -> None:
    assert_same(chromas, "add", ids=list("xyz"), embeddings=[[math.nan, 1], [math.inf, 2], [-math.inf, math.nan]])
    assert_same(chromas, "get", include=["embeddings"])
    for query in ([math.nan, 0], [math.inf, 1]):
        assert_same(chromas, "query", query_embeddings=[query], n_results=20, include=["distances"])


def test_results_without_records(chromas) -> None:
    everything = ["embeddings", "documents", "metadatas", "uris"]
    assert_same(chromas, "get", ids=["nobody"], include=everything)
    assert_same(chromas, "get", where={"page": 77}, include=everything)
    assert_same(chromas, "query", query_embeddings=[[1, 2]], where={"page": 77}, include=[*everything, "distances"])


@pytest.mark.parametrize("text", ["\ud800", "a\0b", "\U0010ffff\u200d", "e\u0301\r\n", "x" * 300_000])
def test_texts_of_every_kind(chromas, text: str) -> None:
    assert_same(chromas, "add", ids=["t"], embeddings=[[1, 2]], documents=[text], metadatas=[{"text": text}])
    assert_same(chromas, "get", ids=["t"], include=["documents", "metadatas"])
    assert_same(chromas, "add", ids=[text], embeddings=[[1, 2]])
    assert_same(chromas, "get", where_document={"$contains": text[:100]})


def test_sparse_vectors_in_metadata(chromas) -> None:
    sparse = chromadb.SparseVector(indices=[1, 5], values=[0.5, 2.0])
    assert_same(chromas, "update", ids=["a"], metadatas=[{"sparse": sparse, "tags": ["x", "y"], "nested": [1, 2]}])
    got = [comparable(chroma.collection.get(ids=["a"])["metadatas"]) for chroma in chromas]
    assert got[0] == got[1]


def test_names_of_python_s_own_making_stay_inside(manager: ChromaDBManager) -> None:
    connection = manager.get_client("doc", "azure")._server.bindings
    for name in ("__class_getitem__", "__array__", "__len__"):
        assert not hasattr(connection, name)
    with pytest.raises(AttributeError):
        connection._private()


def test_a_panic_of_the_binding_is_an_error_and_the_database_goes_on(manager: ChromaDBManager) -> None:
    """Chroma 1.5.9 panics here, which in the app's own process is a BaseException."""
    client = manager.get_client("doc", "azure")
    with pytest.raises(BaseException, match="unreachable code") as caught:
        client.create_collection("panics", metadata={"list": [1]}, embedding_function=None)
    assert type(caught.value).__name__ == (
        "InternalError" if manager._options.engine == "isolated" else "PanicException"
    )
    assert client.create_collection("next", embedding_function=None).count() == 0
