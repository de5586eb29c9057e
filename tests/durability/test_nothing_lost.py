"""What was acknowledged is there after any kill: of the engine process, at every step, and of everything at once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chromadb
import numpy as np
import psutil
import pytest
from chroma_manager import ChromaDBManager, InstanceOpenError
from chroma_manager.durability import reconnect
from chroma_manager.engine.isolated import prepare
from chroma_manager.options import ENGINES
from chroma_manager.storage.hnsw_files import IndexFiles
from chroma_manager.worker import replay
from chroma_manager.worker.database import Database
from chromadb.config import Settings
from conftest import directory, eventually, files_open_in, kill_engines, long, queried
from model import DIMENSION, Model, vectors

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

KILLED_AT = "CHROMA_MANAGER_KILL_AT"
PLACE = (chromadb.DEFAULT_TENANT, chromadb.DEFAULT_DATABASE)


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


def copies(manager: ChromaDBManager) -> list[Path]:
    """Of index files, in the last checkpoint."""
    return list((directory(manager) / ".chroma_manager").glob("*@*"))


def test_an_index_that_a_kill_left_damaged_is_rebuilt(manager: ChromaDBManager) -> None:
    model = Model(manager)
    model.add(2500)
    model.write("delete", [f"0-{i}" for i in range(100)])
    kill_engines()
    indexes = [path for path in directory(manager).glob("*/*.bin") if path.parent.name != ".chroma_manager"]
    assert indexes
    for file in indexes:
        os.truncate(file, 50)
    model.assert_is_there()
    model.add(10)
    model.assert_is_there()


def test_a_damaged_index_comes_back_from_its_checkpoint_and_the_log_after_it(manager: ChromaDBManager) -> None:
    model, other = Model(manager), Model(manager, "other")
    model.add(2500)
    other.add(1200)
    manager.cleanup_all_instances()
    (indexes,) = queried(manager, "select count(*) from segments where scope = 'VECTOR'")[0]
    assert len(copies(manager)) == indexes == 2
    model.write("update", [f"0-{i}" for i in range(0, 2500, 50)])
    model.add(1500)
    model.write("delete", [f"0-{i}" for i in range(10)])
    kill_engines()
    for file in directory(manager).glob("[!.]*/*.bin"):
        os.truncate(file, 50)
    model.assert_is_there()
    other.assert_is_there()


@pytest.mark.long
def test_everything_that_was_replayed_is_as_it_was_and_found(manager: ChromaDBManager, monkeypatch) -> None:
    """Almost: a search is approximate, and so is every index of Chroma's."""
    # An engine process gives up after five seconds, in which a busy machine does not connect them all.
    monkeypatch.setattr(replay, "SECONDS_FOR_RECONNECTING", 60.0)
    rows = np.random.default_rng(3).random((8000, 64), dtype=np.float32)
    ids = [str(i) for i in range(len(rows))]
    collection = manager.get_collection("doc", "azure", "wide")
    for start in range(0, len(rows), 2000):
        collection.add(ids=ids[start : start + 2000], embeddings=rows[start : start + 2000])
    same = manager.get_collection("doc", "azure", "same")
    same.add(ids=ids[:50], embeddings=np.ones((50, 3), dtype=np.float32))
    inner = manager.get_client("doc", "azure").create_collection("inner", metadata={"hnsw:space": "ip"})
    inner.add(ids=ids[:500], embeddings=rows[:500] * np.arange(1, 501, dtype=np.float32)[:, None])
    kill_engines()
    wide, found = str(collection.id), list[str]()

    def ask(bindings: Any) -> None:
        for start in range(0, len(rows), 500):
            asked = rows[start : start + 500].tolist()
            found.extend(*zip(*bindings.query(wide, None, asked, 1, None, None, [], *PLACE).ids, strict=True))

    open_here(directory(manager), ask)
    assert sum(one != i for one, i in zip(found, ids, strict=True)) < 20, "a search misses up to four"
    log = queried(manager, "select count(*) from embeddings_queue where operation = 1")[0][0]
    assert log < 100, "neither records with the same vector nor those of which longer ones are nearer are written again"
    got = collection.get(include=["embeddings"])
    assert all(np.array_equal(row, rows[int(i)]) for i, row in zip(got["ids"], got["embeddings"], strict=True))
    assert same.count() == 50


def test_of_what_chroma_has_written_to_its_index_files_only_what_no_link_leads_to_is_written_again(
    manager: ChromaDBManager,
) -> None:
    """Of so many normally distributed vectors some are, and a search misses others now and then."""
    rows = np.random.default_rng(0).normal(size=(4000, 384)).astype(np.float32)
    collection = manager.get_collection("doc", "azure", "wide")
    collection.add(ids=[str(i) for i in range(len(rows))], embeddings=rows)
    kill_engines()
    unreachable = set[str]()

    def look(_: Any) -> None:
        (header,) = directory(manager).glob("[!.]*/header.bin")
        unreachable.update(IndexFiles(header.parent, 384, False, set).unreachable())

    batches = open_here(directory(manager), look).batches
    batches.inspect()
    assert not batches.has_other_rows, "what is written again counts as written by this process"
    written = [i for (i,) in queried(manager, "select id from embeddings_queue where operation = 1")]
    assert len(written) == len(set(written)), "once: a second time changes nothing"
    # A search may find a few of them all the same, by the links of a higher level.
    assert set(written) <= unreachable
    assert len(written) > len(unreachable) / 2 > 0


def open_here(path: Path, use: Callable[[Any], object] = lambda bindings: None) -> Database:
    """Opens a database as its engine process does, but in this one, uses it, and leaves it as a kill does."""
    database = Database(json.loads(prepare(None, path)[1]), path)
    while (bindings := database.open()) is None:
        assert eventually(lambda: files_open_in(path) == [])
    use(bindings)
    del bindings
    assert eventually(lambda: files_open_in(path) == [])
    return database


def add_and_kill(model: Model, count: int) -> None:
    """Leaves all of it in the log.

    An engine process would take a checkpoint meanwhile.
    """
    collection, ids = str(model.collection().id), [f"here-{model.seed}-{i}" for i in range(count)]
    model.manager.cleanup_all_instances()
    model.seed += 1
    rows = vectors(model.seed, count)

    def add(bindings: Any) -> None:
        for start in range(0, count, 2500):
            part = slice(start, start + 2500)
            bindings.add(ids[part], collection, rows[part].tolist(), None, None, None, *PLACE)

    open_here(directory(model.manager), add)
    model.records |= dict(zip(ids, rows, strict=True))


class CutOff:
    """A binding whose index does not find one record by its vector, and this one not even among itself alone."""

    def __init__(self) -> None:
        self.updated: list[str] = []

    def get(self, _: str, ids: list[str], *__: object) -> SimpleNamespace:
        return SimpleNamespace(ids=ids, embeddings=[[float(i), 1.0] for i in ids])

    def query(self, _: str, ids: list[str] | None, vectors: list[list[float]], *__: object) -> SimpleNamespace:
        found = [None if row[0] == 7 and not self.updated else str(int(row[0])) for row in vectors]
        if ids is None:
            return SimpleNamespace(ids=[[i or "8"] for i in found], distances=[[0.0 if i else 1.0] for i in found])
        return SimpleNamespace(ids=[[i] if i else [] for i in found], distances=[[0.0] if i else [] for i in found])

    def update(self, _: str, ids: list[str], *__: object) -> None:
        self.updated += ids


def test_a_record_that_is_cut_off_altogether_is_connected() -> None:
    bindings = CutOff()
    logged = {str(i): np.array([i, 1], dtype=np.float32).tobytes() for i in range(300)}
    suspected = [reconnect.Vectors("id", "tenant", "database", "l2", logged)]
    assert reconnect.connect(bindings, suspected, 20) == {"id": 1}
    assert bindings.updated == ["7"]
    assert reconnect.connect(CutOff(), suspected, -1) == {}, "its time is over"


def test_a_log_without_an_index_is_left_to_the_first_read(manager: ChromaDBManager) -> None:
    """A recovery would read all of many small collections, of which most are not asked for."""
    model = Model(manager)
    model.add(100)
    kill_engines()
    assert open_here(directory(manager)).replay_seconds == 0
    model.assert_is_there()
    model.add(1500)
    kill_engines()
    assert open_here(directory(manager)).replay_seconds > 0
    model.assert_is_there()


def test_after_a_reset_the_log_keeps_its_rows_as_before(tmp_path: Path) -> None:
    """Chroma empties its settings as well, and would purge the rows of an index that was not synced."""
    manager = ChromaDBManager(tmp_path / "db", idle_timeout=None, settings=Settings(allow_reset=True))
    Model(manager).add(10)
    manager.get_client("doc", "azure").reset()
    model = Model(manager)
    for _ in range(3):
        model.add(500)
    assert queried(manager, "select count(*) from embeddings_queue") == [(1500,)]
    kill_engines()
    for file in directory(manager).glob("[!.]*/*.bin"):
        os.truncate(file, 50)
    model.assert_is_there()
    manager.cleanup_all_instances()
    assert '"automatically_purge":true' in queried(manager, "select config_json_str from embeddings_queue_config")[0][0]
    assert manager.verify("doc", "azure").ok


def test_a_closed_database_is_as_any_chroma_wants_it(manager: ChromaDBManager) -> None:
    model = Model(manager)
    model.add(2500)
    manager.cleanup_all_instances()
    assert queried(manager, "select count(*) from embeddings_queue")[0][0] < 1000
    assert '"automatically_purge":true' in queried(manager, "select config_json_str from embeddings_queue_config")[0][0]
    assert not (directory(manager) / ".chroma_manager" / "open").exists()
    with chromadb.PersistentClient(directory(manager)) as client:
        collection = client.get_collection("model")
        assert collection.count() == 2500
        more = vectors(99, 1500)
        collection.add(ids=[f"stock-{i}" for i in range(1500)], embeddings=more)
    model.records |= {f"stock-{i}": row for i, row in enumerate(more)}
    model.assert_is_there()
    kill_engines()
    model.assert_is_there()


def test_a_database_that_stock_chroma_made_is_as_safe(manager: ChromaDBManager) -> None:
    model = Model(manager)
    rows = vectors(7, 2500)
    directory(manager).mkdir(parents=True)
    with chromadb.PersistentClient(directory(manager)) as client:
        client.create_collection("model", embedding_function=None).add(
            ids=[str(i) for i in range(2500)], embeddings=rows
        )
    model.records = {str(i): row for i, row in enumerate(rows)}
    model.add(1500)
    kill_engines()
    for file in directory(manager).glob("[!.]*/*.bin"):
        os.truncate(file, 50)
    model.assert_is_there()


def test_a_database_of_an_older_chroma_opens(manager: ChromaDBManager) -> None:
    directory(manager).mkdir(parents=True)
    with chromadb.PersistentClient(directory(manager)) as client:
        client.create_collection("model", embedding_function=None).add(ids=["1"], embeddings=[[1.0, 2.0]])
    with sqlite3.connect(directory(manager) / "chroma.sqlite3") as old:
        (migration,) = old.execute("select filename from migrations where filename like '%queue_config%'").fetchone()
        old.execute("delete from migrations where filename = ?", (migration,))
        old.execute("drop table embeddings_queue_config")
    old.close()
    assert manager.get_collection("doc", "azure", "model").count() == 1
    manager.cleanup_all_instances()
    # Chroma itself turns purging off for a database that has a log and no setting.
    assert (
        '"automatically_purge":false' in queried(manager, "select config_json_str from embeddings_queue_config")[0][0]
    )


@pytest.mark.parametrize(
    "step",
    [
        *("log kept", "write-ahead log off", "copied", "manifest written", "log not kept"),
        *long("marked", "write-ahead log on", "file copied", "log shortened", "unmarked"),
    ],
)
def test_a_kill_at_a_step_of_opening_or_closing_loses_nothing(manager, monkeypatch, step: str) -> None:
    model = Model(manager)
    model.add(1500)
    for _ in range(2):
        model.add(1100)
        monkeypatch.setenv(KILLED_AT, step)
        manager.cleanup_all_instances()
        monkeypatch.delenv(KILLED_AT)
        model.assert_is_there()
        kill_engines()
        model.assert_is_there()


@pytest.mark.parametrize("step", ["file copied", "index replaced", *long("index removed", "positions set back")])
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_kill_at_a_step_of_recovery_loses_nothing(manager, monkeypatch, step: str, has_checkpoint: bool) -> None:
    model = Model(manager)
    model.add(2500)
    if has_checkpoint:
        manager.cleanup_all_instances()
        model.add(1200)
    kill_engines()
    monkeypatch.setenv(KILLED_AT, step)
    # Each engine that an opening starts dies there; where there is such a step, it gives up after some.
    with contextlib.suppress(InstanceOpenError):
        model.collection().count()
    monkeypatch.delenv(KILLED_AT)
    model.assert_is_there()


@pytest.mark.long
def test_a_log_does_not_grow_for_ever_in_a_busy_database(manager: ChromaDBManager) -> None:
    model = Model(manager)
    for _ in range(5):
        model.add(4500)
    assert eventually(lambda: copies(manager) != [])
    model.assert_is_there()
    kill_engines()
    assert queried(manager, "select count(*) from embeddings_queue")[0][0] <= 21_500
    model.assert_is_there()


@pytest.mark.long
def test_a_log_does_not_grow_for_ever_in_a_database_that_is_killed_again_and_again(manager: ChromaDBManager) -> None:
    """Each recovery would take longer than the one before, and its process be the likelier killed in the middle."""
    model = Model(manager)
    for _ in range(2):
        add_and_kill(model, 12_500)
        manager.get_client("doc", "azure").list_collections()
        assert eventually(lambda: queried(manager, "select count(*) from embeddings_queue")[0][0] < 100)
        kill_engines()
        assert len(copies(manager)) == 1
    model.assert_is_there()


def test_index_files_are_synced_at_closing_and_not_while_calls_wait(manager: ChromaDBManager, monkeypatch) -> None:
    model, synced = Model(manager), list[Path]()
    model.add(1500)
    kill_engines()
    database = open_here(directory(manager))
    monkeypatch.setattr("chroma_manager.durability.copies.sync_tree", synced.append)
    assert database.checkpoint() is not None
    assert len(copies(manager)) == 1
    assert synced == []
    database.closed()
    assert [path.is_dir() and path.parent for path in synced] == [directory(manager)]


@pytest.mark.long
def test_of_a_log_of_deletions_a_checkpoint_is_taken_too(manager: ChromaDBManager) -> None:
    model = Model(manager)
    for _ in range(3):
        model.add(4000)
    manager.cleanup_all_instances()
    ids = list(model.records)
    for first in range(0, 11_000, 1000):
        model.write("delete", ids[first : first + 1000])
    assert eventually(lambda: queried(manager, "select count(*) from embeddings_queue")[0][0] < 10_000)
    kill_engines()
    model.assert_is_there()


@pytest.mark.long
def test_a_checkpoint_is_taken_after_few_records_that_took_long(manager: ChromaDBManager) -> None:
    collection = manager.get_collection("doc", "azure", "slow")
    rows = np.random.default_rng(0).random((1500, 1024), dtype=np.float32)
    ids = [str(i) for i in range(len(rows))]
    collection.add(ids=ids, embeddings=rows)
    written, deadline = len(rows), time.monotonic() + 40
    while copies(manager) == [] and time.monotonic() < deadline:
        collection.upsert(ids=ids[:200], embeddings=rows[:200])
        written += 200
    assert copies(manager) != []
    assert written < 20_000, "these writes are too fast to tell"
    assert np.array_equal(collection.get(ids=["7"], include=["embeddings"])["embeddings"][0], rows[7])


@pytest.mark.parametrize("seed", [0, *long(1, 2)])
def test_writes_of_every_kind_between_kills_agree_with_a_model(manager: ChromaDBManager, seed: int) -> None:
    chance = random.Random(seed)
    model = Model(manager)
    for _ in range(6):
        killer = threading.Timer(chance.uniform(0.1, 1.0), kill_engines)
        killer.start()
        for _ in range(chance.randint(3, 12)):
            # An acknowledged write was made once, or twice with the same effect.
            model.write_anything(chance)
        killer.join()
        if chance.random() < 0.3:
            manager.cleanup_all_instances()
        model.assert_is_there()


@pytest.mark.parametrize("killed", ["the app that started the engine", *long("the other app")])
def test_an_app_that_is_killed_is_not_noticed_by_another_one(manager: ChromaDBManager, script, killed: str) -> None:
    code = """
manager = ChromaDBManager(base_path=base, engine="isolated")
k = sys.stdin.readline().strip()
collection = manager.get_collection("doc", "azure", "rag_collection")
print("ready", flush=True)
for n in range(10**9):
    collection.add(ids=[f"{k}-{n}-{i}" for i in range(50)], embeddings=[[float(n), float(i)] for i in range(50)])
    print(n, flush=True)
    if n == 40 and k == "stays":
        break
"""
    apps = {name: script(code) for name in ("stays", "killed")}
    for name in ["killed", "stays"] if killed == "the app that started the engine" else ["stays", "killed"]:
        apps[name].say(name)
        assert apps[name].read_line() == "ready"
    last = 0
    while last < 10:
        last = int(apps["killed"].read_line())
    apps["killed"].process.kill()
    rest = apps["killed"].process.stdout.read().split()
    last = int(rest[-1]) if rest else last
    assert apps["stays"].finish().split()[-1] == "40"
    acknowledged = {f"killed-{n}-{i}" for n in range(last + 1) for i in range(50)}
    acknowledged |= {f"stays-{n}-{i}" for n in range(41) for i in range(50)}
    got = manager.get_collection("doc", "azure", "rag_collection").get(include=["embeddings"])
    assert acknowledged <= set(got["ids"])
    assert len(got["embeddings"]) == len(got["ids"]) <= len(acknowledged) + 50


def test_a_writer_and_its_engine_that_are_killed_together_lose_nothing(manager: ChromaDBManager, script) -> None:
    code = """
import numpy as np
k = sys.stdin.readline().strip()
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = manager.get_collection("doc", "azure", "rag_collection")
for n in range(10**9):
    ids = [f"{k}-{n}-{i}" for i in range(100)]
    collection.add(ids=ids, embeddings=np.random.default_rng(n).random((100, 16), dtype=np.float32))
    print(n, flush=True)
"""
    acknowledged: set[str] = set()
    for k in range(4):
        writer = script(code)
        writer.say(str(k))
        writer.read_line()
        time.sleep(random.uniform(0.3, 1.5))
        everything = [
            writer.process.pid,
            *(child.pid for child in psutil.Process(writer.process.pid).children(recursive=True)),
        ]
        for pid in everything:
            os.kill(pid, signal.SIGKILL)
        rest = writer.process.communicate()[0].split()
        last = int(rest[-1]) if rest else 0
        acknowledged |= {f"{k}-{n}-{i}" for n in range(last + 1) for i in range(100)}
        got = manager.get_collection("doc", "azure", "rag_collection").get(include=["embeddings"])
        assert acknowledged <= set(got["ids"])
        assert got["embeddings"].shape == (len(got["ids"]), DIMENSION)
        manager.cleanup_all_instances()
