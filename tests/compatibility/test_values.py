"""Arguments of every type in every place: what stock Chroma makes of them, or what it says of them, to the letter."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import itertools
import os
import re
import tempfile
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager
from chroma_manager.options import ENGINES
from chromadb.config import Settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_compatibility import UUID

pytestmark = [
    pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system"),
    # Of numpy's conversions, the same as with stock Chroma.
    pytest.mark.filterwarnings(
        "ignore::UserWarning",
        "ignore::DeprecationWarning",
        "ignore::PendingDeprecationWarning",
        "ignore::RuntimeWarning",
    ),
]

SETTINGS = Settings(anonymized_telemetry=False, allow_reset=True)
EXAMPLES = int(os.environ.get("COMPATIBILITY_EXAMPLES", "60")) * 5
# Ids, and where an object is in memory.
RANDOM = re.compile(rf"{UUID.pattern}|0x[0-9a-f]+")
NAMES = (f"name{i}" for i in itertools.count())


class OddError(TypeError):
    """It is no `TypeError` of Python's own, so its words are left as they are."""

    def __init__(self, first: object, second: object) -> None:
        super().__init__(f"{first} and {second}")


class Index:
    def __index__(self) -> int:
        return 2


class Float:
    def __float__(self) -> float:
        return 2.0


class IndexAndFloat(Index, Float): ...


class IndexOfAnotherType:
    def __index__(self) -> int:
        return "2"  # type: ignore[return-value]  # noqa: PLE0305


class FloatOfAnotherType:
    def __float__(self) -> float:
        return "2"  # type: ignore[return-value]


def failing(error: BaseException) -> Any:
    class Failing:
        def _fail(self, *_: object) -> Any:
            raise error

        __index__ = __float__ = __iter__ = __getitem__ = _fail

    return Failing()


class OldSequence:
    """Without `__iter__` and `__len__`."""

    def __getitem__(self, index: int) -> str:
        if index > 1:
            raise IndexError
        return "ab"[index]


class EndsInError(OldSequence):
    def __getitem__(self, index: int) -> str:
        if index > 1:
            raise KeyError("the end")
        return "ab"[index]


class IteratesOtherwise(list[str]):
    def __iter__(self) -> Iterator[str]:
        yield "b"


class HasNoTruth:
    def __bool__(self) -> bool:
        raise ValueError("no truth")


class Color(enum.IntEnum):
    RED = 1


class Word(str, enum.Enum):
    DEFAULT = "default_tenant"


class Text(str):
    __slots__ = ()


class Number(float): ...


class Pair(NamedTuple):
    first: str
    second: str


def local_class() -> Any:
    class Local: ...

    return Local()


def itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep() -> list[Any]:
    value: list[Any] = ["a"]
    for _ in range(500):
        value = [value]
    return value


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a bool": lambda: True,
    "an int": lambda: 2,
    "a negative int": lambda: -1,
    "an int of 32 bits": lambda: 2**32,
    "an int of 64 bits": lambda: 2**63,
    "a huge int": lambda: 10**5000,
    "a float": lambda: 2.5,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "a large float": lambda: 1e300,
    "a str": lambda: "a",
    "a tenant": lambda: "default_tenant",
    "bytes": lambda: b"ab",
    "a bytearray": lambda: bytearray(b"ab"),
    "a memoryview": lambda: memoryview(b"ab"),
    "a complex": lambda: 1j,
    "a list": lambda: ["a"],
    "a list of numbers": lambda: [1, 2.5],
    "a tuple": lambda: ("a", "b"),
    "a named tuple": lambda: Pair("a", "b"),
    "a dict": lambda: {"a": 1},
    "an OrderedDict": lambda: collections.OrderedDict(a=1),
    "a mappingproxy": lambda: types.MappingProxyType({"a": 1}),
    "a UserDict": lambda: collections.UserDict(a=1),
    "a UserList": lambda: collections.UserList(["a"]),
    "a UserString": lambda: collections.UserString("a"),
    "a deque": lambda: collections.deque("ab"),
    "a set": lambda: {"a"},
    "a range": lambda: range(2),
    "a generator": lambda: (text for text in "ab"),
    "an array": lambda: array.array("f", [1, 2]),
    "an object": object,
    "a class": lambda: int,
    "a function": lambda: len,
    "a local class's": local_class,
    "a UUID": lambda: uuid.UUID(int=7),
    "a date": lambda: datetime.date(2020, 1, 1),
    "a Decimal": lambda: decimal.Decimal("2.5"),
    "a Fraction": lambda: fractions.Fraction(5, 2),
    "an IntEnum": lambda: Color.RED,
    "a str Enum": lambda: Word.DEFAULT,
    "a str's": lambda: Text("default_tenant"),
    "a float's": lambda: Number(2.5),
    "__index__": Index,
    "__float__": Float,
    "__index__ and __float__": IndexAndFloat,
    "__index__ of another type": IndexOfAnotherType,
    "__float__ of another type": FloatOfAnotherType,
    "a TypeError": lambda: failing(TypeError("no")),
    "a ValueError": lambda: failing(ValueError("no")),
    "an OverflowError": lambda: failing(OverflowError("no")),
    "an error of the app's": lambda: failing(OddError("one", "two")),
    "no truth": HasNoTruth,
    "an old sequence": OldSequence,
    "a sequence that ends in an error": EndsInError,
    "a list that iterates otherwise": lambda: IteratesOtherwise("a"),
    "itself": itself,
    "deep": deep,
    "numpy.int64": lambda: np.int64(2),
    "numpy.uint8": lambda: np.uint8(2),
    "numpy.float64": lambda: np.float64(2.5),
    "numpy.float32": lambda: np.float32(2.5),
    "numpy.float16": lambda: np.float16(2.5),
    "numpy.longdouble": lambda: np.longdouble(2.5),
    "numpy.complex128": lambda: np.complex128(1j),
    "numpy.bool": lambda: np.bool_(True),
    "numpy.str_": lambda: np.str_("a"),
    "numpy.str_ of a number": lambda: np.str_("2.5"),
    "numpy.bytes_": lambda: np.bytes_(b"a"),
    "numpy.datetime64": lambda: np.datetime64("2020-01-01"),
    "numpy.void": lambda: np.zeros(1, dtype="i4,f4")[0],
    "an array of no dimension": lambda: np.array(2),
    "an array of no dimension, a float": lambda: np.array(2.5),
    "an array of no dimension, a text": lambda: np.array("a"),
    "an array of one": lambda: np.array([2]),
    "an array of none": lambda: np.array([]),
    "an array of floats": lambda: np.array([1.0, 2.0]),
    "an array of ints": lambda: np.array([2**62 + 1, 2]),
    "an array of large floats": lambda: np.array([1e300, 2.0]),
    "an array of long doubles": lambda: np.array([1, 2], dtype=np.longdouble),
    "an array of bools": lambda: np.array([True, False]),
    "an array of texts": lambda: np.array(["a", "b"]),
    "an array of objects": lambda: np.array(["a", 1], dtype=object),
    "an array of complex": lambda: np.array([1j, 2]),
    "a strided array": lambda: np.arange(6.0)[::3],
    "a matrix of arrays": lambda: np.eye(2),
    "a cube": lambda: np.ones((1, 1, 2)),
    "numpy.matrix": lambda: np.matrix([[1.0, 2.0]]),
    "numpy.matrix of one": lambda: np.matrix([[1.0]]),
    "a masked array": lambda: np.ma.array([1.0, 2.0], mask=[0, 1]),
    "a masked array without a mask": lambda: np.ma.array([1.0, 2.0]),
    "a masked matrix": lambda: np.ma.array(np.eye(2), mask=np.eye(2)),
    "masked": lambda: np.ma.masked,
    "a record array": lambda: np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
}

WRAPPED: dict[str, Callable[[Any], Any]] = {
    "bare": lambda value: value,
    "in a list": lambda value: [value],
    "behind an array": lambda value: [np.array([1.0, 2.0]), value],
    "behind a str": lambda value: ["a", value],
    "in a tuple": lambda value: (value,),
    "in lists": lambda value: [[value, 1.0]],
    "in a dict": lambda value: {"key": value},
    "in dicts of a list": lambda value: [{"key": value}],
    "in a list of a dict": lambda value: {"key": [value]},
    "in a sparse vector": lambda value: {"key": {"indices": [1, value], "values": [value, 1.0]}},
}

# The methods of the binding, with arguments that it takes; `NAME` and `COLLECTION` stand for one.
NAME, COLLECTION = object(), object()
RECORDS = [["a", "b"], [[1.0, 2.0], [3.0, 4.0]], [{"k": 1}, None], ["one", None], [None, None]]
WHERE, ALL = ("default_tenant", "default_database"), ["metadatas", "documents", "embeddings"]
METHODS: dict[str, list[Any]] = {
    "count_collections": [*WHERE],
    "list_collections": [2, 0, *WHERE],
    "list_databases": [2, 0, WHERE[0]],
    "get_database": [WHERE[1], WHERE[0]],
    "get_tenant": [WHERE[0]],
    "create_tenant": [NAME],
    "create_database": [NAME, WHERE[0]],
    "delete_database": [NAME, WHERE[0]],
    "create_collection": [NAME, None, None, {"key": 1}, True, *WHERE],
    "get_collection": ["base", *WHERE],
    "get_collection_by_id": [COLLECTION, *WHERE],
    "delete_collection": [NAME, *WHERE],
    "update_collection": [COLLECTION, "base", {"key": 1}, None],
    "count": [COLLECTION, *WHERE],
    "get": [COLLECTION, ["a"], None, 2, 0, None, ALL, *WHERE],
    "query": [COLLECTION, ["a"], [[1.0, 2.0]], 1, None, None, [*ALL, "distances"], *WHERE],
    "add": [RECORDS[0], COLLECTION, *RECORDS[1:], *WHERE],
    "upsert": [COLLECTION, *RECORDS, *WHERE],
    "update": [COLLECTION, *RECORDS, *WHERE],
    "delete": [COLLECTION, ["a"], None, None, None, *WHERE],
}
# A tenant or a database is the same text everywhere.
PLACES = [
    (method, place)
    for method, arguments in METHODS.items()
    for place in range(len(arguments))
    if arguments[place] not in WHERE or method.startswith(("count_", "get_d", "list_d"))
]


class Chroma:
    def __init__(self, client: Any) -> None:
        self.client = client
        self.collection = client.create_collection("base", embedding_function=None)
        self.collection.add(ids=["a"], embeddings=[[1, 2]], metadatas=[{"k": 1}], documents=["one"])

    def bound(self, method: str, place: int, value: Any, name: str, by_name: str | None = None) -> Any:
        """What a method of the binding makes of a value in that place."""
        known = {NAME: name, COLLECTION: str(self.collection.id)}
        arguments = [known.get(given, given) if type(given) is object else given for given in METHODS[method]]
        arguments[place] = value
        return outcome(lambda: getattr(self.client._server.bindings, method)(*arguments))

    def called(self, target: str, method: str, arguments: dict[str, Any]) -> Any:
        on = self.client if target == "client" else self.collection
        return outcome(lambda: getattr(on, method)(**arguments))


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return "returned", shown(call())
    except BaseException as error:
        # In a process of its own a panic is no PanicException.
        name = type(error).__name__.replace("PanicException", "InternalError")
        text = RANDOM.sub("<random>", str(error))
        # Chroma says what a complaint is about in any order.
        return "raised", name, sorted(re.split(r"[{}, ]+", text)) if "Validation error" in text else text


def shown(value: Any) -> Any:
    """A result; those of the binding have classes without an equality, which in a process of its own are others."""
    if isinstance(value, (list, tuple)):
        items = [shown(item) for item in value]
        # Chroma lists collections and databases in the order of their ids, which are random.
        return len(items) if value and hasattr(value[0], "name") else items
    if isinstance(value, np.ndarray):
        return shown(value.tolist())
    if isinstance(value, uuid.UUID):
        return "<random>"
    if isinstance(value, (str, int, float, type(None))):
        return RANDOM.sub("<random>", repr(value))
    if not isinstance(value, dict):
        attributes = {name: getattr(value, name) for name in dir(value) if not name.startswith("_")}
        value = {name: attribute for name, attribute in attributes.items() if not callable(attribute)}
    return {name: shown(item) for name, item in value.items()}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Chroma, Chroma]]:
    """Stock Chroma and ours."""
    path = tmp_path_factory.mktemp("values")
    with chromadb.PersistentClient(path / "theirs", SETTINGS) as client:
        manager = ChromaDBManager(base_path=path / "ours", engine="isolated", settings=SETTINGS, idle_timeout=None)
        yield Chroma(client), Chroma(manager.get_client("doc", "azure"))
        manager.shutdown()


@pytest.fixture(autouse=True)
def no_manager_is_left() -> None:
    """One is kept for all tests here."""


Case = Callable[[Chroma], Any]


def differences(both: tuple[Chroma, Chroma], cases: dict[Any, Case]) -> list[Any]:
    """What is not the same, with what it is of."""
    outcomes = ((about, case(both[0]), case(both[1])) for about, case in cases.items())
    return [(about, theirs, ours) for about, theirs, ours in outcomes if ours != theirs]


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_in_each_place_of_each_call_is_what_it_is_for_stock_chroma(both, kind: str) -> None:
    def case(method: str, place: int, name: str) -> Case:
        return lambda chroma: chroma.bound(method, place, VALUES[kind](), name)

    cases = {(method, place): case(method, place, next(NAMES)) for method, place in PLACES}
    assert differences(both, cases) == []


@settings(
    max_examples=EXAMPLES,
    derandomize="COMPATIBILITY_RANDOM" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    place=st.sampled_from(PLACES),
    kind=st.sampled_from(sorted(VALUES)),
    inner=st.sampled_from(sorted(WRAPPED)),
    outer=st.sampled_from(sorted(WRAPPED)),
)
def test_a_value_in_others_is_what_it_is_for_stock_chroma(both, place, kind: str, inner: str, outer: str) -> None:
    name = next(NAMES)
    method, at = place
    case = {place: lambda chroma: chroma.bound(method, at, WRAPPED[outer](WRAPPED[inner](VALUES[kind]())), name)}
    assert differences(both, case) == []


# What apps call, which looks at some of it before it gets to the binding.
APP_CALLS: dict[str, Callable[[Any], tuple[str, str, dict[str, Any]]]] = {
    "get limit": lambda value: ("collection", "get", {"limit": value}),
    "get offset": lambda value: ("collection", "get", {"offset": value}),
    "get ids": lambda value: ("collection", "get", {"ids": value}),
    "get where": lambda value: ("collection", "get", {"where": {"k": value}}),
    "get where in": lambda value: ("collection", "get", {"where": {"k": {"$in": [value]}}}),
    "get where_document": lambda value: ("collection", "get", {"where_document": {"$contains": value}}),
    "peek": lambda value: ("collection", "peek", {"limit": value}),
    "query": lambda value: ("collection", "query", {"query_embeddings": value}),
    "query list": lambda value: ("collection", "query", {"query_embeddings": [value]}),
    "query n_results": lambda value: ("collection", "query", {"query_embeddings": [1, 2], "n_results": value}),
    "query ids": lambda value: ("collection", "query", {"query_embeddings": [1, 2], "ids": [value]}),
    "delete limit": lambda value: ("collection", "delete", {"where": {"k": 9}, "limit": value}),
    "modify metadata": lambda value: ("collection", "modify", {"metadata": {"k": value}}),
    "upsert id": lambda value: ("collection", "upsert", {"ids": [value], "embeddings": [[1, 2]]}),
    "upsert embedding": lambda value: ("collection", "upsert", {"ids": ["x"], "embeddings": [value]}),
    "upsert embeddings": lambda value: ("collection", "upsert", {"ids": ["x"], "embeddings": value}),
    "upsert number": lambda value: ("collection", "upsert", {"ids": ["x"], "embeddings": [[value, 1.0]]}),
    "upsert document": lambda value: (
        "collection",
        "upsert",
        {"ids": ["x"], "embeddings": [[1, 2]], "documents": [value]},
    ),
    "upsert metadata": lambda value: (
        "collection",
        "upsert",
        {"ids": ["x"], "embeddings": [[1, 2]], "metadatas": [{"k": value}]},
    ),
    "list_collections limit": lambda value: ("client", "list_collections", {"limit": value, "offset": 0}),
    "list_collections offset": lambda value: ("client", "list_collections", {"limit": 1, "offset": value}),
    "get_or_create": lambda value: ("client", "get_or_create_collection", {"name": "kept", "metadata": {"k": value}}),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_an_app_passes_is_what_it_is_for_stock_chroma(both, kind: str) -> None:
    def case(call: str) -> Case:
        return lambda chroma: (
            chroma.called(*APP_CALLS[call](VALUES[kind]())),
            chroma.called("collection", "get", {"include": ["embeddings", "metadatas", "documents"]}),
        )

    assert differences(both, {call: case(call) for call in APP_CALLS}) == []
    for chroma in both:
        chroma.called("collection", "delete", {"ids": ["x"]})
        chroma.called("client", "delete_collection", {"name": "kept"})


# Many vectors of each class of arrays, which are sent as one matrix where they can be.
MATRICES: dict[str, Callable[[], Any]] = {
    "of floats": lambda: np.random.default_rng(0).random((300, 4)),
    "of half floats": lambda: np.random.default_rng(0).random((300, 4)).astype(np.float16),
    "of long doubles": lambda: np.random.default_rng(0).random((300, 4)).astype(np.longdouble),
    "of ints": lambda: np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (300, 4)),
    "of bools": lambda: np.random.default_rng(0).random((300, 4)) > 0.5,
    "of objects": lambda: np.random.default_rng(0).random((300, 4)).astype(object),
    "in Fortran's order": lambda: np.asfortranarray(np.random.default_rng(0).random((300, 4))),
    "without a mask": lambda: np.ma.array(np.random.default_rng(0).random((300, 4))),
    "with a mask": lambda: np.ma.array(np.ones((300, 4)), mask=np.arange(1200).reshape(300, 4) % 7 == 0),
    "of large numbers": lambda: np.full((300, 4), 1e39),
    "of one matrix": lambda: np.matrix(np.ones((300, 4))),
    "of mixed rows": lambda: [np.ones(4, dtype=kind) for kind in ("f4", "i8", "f8", "u1", "f2") * 60],
    "with a list": lambda: [*np.random.default_rng(0).random((299, 4)), [1.0, 2.0, 3.0, 4.0]],
    "with texts": lambda: [*np.random.default_rng(0).random((299, 4)), ["1", "2", "3", "4"]],
    "with an array of texts": lambda: [*np.random.default_rng(0).random((299, 4)), np.array(["1", "2", "3", "4"])],
    "with another length": lambda: [*np.random.default_rng(0).random((299, 4)), np.ones(3)],
    "in a file": lambda: _in_a_file(np.random.default_rng(0).random((300, 4)).astype(np.float32)),
}


def _in_a_file(matrix: np.ndarray) -> np.memmap:
    with tempfile.TemporaryFile() as file:
        matrix.tofile(file)
        return np.memmap(file, dtype=matrix.dtype, mode="r", shape=matrix.shape)


@pytest.mark.parametrize("kind", MATRICES)
def test_many_vectors_of_each_kind_are_what_they_are_for_stock_chroma(both, kind: str) -> None:
    ids, name = [str(i) for i in range(300)], next(NAMES)

    def calls(chroma: Chroma) -> Any:
        collection = chroma.client.create_collection(name, embedding_function=None)
        return (
            outcome(lambda: collection.add(ids=ids, embeddings=MATRICES[kind]())),
            outcome(lambda: collection._client._upsert(collection.id, ids, MATRICES[kind]())),
            outcome(lambda: collection.get(include=["embeddings"])),
        )

    assert differences(both, {kind: calls}) == []


def test_what_a_conversion_raises_is_the_app_s_own_exception(both) -> None:
    error = OddError("one", "two")
    for chroma in both:
        with pytest.raises(OddError) as caught:
            chroma.collection.get(limit=failing(error))
        assert caught.value is error
    interrupt = KeyboardInterrupt()
    for chroma in both:
        with pytest.raises(KeyboardInterrupt) as caught:
            chroma.collection.get(limit=failing(interrupt))
        assert caught.value is interrupt
