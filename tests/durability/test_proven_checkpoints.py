"""No row of the log is purged before a copy of the index files is proven to hold it, whatever the index library did.

Chroma's index library does not look whether its writes succeed. What a failed write leaves behind, a part of a file as
it was before, is put there while Chroma has the index in memory, as right as it ever was.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager, InstanceCorruptError
from chroma_manager.options import ENGINES
from chroma_manager.storage import catalog
from chroma_manager.storage.connection import transaction
from chroma_manager.storage.paths import DATABASE_FILE
from conftest import directory, eventually, kill_engines, long, made_once

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

COUNT = 2000
DIMENSION = 16
IDS = [str(i) for i in range(COUNT)]
OLD, NEW = np.random.default_rng(0).random((2, COUNT, DIMENSION), dtype=np.float32)


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


@pytest.fixture
def cautious(tmp_path: Path) -> ChromaDBManager:
    """A manager that repairs nothing by itself."""
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None, repair="never")


@pytest.fixture(params=["cosine", *long("l2")])
def updated(
    manager: ChromaDBManager,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> chromadb.Collection:
    """A collection whose vectors were all updated since its last checkpoint, whose files are kept beside."""

    def make(folder: Path) -> None:
        new_collection(manager, request.param).add(ids=IDS, embeddings=OLD)
        manager.cleanup_all_instances()
        directory(manager).rename(folder / "database")

    made = made_once(tmp_path_factory, f"closed-{request.param}", make)
    shutil.copytree(made / "database", directory(manager))
    shutil.copytree(index(manager), tmp_path / "before")
    collection = new_collection(manager, request.param)
    for start in range(0, COUNT, 500):
        collection.update(ids=IDS[start : start + 500], embeddings=NEW[start : start + 500])
    return collection


def new_collection(manager: ChromaDBManager, space: str = "l2") -> chromadb.Collection:
    return manager.get_collection("doc", "azure", "vectors", configuration={"hnsw": {"space": space}})


def index(manager: ChromaDBManager) -> Path:
    (found,) = directory(manager).glob("[!.]*/header.bin")
    return found.parent


def home(manager: ChromaDBManager) -> Path:
    return directory(manager) / ".chroma_manager"


def assert_has(collection: chromadb.Collection, expected: np.ndarray) -> None:
    got = collection.get(include=["embeddings"])
    vectors = dict(zip(got["ids"], got["embeddings"], strict=True))
    assert sorted(vectors) == sorted(IDS)
    assert np.allclose([vectors[i] for i in IDS], expected, rtol=1e-5, atol=1e-6)
    found = collection.query(query_embeddings=expected[::20], n_results=1)["ids"]
    assert sum(nearest != [i] for i, nearest in zip(IDS[::20], found, strict=True)) <= 1


def rows_of_log(manager: ChromaDBManager) -> int:
    with sqlite3.connect(directory(manager) / "chroma.sqlite3") as sql:
        (count,) = sql.execute("select count(*) from embeddings_queue").fetchone()
    sql.close()
    return int(count)


def write_second_half_of_old_vectors(manager: ChromaDBManager, before: Path) -> None:
    old = (before / "data_level0.bin").read_bytes()
    with (index(manager) / "data_level0.bin").open("r+b") as file:
        file.seek(len(old) // 2)
        file.write(old[len(old) // 2 :])


def cut(name: str) -> Callable[[ChromaDBManager, Path], None]:
    def damage(manager: ChromaDBManager, _: Path) -> None:
        os.truncate(index(manager) / name, 100)

    return damage


def remove(name: str) -> Callable[[ChromaDBManager, Path], None]:
    return lambda manager, _: (index(manager) / name).unlink()


def put_back(name: str) -> Callable[[ChromaDBManager, Path], None]:
    def damage(manager: ChromaDBManager, before: Path) -> None:
        (index(manager) / name).write_bytes((before / name).read_bytes())

    return damage


FAILED_WRITES = {
    "half of the vectors": write_second_half_of_old_vectors,
    "all vectors": put_back("data_level0.bin"),
    "the end of the vectors": cut("data_level0.bin"),
    "the creation of the lengths": remove("length.bin"),
    "the end of the links": cut("link_lists.bin"),
    "the header": cut("header.bin"),
    "the labels": cut("index_metadata.pickle"),
}
FEW_FAILED = ["half of the vectors", "the creation of the lengths", "the labels"]
OTHER_FAILED = [failed for failed in FAILED_WRITES if failed not in FEW_FAILED]


@pytest.mark.parametrize("failed", [*FEW_FAILED, *long(*OTHER_FAILED)])
def test_a_write_of_the_index_that_failed_unnoticed_loses_nothing_at_a_close(
    manager: ChromaDBManager, updated: chromadb.Collection, tmp_path: Path, failed: str
) -> None:
    FAILED_WRITES[failed](manager, tmp_path / "before")
    manager.cleanup_all_instances()
    assert_has(new_collection(manager), NEW)
    manager.cleanup_all_instances()
    with chromadb.PersistentClient(directory(manager)) as client:
        assert_has(client.get_collection("vectors"), NEW)
    manager.cleanup_all_instances()


def test_stock_chroma_finds_everything_right_after_a_write_of_the_index_that_failed_unnoticed(
    manager: ChromaDBManager, updated: chromadb.Collection, tmp_path: Path
) -> None:
    write_second_half_of_old_vectors(manager, tmp_path / "before")
    manager.cleanup_all_instances()
    with chromadb.PersistentClient(directory(manager)) as client:
        assert_has(client.get_collection("vectors"), NEW)


def test_a_write_of_the_index_that_failed_unnoticed_is_neither_verified_nor_in_a_snapshot(
    manager: ChromaDBManager, updated: chromadb.Collection, tmp_path: Path
) -> None:
    write_second_half_of_old_vectors(manager, tmp_path / "before")
    manager.snapshot("doc", "azure", tmp_path / "snapshot")
    assert_has(updated, NEW)
    with chromadb.PersistentClient(tmp_path / "snapshot") as client:
        assert_has(client.get_collection("vectors"), NEW)
    shutil.copytree(index(manager), tmp_path / "between")
    updated.update(ids=IDS, embeddings=OLD)
    write_second_half_of_old_vectors(manager, tmp_path / "between")
    verification = manager.verify("doc", "azure")
    assert verification.ok, verification.problems
    assert_has(updated, OLD)


def test_an_index_that_cannot_be_proven_twice_keeps_its_log(manager: ChromaDBManager, updated) -> None:
    """Its checkpoint is damaged, too, so there is nothing to begin with but what Chroma wrote."""
    (copy,) = home(manager).glob("*@*")
    os.truncate(copy / "index_metadata.pickle", 10)
    rows = rows_of_log_while_open(manager)
    manager.cleanup_all_instances()
    assert rows_of_log(manager) >= rows
    assert_has(new_collection(manager), NEW)


def rows_of_log_while_open(manager: ChromaDBManager) -> int:
    """Of a copy of the file: nobody writes just now."""
    copy = directory(manager).parent / "copy.sqlite3"
    shutil.copyfile(directory(manager) / "chroma.sqlite3", copy)
    with sqlite3.connect(copy) as sql:
        (count,) = sql.execute("select count(*) from embeddings_queue").fetchone()
    sql.close()
    copy.unlink()
    return int(count)


def test_purging_that_was_off_stays_off_and_the_rows_stay(manager: ChromaDBManager) -> None:
    setting = '{"_type":"EmbeddingsQueueConfigurationInternal", "automatically_purge": false}'
    directory(manager).mkdir(parents=True)
    with chromadb.PersistentClient(directory(manager)) as client:
        client.create_collection("vectors", embedding_function=None)
    with sqlite3.connect(directory(manager) / "chroma.sqlite3") as sql:
        sql.execute("update embeddings_queue_config set config_json_str = ?", (setting,))
    sql.close()
    new_collection(manager).add(ids=IDS, embeddings=OLD)
    kill_engines()
    assert_has(new_collection(manager), OLD)
    manager.verify("doc", "azure")
    manager.cleanup_all_instances()
    assert rows_of_log(manager) >= COUNT
    with sqlite3.connect(directory(manager) / "chroma.sqlite3") as sql:
        assert sql.execute("select config_json_str from embeddings_queue_config").fetchall() == [(setting,)]
    sql.close()


def vacuum(path: Path) -> None:
    """Chroma's own command, which purges the log."""
    command = "import sys; from chromadb.cli.cli import app; sys.argv = ['chroma', *sys.argv[1:]]; app()"
    subprocess.run(
        [sys.executable, "-c", command, "vacuum", "--path", str(path), "--force"],
        check=True,
        capture_output=True,
        timeout=100,
    )


@pytest.mark.parametrize("connect", [transaction, catalog.connection_to])
def test_what_is_deleted_is_not_overwritten(
    connect: Callable[[Path], contextlib.AbstractContextManager[sqlite3.Connection]], tmp_path: Path
) -> None:
    file, content = tmp_path / DATABASE_FILE, os.urandom(10_000)
    with contextlib.closing(sqlite3.connect(file)) as sql, sql:
        sql.execute("create table log (vector)")
        sql.execute("insert into log values (?)", (content,))
    with connect(file if connect is transaction else tmp_path) as sql:
        sql.execute("delete from log")
    assert content[-1000:] in file.read_bytes()


@pytest.mark.parametrize("then_off", [False, True])
@pytest.mark.long
def test_a_log_that_was_vacuumed_after_a_kill_is_not_taken_for_whole(
    manager: ChromaDBManager, updated: chromadb.Collection, then_off: bool
) -> None:
    kill_engines()
    before = rows_of_log(manager)
    vacuum(directory(manager))
    assert rows_of_log(manager) < before
    if then_off:
        with sqlite3.connect(directory(manager) / "chroma.sqlite3") as sql:
            sql.execute(
                "update embeddings_queue_config set config_json_str = ?",
                ('{"automatically_purge":false,"_type":"EmbeddingsQueueConfigurationInternal"}',),
            )
        sql.close()
    assert_has(new_collection(manager), NEW)
    manager.cleanup_all_instances()
    assert_has(new_collection(manager), NEW)


@pytest.mark.parametrize("has_checkpoint", [True, *long(False)])
def test_an_index_on_another_disk_survives_a_kill(
    manager: ChromaDBManager, tmp_path: Path, has_checkpoint: bool
) -> None:
    collection = new_collection(manager)
    collection.add(ids=IDS, embeddings=OLD)
    manager.cleanup_all_instances()
    elsewhere = tmp_path / "elsewhere"
    link = index(manager)
    shutil.move(link, elsewhere)
    link.symlink_to(elsewhere)
    if not has_checkpoint:
        shutil.rmtree(home(manager))
    collection = new_collection(manager)
    collection.update(ids=IDS, embeddings=NEW)
    for _ in range(2):
        kill_engines()
        os.truncate(elsewhere / "data_level0.bin", 100)
        assert_has(new_collection(manager), NEW)
    manager.cleanup_all_instances()
    assert link.is_symlink()
    assert_has(new_collection(manager), NEW)


def test_a_link_in_our_directory_is_unlinked_and_not_followed(manager: ChromaDBManager, tmp_path: Path) -> None:
    collection = new_collection(manager)
    collection.add(ids=IDS, embeddings=OLD)
    precious = tmp_path / "precious"
    (precious / "deep").mkdir(parents=True)
    (precious / "deep" / "file").write_text("kept")
    for name in ("elsewhere", "a@1-b", "restoring", "restoring.new", "x.trash", "probe"):
        (home(manager) / name).symlink_to(precious)
    for file in ("open.new", "checkpoint.json.new"):
        (home(manager) / file).symlink_to(precious / "deep" / "file")
    manager.cleanup_all_instances()
    kill_engines()
    assert manager.verify("doc", "azure").ok
    assert_has(new_collection(manager), OLD)
    manager.cleanup_all_instances()
    assert (precious / "deep" / "file").read_text() == "kept"
    assert not [path for path in home(manager).iterdir() if path.is_symlink()]


def garbage(file: Path, kind: str) -> None:
    content = {
        "empty": b"",
        "an empty object": b"{}",
        "a list": b"[]",
        "bytes": bytes(range(256)),
        "deep": b"[" * 100_000,
        "another checksum": json.dumps({"format": 1, "crc32": 7, "content": {}}).encode(),
        "a later format": json.dumps({"format": 99, "crc32": 0, "content": {}}).encode(),
    }
    file.unlink(missing_ok=True)
    if kind == "a directory":
        file.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(file)
    elif kind == "a link":
        file.symlink_to("/etc/hostname")
    elif kind != "missing":
        file.write_bytes(content[kind])


KINDS = [
    *("empty", "an empty object", "a list", "bytes", "deep", "another checksum", "a later format"),
    *("a directory", "a FIFO", "a link", "missing"),
]


@pytest.fixture
def killed(manager: ChromaDBManager, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a kill leaves of a database with a checkpoint and writes since."""

    def make(folder: Path) -> None:
        new_collection(manager).add(ids=IDS[:1500], embeddings=OLD[:1500])
        manager.cleanup_all_instances()
        new_collection(manager).add(ids=IDS[1500:], embeddings=OLD[1500:])
        kill_engines()
        directory(manager).rename(folder / "database")

    shutil.copytree(made_once(tmp_path_factory, "killed", make) / "database", directory(manager))


@pytest.mark.parametrize("name", ["checkpoint.json", "open"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.long
def test_what_is_left_of_a_killed_database_survives_garbage_in_a_file_of_ours(
    manager: ChromaDBManager, killed: None, name: str, kind: str
) -> None:
    garbage(home(manager) / name, kind)
    assert_has(new_collection(manager), OLD)
    manager.cleanup_all_instances()
    assert manager.verify("doc", "azure").ok
    assert_has(new_collection(manager), OLD)


def test_a_small_file_that_cannot_be_read_just_now_is_not_taken_for_a_damaged_one(script, tmp_path: Path) -> None:
    process = script("""
import resource
from pathlib import Path
from chroma_manager.storage.sealed import read_sealed, write_sealed
file = Path(base).parent / "small.json"
write_sealed(file, {"is": "sound"})
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
try:
    print(read_sealed(file))
except OSError as error:
    print(error.strerror)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
print(read_sealed(file))
""")
    assert process.finish().splitlines() == ["Too many open files", "{'is': 'sound'}"]


def test_a_garbled_manifest_is_named_by_a_verification_and_a_repair_mends_it(manager: ChromaDBManager) -> None:
    new_collection(manager).add(ids=IDS, embeddings=OLD)
    manager.cleanup_all_instances()
    garbage(home(manager) / "checkpoint.json", "an empty object")
    verification = manager.verify("doc", "azure")
    assert (verification.ok, verification.problems) == (True, ())
    assert "checkpoint.json is damaged" in verification.found[0]
    assert list(home(manager).glob("damaged-*checkpoint.json"))
    new_collection(manager)
    garbage(home(manager) / "checkpoint.json", "an empty object")
    repaired = manager.verify("doc", "azure", repair=True)
    assert repaired.ok
    assert "checkpoint.json is damaged" in repaired.found[0]
    assert_has(new_collection(manager), OLD)
    manager.cleanup_all_instances()
    assert manager.verify("doc", "azure").found == ()


def test_garbage_and_a_damaged_index_say_what_can_be_saved_and_the_copies_save_it(cautious: ChromaDBManager) -> None:
    new_collection(cautious).add(ids=IDS, embeddings=OLD)
    cautious.cleanup_all_instances()
    new_collection(cautious).update(ids=IDS[:10], embeddings=NEW[:10])
    kill_engines()
    garbage(home(cautious) / "checkpoint.json", "bytes")
    os.truncate(index(cautious) / "data_level0.bin", 100)
    with pytest.raises(InstanceCorruptError, match=r"checkpoint.json is damaged.*2,000 of 2,000 vectors"):
        new_collection(cautious)
    assert list(home(cautious).glob("*@*")), "nothing is removed because of it"
    assert cautious.verify("doc", "azure", repair=True).ok
    assert_has(new_collection(cautious), np.concatenate([NEW[:10], OLD[10:]]))


def test_vectors_older_than_the_log_are_found_and_rebuilt(cautious: ChromaDBManager, tmp_path: Path) -> None:
    """As a power cut leaves them in a database of stock Chroma whose log was kept."""
    directory(cautious).mkdir(parents=True)
    with chromadb.PersistentClient(directory(cautious)) as client:
        collection = client.create_collection("vectors", embedding_function=None)
        with sqlite3.connect(directory(cautious) / "chroma.sqlite3") as sql:
            sql.execute("update embeddings_queue_config set config_json_str = '{\"automatically_purge\":false}'")
        sql.close()
        collection.add(ids=IDS, embeddings=OLD)
        shutil.copytree(index(cautious), tmp_path / "before")
        collection.update(ids=IDS, embeddings=NEW)
    write_second_half_of_old_vectors(cautious, tmp_path / "before")
    with pytest.raises(InstanceCorruptError, match="1,000 vectors are older than those that the log has"):
        new_collection(cautious)
    verification = cautious.verify("doc", "azure")
    assert [one.stale_vectors for one in verification.collections] == [1000]
    assert cautious.verify("doc", "azure", repair=True).ok
    assert_has(new_collection(cautious), NEW)


def test_a_verification_says_what_it_cannot_know(manager: ChromaDBManager) -> None:
    new_collection(manager).add(ids=IDS, embeddings=OLD)
    manager.cleanup_all_instances()
    (sentence,) = manager.verify("doc", "azure").unknown
    assert re.fullmatch(r"collection 'vectors': whether 1,\d\d\d of its vectors are the ones written last", sentence)


def test_a_verification_compares_an_index_with_its_checkpoint(manager: ChromaDBManager) -> None:
    new_collection(manager).add(ids=IDS, embeddings=OLD)
    manager.cleanup_all_instances()
    file = index(manager) / "data_level0.bin"
    status = file.stat()
    # The beginning of the last vector, whose label is the last thing in the file.
    with file.open("r+b") as opened:
        opened.seek(-8 - 4 * DIMENSION, os.SEEK_END)
        opened.write(bytes(8))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    verification = manager.verify("doc", "azure")
    assert not verification.ok
    assert "is not the same as its copy" in verification.problems[0]


def test_an_index_that_was_written_again_after_a_checkpoint_is_not_believed_after_another_start(
    manager: ChromaDBManager,
) -> None:
    """Sizes and times may be those of the checkpoint, and pages not: a power cut keeps what it likes."""
    new_collection(manager).add(ids=IDS, embeddings=OLD)
    manager.cleanup_all_instances()
    new_collection(manager)
    kill_engines()
    marker = json.loads((home(manager) / "open").read_text())["content"]
    assert marker["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    file = index(manager) / "data_level0.bin"
    status = file.stat()
    with file.open("r+b") as opened:
        opened.write(bytes(status.st_size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    from chroma_manager.storage.sealed import write_sealed

    write_sealed(home(manager) / "open", {**marker, "boot": "another"})
    assert_has(new_collection(manager), OLD)
    assert eventually(lambda: manager.verify("doc", "azure").ok)
