"""A batch is all or nothing: for each error, after each kill and failure, and whoever opens the database next."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import psutil
import pytest
from chroma_manager import ChromaDBManager, EngineCrashedError, InstanceOpenError
from chroma_manager.engine.isolated import prepare
from chroma_manager.options import ENGINES
from chroma_manager.worker.database import Database
from conftest import Disk, directory, engine_of, eventually, files_open_in, has_ended, kill_engines, long

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

KILLED_AT = "CHROMA_MANAGER_KILL_AT"
METHODS = ["add", "upsert", "update"]
COUNT, DIMENSION = 300, 16
# The first slices end behind the 20th and the 128th record; where later ones end depends on the time.
PLACES = [0, 19, 20, 128, COUNT - 1]
IDS = [f"{i:03}" for i in range(COUNT)]


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


def rows(seed: int, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).random((count, DIMENSION), dtype=np.float32)


def batch(seed: int) -> dict[str, list[Any]]:
    return {
        "ids": list(IDS),
        "embeddings": list(rows(seed)),
        "metadatas": [{"seed": seed, "place": i, "share": i / 7, "even": i % 2 == 0} for i in range(COUNT)],
        "documents": [f"text {i} of {seed}" for i in range(COUNT)],
    }


def outcome(call: Callable[[], Any]) -> tuple[Any, ...]:
    """What is the same for the same error."""
    try:
        return "returned", call()
    except Exception as error:
        return type(error), str(error)


def content(collection: chromadb.Collection) -> dict[str, tuple[Any, ...]]:
    got = collection.get(include=["embeddings", "metadatas", "documents"])
    values = zip(got["embeddings"].tolist(), got["metadatas"], got["documents"], strict=True)
    return {i: (tuple(vector), *rest) for i, (vector, *rest) in zip(got["ids"], values, strict=True)}


def replace(name: str, value: Any) -> Callable[[dict[str, list[Any]], int], None]:
    return lambda batch, place: batch[name].__setitem__(place, value)


def replace_float(value: float) -> Callable[[dict[str, list[Any]], int], None]:
    def replace(batch: dict[str, list[Any]], place: int) -> None:
        batch["embeddings"][place] = np.array([*batch["embeddings"][place][:-1], value])

    return replace


BAD_RECORDS = {
    "NaN": replace_float(float("nan")),
    "infinity": replace_float(-float("inf")),
    "too large for a float": replace_float(1e39),
    "another dimension": replace("embeddings", np.ones(DIMENSION + 1, dtype=np.float32)),
    "no dimension": replace("embeddings", np.ones(0, dtype=np.float32)),
    "no vector": replace("embeddings", None),
    "a lone surrogate in an id": replace("ids", "a\ud800"),
    "a lone surrogate in a document": replace("documents", "a\ud800"),
    "a lone surrogate in metadata": replace("metadatas", {"key": "a\ud800"}),
    "an empty id": replace("ids", ""),
    "an id that is none": replace("ids", 7),
    "an id twice": replace("ids", IDS[5]),
    "an empty key": replace("metadatas", {"": 1}),
    "a reserved key": replace("metadatas", {"#key": 1}),
    "a tuple in metadata": replace("metadatas", {"key": ("a", 1)}),
    "a sparse vector": replace("metadatas", {"key": {"indices": [1], "values": [1.0]}}),
    "a mixed list": replace("metadatas", {"key": [1, "a"]}),
    "an empty list": replace("metadatas", {"key": []}),
    "a document that is none": replace("documents", 7),
}


def raw(collection: chromadb.Collection, method: str, given: dict[str, list[Any]]) -> Callable[[], Any]:
    """The call without chromadb's own look at the values: what it does not see is the engine's to refuse."""
    server = collection._client
    given = {**given, "collection_id": collection.id}
    return lambda: getattr(server, f"_{method}")(**given)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromadb.ClientAPI]:
    with chromadb.PersistentClient(tmp_path_factory.mktemp("stock")) as client:
        yield client


@pytest.mark.parametrize("method", METHODS)
def test_a_bad_record_at_any_place_is_refused_as_by_chroma_and_nothing_is_stored(manager, stock, method: str) -> None:
    both = [client.create_collection(f"bad-{method}") for client in (manager.get_client("doc", "azure"), stock)]
    for collection in both:
        collection.add(**batch(1))
        collection.delete(ids=IDS[200:])
    before = content(both[1])
    for name, make_bad in BAD_RECORDS.items():
        for place in PLACES:
            if (name, place) == ("an id twice", 5):
                continue
            given = batch(2)
            make_bad(given, place)
            calls = [lambda c, g=given: lambda: getattr(c, method)(**g), lambda c, g=given: raw(c, method, g)]
            # Without chromadb's own look these are no errors.
            takes = name == "an id twice" or (name, method) == ("no vector", "update")
            for call in calls[:1] if takes else calls:
                ours, theirs = (outcome(call(collection)) for collection in both)
                assert (name, place, ours) == (name, place, theirs)
                assert ours[0] != "returned", (name, place)
    assert content(both[0]) == content(both[1]) == before
    for collection in both:
        getattr(collection, method)(**batch(3))
    assert content(both[0]) == content(both[1]) != before


@pytest.mark.parametrize("method", METHODS)
def test_lists_that_do_not_match_are_refused_as_by_chroma(manager, stock, method: str) -> None:
    both = [client.create_collection(f"lists-{method}") for client in (manager.get_client("doc", "azure"), stock)]
    for name in ("embeddings", "metadatas", "documents"):
        for change in (lambda values: values[:-1], lambda values: values[:20], lambda values: [*values, values[0]]):
            given = batch(1)
            given[name] = change(given[name])
            ours, theirs = (outcome(raw(collection, method, given)) for collection in both)
            assert ours == theirs
            assert ours[0] != "returned"
        assert content(both[0]) == content(both[1]) == {}


def test_what_chroma_takes_is_taken_in_any_form(manager, stock) -> None:
    """Tuples, plain floats, updates with and without vectors: not all of it can be sliced."""
    both = [client.create_collection("forms") for client in (manager.get_client("doc", "azure"), stock)]
    for collection in both:
        given = batch(1)
        raw(collection, "add", {**given, "metadatas": tuple(given["metadatas"])})()
        plain = [row.tolist() for row in rows(2)]
        raw(collection, "upsert", {**given, "embeddings": plain})()
        raw(collection, "update", {"ids": IDS, "embeddings": [None, *rows(3)[1:]]})()
        raw(collection, "update", {"ids": IDS, "documents": [None, *given["documents"][1:]]})()
        collection.update(ids=IDS, metadatas=[{"new": [1, 2], "seed": None} for _ in IDS])
    assert content(both[0]) == content(both[1])


def journals(manager: ChromaDBManager, name: str = "batch-*") -> list[Path]:
    return list((directory(manager) / ".chroma_manager").glob(name))


class Batch:
    """A collection with a batch in it, and a second one that is interrupted: it must be there whole, or not at all."""

    def __init__(self, manager: ChromaDBManager, method: str) -> None:
        self.manager = manager
        self.method = method
        self.collection = manager.get_collection("doc", "azure", "rag_collection")
        self.old, self.new = batch(1), batch(2)
        if method == "add":
            self.old["ids"] = [f"old-{i}" for i in IDS]
        self.collection.add(**self.old)
        manager.cleanup_all_instances()

    def write(self) -> None:
        """In an engine process that is killed, and in another one: then it is not tried again."""
        self.open()
        with pytest.raises(EngineCrashedError):
            getattr(self.collection, self.method)(**self.new)

    def open(self) -> None:
        self.collection = self.manager.get_collection("doc", "azure", "rag_collection")

    def assert_is_whole(self, expected: bool) -> None:
        self.open()
        assert self.stored(content(self.collection)) == expected
        assert journals(self.manager) == []

    def stored(self, found: dict[str, tuple[Any, ...]]) -> bool:
        """Whether the second batch is there."""
        assert {key: found.get(key) for key in found if key in self.old["ids"]}.keys() == set(self.old["ids"])
        seeds = {found[i][1]["seed"] if i in found else None for i in IDS}
        assert len(seeds) == 1, "half a batch"
        (seed,) = seeds
        if seed is not None:
            assert [found[i] for i in IDS] == [
                (tuple(row.astype(float).tolist()), metadata, document)
                for row, metadata, document in zip(
                    rows(seed), batch(seed)["metadatas"], batch(seed)["documents"], strict=True
                )
            ]
        return seed == 2


# And whether the batch is there after a kill at the step.
STEPS = {
    "batch written": False,
    "batch begun": False,
    "slice 1 taken": True,
    "slice 2 taken": True,
    "batch ended": True,
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("method", ["update", *long("add", "upsert")])
def test_a_batch_that_a_kill_interrupts_is_completed_or_never_was(manager, monkeypatch, method, step: str) -> None:
    interrupted = Batch(manager, method)
    monkeypatch.setenv(KILLED_AT, step)
    interrupted.write()
    monkeypatch.delenv(KILLED_AT)
    interrupted.assert_is_whole(STEPS[step])
    kill_engines()
    interrupted.assert_is_whole(STEPS[step])


def test_a_batch_that_fits_into_one_slice_has_no_journal(manager, monkeypatch) -> None:
    collection = manager.get_collection("doc", "azure", "rag_collection")
    kill_engines()
    monkeypatch.setenv(KILLED_AT, "batch written")
    with pytest.raises(EngineCrashedError):
        collection.add(**batch(1))
    # As many as are one slice in any case. They tell how long more would take: when they exist, no time at all.
    for _ in range(2):
        collection.add(**{name: values[:128] for name, values in batch(1).items()})
    collection.add(**batch(1))
    assert sorted(content(collection)) == IDS


@pytest.mark.parametrize("step", ["completion begun", "batch completed"])
def test_a_completion_that_kills_interrupt_is_completed(manager, monkeypatch, step: str) -> None:
    interrupted = Batch(manager, "update")
    monkeypatch.setenv(KILLED_AT, "slice 2 taken")
    interrupted.write()
    monkeypatch.setenv(KILLED_AT, step)
    # Each engine that an opening starts dies there, until it gives up.
    with contextlib.suppress(InstanceOpenError):
        interrupted.open()
    monkeypatch.delenv(KILLED_AT)
    interrupted.assert_is_whole(True)


@pytest.fixture(params=["add", "update"])
def half(request, manager, monkeypatch) -> Batch:
    """A batch of which a part is in the database, and the rest in its journal."""
    interrupted = Batch(manager, request.param)
    monkeypatch.setenv(KILLED_AT, "slice 1 taken")
    interrupted.write()
    monkeypatch.delenv(KILLED_AT)
    assert len(journals(manager)) > 0
    return interrupted


def test_what_another_chroma_does_in_between_is_not_undone(manager, half: Batch) -> None:
    with chromadb.PersistentClient(directory(manager)) as client:
        collection = client.get_collection("rag_collection")
        collection.delete(ids=[IDS[0], IDS[-1]])
        collection.upsert(ids=[IDS[1], IDS[-2]], embeddings=rows(9, 2), documents=["theirs", "theirs"])
    half.open()
    found = content(half.collection)
    assert IDS[0] not in found
    assert IDS[-1] not in found
    assert {found[i][2] for i in (IDS[1], IDS[-2])} == {"theirs"}
    assert {found[i][1]["seed"] for i in IDS[2:-2]} == {2}
    assert journals(manager) == []


def test_a_batch_whose_rows_another_chroma_has_purged_is_set_aside(manager, half: Batch) -> None:
    with sqlite3.connect(directory(manager) / "chroma.sqlite3") as sql:
        sql.execute("delete from embeddings_queue where seq_id < (select max(seq_id) from embeddings_queue)")
    sql.close()
    left = len(journals(manager))
    with contextlib.suppress(Exception):
        # What else is to be done about such a database is another matter.
        half.open()
    assert (len(journals(manager)), len(journals(manager, "damaged-*.batch"))) == (0, left)


@pytest.mark.parametrize("half", ["add"], indirect=True)
def test_a_batch_whose_first_rows_another_chroma_has_purged_is_set_aside_where_the_log_was_empty(manager, half) -> None:
    """Nothing tells then how many rows came before it, and what is left is not its beginning."""
    (path,) = journals(manager)
    journal = path.read_bytes()
    call = 16 + int.from_bytes(journal[4:12], "little")
    place = json.dumps({**json.loads(journal[call:-4]), "first": None, "rows": 0}).encode()
    path.write_bytes(journal[:call] + place + zlib.crc32(place).to_bytes(4, "little"))
    with sqlite3.connect(directory(manager) / "chroma.sqlite3") as sql:
        sql.execute("delete from embeddings_queue where seq_id < (select max(seq_id) from embeddings_queue)")
    sql.close()
    with contextlib.suppress(Exception):
        half.open()
    assert (len(journals(manager)), len(journals(manager, "damaged-*.batch"))) == (0, 1)


def test_no_row_of_the_log_is_purged_while_a_batch_is_not_complete(manager, monkeypatch) -> None:
    collection = manager.get_collection(
        "doc", "azure", "small", configuration={"hnsw": {"sync_threshold": 20, "batch_size": 10}}
    )
    kill_engines()
    monkeypatch.setenv(KILLED_AT, "slice 2 taken")
    with pytest.raises(EngineCrashedError):
        collection.upsert(**batch(2))
    monkeypatch.delenv(KILLED_AT)
    path = directory(manager)
    database = Database(json.loads(prepare(None, path)[1]), path)
    database.keeps_journals = False  # what is left is completed by the next one
    while (bindings := database.open()) is None:
        assert eventually(lambda: files_open_in(path) == [])
    more = [f"more-{i}" for i in range(100)]
    where = ("default_tenant", "default_database")
    bindings.upsert(str(collection.id), more, rows(3, 100).tolist(), None, None, None, *where)
    del bindings
    assert eventually(lambda: files_open_in(path) == [])
    # An opening that fails, as on a full disk, and one that does not.
    (path / "chroma.sqlite3").rename(path / "away")
    (path / "chroma.sqlite3").mkdir()
    with pytest.raises(Exception, match="unable to open database file"):
        database.open()
    (path / "chroma.sqlite3").rmdir()
    (path / "away").rename(path / "chroma.sqlite3")
    assert database.open() is not None
    assert eventually(lambda: files_open_in(path) == [])
    database.closed()
    assert len(journals(manager)) == 1
    assert sorted(manager.get_collection("doc", "azure", "small").get(include=[])["ids"]) == [*IDS, *sorted(more)]
    assert journals(manager) == journals(manager, "damaged-*.batch") == []


def test_a_batch_of_a_collection_that_is_gone_is_forgotten(manager, half: Batch) -> None:
    with chromadb.PersistentClient(directory(manager)) as client:
        client.delete_collection("rag_collection")
        client.create_collection("rag_collection").add(ids=["1"], embeddings=rows(1, 1))
    half.open()
    assert half.collection.count() == 1
    assert journals(manager) == journals(manager, "damaged-*") == []


def test_a_snapshot_has_all_of_a_batch(manager, half: Batch, tmp_path: Path) -> None:
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    with chromadb.PersistentClient(tmp_path / "snapshot") as client:
        assert half.stored(content(client.get_collection("rag_collection")))


def test_a_restored_database_has_nothing_of_a_batch_that_came_before(manager, monkeypatch, tmp_path: Path) -> None:
    interrupted = Batch(manager, "update")
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    manager.cleanup_all_instances()
    for step in ("restore decided", "database replaced", None):
        monkeypatch.setenv(KILLED_AT, "slice 1 taken")
        interrupted.write()
        if step is None:
            monkeypatch.delenv(KILLED_AT)
        else:
            monkeypatch.setenv(KILLED_AT, step)
        with contextlib.suppress(EngineCrashedError, InstanceOpenError):
            manager.restore("doc", "azure", tmp_path / "snapshot")
        monkeypatch.delenv(KILLED_AT, raising=False)
        interrupted.assert_is_whole(False)
        manager.cleanup_all_instances()


def test_the_engine_in_this_process_completes_what_one_of_its_own_was_killed_in(half: Batch, tmp_path: Path) -> None:
    half.manager.shutdown()
    half.manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded", idle_timeout=None)
    half.assert_is_whole(True)


@pytest.mark.parametrize("half", ["update"], indirect=True)
@pytest.mark.parametrize("garbage", ["nothing", "a truncated one", "another end", "a directory", "a link"])
def test_a_journal_that_is_garbage_is_set_aside_and_no_more(manager, half: Batch, tmp_path: Path, garbage: str) -> None:
    path = journals(manager)[0]
    sound = path.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(sound)
    path.unlink()
    if garbage == "a directory":
        path.mkdir()
    elif garbage == "a link":
        path.symlink_to(other)
    else:
        bad = {"nothing": b"", "a truncated one": sound[:-9], "another end": sound[:-4] + b"1234"}
        path.write_bytes(bad[garbage])
    half.open()
    assert set(half.old["ids"]) <= content(half.collection).keys()
    assert len(journals(manager, "damaged-*.batch")) == 1
    assert other.read_bytes() == sound
    half.collection.upsert(**half.new)
    half.assert_is_whole(True)


def test_others_write_between_the_slices_and_what_they_were_told_is_kept(manager, half: Batch) -> None:
    """The same journal, as if the rows of others were between the batch's."""
    path = directory(manager) / "chroma.sqlite3"
    with sqlite3.connect(path) as sql:
        (end,) = sql.execute("select max(seq_id) from embeddings_queue").fetchone()
        found = sql.execute("select topic, id, encoding, metadata from embeddings_queue where seq_id = ?", (end,))
        topic, last, encoding, metadata = found.fetchone()
        following = IDS[IDS.index(last) + 1]
        insert = "insert into embeddings_queue (seq_id, topic, operation, id, vector, encoding, metadata) "
        operation = {"add": 0, "update": 1}[half.method]
        # The next record of the batch, with another vector and with the batch's vector but other metadata.
        place = IDS.index(following)
        for step, vector in enumerate((rows(5)[place], rows(2)[place]), 1):
            values = (end + step, topic, operation, following, vector.tobytes(), encoding, metadata)
            sql.execute(f"{insert} values (?, ?, ?, ?, ?, ?, ?)", values)
    sql.close()
    half.open()
    found = content(half.collection)
    if half.method == "update":
        half.assert_is_whole(True)
    else:
        assert {i for i in IDS if i not in found} == set(), "their record was there first, and all others are"


@pytest.mark.parametrize("method", ["add", "update"])
def test_a_writer_and_its_engine_that_are_killed_between_slices_leave_no_half_batch(manager, script, method) -> None:
    interrupted = Batch(manager, method)
    code = f"""
from test_batches import *
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = manager.get_collection("doc", "azure", "rag_collection")
print(manager._get_db_path("doc", "azure"), flush=True)
collection.{method}(**batch(2))
print("done", flush=True)
"""
    writer = script(code)
    writer.read_line()
    children = psutil.Process(writer.process.pid).children()
    assert eventually(lambda: [path for path in journals(manager) if path.suffix == ""] != [])
    for pid in (writer.process.pid, *(child.pid for child in children)):
        os.kill(pid, signal.SIGKILL)
    rest = writer.process.communicate()[0]
    assert eventually(lambda: all(has_ended(child) for child in children))
    interrupted.open()
    stored = interrupted.stored(content(interrupted.collection))
    assert stored or "done" not in rest
    assert journals(manager) == []


@pytest.mark.usefixtures("runtime")
def test_on_a_full_disk_nothing_is_written_before_an_interrupted_batch_is_complete(disk: Disk) -> None:
    manager = ChromaDBManager(base_path=disk.path / "db", engine="isolated", idle_timeout=None)
    ids = [str(i) for i in range(5000)]
    vectors = np.random.default_rng(0).random((len(ids), 256), dtype=np.float32)
    collection = manager.get_collection("doc", "azure", "rag_collection")
    collection.add(ids=["first"], embeddings=vectors[:1])
    watcher = threading.Thread(target=lambda: eventually(lambda: collection.count() > 1, 60) and disk.fill(1 << 20))
    watcher.start()
    with pytest.raises(Exception, match="No space left on device"):
        collection.add(ids=ids, embeddings=vectors)
    watcher.join()
    left = journals(manager)
    refused, text = outcome(lambda: collection.delete(ids=ids))
    assert refused != "returned" or left == []
    if left and refused is not InstanceOpenError:
        assert "add() was interrupted" in text
        assert "No space left on device" in text
        reads = outcome(collection.count)
        # Where an index could not be written, they fail too.
        assert reads[0] != "returned" or 1 < reads[1] < len(ids)
    disk.free()
    assert eventually(lambda: outcome(lambda: collection.delete(ids=["first"]))[0] == "returned")
    assert collection.count() in (0, len(ids))
    assert journals(manager) == []
    collection.delete(ids=ids)
    engine_of(manager).kill()
    assert collection.count() == 0, "what was deleted after the failure comes back"
