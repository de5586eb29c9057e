"""Frames from both sides: whatever arrives, an engine process and an app answer with an error, and go on.

The engine process is a real one that is sent damaged calls; or a fake one, which sends an app damaged answers.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from chroma_manager import CallTimeoutError, ChromaDBManager, ChromaManagerError, EngineCrashedError, InstanceOpenError
from chroma_manager.options import ENGINES
from conftest import connect, engine_of, eventually, new_collection, proof_of, socket_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

fcntl = pytest.importorskip("fcntl")
pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

VERSION = 5
HELLO, FAILED, CALL, RETURNED, RAISED, RELEASE, CLOSING, SHARED, GONE, MANAGE, DELETE = range(1, 12)
LARGEST = 2**31 - 1
MEGABYTE = 1 << 20
PART = 14
COUNTED = b"i" + struct.pack("<q", 7)

fuzzed = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


def header(length: int, kind: int = CALL, version: int = VERSION) -> bytes:
    return b"CMG" + struct.pack("<BBI", version, kind, length)


def frame(kind: int, body: bytes = b"", version: int = VERSION) -> bytes:
    return header(len(body), kind, version) + body


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def name(text: bytes) -> bytes:
    return u32(len(text)) + text


def read_frame(stream: socket.socket) -> tuple[int, bytes] | None:
    """Kind and body; `None` at the end."""
    read = stream.makefile("rb", buffering=0).read
    head = b""
    while len(head) < 9:
        more = read(9 - len(head))
        if not more:
            return None
        head += more
    kind, length = struct.unpack("<BI", head[4:])
    body = b""
    while len(body) < length:
        body += read(length - len(body)) or b""
    return kind, body


# From an app to an engine process


@contextlib.contextmanager
def greeted(manager: ChromaDBManager) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(20)
        connect(stream, socket_of(manager))
        greeting = read_frame(stream)
        assert greeting is not None
        assert greeting[0] == HELLO
        yield stream


def is_closed(stream: socket.socket) -> bool:
    try:
        return stream.recv(1) == b""
    except ConnectionError:  # there was more to read
        return True


def read_to_its_end(stream: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while stream.recv(1 << 16):
            pass


class Watched:
    """An engine process that is to stay the same, of about the same size, and there for others."""

    def __init__(self, manager: ChromaDBManager) -> None:
        self._manager = manager
        self._collection = new_collection(manager)
        self._process = engine_of(manager)
        self._size = self._largest_size()
        if hasattr(psutil, "RLIMIT_AS"):  # so that a failure costs this engine process and not the machine
            most = self._process.memory_info().vms + 4096 * MEGABYTE
            self._process.rlimit(psutil.RLIMIT_AS, (most, most))

    def is_sent(self, data: bytes) -> None:
        """Sends it on a connection of its own, which is to be answered or closed."""
        forget_largest = Path(f"/proc/{self._process.pid}/clear_refs")
        if forget_largest.exists():
            forget_largest.write_text("5")
        with greeted(self._manager) as stream:
            with contextlib.suppress(ConnectionError):
                stream.sendall(data)
                stream.shutdown(socket.SHUT_WR)
            read_to_its_end(stream)
        self.is_well()

    def is_well(self) -> None:
        assert self._collection.count() == 1
        assert engine_of(self._manager) == self._process
        assert self._largest_size() - self._size < 64 * MEGABYTE

    def _largest_size(self) -> int:
        """In bytes, resident; the present one where the system does not tell what it was meanwhile."""
        status = Path(f"/proc/{self._process.pid}/status")
        told = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
        return int(told[1]) * 1024 if told else self._process.memory_info().rss


def recorded_calls(manager: ChromaDBManager) -> list[bytes]:
    """Frames that an app has sent, for calls of every sort."""
    other = manager.get_collection("doc", "azure", "other")
    other.upsert(ids=["1"], embeddings=[[1.0, 2.0]], metadatas=[{"a": 1, "b": 2.5}])
    calls: list[Callable[[], object]] = [
        other.count,
        lambda: other.upsert(ids=["1", "2"], embeddings=[[1.0, 2.0], [3.0, 4.0]], documents=["one", "two"]),
        lambda: other.update(ids=["1"], metadatas=[{"a": 2, "b": None, "c": True}]),
        lambda: other.get(ids=["1"], where={"a": 1}, include=["embeddings", "metadatas"]),
        lambda: manager.get_client("doc", "azure").get_collection("other"),
    ]
    frames = []

    def record(stream: socket.socket) -> None:
        stream.sendall(greeting())
        while sent := read_frame(stream):
            frames.append(frame(*sent))
            stream.sendall(frame(RAISED))

    with FakeEngine(manager, record):
        for call in calls:
            with contextlib.suppress(Exception):
                call()
    assert len(frames) >= len(calls)
    return frames


@st.composite
def damaged(draw: st.DrawFn, frames: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(frames)))
    places = st.integers(0, len(data) - 1)
    how = draw(st.sampled_from(["bytes", "cut off", "appended", "length", "body"]))
    if how == "bytes":
        for place in draw(st.lists(places, min_size=1, max_size=4)):
            data[place] ^= draw(st.integers(1, 255))
    elif how == "cut off":
        del data[draw(places) :]
    elif how == "appended":
        data += draw(st.binary(min_size=1, max_size=64))
    elif how == "length":
        data[5:9] = u32(draw(st.sampled_from([0, 1, len(data), LARGEST, LARGEST + 2, 2**32 - 1])))
    else:
        data[9:] = draw(st.binary(min_size=len(data) - 9, max_size=len(data) - 9))
    return bytes(data)


# Values that lie about their lengths.
pieces = st.one_of(
    st.sampled_from([bytes([tag]) for tag in b"NTFiIdsubltmVox"]),
    st.sampled_from([0, 1, 2, 100, LARGEST, 2**32 - 1]).map(u32),
    st.sampled_from([b"ids", b"uuid", b"UUID", b"hex", b"builtins", b"\xff"]).map(name),
    st.binary(min_size=8, max_size=8),
)
methods = st.sampled_from([b"count", b"get", b"upsert", b"query", b"__init__", b"no_such", b"\xff", b""])


def test_damaged_calls_hurt_no_engine(manager: ChromaDBManager) -> None:
    frames = recorded_calls(manager)
    engine = Watched(manager)

    @fuzzed
    @given(damaged(frames))
    def send(data: bytes) -> None:
        assume(data[4:5] != bytes([RELEASE]))  # which is this process's to send, and heeded
        engine.is_sent(data)

    send()


def test_calls_that_are_made_up_hurt_no_engine(manager: ChromaDBManager) -> None:
    engine = Watched(manager)

    @fuzzed
    @given(methods, st.lists(pieces, max_size=12))
    def send(method: bytes, values: list[bytes]) -> None:
        engine.is_sent(frame(CALL, name(method) + b"".join(values)))

    send()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        header(0, version=9),
        header(0, kind=77),
        header(2**31 + 1),
        *(header(0, kind) for kind in (HELLO, FAILED, RETURNED, RAISED, CLOSING, SHARED, GONE)),
        os.urandom(64),
    ],
    ids=lambda sent: repr(sent[:9]) if sent.startswith(b"CMG") else "no header",
)
def test_what_is_no_frame_closes_its_connection_and_no_other(manager: ChromaDBManager, sent: bytes) -> None:
    collection = new_collection(manager)
    with greeted(manager) as stream:
        stream.sendall(sent)
        assert is_closed(stream)
    assert collection.count() == 1


def test_a_frame_that_never_comes_costs_nothing_and_hinders_nobody(manager: ChromaDBManager) -> None:
    engine = Watched(manager)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(greeted(manager)).sendall(header(LARGEST) + b"x" * 1000)
        engine.is_well()
    engine.is_well()


@pytest.mark.parametrize(
    "body", [b"", b"\xff" * 40, name(b"count") + b"l" + b"\xff" * 4, name(b"count") + b"l\1\0\0\0" * 300]
)
def test_a_damaged_call_is_an_error_and_the_connection_goes_on(manager: ChromaDBManager, body: bytes) -> None:
    collection = new_collection(manager)
    with greeted(manager) as stream:
        for _ in range(2):
            stream.sendall(frame(CALL, body))
            answer = read_frame(stream)
            assert answer is not None
            assert answer[0] == RAISED
    assert collection.count() == 1


# From an engine process to an app


SECRET = "5" * 32


def greeting(version: int = VERSION) -> bytes:
    """Of the fake engine that owns the database `doc`."""
    return frame(HELLO, FakeEngine.proof, version)


class FakeEngine:
    """Owns the database `doc` as an engine process does, until the end of the block; `talk` has every connection.

    A thread of this very process: the kernel tells the app who is at the other end, and it must be this user.
    """

    proof = bytes(32)

    def __init__(self, manager: ChromaDBManager, talk: Callable[[socket.socket], None]) -> None:
        self.connections = 0
        self._talk = talk
        self._streams: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._ended = threading.Event()
        manager.cleanup_old_instances(max_idle=0)
        self._directory = tempfile.mkdtemp(prefix="fake-")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{self._directory}/sock")
        self._listener.listen(64)
        self._listener.settimeout(0.05)
        database = Path(manager._get_db_path("doc", "azure"))
        database.mkdir(parents=True, exist_ok=True)
        self._lock = (database / ".chroma_manager.lock").open("a+")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n{self._directory}/sock\n{SECRET}\n")
        self._lock.flush()
        FakeEngine.proof = proof_of(database, SECRET)

    def __enter__(self) -> FakeEngine:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._threads[0].join()
        self._listener.close()
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._lock.close()  # signed as it is: so an engine process leaves it
        shutil.rmtree(self._directory, ignore_errors=True)  # or the next owner did

    def give_up(self) -> None:
        """Leaves the database to the next engine."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _accept(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                stream, _ = self._listener.accept()
                stream.settimeout(None)
                self.connections += 1
                self._streams.append(stream)
                self._threads.append(threading.Thread(target=self._converse, args=(stream,)))
                self._threads[-1].start()

    def _converse(self, stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):  # the app may hang up
            self._talk(stream)


def answering(data: bytes, *, hangs_up: bool = False, greets_with: bytes | None = None):
    """Answers every call with these bytes."""

    def talk(stream: socket.socket) -> None:
        stream.sendall(greeting() if greets_with is None else greets_with)
        while read_frame(stream):
            stream.sendall(data)
            if hangs_up:
                return

    return talk


def test_the_fake_engine_is_taken_for_a_real_one(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    with FakeEngine(manager, answering(frame(RETURNED, COUNTED))) as engine:
        assert collection.count() == 7
        assert engine.connections == 1
    assert collection.count() == 1


@pytest.mark.parametrize(
    "answer",
    [
        header(0, RETURNED)[:4],
        header(100, RETURNED) + b"x" * 50,
        b"",
        header(9, PART) + COUNTED,
    ],
    ids=["cut in its header", "cut in its body", "nothing", "a part of it"],
)
def test_an_answer_that_is_cut_is_an_engine_s_death(manager: ChromaDBManager, answer: bytes) -> None:
    collection = new_collection(manager)
    client = manager.get_client("doc", "azure")
    with FakeEngine(manager, answering(answer, hangs_up=True)) as engine:
        with pytest.raises(EngineCrashedError, match=r"doc/azure .* count\(\)"):
            collection.count()
        assert engine.connections == 2, "it was to be repeated, and once"
        with pytest.raises(EngineCrashedError, match=r"doc/azure .* create_collection\(\)"):
            client.create_collection("new")
        assert engine.connections == 3, "it was not to be repeated"
    assert collection.count() == 1
    assert client.count_collections() == 1


def test_an_answer_in_parts_is_one_answer(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    answers = [
        frame(PART, COUNTED[:3]) + frame(RETURNED, COUNTED[3:]),
        b"".join(frame(PART, COUNTED[i : i + 1]) for i in range(len(COUNTED))) + frame(RETURNED),
        frame(PART) + frame(RETURNED, COUNTED),
    ]
    for answer in answers:
        with FakeEngine(manager, answering(answer)):
            assert [collection.count() for _ in range(3)] == [7, 7, 7]
    error = name(b"builtins") + name(b"ValueError") + b"t" + u32(1) + b"s" + name(b"no")
    with (
        FakeEngine(manager, answering(frame(PART, error[:9]) + frame(RAISED, error[9:]))),
        pytest.raises(ValueError, match="no"),
    ):
        collection.count()


@pytest.mark.parametrize("kind", [HELLO, FAILED, CALL, RELEASE, SHARED, MANAGE, DELETE])
def test_an_answer_of_a_kind_that_answers_no_call_is_an_error(manager: ChromaDBManager, kind: int) -> None:
    collection = new_collection(manager)
    with (
        FakeEngine(manager, answering(frame(kind, COUNTED))),
        pytest.raises((ChromaManagerError, ValueError)) as caught,
    ):
        collection.count()
    assert isinstance(caught.value, ChromaManagerError) or "a damaged message" in str(caught.value)
    assert collection.count() == 1


@pytest.mark.parametrize("kind", [CLOSING, GONE])
def test_a_call_that_an_engine_says_was_not_made_is_made_by_the_next_one(manager: ChromaDBManager, kind: int) -> None:
    """Also one that could not be repeated, had it been made."""
    new_collection(manager)
    client = manager.get_client("doc", "azure")

    def says_goodbye(stream: socket.socket) -> None:
        stream.sendall(greeting())
        read_frame(stream)
        engine.give_up()
        stream.sendall(frame(kind))

    with FakeEngine(manager, says_goodbye) as engine:
        assert client.create_collection("new").count() == 0
    assert sorted(c.name for c in client.list_collections()) == ["new", "rag_collection"]


def recorded_answers(manager: ChromaDBManager) -> list[bytes]:
    """What an engine answers to the recorded calls."""
    calls = recorded_calls(manager)
    new_collection(manager)
    answers = []
    for call in calls:
        with greeted(manager) as stream:
            stream.sendall(call)
            kind, body = read_frame(stream)
            assert kind == RETURNED
            answers.append(frame(kind, body))
    return answers


def test_damaged_answers_hurt_no_app(manager: ChromaDBManager) -> None:
    answers = recorded_answers(manager)
    collection = new_collection(manager)
    current = [b""]

    def talk(stream: socket.socket) -> None:
        stream.sendall(greeting())
        while read_frame(stream):
            stream.sendall(current[0])
            stream.shutdown(socket.SHUT_WR)

    process = psutil.Process()
    before = process.memory_info().rss

    @fuzzed
    @given(damaged(answers) | st.binary(max_size=60).map(lambda body: frame(RAISED, body)))
    def answer(data: bytes) -> None:
        current[0] = data
        began = time.monotonic()
        with contextlib.suppress(Exception):
            collection.count()
        assert time.monotonic() - began < 10
        assert process.memory_info().rss - before < 64 * MEGABYTE

    with FakeEngine(manager, talk) as engine:
        answer()
        assert engine.connections > 100
    assert collection.count() == 1


def test_an_answer_that_never_comes_costs_what_has_come_of_it(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    process = psutil.Process()
    sizes = [process.memory_info().rss]

    def trickle(stream: socket.socket) -> None:
        stream.sendall(greeting())
        read_frame(stream)
        stream.sendall(header(LARGEST, RETURNED))
        for _ in range(50):
            stream.sendall(b"x" * 1000)
            time.sleep(0.005)
            sizes.append(process.memory_info().rss)

    with FakeEngine(manager, trickle), pytest.raises(EngineCrashedError):
        collection.count()
    assert len(sizes) == 101
    assert max(sizes) - sizes[0] < 32 * MEGABYTE
    assert collection.count() == 1


@pytest.mark.parametrize(
    ("greets_with", "told"),
    [
        (greeting(version=VERSION + 1), f"protocol version {VERSION + 1}, expected {VERSION}"),
        (b"HTTP/1.1 200 OK\r\n", "not a frame of chroma-manager"),
        (frame(77), "unknown kind of frame 77"),
        (header(2**32 - 1, HELLO), "a body of 4294967295 bytes"),
        (frame(RETURNED, COUNTED), "a damaged message"),
        (frame(FAILED, b"\xff"), "a damaged message"),
    ],
    ids=["another version", "another protocol", "no kind", "too large", "another kind", "damaged"],
)
def test_an_owner_that_greets_otherwise_is_left_alone(manager: ChromaDBManager, greets_with: bytes, told: str) -> None:
    collection = new_collection(manager)
    with FakeEngine(manager, answering(b"", hangs_up=True, greets_with=greets_with)) as engine:
        for call in (collection.count, lambda: manager.get_client("doc", "azure")):
            with pytest.raises(InstanceOpenError, match=rf"doc/azure .*{told}"):
                call()
        assert engine.connections == 2
        assert psutil.Process().children() == [], "there is a second owner"
    assert collection.count() == 1


def silent(stream: socket.socket) -> None:
    stream.recv(1)


def hanging_up(_: socket.socket) -> None:
    pass


def half_a_greeting(stream: socket.socket) -> None:
    stream.sendall(greeting()[:6])


@pytest.mark.parametrize("talk", [silent, hanging_up, half_a_greeting, answering(b"")])
def test_an_engine_that_does_not_answer_and_goes_is_followed_by_another(manager, talk) -> None:
    collection = new_collection(manager)
    counts = []
    thread = threading.Thread(target=lambda: counts.append(collection.count()))
    with FakeEngine(manager, talk) as engine:
        thread.start()
        assert eventually(lambda: engine.connections > 0)
        time.sleep(0.2)
        assert counts == []
    thread.join(20)
    assert counts == [1]


def test_an_engine_that_is_slow_is_waited_for(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)

    def talk(stream: socket.socket) -> None:
        for data in (greeting(), frame(RETURNED, COUNTED)):
            time.sleep(0.2)
            for byte in data:
                stream.sendall(bytes([byte]))
                time.sleep(0.01)
            read_frame(stream)

    with FakeEngine(manager, talk) as engine:
        assert collection.count() == 7
        assert engine.connections == 1
    assert collection.count() == 1


def test_a_matrix_of_no_columns_costs_no_engine(manager) -> None:
    engine = Watched(manager)
    engine._process.rlimit(psutil.RLIMIT_AS, (engine._process.memory_info().vms + (1 << 30),) * 2)
    began = time.monotonic()
    engine.is_sent(frame(CALL, name(b"count") + b"t" + u32(1) + b"M" + u32(2**32 - 1) + u32(0) + b"N"))
    assert time.monotonic() - began < 5


def test_a_call_that_trickles_is_left_in_time(tmp_path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None, call_timeout=0.5)
    collection = new_collection(manager)

    def trickle(stream) -> None:
        stream.sendall(greeting())
        read_frame(stream)
        stream.sendall(header(LARGEST, RETURNED))
        for _ in range(300):
            stream.sendall(b"x")
            time.sleep(0.01)

    began = time.monotonic()
    with FakeEngine(manager, trickle):
        with pytest.raises(CallTimeoutError):
            collection.count()
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (frame(RETURNED, COUNTED, version=VERSION + 1), f"protocol version {VERSION + 1}"),
        (b"XYZ" + frame(RETURNED, COUNTED)[3:], "not a frame"),
        (frame(77, COUNTED), "unknown kind of frame 77"),
        (header(2**32 - 1, RETURNED), "a body of 4294967295 bytes"),
    ],
)
def test_an_answer_that_is_no_frame_is_told_of(manager, answer, told) -> None:
    collection = new_collection(manager)
    with FakeEngine(manager, answering(answer)), pytest.raises(ChromaManagerError, match=told):
        collection.count()


@pytest.mark.parametrize("kind", [HELLO, FAILED, CALL, RELEASE, SHARED, MANAGE, DELETE, RAISED])
def test_a_damaged_answer_closes_its_connection(manager, kind) -> None:
    collection = new_collection(manager)
    with FakeEngine(manager, answering(frame(kind, COUNTED))) as engine:
        for _ in range(2):
            with pytest.raises(ChromaManagerError, match="doc/azure"):
                collection.count()
        assert engine.connections >= 2


def test_damaged_answers_are_clear_errors(manager) -> None:
    answers = recorded_answers(manager)
    collection = new_collection(manager)
    current = [b""]

    def talk(stream) -> None:
        stream.sendall(greeting())
        while read_frame(stream):
            stream.sendall(current[0])
            stream.shutdown(2)

    seen = {}

    @fuzzed
    @given(
        damaged(answers)
        | st.binary(max_size=60).map(lambda body: frame(RAISED, body))
        | st.lists(pieces, max_size=8).map(lambda parts: frame(RETURNED, b"".join(parts)))
    )
    def answer(data: bytes) -> None:
        current[0] = data
        try:
            collection.count()
        except BaseException as error:
            if not isinstance(error, ChromaManagerError) and "damaged message" not in str(error):
                seen.setdefault(f"{type(error).__name__}: {error}"[:100], data)

    with FakeEngine(manager, talk):
        answer()
    assert not seen, "\n".join(map(repr, seen.items()))


@pytest.mark.parametrize(
    ("module", "what"), [(b"builtins", b"print"), (b"builtins", b"SystemExit"), (b"builtins", b"int")]
)
def test_only_an_exception_is_raised(manager, module, what, capfd) -> None:
    collection = new_collection(manager)
    body = name(module) + name(what) + b"t" + u32(1) + b"s" + name(b"EXECUTED")
    with FakeEngine(manager, answering(frame(RAISED, body))), pytest.raises((RuntimeError, ChromaManagerError)):
        collection.count()
    assert "EXECUTED" not in capfd.readouterr().out
