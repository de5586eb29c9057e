"""`compact`: smaller files, and everything that was there; or the database as it was, whatever happens meanwhile."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chroma_manager import (
    ChromaDBManager,
    CompactionError,
    EngineCrashedError,
    InstanceCorruptError,
    InstanceLockedError,
    InstanceNotFoundError,
    InstanceOpenError,
)
from chroma_manager.options import ENGINES, LOCAL_ENGINES
from chroma_manager.storage.hnsw_graph import HEADER
from conftest import Disk, directory, eventually, files_open_in, kill_engines, long, made_once, reader_of, sql

isolated_only = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")
KILLED_AT = "CHROMA_MANAGER_KILL_AT"

# Chroma rewrites the files of an index every so many records, and so a few of them are enough.
COUNT, DIMENSION, REWRITES_AFTER = 400, 64, 100
IDS = [str(i) for i in range(COUNT)]
OLD, NEW = np.random.default_rng(0).random((2, COUNT, DIMENSION), dtype=np.float32)

# Of each collection how its vectors are compared, and which of its records are deleted.
COLLECTIONS = {
    "squared": ("l2", slice(0, 280)),
    "angles": ("cosine", slice(100, 320)),
    "product": ("ip", slice(0, 180)),
    "whole": ("l2", slice(0, 0)),
    "one": ("l2", slice(0, COUNT - 1)),
}
DELETED, REBUILT = 280 + 220 + 180 + COUNT - 1, 4

Content = dict[str, dict[str, tuple[np.ndarray, str | None, dict | None]]]


def fill(client: chromadb.ClientAPI) -> None:
    for name, (space, deleted) in COLLECTIONS.items():
        hnsw = {"space": space, "max_neighbors": 12, "ef_construction": 150, "ef_search": 80}
        hnsw |= {"sync_threshold": REWRITES_AFTER, "batch_size": REWRITES_AFTER // 2}
        collection = client.create_collection(name, embedding_function=None, configuration={"hnsw": hnsw})
        texts = [f"text {i} of {name}" for i in IDS]
        collection.add(ids=IDS, embeddings=OLD, documents=texts, metadatas=[{"n": i} for i in range(COUNT)])
        if IDS[deleted]:
            collection.delete(ids=IDS[deleted])
        # Some of it is in the log alone, and a vector replaces another one.
        collection.update(ids=IDS[340:344], embeddings=NEW[340:344])
        collection.update(ids=IDS[344:346], metadatas=[{"changed": True}] * 2)
    few = client.create_collection("few", embedding_function=None)
    few.add(ids=IDS[:30], embeddings=OLD[:30])
    few.delete(ids=IDS[:20])


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that stock Chroma made and closed."""

    def make(folder: Path) -> None:
        with chromadb.PersistentClient(folder) as client:
            fill(client)
        assert eventually(lambda: files_open_in(folder) == [])

    return made_once(tmp_path_factory, "thinned", make)


@pytest.fixture(scope="session")
def expected(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    copy = tmp_path_factory.mktemp("read") / "db"
    shutil.copytree(original, copy)
    with chromadb.PersistentClient(copy) as client:
        return content(client)


@pytest.fixture
def database(manager: ChromaDBManager, original: Path) -> Path:
    """A copy of it for a manager of each engine."""
    return shutil.copytree(original, directory(manager))


@pytest.fixture
def isolated(original: Path, tmp_path: Path) -> ChromaDBManager:
    """A manager that has such a copy in an engine process."""
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)
    shutil.copytree(original, directory(manager))
    return manager


@pytest.fixture
def embedded(original: Path, tmp_path: Path) -> ChromaDBManager:
    """A manager that does all of it in this process."""
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded", idle_timeout=None)
    shutil.copytree(original, directory(manager))
    return manager


def content(client: chromadb.ClientAPI) -> Content:
    everything = {}
    for collection in client.list_collections():
        got = collection.get(include=["embeddings", "documents", "metadatas"])
        columns = (got["embeddings"], got["documents"], got["metadatas"])
        everything[collection.name] = dict(zip(got["ids"], zip(*columns, strict=True), strict=True))
    return everything


def assert_same(client: chromadb.ClientAPI, expected: Content) -> None:
    """Each record with its vector (in a cosine space to within rounding), and a query for that vector finds it."""
    found = content(client)
    assert {name: records.keys() for name, records in found.items()} == {
        name: records.keys() for name, records in expected.items()
    }
    for name, records in expected.items():
        space, _ = COLLECTIONS.get(name, ("l2", None))
        for record, (vector, document, metadata) in records.items():
            assert found[name][record][1:] == (document, metadata)
            tolerance = 1e-6 if space == "cosine" else 0
            assert np.allclose(found[name][record][0], vector, rtol=tolerance, atol=tolerance), (name, record)
        if records and space != "ip":
            vectors = [vector for vector, _, _ in records.values()]
            nearest = client.get_collection(name, embedding_function=None).query(
                query_embeddings=vectors, n_results=1, include=[]
            )
            missed = [record for record, ids in zip(records, nearest["ids"], strict=True) if ids != [record]]
            assert missed == [], name


def indexes(path: Path) -> dict[str, tuple[int, int]]:
    """Of each index how many vectors it has, with deleted ones, and its `max_neighbors`."""
    headers = {file.parent.name: HEADER.unpack(file.read_bytes()) for file in path.glob("[!.]*/header.bin")}
    return {name: (header[3], header[9]) for name, header in headers.items() if header[3]}


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in [*path.glob("chroma.sqlite3*"), *path.glob("[!.]*/*")])


def leftovers(path: Path) -> list[str]:
    names = os.listdir(path / ".chroma_manager")
    return [name for name in names if name.startswith(("restoring", "probe", "damaged")) or name.endswith(".trash")]


def test_the_files_are_smaller_and_all_is_there(manager, database: Path, expected: Content) -> None:
    client = manager.get_client("doc", "azure")
    assert_same(client, expected)
    before = size(database)
    done = manager.compact("doc", "azure")
    assert (done.rebuilt_indexes, done.deleted_vectors) == (REBUILT, DELETED)
    assert done.records == sum(map(len, expected.values()))
    assert done.size_after < done.size_before * 0.7
    assert size(database) < before * 0.7
    assert_same(client, expected)
    assert manager.verify("doc", "azure").ok
    manager.cleanup_all_instances()
    assert size(database) == done.size_after
    # That of a collection with one record is in its log: Chroma writes no files yet.
    assert sorted(count for count, _ in indexes(database).values()) == [120, 180, 220, COUNT]
    assert {neighbors for _, neighbors in indexes(database).values()} == {12}
    assert leftovers(database) == []
    with chromadb.PersistentClient(database) as stock:
        assert_same(stock, expected)
        hnsw = stock.get_collection("angles").configuration["hnsw"]
        assert (hnsw["space"], hnsw["ef_construction"], hnsw["ef_search"]) == ("cosine", 150, 80)


def test_what_is_written_afterwards_is_there(manager, database: Path, expected: Content) -> None:
    client = manager.get_client("doc", "azure")
    last = last_row(database)
    manager.compact("doc", "azure")
    changed = {name: dict(records) for name, records in expected.items()}
    for name in ("squared", "angles", "one", "few"):
        collection = client.get_collection(name, embedding_function=None)
        collection.add(ids=["new", *IDS[:220]], embeddings=[NEW[0], *NEW[:220]])
        collection.upsert(ids=IDS[20:40], embeddings=OLD[20:40])
        collection.update(ids=IDS[380:390], embeddings=NEW[380:390])
        collection.delete(ids=IDS[40:60])
        records = changed[name]
        for i in range(220):
            records.setdefault(str(i), (NEW[i], None, None))
        records["new"] = (NEW[0], None, None)
        for i in range(20, 40):
            records[str(i)] = (OLD[i], *records[str(i)][1:])
        for i in [i for i in range(380, 390) if str(i) in records]:
            records[str(i)] = (NEW[i], *records[str(i)][1:])
        for i in range(40, 60):
            del records[str(i)]
        del records["new"]
        collection.delete(ids=["new"])
    assert_same(client, changed)
    if manager._options.engine == "isolated":
        kill_engines()
    assert_same(client, changed)
    manager.cleanup_all_instances()
    assert last_row(database) > last
    assert_same(manager.get_client("doc", "azure"), changed)
    manager.compact("doc", "azure")
    assert_same(manager.get_client("doc", "azure"), changed)


def last_row(path: Path) -> int:
    """The last sequence id."""
    return sql(path, "select max(seq_id) from embeddings_queue")[0][0]


BEFORE = ["database copied", "log written", "indexes rebuilt", "file shrunk", "copy checked", "restore prepared"]
AFTER = [
    *("restore decided", "indexes removed", "index replaced by a restore", "indexes replaced", "database replaced"),
    "restore finished",
]
FEW_STEPS = ["copy checked", "restore decided", "indexes replaced"]


@isolated_only
@pytest.mark.parametrize("step", [*FEW_STEPS, *long(*(step for step in BEFORE + AFTER if step not in FEW_STEPS))])
def test_a_compaction_killed_at_each_step_leaves_the_old_state_or_the_new(
    isolated, expected: Content, monkeypatch, step: str
) -> None:
    database = directory(isolated)
    before = size(database)
    monkeypatch.setenv(KILLED_AT, step)
    with pytest.raises((EngineCrashedError, InstanceOpenError)):
        isolated.compact("doc", "azure")
    monkeypatch.delenv(KILLED_AT)
    assert_same(isolated.get_client("doc", "azure"), expected)
    assert (sum(count for count, _ in indexes(database).values()) == 5 * COUNT) == (step in BEFORE)
    assert isolated.verify("doc", "azure").ok
    isolated.cleanup_all_instances()
    assert leftovers(database) == []
    assert (size(database) < before * 0.7) == (step in AFTER)
    with chromadb.PersistentClient(database) as stock:
        assert_same(stock, expected)
    isolated.compact("doc", "azure")
    assert size(database) < before * 0.7


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", BEFORE)
@pytest.mark.long
def test_a_failure_at_each_step_leaves_the_old_state(
    embedded, expected: Content, monkeypatch, step: str, reason: int
) -> None:
    database = directory(embedded)
    client = embedded.get_client("doc", "azure")

    def fail(name: str) -> None:
        if name == step:
            raise OSError(reason, os.strerror(reason))

    for module in ("verification.compaction", "durability.restore"):
        monkeypatch.setattr(f"chroma_manager.{module}.step", fail)
    before = indexes(database)
    with pytest.raises(CompactionError, match=rf"doc.azure.*{os.strerror(reason)}") as caught:
        embedded.compact("doc", "azure")
    assert caught.value.path == str(database)
    assert indexes(database) == before
    assert_same(client, expected)
    embedded.cleanup_all_instances()
    monkeypatch.undo()
    assert embedded.compact("doc", "azure").rebuilt_indexes == REBUILT
    assert leftovers(database) == []


@isolated_only
@pytest.mark.parametrize("leave", [50_000, 600_000, 1_200_000])
def test_a_full_disk_is_named_and_the_database_is_as_it_was(
    disk: Disk, original: Path, runtime: Path, expected: Content, leave: int
) -> None:
    manager = ChromaDBManager(base_path=disk.path / "db", engine="isolated", idle_timeout=None)
    shutil.copytree(original, directory(manager))
    client = manager.get_client("doc", "azure")
    assert_same(client, expected)
    disk.fill(leave)
    with pytest.raises(CompactionError, match=r"doc/azure.*(No space left on device|disk is full)"):
        manager.compact("doc", "azure")
    disk.free()
    assert_same(client, expected)
    assert leftovers(directory(manager)) == []
    assert manager.compact("doc", "azure").rebuilt_indexes == REBUILT
    assert_same(client, expected)


def test_threads_read_and_write_meanwhile_and_nothing_is_lost(manager, database: Path, expected: Content) -> None:
    done = threading.Event()
    written: list[list[str]] = [[], []]
    failures: list[object] = []

    def write(k: int) -> None:
        collection = manager.get_client("doc", "azure").get_collection("whole", embedding_function=None)
        while not done.is_set():
            record = f"{k}-{len(written[k])}"
            collection.add(ids=[record], embeddings=[NEW[len(written[k])]])
            written[k].append(record)

    def read() -> None:
        collection = manager.get_client("doc", "azure").get_collection("squared", embedding_function=None)
        while not done.is_set():
            if collection.query(query_embeddings=[OLD[300]], n_results=1)["ids"] != [["300"]]:
                failures.append("not found")

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            failures.append(error)

    calls = [partial(write, 0), partial(write, 1), read]
    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for n in range(2):
        assert eventually(lambda n=n: min(map(len, written)) > 3 * (n + 1) or failures)
        manager.compact("doc", "azure")
    assert eventually(lambda: min(map(len, written)) > 10 or failures)
    done.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    found = content(manager.get_client("doc", "azure"))
    assert found["whole"].keys() == expected["whole"].keys() | set(written[0]) | set(written[1])
    assert found["squared"].keys() == expected["squared"].keys()


@isolated_only
def test_another_process_goes_on_with_the_compacted_database(isolated, script) -> None:
    other = script("""
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = manager.get_client("doc", "azure").get_collection("squared", embedding_function=None)
print(collection.count(), flush=True)
sys.stdin.readline()
collection.delete(ids=["399"])
print(collection.count())
""")
    assert other.read_line() == "120"
    assert isolated.compact("doc", "azure").rebuilt_indexes == REBUILT
    other.say()
    assert other.finish() == "119"


def test_where_chroma_purges_nothing_no_row_of_the_log_is_lost(manager, database: Path, expected: Content) -> None:
    keeps = '{"automatically_purge":false,"_type":"EmbeddingsQueueConfigurationInternal"}'
    sql(database, "update embeddings_queue_config set config_json_str = ?", keeps)
    collection = manager.get_client("doc", "azure").get_collection("squared", embedding_function=None)
    collection.delete(ids=IDS[395:])
    manager.cleanup_all_instances()
    rows = sql(database, "select seq_id, operation, topic, id, vector from embeddings_queue")
    manager.compact("doc", "azure")
    manager.cleanup_all_instances()
    assert set(rows) <= set(sql(database, "select seq_id, operation, topic, id, vector from embeddings_queue"))
    assert sql(database, "select config_json_str from embeddings_queue_config") == [(keeps,)]
    remaining = {record: value for record, value in expected["squared"].items() if int(record) < 395}
    assert_same(manager.get_client("doc", "azure"), {**expected, "squared": remaining})


def test_what_the_records_have_not_applied_is_not_lost(embedded, expected: Content) -> None:
    """A kill may leave rows of the log that no segment has applied; here it is a row that nobody has."""
    database = directory(embedded)
    (collection,) = sql(database, "select id from collections where name = 'squared'")[0]
    row = (f"persistent://default/default/{collection}", NEW[7].tobytes(), json.dumps({"chroma:document": "late"}))
    insert = (
        "insert into embeddings_queue (seq_id, operation, topic, id, vector, encoding, metadata) values "
        "((select max(seq_id) + 1 from embeddings_queue), 0, ?, 'late', ?, 'FLOAT32', ?)"
    )
    sql(database, insert, *row)
    embedded.compact("doc", "azure")
    changed = {**expected, "squared": {**expected["squared"], "late": (NEW[7], "late", None)}}
    assert_same(embedded.get_client("doc", "azure"), changed)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_vector_that_had_no_effect_is_put_nowhere(isolated: ChromaDBManager, is_damaged: bool) -> None:
    """Chroma logs an update of a record that is not there, and an addition of one that is, but applies neither."""
    collection = isolated.get_client("doc", "azure").get_collection("squared", embedding_function=None)
    collection.update(ids=["late"], embeddings=NEW[:1])
    collection.add(ids=["late"], embeddings=OLD[:1])
    collection.add(ids=["late", IDS[-1]], embeddings=NEW[:2])
    collection.update(ids=["late"], metadatas=[{"changed": True}])
    before = content(isolated.get_client("doc", "azure"))
    assert np.array_equal(before["squared"]["late"][0], OLD[0])
    if is_damaged:
        isolated.cleanup_all_instances()
        shutil.rmtree(directory(isolated) / ".chroma_manager")
        for links in directory(isolated).glob("*/link_lists.bin"):
            os.truncate(links, 10)
    else:
        isolated.compact("doc", "azure")
    assert_same(isolated.get_client("doc", "azure"), before)


def test_an_index_on_another_disk_stays_there(manager, database: Path, expected: Content, tmp_path: Path) -> None:
    moved = {}
    for file in list(database.glob("[!.]*/header.bin")):
        moved[file.parent] = tmp_path / "elsewhere" / file.parent.name
        shutil.move(file.parent, moved[file.parent])
        file.parent.symlink_to(moved[file.parent])
        (moved[file.parent] / "lost+found").mkdir()
    before = size(database)
    client = manager.get_client("doc", "azure")
    assert manager.compact("doc", "azure").rebuilt_indexes == REBUILT
    assert size(database) < before * 0.7
    assert all(link.is_symlink() and link.resolve() == target.resolve() for link, target in moved.items())
    assert all((link / "lost+found").is_dir() for link in moved)
    assert_same(client, expected)
    manager.cleanup_all_instances()
    with chromadb.PersistentClient(database) as stock:
        assert_same(stock, expected)


@isolated_only
@pytest.mark.parametrize("step", ["indexes removed", "linked index filled", "index replaced by a restore"])
def test_a_kill_while_an_index_on_another_disk_is_replaced_loses_nothing(
    isolated, expected: Content, tmp_path: Path, monkeypatch, step: str
) -> None:
    database = directory(isolated)
    for file in list(database.glob("[!.]*/header.bin")):
        shutil.move(file.parent, tmp_path / "elsewhere" / file.parent.name)
        file.parent.symlink_to(tmp_path / "elsewhere" / file.parent.name)
    monkeypatch.setenv(KILLED_AT, step)
    with pytest.raises((EngineCrashedError, InstanceOpenError)):
        isolated.compact("doc", "azure")
    monkeypatch.delenv(KILLED_AT)
    assert_same(isolated.get_client("doc", "azure"), expected)
    assert isolated.verify("doc", "azure").ok


def test_the_index_of_a_deleted_collection_is_removed(manager, database: Path, expected: Content) -> None:
    stray = database / "0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"
    (index,) = list(database.glob("[!.]*/header.bin"))[:1]
    shutil.copytree(index.parent, stray)
    manager.compact("doc", "azure")
    assert not stray.exists()
    assert_same(manager.get_client("doc", "azure"), expected)


def test_an_empty_database_and_one_without_deletions_are_compacted(manager: ChromaDBManager) -> None:
    manager.get_client("doc", "azure")
    done = manager.compact("doc", "azure")
    assert (done.records, done.rebuilt_indexes) == (0, 0)
    collection = manager.get_collection("doc", "azure", "rag_collection")
    collection.add(ids=IDS, embeddings=OLD)
    done = manager.compact("doc", "azure")
    assert (done.records, done.deleted_vectors, done.rebuilt_indexes) == (COUNT, 0, 0)
    assert collection.count() == COUNT


def test_a_collection_without_any_record_has_no_index_afterwards(embedded, expected: Content) -> None:
    database = directory(embedded)
    with chromadb.PersistentClient(database) as stock:
        stock.get_collection("whole").delete(ids=IDS)
    assert eventually(lambda: files_open_in(database) == [])
    last = last_row(database)
    assert embedded.compact("doc", "azure").rebuilt_indexes == REBUILT + 1
    assert last_row(database) >= last
    assert COUNT not in [count for count, _ in indexes(database).values()]
    client = embedded.get_client("doc", "azure")
    assert_same(client, {**expected, "whole": {}})
    client.get_collection("whole", embedding_function=None).add(ids=IDS[:2], embeddings=NEW[:2])
    embedded.cleanup_all_instances()
    added = {IDS[i]: (NEW[i], None, None) for i in range(2)}
    assert_same(embedded.get_client("doc", "azure"), {**expected, "whole": added})


@pytest.mark.parametrize("has_newer", [False, True])
def test_sequence_ids_go_on_where_no_record_is_left(manager: ChromaDBManager, has_newer: bool) -> None:
    """A new row is counted from the last one, which may be that of a collection that is deleted before."""
    hnsw = {"sync_threshold": REWRITES_AFTER, "batch_size": REWRITES_AFTER // 2}
    client = manager.get_client("doc", "azure")
    collection = client.create_collection("emptied", configuration={"hnsw": hnsw})
    collection.add(ids=IDS, embeddings=OLD)
    collection.delete(ids=IDS)
    if has_newer:
        client.create_collection("newer").add(ids=IDS[:3], embeddings=OLD[:3])
    manager.compact("doc", "azure")
    if has_newer:
        client.delete_collection("newer")
    manager.cleanup_all_instances()
    last = last_row(directory(manager))
    assert last >= 2 * COUNT
    manager.get_client("doc", "azure").get_collection("emptied").add(ids=IDS[:2], embeddings=NEW[:2])
    manager.cleanup_all_instances()
    assert last_row(directory(manager)) == last + 2
    got = manager.get_client("doc", "azure").get_collection("emptied").get(include=["embeddings"])
    assert np.array_equal(got["embeddings"], NEW[:2])
    assert manager.verify("doc", "azure").ok


def test_what_is_not_there_is_not_compacted(manager: ChromaDBManager) -> None:
    with pytest.raises(InstanceNotFoundError, match="doc/azure"):
        manager.compact("doc", "azure")
    assert not directory(manager).parent.exists()


@pytest.mark.parametrize("repair", ["safe", "never"])
@pytest.mark.parametrize("engine", LOCAL_ENGINES)
def test_a_damaged_database_is_refused_and_as_it_was(original: Path, tmp_path: Path, engine: str, repair: str) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine=engine, idle_timeout=None, repair=repair)
    database = shutil.copytree(original, directory(manager))
    for file in database.glob("[!.]*/data_level0.bin"):
        os.truncate(file, 100)
    before = {file: file.stat().st_size for file in database.glob("[!.]*/*")}
    with pytest.raises(InstanceCorruptError, match="'whole': its index is damaged") as caught:
        manager.compact("doc", "azure")
    assert (caught.value.file_id, caught.value.path) == ("doc", str(database))
    assert {file: file.stat().st_size for file in database.glob("[!.]*/*")} == before


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux tells who has a file open")
def test_a_database_that_another_program_has_open_is_refused(manager, database: Path, script) -> None:
    code = 'import chromadb\nclient = chromadb.PersistentClient(base + "/doc/azure")\nprint("open"); input()'
    stock = script(code)
    assert stock.read_line() == "open"
    with pytest.raises(InstanceLockedError, match=f"{stock.process.pid}") as caught:
        manager.compact("doc", "azure")
    assert caught.value.pid == stock.process.pid
    stock.say()
    stock.finish()
    assert manager.compact("doc", "azure").rebuilt_indexes == REBUILT


@isolated_only
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux tells who has a file open")
def test_a_program_that_reads_takes_nothing_back(isolated, expected: Content, script) -> None:
    whole = isolated.get_collection("doc", "azure", "whole")
    reader = reader_of(directory(isolated), script)
    whole.update(ids=IDS[:1], embeddings=NEW[:1], documents=["new"], metadatas=[{"n": -1}])
    with pytest.raises(InstanceLockedError, match=f"process {reader.process.pid} .*doc/azure/chroma.sql"):
        isolated.compact("doc", "azure")
    assert whole.get(IDS[0])["documents"] == ["new"]
    reader.say()
    assert isolated.compact("doc", "azure").rebuilt_indexes == REBUILT
    changed = {**expected["whole"], IDS[0]: (NEW[0], "new", {"n": -1})}
    assert_same(isolated.get_client("doc", "azure"), {**expected, "whole": changed})


# At closing


@pytest.fixture
def compacting(request: pytest.FixtureRequest, original: Path, tmp_path: Path) -> ChromaDBManager:
    """A manager that compacts at closing, and such a database: large enough, because documents were in it."""
    return closing_with(tmp_path, original, request.param)


def closing_with(tmp_path: Path, original: Path, engine: str, **options: object) -> ChromaDBManager:
    options = {"compact_at_close": True, "idle_timeout": None, **options}
    manager = ChromaDBManager(base_path=tmp_path / "db", engine=engine, **options)
    database = shutil.copytree(original, directory(manager))
    # Free pages: more than half of the file.
    sql(database, "create table large (content blob)")
    sql(database, "insert into large values (zeroblob(8000000))")
    sql(database, "drop table large")
    return manager


def free_pages(path: Path) -> int:
    return sql(path, "pragma freelist_count")[0][0]


@pytest.mark.parametrize("compacting", LOCAL_ENGINES, indirect=True)
def test_a_database_that_is_mostly_dead_is_compacted_when_it_is_closed(compacting, expected: Content) -> None:
    database = directory(compacting)
    before = size(database)
    client = compacting.get_client("doc", "azure")
    assert_same(client, expected)
    compacting.cleanup_all_instances()
    assert size(database) < before / 2
    assert free_pages(database) == 0
    assert leftovers(database) == []
    compacted = indexes(database)
    # An index of which less than half is dead stays.
    assert sorted(count for count, _ in compacted.values()) == [120, 180, COUNT, COUNT]
    assert_same(compacting.get_client("doc", "azure"), expected)
    inode = (database / "chroma.sqlite3").stat().st_ino
    compacting.cleanup_all_instances()
    assert ((database / "chroma.sqlite3").stat().st_ino, indexes(database)) == (inode, compacted), "once is enough"
    assert compacting.verify("doc", "azure").ok


@pytest.mark.parametrize("engine", LOCAL_ENGINES)
@pytest.mark.parametrize("case", ["without the option", "little is dead"])
def test_other_databases_are_not_compacted_when_they_are_closed(tmp_path, original, engine: str, case: str) -> None:
    manager = closing_with(tmp_path, original, engine, compact_at_close=case != "without the option")
    database = directory(manager)
    if case == "little is dead":
        sql(database, "create table large (content blob)")
        sql(database, "insert into large values (zeroblob(8000000))")
    manager.get_client("doc", "azure").list_collections()
    manager.cleanup_all_instances()
    assert sum(count for count, _ in indexes(database).values()) == 5 * COUNT


@isolated_only
@pytest.mark.parametrize("step", ["indexes rebuilt", "restore decided"])
def test_a_kill_while_it_closes_loses_nothing(tmp_path, original, expected: Content, monkeypatch, step: str) -> None:
    monkeypatch.setenv(KILLED_AT, step)
    manager = closing_with(tmp_path, original, "isolated")
    manager.get_client("doc", "azure").list_collections()
    manager.cleanup_all_instances()
    monkeypatch.delenv(KILLED_AT)
    assert os.listdir(directory(manager) / ".chroma_manager")
    assert_same(manager.get_client("doc", "azure"), expected)


def test_a_compaction_that_fails_at_closing_is_only_logged(tmp_path, original, expected, monkeypatch, caplog) -> None:
    manager = closing_with(tmp_path, original, "embedded")
    assert_same(manager.get_client("doc", "azure"), expected)

    def fail(name: str) -> None:
        if name == "indexes rebuilt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("chroma_manager.verification.compaction.step", fail)
    manager.cleanup_all_instances()
    assert "doc/azure" in caplog.text
    assert "No space left on device" in caplog.text
    assert_same(manager.get_client("doc", "azure"), expected)


@isolated_only
def test_who_opens_it_meanwhile_waits(tmp_path: Path, original: Path, expected: Content) -> None:
    manager = closing_with(tmp_path, original, "isolated")
    manager.get_client("doc", "azure").list_collections()
    closing = threading.Thread(target=manager.cleanup_all_instances)
    closing.start()
    assert eventually((directory(manager) / ".chroma_manager" / "restoring.new").exists)
    assert_same(manager.get_client("doc", "azure"), expected)
    closing.join(60)
    manager.cleanup_all_instances()
    assert free_pages(directory(manager)) == 0


# What it would give back


@isolated_only
def test_stats_tell_what_it_would_give_back_as_of_the_last_checkpoint(isolated) -> None:
    isolated.get_client("doc", "azure").list_collections()
    found = isolated.stats()["instances"]["doc/azure"]
    assert found["deleted_vectors"] == DELETED
    dead = sum(file.stat().st_size for file in directory(isolated).glob("[!.]*/*")) * DELETED / (5 * COUNT)
    assert 0.8 * dead < found["reclaimable"] < 1.2 * dead + free_pages(directory(isolated)) * 4096
    isolated.compact("doc", "azure")
    found = isolated.stats()["instances"]["doc/azure"]
    assert (found["deleted_vectors"], found["reclaimable"]) == (0, 0)


def test_stats_of_an_embedded_database_know_nothing_of_its_files(embedded, monkeypatch) -> None:
    embedded.get_client("doc", "azure").list_collections()
    found = embedded.stats()["instances"]["doc/azure"]
    assert (found["deleted_vectors"], found["reclaimable"], found["memory"]) == (None, None, None)


# The copy is compared


def lose_a_record(new: Path) -> None:
    sql(new, "delete from embeddings where id = (select max(id) from embeddings)")


def change_a_vector(new: Path) -> None:
    for file in new.glob("*/data_level0.bin"):
        elements, entry, vector = (HEADER.unpack((file.parent / "header.bin").read_bytes())[i] for i in (3, 4, 6))
        content = bytearray(file.read_bytes())
        content[(elements - 1) * entry + vector] ^= 0x55
        file.write_bytes(content)


def cut_off(new: Path) -> None:
    for file in new.glob("*/link_lists.bin"):
        os.truncate(file, file.stat().st_size - 4)


def damage_the_file(new: Path) -> None:
    content = bytearray((new / "chroma.sqlite3").read_bytes())
    content[-4096 * 20 : -4096 * 10] = bytes(4096 * 10)
    (new / "chroma.sqlite3").write_bytes(content)


@pytest.mark.parametrize("spoil", [lose_a_record, change_a_vector, cut_off, damage_the_file])
def test_a_copy_that_is_not_what_it_should_be_takes_nobody_s_place(
    embedded, expected: Content, monkeypatch, spoil
) -> None:
    from chroma_manager.verification import compaction

    shrink = compaction._shrink

    def shrink_and_spoil(old: Path, new: Path, rebuilt: list) -> None:
        shrink(old, new, rebuilt)
        spoil(new)

    monkeypatch.setattr(compaction, "_shrink", shrink_and_spoil)
    with pytest.raises(CompactionError, match="doc/azure"):
        embedded.compact("doc", "azure")
    assert_same(embedded.get_client("doc", "azure"), expected)
    assert leftovers(directory(embedded)) == []
