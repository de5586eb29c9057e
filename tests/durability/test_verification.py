"""Damaged databases are recognized, and what can be saved of them is: on directories that stock Chroma made."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager, InstanceOpenError
from chroma_manager.engine.isolated import prepare
from chroma_manager.options import ENGINES
from chroma_manager.storage.hnsw_files import IndexFiles
from chroma_manager.storage.hnsw_graph import HEADER
from chroma_manager.storage.paths import METADATA_FILE
from chroma_manager.verification.repair import repair
from chroma_manager.verification.verify import examine
from conftest import eventually, files_open_in, kill_engines, long, made_once, sql

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

DIMENSION = 16

# Name of a collection, its space, how many records; and whether it has index files.
COLLECTIONS = {"cosine": ("cosine", 2300), "squared": ("l2", 1200), "product": ("ip", 1100), "few": ("l2", 40)}
INDEXED = ["cosine", "squared", "product"]

Content = dict[str, dict[str, tuple[np.ndarray, str | None, dict | None]]]


def close(client: chromadb.ClientAPI, directory: Path) -> None:
    client.close()
    assert eventually(lambda: files_open_in(directory) == [])


def fill(client: chromadb.ClientAPI) -> None:
    """Collections whose index files and whose log after them both have something."""
    chance = np.random.default_rng(5)
    for name, (space, count) in COLLECTIONS.items():
        collection = client.create_collection(name, embedding_function=None, configuration={"hnsw": {"space": space}})
        ids = [f"{name}-{i}" for i in range(count)]
        collection.add(
            ids=ids,
            embeddings=chance.random((count, DIMENSION), dtype=np.float32) * 3,
            documents=[f"document {i} of {name}" for i in range(count)],
            metadatas=[{"n": i, "half": i / 2, "even": i % 2 == 0, "name": f"näme {i}"} for i in range(count)],
        )
        collection.delete(ids=ids[3:6])
        collection.update(ids=ids[6:8], embeddings=chance.random((2, DIMENSION), dtype=np.float32))
        collection.update(ids=ids[8:10], metadatas=[{"changed": True}] * 2)
        collection.upsert(ids=[*ids[10:12], f"{name}-new"], embeddings=chance.random((3, DIMENSION), dtype=np.float32))


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that stock Chroma made, in two tenants, and closed."""

    def make(directory: Path) -> None:
        client = chromadb.PersistentClient(directory)
        fill(client)
        client._admin_client.create_tenant("guests")
        client._admin_client.create_database("theirs", tenant="guests")
        others = chromadb.PersistentClient(directory, tenant="guests", database="theirs")
        others.create_collection("few", embedding_function=None).add(
            ids=["1"], embeddings=[[1.0, 2.0]], documents=["one"]
        )
        others.close()
        close(client, directory)

    return made_once(tmp_path_factory, "verification", make)


@pytest.fixture(scope="session")
def expected(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    copy = tmp_path_factory.mktemp("read") / "db"
    shutil.copytree(original, copy)
    return content(copy)


@pytest.fixture
def database(original: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    shutil.copytree(original, tmp_path / "db")
    return tmp_path / "db"


def arguments(directory: Path) -> dict:
    return json.loads(prepare(None, directory)[1])


def content(directory: Path) -> Content:
    """All that stock Chroma reads in the default database."""
    client = chromadb.PersistentClient(directory)
    everything = {}
    for collection in client.list_collections():
        got = collection.get(include=["embeddings", "documents", "metadatas"])
        columns = (got["embeddings"], got["documents"], got["metadatas"])
        everything[collection.name] = dict(zip(got["ids"], zip(*columns, strict=True), strict=True))
    close(client, directory)
    return everything


def segment(directory: Path, name: str, scope: str = "VECTOR") -> str:
    query = (
        "select segments.id from segments join collections on collections.id = collection "
        "where name = ? and scope = ? order by collections.database_id limit 1"
    )
    return sql(directory, query, name, scope)[0][0]


def index(directory: Path, name: str) -> Path:
    return directory / segment(directory, name)


def assert_agree(found: Content, expected: Content, lost: dict[str, set[str]] | None = None) -> None:
    """Vectors too: in a cosine space to within rounding, because its index files have them normalized."""
    assert found.keys() == expected.keys()
    for name, records in expected.items():
        missing = (lost or {}).get(name, set())
        assert found[name].keys() == records.keys() - missing
        for record, (vector, document, metadata) in found[name].items():
            assert (document, metadata) == records[record][1:], record
            tolerance = 1e-6 if COLLECTIONS[name][0] == "cosine" else 0
            assert np.allclose(vector, records[record][0], rtol=tolerance, atol=tolerance), record


def described(report: dict, name: str) -> dict:
    return next(one for one in report["collections"] if one["name"] == name and one["tenant"] == "default_tenant")


def fingerprint(directory: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def assert_repaired(report: dict, database: Path, expected: Content) -> None:
    """All of it, and what was damaged is kept; the log is as Chroma has it, and a further write goes well."""
    assert (report["ok"], report["problems"], report["repaired"], report["set_aside"]) == (True, [], True, None)
    assert report["found"]
    assert_agree(content(database), expected)
    assert '"automatically_purge":true' in sql(database, "select config_json_str from embeddings_queue_config")[0][0]
    client = chromadb.PersistentClient(database)
    for name in COLLECTIONS:
        vectors = np.random.default_rng(1).random((1100, DIMENSION), dtype=np.float32)
        client.get_collection(name).add(ids=[f"later-{i}" for i in range(1100)], embeddings=vectors)
    close(client, database)
    again = examine(database, arguments(database))
    assert again["ok"], again["problems"]
    for name, records in expected.items():
        assert described(again, name)["records"] == len(records) + 1100


# What can be damaged without a vector being lost, in the collection `cosine`: it is elsewhere, or it is no vector.


def truncate_links(database: Path) -> None:
    os.truncate(index(database, "cosine") / "link_lists.bin", 1000)


def garble_links(database: Path) -> None:
    with (index(database, "cosine") / "data_level0.bin").open("r+b") as file:
        file.write(struct.pack("<HHI", 1, 0, 1 << 30))


def garble_header(database: Path) -> None:
    file = index(database, "cosine") / "header.bin"
    file.write_bytes(os.urandom(len(file.read_bytes())))


def empty_header(database: Path) -> None:
    os.truncate(index(database, "cosine") / "header.bin", 0)


def say_there_is_room(database: Path) -> None:
    """For more than there is memory, which Chroma would believe at the next write."""
    file = index(database, "cosine") / "header.bin"
    fields = list(HEADER.unpack(file.read_bytes()))
    fields[2] = 1 << 60
    file.write_bytes(HEADER.pack(*fields))


def garble_the_pickle(database: Path) -> None:
    """From the beginning of an operation on: what remains of one could be another label."""
    file = index(database, "cosine") / METADATA_FILE
    content = file.read_bytes()
    at = next(place for _, _, place in pickletools.genops(content) if place and place > len(content) // 4)
    file.write_bytes(content[:at] + b"\xff" * 300 + content[at + 300 :])


def truncate_half_of_the_pickle(database: Path) -> None:
    file = index(database, "cosine") / METADATA_FILE
    os.truncate(file, file.stat().st_size * 3 // 4)


def misspell_an_id_in_the_pickle(database: Path) -> None:
    file = index(database, "cosine") / METADATA_FILE
    said = b"X\x09\0\0\0cosine-77"
    assert file.read_bytes().count(said) == 2
    file.write_bytes(file.read_bytes().replace(said, said[:-1] + b"_", 1))


def say_another_label_in_the_pickle(database: Path) -> None:
    file = index(database, "cosine") / METADATA_FILE
    content = pickle.loads(file.read_bytes())
    content["label_to_id"].pop(content["id_to_label"]["cosine-100"])
    file.write_bytes(pickle.dumps(content, 3))


def mark_as_deleted(database: Path) -> None:
    """The first element, which is of a record."""
    with (index(database, "cosine") / "data_level0.bin").open("r+b") as file:
        file.seek(2)
        file.write(b"\1")


def lose_the_position(database: Path) -> None:
    """As a kill between the writing of the first index and that of its position, with a damaged index."""
    truncate_links(database)
    sql(database, "delete from max_seq_id where segment_id = ?", segment(database, "cosine"))


def forget_a_level(database: Path, name: str = "cosine") -> None:
    """Fits all sizes; but there are no links where a search is to begin."""
    file = index(database, name) / "header.bin"
    fields = list(HEADER.unpack(file.read_bytes()))
    fields[7] += 8
    file.write_bytes(HEADER.pack(*fields))


def lead_a_level_astray(database: Path) -> None:
    """Fits, too: links of a higher level to an element that has none there."""
    file = index(database, "cosine") / "link_lists.bin"
    data = bytearray(file.read_bytes())
    starts, position = [], 0
    while position < len(data):
        starts.append(position)
        position += 4 + struct.unpack_from("<I", data, position)[0]
    astray = next(i for i, start in enumerate(starts) if struct.unpack_from("<I", data, start) == (0,))
    for start in starts:
        (taken,) = struct.unpack_from("<I", data, start)
        for links in range(start + 4, start + 4 + taken, 4 + 4 * 16):
            struct.pack_into("<17I", data, links, 16, *[astray] * 16)
    file.write_bytes(data)


HARMLESS = [
    *(garble_header, garble_the_pickle, lead_a_level_astray),
    *long(truncate_links, lose_the_position, mark_as_deleted),
    *long(garble_links, empty_header, truncate_half_of_the_pickle, say_another_label_in_the_pickle, forget_a_level),
    *long(say_there_is_room, misspell_an_id_in_the_pickle),
]


@pytest.mark.parametrize("thorough", [True, False])
def test_nothing_is_found_in_a_healthy_database_nor_changed(database: Path, thorough: bool, expected: Content) -> None:
    before = fingerprint(database)
    report = examine(database, arguments(database), thorough=thorough)
    assert (report["ok"], report["problems"], report["repaired"], report["set_aside"]) == (True, [], False, None)
    assert report["sqlite"] == ("ok" if thorough else "not checked")
    assert len(report["collections"]) == 5
    for name, records in expected.items():
        one = described(report, name)
        assert [one[key] for key in ("records", "vectors", "recoverable")] == [len(records)] * 3, name
        assert (one["dimension"], one["missing_vectors"], one["missing_ids"], one["stray_vectors"]) == (16, 0, [], 0)
    (guests,) = [one for one in report["collections"] if one["tenant"] == "guests"]
    assert (guests["name"], guests["database"], guests["records"], guests["dimension"]) == ("few", "theirs", 1, 2)
    assert repair(database, arguments(database)) == {
        **report,
        **{"sqlite": "ok", "found": []},
    }
    assert fingerprint(database) == before
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("damage", HARMLESS, ids=lambda damage: damage.__name__)
def test_a_damaged_index_is_found_at_a_glance_and_rebuilt(
    database: Path, damage: Callable[[Path], None], expected: Content
) -> None:
    damage(database)
    before = fingerprint(database)
    old = {file.name: file.read_bytes() for file in index(database, "cosine").iterdir()}
    for thorough in (False, True):
        report = examine(database, arguments(database), thorough=thorough)
        (problem,) = report["problems"]
        assert problem.startswith("collection 'cosine': ")
        assert "2,298 of 2,298 vectors can be rebuilt" in problem
        assert not report["ok"]
    assert fingerprint(database) == before
    after = repair(database, arguments(database))
    (kept,) = (database / ".chroma_manager").glob("damaged-*/*")
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == old
    assert_repaired(after, database, expected)


@pytest.mark.parametrize("thorough", [True, False])
def test_an_index_that_chroma_dies_of_is_a_finding_that_names_it(
    database: Path, monkeypatch: pytest.MonkeyPatch, thorough: bool
) -> None:
    """Where our own look at the files would not see what is wrong."""
    path = index(database, "cosine")
    fields = HEADER.unpack((path / "header.bin").read_bytes())
    with (path / "data_level0.bin").open("r+b") as file:
        for i in range(fields[3]):
            file.seek(i * fields[4])
            file.write(struct.pack("<33I", 32, *[0xFFFFFFF0] * 32))
    monkeypatch.setattr(IndexFiles, "_check_graph", lambda *_: None)
    (problem,) = examine(database, arguments(database), thorough=thorough)["problems"]
    assert f"signal {int(signal.SIGSEGV)}" in problem
    assert problem.startswith("collection 'cosine'")
    assert "2,298 of 2,298 vectors can be rebuilt" in problem


def test_a_collection_without_its_index_says_which_vectors_are_lost_and_sets_their_records_aside(
    database: Path, expected: Content
) -> None:
    shutil.rmtree(index(database, "cosine"))
    shutil.rmtree(index(database, "product"))
    kept = {
        name: {record for (record,) in sql(database, IN_LOG, f"%{collection}")}
        for name, collection in sql(database, "select name, id from collections")
        if name in ("cosine", "product")
    }
    lost = {name: expected[name].keys() - ids for name, ids in kept.items()}
    report = examine(database, arguments(database), thorough=False)
    assert len(report["problems"]) == 2
    for name, ids in lost.items():
        one = described(report, name)
        assert one["recoverable"] == len(expected[name]) - len(ids) > 0
        assert one["missing_vectors"] >= len(ids)
        assert set(one["missing_ids"]) <= expected[name].keys()
    after = repair(database, arguments(database))
    assert (after["ok"], after["problems"], after["repaired"]) == (True, [], True)
    assert_agree(content(database), expected, lost)
    lines = [json.loads(line) for line in Path(after["set_aside"]).read_text().splitlines()]
    assert len(lines) == sum(len(ids) for ids in lost.values())
    assert Path(after["set_aside"]).parent == database / ".chroma_manager"
    for line in lines:
        assert (line["tenant"], line["database"]) == ("default_tenant", "default_database")
        assert (line["document"], line["metadata"]) == expected[line["collection"]][line["id"]][1:]
        assert line["id"] in lost[line["collection"]]


IN_LOG = "select id from embeddings_queue where topic like ? and vector is not null"


def test_half_of_an_index_gives_back_half_of_its_vectors(database: Path, expected: Content) -> None:
    for name in INDEXED:
        file = index(database, name) / "data_level0.bin"
        os.truncate(file, file.stat().st_size // 2)
    report = examine(database, arguments(database), thorough=False)
    after = repair(database, arguments(database))
    assert after["ok"], after["problems"]
    found = content(database)
    lost = {name: expected[name].keys() - found[name].keys() for name in INDEXED}
    for name in INDEXED:
        assert 0.45 < len(lost[name]) / len(expected[name]) < 0.55
        assert described(report, name)["recoverable"] == len(found[name])
    assert_agree(found, expected, lost)


def test_vectors_that_cannot_be_vectors_are_not_given_back(database: Path, expected: Content) -> None:
    for name, number in (("cosine", 7.0), ("squared", float("nan"))):
        path = index(database, name)
        size = HEADER.unpack((path / "header.bin").read_bytes())[4]
        with (path / "data_level0.bin").open("r+b") as file:
            # The vector of one element, after its 33 numbers of links.
            file.seek(100 * size + 132)
            file.write(struct.pack("<f", number) * DIMENSION)
        os.truncate(path / "link_lists.bin", 1000)
    after = repair(database, arguments(database))
    assert after["ok"], after["problems"]
    found = content(database)
    lost = {name: expected[name].keys() - found[name].keys() for name in ("cosine", "squared")}
    assert [len(ids) for ids in lost.values()] == [1, 1]
    assert_agree(found, expected, lost)


def test_a_record_without_vector_is_set_aside_and_a_vector_without_record_removed(
    database: Path, expected: Content
) -> None:
    records = segment(database, "squared", "METADATA")
    for stray in ("squared-77", "squared-new"):  # one is in the index, one in the log
        sql(database, "delete from embeddings where segment_id = ? and embedding_id = ?", records, stray)
    sql(database, "insert into embeddings (segment_id, embedding_id, seq_id) values (?, 'nowhere', 1)", records)
    (key,) = sql(database, "select id from embeddings where embedding_id = 'nowhere'")[0]
    sql(database, "insert into embedding_metadata (id, key, string_value) values (?, 'chroma:document', 'só')", key)
    sql(database, "insert into embedding_metadata (id, key, bool_value) values (?, 'flag', 1)", key)
    one = described(examine(database, arguments(database), thorough=False), "squared")
    assert (one["missing_vectors"], one["missing_ids"], one["stray_vectors"]) == (1, ["nowhere"], 2)
    after = repair(database, arguments(database))
    assert after["ok"], after["problems"]
    line = {"collection": "squared", "database": "default_database", "tenant": "default_tenant", "id": "nowhere"}
    assert json.loads(Path(after["set_aside"]).read_text()) == {**line, "document": "só", "metadata": {"flag": True}}
    assert_agree(content(database), expected, {"squared": {"squared-77", "squared-new"}})
    assert sql(database, "select count(*) from embedding_metadata where id = ?", key) == [(0,)]


def test_what_the_log_says_after_the_index_is_not_undone_by_a_repair(database: Path, expected: Content) -> None:
    client = chromadb.PersistentClient(database)
    collection = client.get_collection("cosine")
    collection.delete(ids=["cosine-20"])
    collection.update(ids=["cosine-21"], embeddings=[[7.0] * DIMENSION])
    collection.delete(ids=["cosine-22"])
    collection.add(ids=["cosine-22"], embeddings=[[8.0] * DIMENSION], documents=["again"])
    close(client, database)
    truncate_links(database)
    wanted = {**expected, "cosine": dict(expected["cosine"])}
    del wanted["cosine"]["cosine-20"]
    wanted["cosine"]["cosine-21"] = (np.full(DIMENSION, 7.0), *expected["cosine"]["cosine-21"][1:])
    wanted["cosine"]["cosine-22"] = (np.full(DIMENSION, 8.0), "again", None)
    assert_repaired(repair(database, arguments(database)), database, wanted)


def write_more_with_a_log_that_is_kept(database: Path, vector: list[float]) -> None:
    """So that the log goes back behind the index, but not to the first records."""
    config = '{"automatically_purge":false,"_type":"EmbeddingsQueueConfigurationInternal"}'
    sql(database, "update embeddings_queue_config set config_json_str = ?", config)
    client = chromadb.PersistentClient(database)
    collection = client.get_collection("squared")
    collection.add(ids=["squared-50"], embeddings=[vector])  # it is there: without effect
    vectors = np.random.default_rng(1).random((1500, DIMENSION), dtype=np.float32)
    collection.add(ids=[f"later-{i}" for i in range(1500)], embeddings=vectors)
    close(client, database)


def test_an_add_that_had_no_effect_is_not_taken_for_a_vector(database: Path, expected: Content) -> None:
    write_more_with_a_log_that_is_kept(database, [9.0] * DIMENSION)
    os.truncate(index(database, "squared") / "link_lists.bin", 10)
    assert repair(database, arguments(database))["ok"]
    found = content(database)
    assert np.array_equal(found["squared"]["squared-50"][0], expected["squared"]["squared-50"][0])
    assert len(found["squared"]) == len(expected["squared"]) + 1500


def test_a_vector_that_an_index_lost_comes_back_from_the_log_before_it(database: Path) -> None:
    write_more_with_a_log_that_is_kept(database, [9.0] * DIMENSION)
    before = content(database)
    file = index(database, "squared") / METADATA_FILE
    known = pickle.loads(file.read_bytes())
    del known["label_to_id"][known["id_to_label"].pop("later-7")]
    file.write_bytes(pickle.dumps(known, 3))
    one = described(examine(database, arguments(database), thorough=False), "squared")
    assert (one["missing_ids"], one["recoverable"]) == (["later-7"], one["records"])
    after = repair(database, arguments(database))
    assert (after["ok"], after["set_aside"]) == (True, None)
    assert_agree(content(database), before)


def test_labels_that_a_damaged_pickle_claims_twice_are_not_believed(database: Path, expected: Content) -> None:
    file = index(database, "squared") / METADATA_FILE
    known = pickle.loads(file.read_bytes())
    labels = known["id_to_label"]
    labels["squared-60"], labels["squared-61"] = labels["squared-61"], labels["squared-60"]
    file.write_bytes(pickle.dumps(known, 3))
    after = repair(database, arguments(database))
    assert after["ok"], after["problems"]
    assert_agree(content(database), expected, {"squared": {"squared-60", "squared-61"}})


def test_a_vector_of_another_dimension_in_the_log_is_a_finding_that_stays(database: Path) -> None:
    (key,) = sql(database, "select id from collections where name = 'squared'")[0]
    sql(
        database,
        "insert into embeddings_queue (operation, topic, id, vector, encoding, metadata) "
        "values (0, ?, 'x', ?, 'FLOAT32', '{}')",
        *(f"persistent://default/default/{key}", bytes(8)),
    )
    assert "1 vectors of its log have another dimension" in examine(database, arguments(database))["problems"][0]
    before = fingerprint(database)
    after = repair(database, arguments(database))
    assert (after["ok"], after["repaired"], after["found"]) == (False, False, after["problems"])
    assert fingerprint(database) == before


def test_rows_of_the_log_that_chroma_has_not_applied_yet_are_applied(database: Path, expected: Content) -> None:
    """As after a kill between the log and what it is applied to."""
    topic = f"persistent://default/default/{sql(database, 'select id from collections where name = ?', 'cosine')[0][0]}"
    (last,) = sql(database, "select max(seq_id) from embeddings_queue")[0]
    for i, (operation, record, vector, metadata) in enumerate(
        [
            (0, "pending", np.full(DIMENSION, 3, dtype="<f4").tobytes(), '{"chroma:document":"p","k":1}'),
            (3, "cosine-30", None, "{}"),
            (0, "cosine-31", np.full(DIMENSION, 9, dtype="<f4").tobytes(), "{}"),  # it is there: without effect
        ]
    ):
        sql(
            database,
            "insert into embeddings_queue (seq_id, operation, topic, id, vector, encoding, metadata) "
            "values (?, ?, ?, ?, ?, 'FLOAT32', ?)",
            *(last + 1 + i, operation, topic, record, vector, metadata),
        )
    wanted = {**expected, "cosine": dict(expected["cosine"])}
    del wanted["cosine"]["cosine-30"]
    wanted["cosine"]["pending"] = (np.full(DIMENSION, 3.0), "p", {"k": 1})
    report = examine(database, arguments(database))
    assert report["ok"], report["problems"]
    assert described(report, "cosine")["records"] == len(wanted["cosine"])
    truncate_links(database)
    assert_repaired(repair(database, arguments(database)), database, wanted)


def zero_root_of(directory: Path, table_or_index: str) -> None:
    page = sql(directory, "select rootpage from sqlite_master where name = ?", table_or_index)[0][0]
    size = sql(directory, "pragma page_size")[0][0]
    with (directory / "chroma.sqlite3").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(bytes(size))


@pytest.mark.parametrize(
    "place",
    [
        "embedding_metadata_int_value",
        "sqlite_autoindex_embeddings_1",
        *long("embedding_fulltext_search_data", "embedding_fulltext_search_content"),
    ],
)
def test_damaged_indexes_of_sqlite_are_made_anew(database: Path, place: str, expected: Content) -> None:
    sql(database, "analyze")
    zero_root_of(database, place)
    damaged = (database / "chroma.sqlite3").read_bytes()
    report = examine(database, arguments(database))
    assert report["sqlite"] != "ok"
    assert report["problems"][0].startswith("chroma.sqlite3 is damaged")
    truncate_links(database)
    after = repair(database, arguments(database))
    (kept,) = (database / ".chroma_manager").glob("damaged-*/chroma.sqlite3")
    assert kept.read_bytes() == damaged
    assert after["sqlite"] == "ok"
    assert_repaired(after, database, expected)
    client = chromadb.PersistentClient(database)
    collection = client.get_collection("cosine")
    assert collection.get(where_document={"$contains": "ent 1000 of cos"})["ids"] == ["cosine-1000"]
    assert collection.get(where={"n": 1001})["ids"] == ["cosine-1001"]
    close(client, database)


@pytest.mark.parametrize("damage", ["a table", "the first page"])
def test_a_sqlite_file_that_cannot_be_read_is_left_as_it_is(database: Path, damage: str) -> None:
    truncate_links(database)
    if damage == "a table":
        zero_root_of(database, "embedding_metadata")
    else:
        with (database / "chroma.sqlite3").open("r+b") as file:
            file.write(os.urandom(4096))
    before = fingerprint(database)
    report = repair(database, arguments(database))
    assert (report["ok"], report["repaired"], report["set_aside"]) == (False, False, None)
    assert "the repair failed" in report["problems"][-1]
    assert fingerprint(database) == before


def test_missing_tables_and_a_missing_file_are_findings(database: Path) -> None:
    sql(database, "drop table max_seq_id")
    assert examine(database, arguments(database))["problems"] == [
        "chroma.sqlite3 has no table max_seq_id; it cannot be repaired"
    ]
    (database / "chroma.sqlite3").unlink()
    (problem,) = examine(database, arguments(database))["problems"]
    assert problem.startswith("chroma.sqlite3 is missing, and there are 5 indexes")
    for header in database.glob("*/header.bin"):
        shutil.rmtree(header.parent)
    assert examine(database, arguments(database))["ok"]


# The way an engine process does: no site-packages, chromadb/__init__ not run, the database's directory its own.
ENGINE = """
import json, os, sys
from pathlib import Path
arguments = json.loads(sys.argv[1])
sys.path.append(os.path.dirname(arguments["packages"]["chroma_manager"]))
from types import ModuleType
package = ModuleType("chroma_manager"); package.__path__ = [arguments["packages"]["chroma_manager"]]
sys.modules["chroma_manager"] = package
from chroma_manager.{module} import {function}
print(json.dumps({function}(Path({directory!r}), arguments)))
assert not {{"chromadb", "numpy", "chromadb_rust_bindings"}} & set(sys.modules)
"""


def in_engine(
    database: Path, function: str, limit: int | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """Examines or repairs it with paths that are relative to its directory; files can have `limit` bytes."""
    told = arguments(database)
    told |= {"directory": ".", "bindings": {**told["bindings"], "persist_path": "."}}
    told["sqlite"]["url"] = "chroma.sqlite3"
    module = "verification.repair" if function == "repair" else "verification.verify"
    code = ENGINE.format(module=module, function=function, directory=".")

    def limit_files() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, json.dumps(told)],
        cwd=database,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
        check=False,
    )


def test_it_works_in_an_engine_process(database: Path, expected: Content) -> None:
    truncate_links(database)
    examined = in_engine(database, "examine")
    assert "link_lists.bin" in json.loads(examined.stdout)["problems"][0], examined.stderr
    repaired = in_engine(database, "repair")
    assert_repaired(json.loads(repaired.stdout), database, expected)


def everything_in(directory: Path) -> dict[str, object]:
    """What the files have in them; of SQLite's the rows, because it writes into free pages what it takes back."""
    files: dict[str, object] = {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    del files[str(directory / "chroma.sqlite3")]
    for (table,) in sql(directory, "select name from sqlite_master where type = 'table'"):
        files[table] = sql(directory, f"select * from {table} not indexed")
    return files


STEPS = ["set aside", "log completed", "checkpoint forgotten", "index moved", "log applied"]


@pytest.mark.parametrize("step", STEPS)
def test_a_repair_that_is_killed_can_be_made_again(database: Path, step: str, expected: Content) -> None:
    truncate_links(database)
    shutil.rmtree(index(database, "squared"))
    killed = in_engine(database, "repair", CHROMA_MANAGER_KILL_AT=step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if step != "set aside":
        # Until the new index is on the disk; nobody may think that there is one and shorten the log.
        (key,) = sql(database, "select id from collections where name = 'cosine'")[0]
        assert {record for (record,) in sql(database, IN_LOG, f"%{key}")} >= expected["cosine"].keys()
        position = sql(database, "select 1 from max_seq_id where segment_id = ?", segment(database, "cosine"))
        assert bool(position) == (step == "log applied")
    after = repair(database, arguments(database))
    assert after["ok"], after["problems"]
    found = content(database)
    lost = expected["squared"].keys() - found["squared"].keys()
    assert 1100 < len(lost) < 1200
    assert_agree(found, expected, {"squared": lost})
    files = (database / ".chroma_manager").glob("set-aside-*.jsonl")
    assert {json.loads(line)["id"] for file in files for line in file.read_text().splitlines()} == lost


def test_a_rebuilding_of_sqlite_that_is_killed_can_be_made_again(database: Path, expected: Content) -> None:
    zero_root_of(database, "embedding_metadata_int_value")
    killed = in_engine(database, "repair", CHROMA_MANAGER_KILL_AT="tables copied")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_repaired(repair(database, arguments(database)), database, expected)


@pytest.mark.parametrize("is_sqlite_damaged", [True, False])
def test_a_disk_that_is_full_leaves_the_database_as_it_was(
    database: Path, is_sqlite_damaged: bool, expected: Content
) -> None:
    truncate_links(database)
    if is_sqlite_damaged:
        zero_root_of(database, "embedding_metadata_int_value")
    before = everything_in(database)
    # Enough for what is examined with, too little for one more page of the log.
    limit = 1 << 20 if is_sqlite_damaged else (database / "chroma.sqlite3").stat().st_size
    report = json.loads(in_engine(database, "repair", limit).stdout)
    assert "the repair failed" in report["problems"][-1]
    assert (report["ok"], report["repaired"]) == (False, False)
    assert everything_in(database) == before
    assert_repaired(repair(database, arguments(database)), database, expected)


def test_each_of_many_collections_is_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = chromadb.PersistentClient(tmp_path)
    long = "long" * 1000
    client._admin_client.create_database(long)
    client.set_database(long)
    for i in range(60):
        collection = client.create_collection(
            f"number-{i}", embedding_function=None, configuration={"hnsw": {"sync_threshold": 3, "batch_size": 2}}
        )
        collection.add(ids=["a", "b", "c"], embeddings=[[1.0, i], [2.0, i], [3.0, i]])
    close(client, tmp_path)
    report = examine(tmp_path, arguments(tmp_path))
    assert (report["ok"], len(report["collections"])) == (True, 60), report["problems"]
    for name in ("number-3", "number-55"):
        forget_a_level(tmp_path, name)
    # What Chroma says, which looks at one after the other.
    monkeypatch.setattr(IndexFiles, "_check_graph", lambda *_: None)
    problems = examine(tmp_path, arguments(tmp_path))["problems"]
    named = ["collection 'number-3' (database", "collection 'number-55' (database"]
    assert [problem.partition(" 'long")[0] for problem in problems] == named


HANGS = """
import json, sys, time
first = json.load(open(int(sys.argv[1])))["collections"][0]["id"]
print(json.dumps({"begins": first}), flush=True)
time.sleep(600)
"""


def test_a_probe_that_hangs_is_a_finding(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe.py").write_text(HANGS)
    monkeypatch.setattr("chroma_manager.verification.probing.PROBE_SECONDS", 1)
    monkeypatch.setattr("chroma_manager.verification.probing.PROBE_RECORDS_A_SECOND", 1e9)
    told = arguments(database)
    told["python"]["probe"] = str(tmp_path / "probe.py")
    problems = examine(database, told)["problems"]
    assert len(problems) == len(INDEXED)
    assert all("has not read it in 1 seconds" in problem for problem in problems)


def test_a_probe_that_cannot_begin_is_no_finding_of_an_index(database: Path) -> None:
    told = arguments(database)
    told["bindings"]["hnsw_cache_size"] = "much"
    before = fingerprint(database)
    report = repair(database, told)
    assert (report["ok"], report["repaired"]) == (False, False)
    (problem,) = report["problems"]
    assert problem.startswith("it cannot be found out whether Chroma can read the indexes")
    assert "TypeError" in problem
    assert all(one["problems"] == [] for one in report["collections"])
    assert fingerprint(database) == before


def test_a_probe_ends_with_the_process_that_needs_it(database: Path) -> None:
    one = {**described(examine(database, arguments(database)), "cosine")}
    told, given = arguments(database), database.parent / "told.json"
    given.write_text(json.dumps({**told, "parent": -1, "collections": [one] * 50}))
    with given.open() as file:
        command = [sys.executable, told["python"]["probe"], str(file.fileno())]
        ended = subprocess.run(command, capture_output=True, check=False, pass_fds=(file.fileno(),))
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_a_pickle_of_a_chroma_that_was_python_is_read(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "chromadb.segment.impl.vector.local_persistent_hnsw"
    module = ModuleType(name)
    module.PersistentData = type("PersistentData", (), {"__module__": name})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    file = index(database, "squared") / METADATA_FILE
    old = module.PersistentData()
    vars(old).update(pickle.loads(file.read_bytes()))
    file.write_bytes(pickle.dumps(old))
    files = IndexFiles(file.parent, DIMENSION, False, set)
    assert (files.problems, len(files.ids)) == ([], 1200)


def test_a_header_with_impossible_room_is_found_without_chroma(database: Path) -> None:
    say_there_is_room(database)
    files = IndexFiles(index(database, "cosine"), DIMENSION, True, set)
    assert files.problems == ["header.bin: it is not the header of an index"]
    assert len(files.ids) > 2000


def test_an_index_that_is_entered_at_no_level_is_found_without_chroma(database: Path) -> None:
    forget_a_level(database)
    files = IndexFiles(index(database, "cosine"), DIMENSION, True, set)
    assert files.problems == ["the graph (data_level0.bin, link_lists.bin): it is not entered at its highest level"]


def test_a_pickle_is_not_run(database: Path, tmp_path: Path) -> None:
    class Touches:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "made"),)

    (index(database, "cosine") / METADATA_FILE).write_bytes(pickle.dumps(Touches()))
    (problem,) = examine(database, arguments(database))["problems"]
    assert "it asks for posix.mkdir" in problem
    assert not (tmp_path / "made").exists()


def stock_index_as_checkpoint(manager: ChromaDBManager) -> tuple[Path, Content]:
    """A database that was open with us and closed: its index is also in its checkpoint."""
    directory = Path(manager._get_db_path("doc", "azure"))
    collection = manager.get_collection("doc", "azure", "squared")
    vectors = np.random.default_rng(3).random((2100, DIMENSION), dtype=np.float32)
    collection.add(ids=[str(i) for i in range(2100)], embeddings=vectors)
    manager.cleanup_all_instances()
    return directory, {"squared": {str(i): (vector, None, None) for i, vector in enumerate(vectors)}}


@pytest.fixture
def isolated(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "base", engine="isolated", idle_timeout=None)


def test_vectors_come_back_from_the_checkpoint(isolated: ChromaDBManager) -> None:
    directory, expected = stock_index_as_checkpoint(isolated)
    for file in index(directory, "squared").iterdir():
        os.truncate(file, 50)
    assert described(examine(directory, arguments(directory)), "squared")["recoverable"] == 2100
    after = repair(directory, arguments(directory))
    assert (after["ok"], after["set_aside"]) == (True, None), after["problems"]
    assert_agree(content(directory), expected)
    assert isolated.get_collection("doc", "azure", "squared").count() == 2100
    isolated.cleanup_all_instances()
    assert list((directory / ".chroma_manager").glob("damaged-*/*/header.bin"))


def test_a_recovery_after_a_repair_does_not_bring_a_damaged_checkpoint_back(isolated: ChromaDBManager) -> None:
    directory, expected = stock_index_as_checkpoint(isolated)
    (copy,) = (directory / ".chroma_manager").glob("*@*")
    isolated.get_client("doc", "azure")
    kill_engines()
    for path in (index(directory, "squared"), copy):
        os.truncate(path / "link_lists.bin", 10)
    after = repair(directory, arguments(directory))
    assert after["ok"], after["problems"]
    assert '"automatically_purge":false' in sql(directory, "select config_json_str from embeddings_queue_config")[0][0]
    assert isolated.get_collection("doc", "azure", "squared").count() == 2100
    isolated.cleanup_all_instances()
    assert_agree(content(directory), expected)


def test_rows_are_purged_as_before_after_a_repair_and_the_opening_after_it_are_killed(isolated, monkeypatch) -> None:
    directory, expected = stock_index_as_checkpoint(isolated)
    os.truncate(index(directory, "squared") / "link_lists.bin", 10)
    killed = in_engine(directory, "repair", CHROMA_MANAGER_KILL_AT="index moved")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with monkeypatch.context() as patch:
        patch.setenv("CHROMA_MANAGER_KILL_AT", "marked")
        with pytest.raises(InstanceOpenError, match="signal: 9"):
            isolated.get_client("doc", "azure")
    assert isolated.get_collection("doc", "azure", "squared").count() == 2100
    assert not (directory / ".chroma_manager" / "repair.json").exists()
    isolated.cleanup_all_instances()
    assert '"automatically_purge":true' in sql(directory, "select config_json_str from embeddings_queue_config")[0][0]
    assert_agree(content(directory), expected)


WRITER = """
import chromadb, numpy as np, sys
collection = chromadb.PersistentClient(sys.argv[1]).get_or_create_collection("squared", embedding_function=None)
for n in range(10**9):
    vectors = np.random.default_rng(n).random((250, 16), dtype=np.float32)
    collection.add(ids=[f"{n}-{i}" for i in range(250)], embeddings=vectors, documents=[f"{n}" for i in range(250)])
    print(n, flush=True)
"""


@pytest.mark.parametrize("seconds", [0.3, 1.0, *long(0.6, 1.5)])
def test_what_a_kill_leaves_of_a_database_of_stock_chroma_is_made_usable(tmp_path: Path, seconds: float) -> None:
    directory = tmp_path / "db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    lines = [writer.stdout.readline()]
    time.sleep(seconds)
    writer.kill()
    lines += writer.communicate()[0].splitlines()
    report = repair(directory, arguments(directory))
    assert report["ok"], report["problems"]
    records = content(directory)["squared"]
    aside = Path(report["set_aside"]).read_text().splitlines() if report["set_aside"] else []
    acknowledged = {f"{n}-{i}" for n in range(len(lines)) for i in range(250)}
    assert acknowledged <= records.keys() | {json.loads(line)["id"] for line in aside}
    for record, (vector, document, _) in records.items():
        n, i = record.split("-")
        assert document == n
        assert np.array_equal(vector, np.random.default_rng(int(n)).random((250, 16), dtype=np.float32)[int(i)])
