"""The option `restore_from`: a database that is missing here is fetched from the bucket, once, and never half."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from buckets import Folder, Proxy, assert_interrupted_at_once, left_over
from chroma_manager import ChromaDBManager, InstanceNotFoundError, ManagerConfigurationError, SnapshotError
from chroma_manager.options import LOCAL_ENGINES
from conftest import all_at_once, directory, eventually, new_collection

KEY = ("doc", "azure")
LARGE = 12 << 20


@pytest.fixture(params=LOCAL_ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def store(base: Path, url: str, *, size: int = 10) -> None:
    """Puts a snapshot of a database with one record into the bucket."""
    with ChromaDBManager(base_path=base / "elsewhere") as manager:
        collection = manager.get_collection(*KEY, "rag_collection")
        collection.upsert(ids=["theirs"], embeddings=[[1.0, 2.0]], metadatas=[{"large": "x" * size}])
        manager.snapshot(*KEY, url)


def restoring(base: Path, url: str, engine: str = LOCAL_ENGINES[0], **options: object) -> ChromaDBManager:
    return ChromaDBManager(base_path=base / "db", engine=engine, restore_from=url, **options)


def ids(manager: ChromaDBManager, **arguments: object) -> list[str]:
    return sorted(manager.get_collection(*KEY, "rag_collection", **arguments).get(include=[])["ids"])


def test_threads_that_open_a_missing_database_at_once_fetch_it_once(tmp_path, s3, proxy: Proxy, engine: str) -> None:
    store(tmp_path, s3)
    proxy.reset()
    manager = restoring(tmp_path, s3, engine)
    assert all_at_once(8, lambda _: ids(manager)) == [["theirs"]] * 8
    assert len([request for request in proxy.requests if ".json" in request]) == 1
    assert left_over(tmp_path / "db") == []
    # It is an ordinary database from then on, and the bucket is not asked again.
    proxy.reset()
    manager.get_collection(*KEY, "rag_collection").add(ids=["ours"], embeddings=[[3.0, 4.0]])
    manager.cleanup_all_instances()
    assert ids(manager) == ["ours", "theirs"]
    assert proxy.requests == []


def test_processes_that_open_a_missing_database_at_once_fetch_it_once(script, tmp_path, s3, proxy: Proxy) -> None:
    store(tmp_path, s3, size=LARGE)
    proxy.reset()
    code = f"""
manager = ChromaDBManager(base_path=base, restore_from={s3!r})
import chromadb
print("ready"); input()
print(manager.get_collection("doc", "azure", "rag_collection").count())
"""
    scripts = [script(code) for _ in range(3)]
    for one in scripts:
        assert one.read_line() == "ready"
    proxy.bytes_per_second = 30_000_000
    for one in scripts:
        one.say()
    assert [one.finish() for one in scripts] == ["1"] * 3
    assert len([request for request in proxy.requests if ".json" in request]) == 1
    assert left_over(tmp_path / "db") == []


def test_the_others_wait_without_the_interpreter(tmp_path, s3, proxy: Proxy) -> None:
    store(tmp_path, s3, size=LARGE)
    manager = restoring(tmp_path, s3)
    other = manager.get_collection("other", "azure", "rag_collection")
    proxy.bytes_per_second = 10_000_000
    proxy.reset()
    beats: list[float] = []

    def work(i: int) -> object:
        if i:
            return ids(manager)
        while proxy.received < LARGE:
            beats.append(time.monotonic())
            other.count()
            time.sleep(0.001)
        return None

    assert all_at_once(4, work) == [None, *[["theirs"]] * 3]
    assert len(beats) > 20


@pytest.mark.parametrize("on_missing", ["create", "error"])
def test_on_missing_says_what_is_done_about_one_that_the_bucket_has_not(
    tmp_path, folder_url, engine, on_missing
) -> None:
    store(tmp_path, folder_url)
    manager = restoring(tmp_path, folder_url, engine, on_missing=on_missing)
    assert ids(manager) == ["theirs"]
    ask = ("other", "azure", "rag_collection")
    if on_missing == "create":
        assert manager.get_collection(*ask).count() == 0
        manager.delete_instance("other", "azure")
    with pytest.raises(InstanceNotFoundError, match="other/azure"):
        manager.get_collection(*ask, on_missing="error")
    assert not (tmp_path / "db" / "other").exists()
    assert manager.get_collection(*ask, on_missing="create").count() == 0
    # An argument does not bypass the bucket.
    for argument in ("create", "error"):
        manager.delete_instance(*KEY)
        assert ids(manager, on_missing=argument) == ["theirs"]


def test_a_callable_is_asked_for_one_that_the_bucket_has_not(tmp_path: Path, folder_url: str) -> None:
    store(tmp_path, folder_url)
    asked: list[str] = []

    def build(file_id: str, embedding_type: str, _: Path) -> None:
        asked.append(file_id)
        collection = manager.get_collection(file_id, embedding_type, "rag_collection", on_missing="create")
        collection.add(ids=["built"], embeddings=[[1.0, 2.0]])

    manager = restoring(tmp_path, folder_url, on_missing=build)
    assert ids(manager) == ["theirs"]
    assert manager.get_collection("other", "azure", "rag_collection").get()["ids"] == ["built"]
    assert asked == ["other"]


def test_a_database_that_was_deleted_here_is_restored_until_its_snapshots_are_removed(tmp_path, url) -> None:
    store(tmp_path, url)
    manager = restoring(tmp_path, url)
    assert ids(manager) == ["theirs"]
    manager.delete_instance(*KEY)
    assert ids(manager) == ["theirs"]
    shutil.rmtree(directory(manager).parent)
    assert ids(manager) == ["theirs"]
    manager.prune(url, *KEY, keep=0)
    manager.delete_instance(*KEY)
    assert ids(manager) == []


def test_a_bucket_out_of_reach_is_an_error_and_never_an_empty_database(tmp_path, s3, proxy: Proxy, engine: str) -> None:
    store(tmp_path, s3)
    manager = restoring(tmp_path, s3, engine)
    proxy.cut()
    began = time.monotonic()
    with pytest.raises(SnapshotError, match=re.escape(s3)) as caught:
        ids(manager)
    assert time.monotonic() - began < 30
    assert (caught.value.file_id, caught.value.embedding_type) == KEY
    assert not directory(manager).parent.exists()
    proxy.mend()
    # In the middle of it, too.
    proxy.cut_at, proxy.when_cut = proxy.sent + proxy.received + 60_000, proxy.cut
    with pytest.raises(SnapshotError, match=re.escape(s3)):
        ids(manager)
    assert not directory(manager).parent.exists()
    proxy.mend()
    assert ids(manager) == ["theirs"]


@pytest.mark.parametrize("place", ["a directory that is missing", "a bucket that is missing"])
def test_a_bucket_that_is_missing_is_an_error(tmp_path: Path, proxy: Proxy, place: str) -> None:
    url = (tmp_path / "missing").as_uri() if "directory" in place else "s3://missing"
    manager = restoring(tmp_path, url)
    with pytest.raises(SnapshotError, match=re.escape(url)):
        ids(manager)
    assert not directory(manager).parent.exists()


def test_a_damaged_snapshot_is_an_error_and_is_not_replaced_by_an_older_one(
    tmp_path, folder_url, objects: Folder
) -> None:
    store(tmp_path, folder_url)
    store(tmp_path, folder_url, size=20)
    newest = list(objects.objects("snapshots").values())[-1]
    file = objects.path / "doc/azure/files" / json.loads(newest.read_text())["files"]["chroma.sqlite3"]["object"]
    file.write_bytes(bytes(file.stat().st_size))
    manager = restoring(tmp_path, folder_url)
    with pytest.raises(SnapshotError, match=re.escape(file.name)):
        ids(manager)
    assert not directory(manager).parent.exists()


def test_an_app_that_is_killed_in_the_middle_leaves_nothing_that_counts(script, tmp_path: Path, s3: str) -> None:
    store(tmp_path, s3, size=LARGE)
    app = script(
        f"""
manager = ChromaDBManager(base_path=base, restore_from={s3!r})
manager.get_collection("doc", "azure", "rag_collection")
""",
        before="import os; os.environ['CHROMA_MANAGER_KILL_AT'] = 'part of a file fetched'",
    )
    assert app.process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "db/doc/azure").exists()
    assert left_over(tmp_path / "db") != []
    assert ids(restoring(tmp_path, s3)) == ["theirs"]
    assert left_over(tmp_path / "db") == []


def test_ctrl_c_ends_the_wait_for_a_database_at_once(script, tmp_path: Path, s3: str, proxy: Proxy) -> None:
    store(tmp_path, s3, size=LARGE)
    app = script(f"""
signal.signal(signal.SIGINT, signal.default_int_handler)
manager = ChromaDBManager(base_path=base, restore_from={s3!r})
import chromadb
print("ready"); input()
try:
    manager.get_collection("doc", "azure", "rag_collection")
except KeyboardInterrupt:
    print("interrupted")
print(manager.get_collection("doc", "azure", "rag_collection").count())
""")
    assert app.read_line() == "ready"
    proxy.reset()
    proxy.bytes_per_second = 1_000_000
    app.say()
    assert eventually(lambda: proxy.received > 1_000_000)
    assert_interrupted_at_once(app, proxy)
    assert app.finish() == "1"


def test_a_forked_worker_restores_what_its_parent_did_not(script, tmp_path: Path, s3: str) -> None:
    store(tmp_path, s3)
    script(f"""
manager = ChromaDBManager(base_path=base, restore_from={s3!r})
assert manager.get_collection("other", "azure", "rag_collection").count() == 0  # the bucket was asked
child = os.fork()
if child == 0:
    assert manager.get_collection("doc", "azure", "rag_collection").count() == 1
    os._exit(42)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
assert manager.get_collection("doc", "azure", "rag_collection").count() == 1
""").finish()


def test_a_restored_database_is_told_of_in_the_log(tmp_path, folder_url, caplog: pytest.LogCaptureFixture) -> None:
    store(tmp_path, folder_url)
    with caplog.at_level(logging.INFO, "chroma_manager"):
        assert ids(restoring(tmp_path, folder_url)) == ["theirs"]
    assert re.search(rf"doc/azure is restored from {re.escape(folder_url)}/doc/azure/snapshots/", caplog.text)


@pytest.mark.parametrize("value", ["bucket", "ftp://bucket", "s3://", "file:///", "", 7, Path("s3://bucket")])
def test_anything_but_a_url_of_a_bucket_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ManagerConfigurationError, match="restore_from"):
        ChromaDBManager(base_path=tmp_path, restore_from=value)
    with pytest.raises(ManagerConfigurationError, match="bucket_options"):
        ChromaDBManager(base_path=tmp_path, bucket_options={"timeout": value, 1: "2"})


def test_another_process_gets_the_same_bucket_with_a_pickled_manager(tmp_path: Path, folder_url: str) -> None:
    import pickle

    store(tmp_path, folder_url)
    manager = restoring(tmp_path, folder_url, bucket_options={"timeout": "1m"})
    copy = pickle.dumps(manager)
    manager.shutdown()
    other = pickle.loads(copy)
    assert other is not manager
    assert ids(other) == ["theirs"]
    new_collection(other, "new")
