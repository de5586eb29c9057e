"""Databases of every era of Chroma open, whatever form their positions in the log have, and all in them is found.

They were written by ``fixtures/make_databases.py``, each by a Chroma of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager, InstanceOpenError, SnapshotError
from chroma_manager.options import ENGINES, LOCAL_ENGINES
from conftest import directory, eventually, files_open_in, kill_engines, long, sql

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))
from make_databases import COUNT, DELETED, FEW, UPDATED, VERSIONS, archive_of, vector

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

OLD_FORM, NEW_FORM = "0.6.3", "1.5.9"
EXPECTED = {str(i): vector(i, int(i in UPDATED)) for i in range(COUNT) if i not in DELETED}


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


def unpack(version: str, target: Path) -> Path:
    target.mkdir(parents=True)
    with tarfile.open(archive_of(version)) as archive:
        archive.extractall(target, filter="data")
    return target


def assert_found(client: chromadb.api.ClientAPI, expected: dict[str, list[float]] = EXPECTED) -> None:
    """All of it: each record by its id, with its text and its vector, and each vector as the nearest to itself."""
    collection = client.get_collection("vectors", embedding_function=None)
    got = collection.get(include=["embeddings", "documents", "metadatas"])
    vectors = dict(zip(got["ids"], got["embeddings"], strict=True))
    assert vectors.keys() == expected.keys()
    assert np.allclose([vectors[i] for i in expected], list(expected.values()), atol=1e-6)
    texts = dict(zip(got["ids"], zip(got["documents"], got["metadatas"], strict=True), strict=True))
    assert all(texts[i] == (f"text {i}", {"page": int(i)}) for i in EXPECTED.keys() & expected.keys())
    nearest = collection.query(query_embeddings=list(expected.values()), n_results=1, include=[])["ids"]
    assert sum(found != [i] for i, found in zip(expected, nearest, strict=True)) <= 1
    few = client.get_collection("angles", embedding_function=None)
    found = few.query(query_embeddings=[vector(i) for i in range(FEW)], n_results=1, include=[])["ids"]
    assert found == [[str(i)] for i in range(FEW)]


def rows_of_log(path: Path) -> int:
    return int(sql(path, "select count(*) from embeddings_queue")[0][0])


@pytest.mark.parametrize("version", [*VERSIONS[::2], *long(*VERSIONS[1::2])])
def test_a_database_of_each_era_goes_on_as_ours(
    manager: ChromaDBManager, version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from chroma_manager.cli.listing import list_databases

    path = unpack(version, directory(manager))
    rows = rows_of_log(path)
    assert list_databases(tmp_path / "db", as_json=False) == 0
    assert f"{COUNT - len(DELETED) + FEW:,} records" in capsys.readouterr().out
    assert manager.verify("doc", "azure").ok
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    assert_found(manager.get_client("doc", "azure"))
    assert rows_of_log(path) == rows
    kill_engines()
    assert_found(manager.get_client("doc", "azure"))
    more = {f"more {i}": vector(i, 5) for i in range(1200)}
    collection = manager.get_client("doc", "azure").get_collection("vectors", embedding_function=None)
    collection.add(ids=list(more), embeddings=list(more.values()))
    manager.cleanup_all_instances()
    # A checkpoint was taken of index files that end behind all that the old Chroma had written. Where an older Chroma
    # kept all rows of the log, they are kept.
    purges = "true" in sql(path, "select config_json_str from embeddings_queue_config")[0][0]
    assert (rows_of_log(path) < 1000) == purges
    with chromadb.PersistentClient(path) as client:
        assert_found(client, EXPECTED | more)
    assert_found(manager.get_client("doc", "azure"), EXPECTED | more)
    kill_engines()
    verification = manager.verify("doc", "azure")
    assert (verification.ok, verification.problems) == (True, ())
    assert_found(manager.get_client("doc", "azure"), EXPECTED | more)
    manager.restore("doc", "azure", tmp_path / "snapshot")
    assert_found(manager.get_client("doc", "azure"))


@pytest.mark.parametrize("engine", LOCAL_ENGINES)
@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1], *long(*VERSIONS[1:-1])])
def test_a_database_of_each_era_is_compacted(tmp_path: Path, version: str, engine: str) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine=engine, idle_timeout=None)
    path = unpack(version, directory(manager))
    rows = sql(path, "select seq_id, operation, topic, id, vector from embeddings_queue")
    done = manager.compact("doc", "azure")
    assert (done.records, done.rebuilt_indexes) == (COUNT - len(DELETED) + FEW, 1)
    assert_found(manager.get_client("doc", "azure"))
    manager.cleanup_all_instances()
    purges = "true" in sql(path, "select config_json_str from embeddings_queue_config")[0][0]
    assert purges or set(rows) <= set(sql(path, "select seq_id, operation, topic, id, vector from embeddings_queue"))
    with chromadb.PersistentClient(path) as client:
        assert_found(client)
        more = {f"more {i}": vector(i, 5) for i in range(1200)}
        client.get_collection("vectors", embedding_function=None).add(ids=list(more), embeddings=list(more.values()))
    assert_found(manager.get_client("doc", "azure"), EXPECTED | more)
    assert manager.verify("doc", "azure").ok


def state_nothing(path: Path) -> None:
    """As it is where the space is configured."""
    sql(path, "delete from collection_metadata where key = 'hnsw:space'")


def replace_metadata(path: Path) -> None:
    with chromadb.PersistentClient(path) as client:
        client.get_collection("angles", embedding_function=None).modify(metadata={"hnsw": "of other things"})


def configure_another(path: Path) -> None:
    """Chroma does not read the configuration of such an old one. It writes a new one, in which the space is l2."""
    with chromadb.PersistentClient(path) as client:
        client.get_collection("angles", embedding_function=None).modify(configuration={"hnsw": {"ef_search": 50}})


@pytest.mark.parametrize(
    ("version", "change"),
    [
        (OLD_FORM, None),
        ("1.0.21", state_nothing),
        pytest.param("0.4.24", replace_metadata, marks=pytest.mark.long),
        pytest.param(OLD_FORM, configure_another, marks=pytest.mark.long),
    ],
)
def test_the_space_of_a_collection_is_what_chroma_takes_it_for(
    manager: ChromaDBManager, version: str, change: Callable[[Path], None] | None
) -> None:
    path = unpack(version, directory(manager))
    if change:
        change(path)
    more = {f"more {i}": vector(i, 5) for i in range(COUNT)}
    with chromadb.PersistentClient(path) as client:
        stock = client.get_collection("angles", embedding_function=None)
        stock.add(ids=list(more), embeddings=list(more.values()))
        expected = stock.get(ids=list(more), include=["embeddings"])["embeddings"]
    assert eventually(lambda: files_open_in(path) == [])
    assert manager.verify("doc", "azure").ok
    collection = manager.get_client("doc", "azure").get_collection("angles", embedding_function=None)
    collection.delete(ids=[str(i) for i in range(FEW)])
    manager.compact("doc", "azure")
    collection = manager.get_client("doc", "azure").get_collection("angles", embedding_function=None)
    found = collection.get(ids=list(more), include=["embeddings"])["embeddings"]
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert manager.verify("doc", "azure").ok


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """More processes than cores want to run."""
    code = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    hogs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2 * (os.cpu_count() or 1))]
    yield
    for hog in hogs:
        hog.kill()
        hog.wait()


@pytest.mark.long
@pytest.mark.parametrize("engine", LOCAL_ENGINES)
def test_what_chroma_has_just_migrated_can_be_read(tmp_path: Path, engine: str, busy_machine: None) -> None:
    """With the binding that has migrated a database, the first call fails in one of seven of them."""
    manager = ChromaDBManager(base_path=tmp_path / "db", engine=engine, idle_timeout=None)
    for i in range(25):
        unpack("0.4.24", directory(manager, f"{i}"))
        client = manager.get_client(f"{i}", "azure")
        assert len(client.get_collection("vectors", embedding_function=None).get()["ids"]) == len(EXPECTED)
        manager.cleanup_instance(f"{i}", "azure")


@pytest.mark.parametrize("version", ["0.4.24", OLD_FORM, NEW_FORM])
def test_a_damaged_database_of_each_era_is_repaired(tmp_path: Path, version: str) -> None:
    manager = without_repair(tmp_path)
    damage_index(unpack(version, directory(manager)))
    repaired = manager.verify("doc", "azure", repair=True)
    assert (repaired.ok, repaired.repaired, repaired.set_aside) == (True, True, None)
    assert_found(manager.get_client("doc", "azure"))


def without_repair(tmp_path: Path) -> ChromaDBManager:
    """What it opens is not mended already."""
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None, repair="never")


def damage_index(path: Path) -> None:
    for header in path.glob("[!.]*/header.bin"):
        header.write_bytes(bytes(100))


FORMS: dict[str, Callable[[int], object]] = {
    "a number": lambda position: position,
    "eight bytes": lambda position: position.to_bytes(8, "big"),
    "six bytes": lambda position: position.to_bytes(6, "big"),
    "a text": str,
    "the bytes of a text": lambda position: str(position).encode(),
    "a text that a migration took for a number": lambda position: int.from_bytes(str(position).encode(), "big"),
}


def change_positions(path: Path, form: str) -> None:
    for segment, position in sql(path, "select segment_id, seq_id from max_seq_id"):
        number = int.from_bytes(position, "big") if isinstance(position, bytes) else position
        sql(path, "update max_seq_id set seq_id = ? where segment_id = ?", FORMS[form](number), segment)


def test_a_damaged_database_with_positions_of_another_form_is_repaired(tmp_path: Path) -> None:
    manager = without_repair(tmp_path)
    path = unpack(NEW_FORM, directory(manager))
    change_positions(path, "eight bytes")
    damage_index(path)
    repaired = manager.verify("doc", "azure", repair=True)
    assert (repaired.ok, repaired.repaired, repaired.set_aside) == (True, True, None)
    assert_found(manager.get_client("doc", "azure"))


def test_embedded_reads_positions_of_any_form(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded", idle_timeout=None)
    change_positions(unpack(NEW_FORM, directory(manager)), "eight bytes")
    assert_found(manager.get_client("doc", "azure"))


@pytest.mark.parametrize("position", ["none", -5])
def test_a_position_that_is_no_number_is_named(manager: ChromaDBManager, position: object) -> None:
    path = unpack(NEW_FORM, directory(manager))
    sql(path, "update max_seq_id set seq_id = ?", position)
    with pytest.raises(InstanceOpenError, match=r"doc/azure.*position"):
        manager.get_client("doc", "azure")


def test_an_index_whose_position_only_its_pickle_has_is_in_a_checkpoint(manager: ChromaDBManager) -> None:
    """Chroma up to 0.5.5 kept it there, and tools have purged the logs of such databases."""
    path = unpack("0.4.24", directory(manager))
    sql(path, "delete from embeddings_queue where seq_id < 1000")
    assert_found(manager.get_client("doc", "azure"))
    kill_engines()
    damage_index(path)
    assert_found(manager.get_client("doc", "azure"))


@pytest.mark.parametrize("engine", LOCAL_ENGINES)
def test_segments_of_an_unknown_type_are_refused_and_left_alone(tmp_path: Path, engine: str) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine=engine, idle_timeout=None)
    path = unpack(NEW_FORM, directory(manager))
    sql(path, "update segments set type = 'urn:chroma:segment/vector/new' where scope = 'VECTOR'")
    before = (path / "chroma.sqlite3").read_bytes()
    refused = r"doc/azure.*urn:chroma:segment/vector/new.*chroma-manager"
    with pytest.raises(InstanceOpenError, match=refused):
        manager.get_client("doc", "azure")
    for work in (lambda: manager.snapshot("doc", "azure", tmp_path / "to"), lambda: manager.verify("doc", "azure")):
        with pytest.raises((InstanceOpenError, SnapshotError), match=r"doc/azure.*urn:chroma:segment/vector/new"):
            work()
    assert (path / "chroma.sqlite3").read_bytes() == before
