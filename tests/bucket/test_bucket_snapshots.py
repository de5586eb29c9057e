"""A snapshot in a bucket, and back: complete, sent once, and nothing left behind, whatever fails in between."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from buckets import Folder, Proxy, Server, assert_interrupted_at_once, left_over, new_bucket, reach
from chroma_manager import ChromaDBManager, ChromaManagerError, InstanceNotFoundError, SnapshotError
from chroma_manager.options import LOCAL_ENGINES
from conftest import IDS, VECTORS, eventually, new_collection

KEY = ("doc", "azure")

# A metadata value of this size makes a file of the database that is sent in several parts.
LARGE = "x" * (12 << 20)


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    """Of the default engine: a bucket is not the engine's business."""
    return ChromaDBManager(base_path=tmp_path / "db", idle_timeout=None)


def filled(manager: ChromaDBManager, file_id: str = "doc"):
    """A collection with an index that has files."""
    collection = manager.get_collection(file_id, "azure", "rag_collection")
    collection.upsert(ids=IDS, embeddings=VECTORS, documents=[f"text {i}" for i in IDS])
    return collection


def large(manager: ChromaDBManager):
    collection = new_collection(manager)
    collection.add(ids=["large"], embeddings=[[1.0, 2.0]], metadatas=[{"large": LARGE}])
    return collection


def assert_is_filled(collection) -> None:
    found = collection.get(include=["documents", "embeddings"])
    assert sorted(found["ids"], key=int) == IDS
    order = [int(one) for one in found["ids"]]
    assert (found["embeddings"] == VECTORS[order]).all()
    assert collection.query(query_embeddings=VECTORS[:1], n_results=1)["ids"] == [["0"]]


@pytest.mark.parametrize("engine", LOCAL_ENGINES)
def test_what_was_in_a_snapshot_is_back_after_a_restore(engine: str, folder_url: str, s3: str, tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine=engine)
    url = s3 if engine == LOCAL_ENGINES[0] else folder_url
    collection = filled(manager)
    taken = manager.snapshot(*KEY, url)
    assert taken.path.startswith(f"{url}/doc/azure/snapshots/")
    assert (taken.records, taken.sent, taken.reused) == (len(IDS), taken.size, 0)
    collection.delete(ids=IDS[:1000])
    manager.restore(*KEY, url)
    assert_is_filled(collection)
    manager.delete_instance(*KEY)
    manager.restore(*KEY, url)
    assert_is_filled(manager.get_collection(*KEY, "rag_collection"))
    assert left_over(tmp_path / "db") == []


def test_the_newest_snapshot_is_restored_unless_one_is_named(manager: ChromaDBManager, url: str) -> None:
    collection = new_collection(manager)
    first = manager.snapshot(*KEY, url)
    collection.add(ids=["2"], embeddings=[[3.0, 4.0]])
    second = manager.snapshot(*KEY, f"{url}/")
    collection.add(ids=["3"], embeddings=[[3.0, 4.0]])
    manager.restore(*KEY, url)
    assert collection.count() == 2
    manager.restore(*KEY, first.path)
    assert collection.count() == 1
    # A snapshot that is named may be of another database.
    manager.restore("copy", "azure", second.path)
    assert manager.get_collection("copy", "azure", "rag_collection").count() == 2


def test_a_snapshot_is_newer_than_one_of_a_clock_that_is_fast(manager, folder_url: str, objects: Folder) -> None:
    collection = new_collection(manager)
    manager.snapshot(*KEY, folder_url)
    ((_, path),) = objects.objects("snapshots").items()
    fast, last = (path.with_name(f"99991231T235959.{digits}Z-00000000.json") for digits in ("999997", "999999"))
    path.rename(fast)
    collection.add(ids=["2"], embeddings=[[3.0, 4.0]])
    manager.snapshot(*KEY, folder_url)
    collection.delete(ids=["2"])
    manager.restore(*KEY, folder_url)
    assert collection.count() == 2
    # After the last name that there is, it is refused, because it would not be the newest.
    fast.rename(last)
    with pytest.raises(SnapshotError, match=rf"{re.escape(folder_url)}/.*/{last.name} .* remove it"):
        manager.snapshot(*KEY, folder_url)
    last.unlink()
    manager.snapshot(*KEY, folder_url)


def test_names_with_any_characters_are_keys(manager: ChromaDBManager, url: str) -> None:
    names = ("a %20b#1?&=+:~{ü}漢", "~$.'(*)")
    manager.get_collection(*names, "rag_collection").add(ids=["1"], embeddings=[[1.0, 2.0]])
    manager.get_collection("a %20b#1", "b", "rag_collection")
    taken = manager.snapshot(*names, url)
    assert "/a%20%2520b%231%3F%26%3D%2B%3A~%7Bü%7D漢/~%24.%27%28%2A%29/snapshots/" in taken.path
    manager.delete_instance(*names)
    manager.restore(*names, url)
    assert manager.get_collection(*names, "rag_collection").count() == 1
    with pytest.raises(SnapshotError, match="has no snapshot of a %20b#1/b"):
        manager.restore("a %20b#1", "b", url)


def test_a_file_that_the_bucket_has_is_not_sent_again(manager: ChromaDBManager, s3: str, proxy: Proxy) -> None:
    collection = filled(manager)
    first = manager.snapshot(*KEY, s3)
    proxy.reset()
    collection.update(ids=["1"], metadatas=[{"now": "other"}])
    second = manager.snapshot(*KEY, s3)
    # What has changed is SQLite's file, and not those of the vectors, which Chroma writes every 1,000 records.
    vectors = 1000 * 64 * 4
    assert second.reused is not None
    assert second.reused > vectors
    assert second.sent == second.size - second.reused < first.size - vectors
    assert second.sent <= proxy.sent < second.sent + 50_000
    puts = [request for request in proxy.requests if request.startswith("PUT")]
    assert [re.search(r"/(files|snapshots)/", request)[1] for request in puts] == ["files", "snapshots"]  # type: ignore[index]
    manager.restore(*KEY, s3)
    assert collection.get(ids=["1"])["metadatas"] == [{"now": "other"}]


def test_a_large_file_is_sent_in_parts(manager: ChromaDBManager, s3: str, proxy: Proxy) -> None:
    collection = large(manager)
    taken = manager.snapshot(*KEY, s3)
    assert taken.size > len(LARGE)
    assert len([request for request in proxy.requests if "partNumber=" in request]) >= 2
    collection.delete(ids=["large"])
    manager.restore(*KEY, s3)
    assert collection.get(ids=["large"])["metadatas"] == [{"large": LARGE}]


def test_an_interrupted_snapshot_is_none_and_the_next_one_sends_what_is_missing(manager, s3, proxy, tmp_path) -> None:
    filled(manager)
    manager.get_collection(*KEY, "other").upsert(ids=IDS, embeddings=VECTORS[::-1])
    # The files are sent from the smallest to the largest name; the connection breaks in one of the last.
    proxy.cut_at, proxy.when_cut = 1_500_000, proxy.cut
    began = time.monotonic()
    with pytest.raises(SnapshotError, match=re.escape(s3)) as caught:
        manager.snapshot(*KEY, s3)
    assert time.monotonic() - began < 30
    assert (caught.value.file_id, caught.value.embedding_type) == KEY
    assert left_over(tmp_path / "db") == []
    proxy.mend()
    with pytest.raises(SnapshotError, match="has no snapshot of doc/azure"):
        manager.restore(*KEY, s3)
    taken = manager.snapshot(*KEY, s3)
    assert taken.reused is not None
    assert taken.reused > 0
    manager.delete_instance(*KEY)
    manager.restore(*KEY, s3)
    assert_is_filled(manager.get_collection(*KEY, "rag_collection"))


def test_a_server_that_is_killed_in_the_middle_is_an_error_in_time(tmp_path, own_s3: Server, monkeypatch) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db")
    collection = large(manager)
    name = new_bucket(own_s3)
    proxy = Proxy(own_s3.port)
    reach(monkeypatch, proxy.port)
    s3 = f"s3://{name}"
    manager.snapshot(*KEY, s3)
    collection.add(ids=["2"], embeddings=[[3.0, 4.0]])
    # First while it is fetched.
    proxy.reset()
    proxy.cut_at, proxy.when_cut = 6 << 20, own_s3.kill
    began = time.monotonic()
    with pytest.raises(SnapshotError, match=re.escape(s3)):
        manager.restore(*KEY, s3)
    assert collection.count() == 3
    # Then while it is sent, to another one.
    other = Server()
    try:
        other.ask("PUT", f"/{name}")
        proxy.upstream = other.port
        proxy.reset()
        proxy.cut_at, proxy.when_cut = 6 << 20, other.kill
        with pytest.raises(SnapshotError, match=re.escape(s3)):
            manager.snapshot(*KEY, s3)
    finally:
        other.kill()
    assert time.monotonic() - began < 60
    assert collection.count() == 3
    assert left_over(tmp_path / "db") == []


@pytest.mark.long
def test_two_processes_take_snapshots_of_one_database_at_once(script, tmp_path: Path, s3: str) -> None:
    code = f"""
manager = ChromaDBManager(base_path=base)
collection = manager.get_collection("doc", "azure", "rag_collection")
collection.upsert(ids=[str(i) for i in range(500)], embeddings=[[float(i), 1.0] for i in range(500)])
print("ready"); input()
for _ in range(2):
    print(manager.snapshot("doc", "azure", {s3!r}).path)
"""
    scripts = [script(code), script(code)]
    for one in scripts:
        assert one.read_line() == "ready"
    for one in scripts:
        one.say()
    taken = [line for one in scripts for line in one.finish().splitlines()]
    assert len(set(taken)) == 4
    manager = ChromaDBManager(base_path=tmp_path / "other")
    for path in taken:
        manager.restore(*KEY, path)
        assert manager.get_collection(*KEY, "rag_collection").count() == 500


def test_what_a_killed_app_has_left_is_removed_by_the_next_snapshot(script, tmp_path, s3: str, proxy: Proxy) -> None:
    proxy.bytes_per_second = 1_000_000
    app = script(f"""
manager = ChromaDBManager(base_path=base)
manager.get_collection("doc", "azure", "rag_collection").add(
    ids=["1"], embeddings=[[1.0, 2.0]], metadatas=[{{"large": "x" * (12 << 20)}}])
print("ready"); input()
manager.snapshot("doc", "azure", {s3!r})
""")
    assert app.read_line() == "ready"
    app.say()
    assert eventually(lambda: proxy.sent > 1_000_000)
    app.process.kill()
    app.process.wait()
    assert len(left_over(tmp_path / "db")) == 1
    proxy.bytes_per_second = None
    manager = ChromaDBManager(base_path=tmp_path / "db", lock_timeout=20)
    manager.snapshot(*KEY, s3)
    assert left_over(tmp_path / "db") == []
    manager.restore(*KEY, s3)


def test_ctrl_c_ends_a_snapshot_at_once(script, tmp_path: Path, s3: str, proxy: Proxy) -> None:
    app = script(f"""
signal.signal(signal.SIGINT, signal.default_int_handler)
manager = ChromaDBManager(base_path=base)
manager.get_collection("doc", "azure", "rag_collection").add(
    ids=["1"], embeddings=[[1.0, 2.0]], metadatas=[{{"large": "x" * (12 << 20)}}])
print("ready"); input()
try:
    manager.snapshot("doc", "azure", {s3!r})
except KeyboardInterrupt:
    print("interrupted")
""")
    assert app.read_line() == "ready"
    proxy.bytes_per_second = 500_000
    app.say()
    assert eventually(lambda: proxy.sent > 500_000)
    assert_interrupted_at_once(app, proxy)
    app.finish()
    assert left_over(tmp_path / "db") == []


def test_a_forked_child_reaches_the_bucket_as_its_parent_does(script, s3: str) -> None:
    """obstore's threads do not come along."""
    script(f"""
url, key = {s3!r}, ("doc", "azure")
manager = ChromaDBManager(base_path=base)
manager.get_collection(*key, "rag_collection").add(ids=["1"], embeddings=[[1.0, 2.0]])
manager.snapshot(*key, url)
child = os.fork()
if child == 0:
    manager.restore(*key, url)
    manager.snapshot(*key, url)
    os._exit(42)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
manager.restore(*key, url)
""").finish()


def test_a_bucket_that_cannot_be_used_is_named_with_the_reason(manager, own_s3: Server, monkeypatch) -> None:
    new_collection(manager)
    reach(monkeypatch, own_s3.port)
    name = new_bucket(own_s3)
    for use in (manager.snapshot, manager.restore):
        for unnamed in ("s3://", "file:///"):
            with pytest.raises(SnapshotError, match=f"{unnamed}: it must be a URL.* and names a bucket"):
                use(*KEY, unnamed)
        with pytest.raises(SnapshotError, match=r"s3://missing.*does not exist"):
            use(*KEY, "s3://missing/place")
    own_s3.ask("POST", "/moto-api/reset-auth", b"0")
    for use in (manager.snapshot, manager.restore):
        with pytest.raises(SnapshotError, match=rf"s3://{name}.*AccessKeyId.*does not exist"):
            use(*KEY, f"s3://{name}")
    own_s3.kill()
    for use in (manager.snapshot, manager.restore):
        began = time.monotonic()
        with pytest.raises(SnapshotError, match=rf"s3://{name}.*error sending request"):
            use(*KEY, f"s3://{name}")
        assert time.monotonic() - began < 30
    with pytest.raises(SnapshotError, match=r"ftp://place: .*gs, s3, az, file"):
        manager.snapshot(*KEY, "ftp://place")
    assert new_collection(manager).count() == 1


def test_options_for_the_bucket_override_the_environment_and_are_not_printed(tmp_path, s3, proxy, monkeypatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    options = {
        "endpoint": f"http://127.0.0.1:{proxy.port}",
        "allow_http": "true",
        "secret_access_key": "my secret",
        "timeout": "1m",
    }
    manager = ChromaDBManager(base_path=tmp_path / "db", bucket_options=options)
    new_collection(manager)
    manager.snapshot(*KEY, s3)
    manager.restore(*KEY, s3)
    with pytest.raises(ChromaManagerError, match="bucket_options") as caught:
        ChromaDBManager(bucket_options={**options, "region": "elsewhere"})
    assert "my secret" not in str(caught.value)


def test_without_the_extra_a_url_says_how_to_install_it(script, tmp_path: Path) -> None:
    out = script(
        """
manager = ChromaDBManager(base_path=base)
manager.get_collection("doc", "azure", "rag_collection")
for call in (lambda: manager.snapshot("doc", "azure", "s3://bucket"), lambda: manager.restore("doc", "azure", "gs://b")):
    try:
        call()
    except SnapshotError as error:
        print(error)
manager.shutdown()
try:
    ChromaDBManager(base_path=base, restore_from="s3://bucket")
except ManagerConfigurationError as error:
    print(error)
""",
        before="import sys; sys.modules['obstore'] = None",
    ).finish()
    assert out.count("pip install 'chroma-manager[bucket]'") == 3


def test_a_missing_database_and_a_bad_rule_leave_nothing_behind(manager, url: str, tmp_path: Path) -> None:
    with pytest.raises(InstanceNotFoundError):
        manager.snapshot(*KEY, url)
    new_collection(manager)
    with pytest.raises(ValueError, match="keep=0"):
        manager.snapshot(*KEY, url, keep=0)
    with pytest.raises(ValueError, match="bucket"):
        manager.snapshot(*KEY, tmp_path / "directory", keep=1)
    assert left_over(tmp_path / "db") == []
    with pytest.raises(SnapshotError):
        manager.restore(*KEY, url)


HOSTILE: dict[str, Callable[[dict], object]] = {
    "no JSON": lambda _: "{",
    "of a later version": lambda manifest: {**manifest, "format": 2},
    "a list": lambda manifest: [manifest],
    "nested": lambda _: "[" * 100_000,
    "a file outside": lambda manifest: {**manifest, "files": {**manifest["files"], "../../evil": {"size": 1}}},
    "no files": lambda manifest: {**manifest, "files": {}},
    "an object outside": lambda manifest: changed(manifest, object="../../../secret"),
    "another object": lambda manifest: changed(manifest, object=f"{'0' * 64}-00000000"),
    "no object": lambda manifest: changed(manifest, object=None),
    "a negative size": lambda manifest: changed(manifest, size=-1),
    "another size": lambda manifest: changed(manifest, size=10**12),
    "another checksum": lambda manifest: changed(manifest, sha256="0" * 64, object=f"{'0' * 64}-00000000"),
    "no records": lambda manifest: {**manifest, "records": "many"},
}


def changed(manifest: dict, **fields: object) -> dict:
    file = {**manifest["files"]["chroma.sqlite3"], **fields}
    return {**manifest, "files": {**manifest["files"], "chroma.sqlite3": file}}


def test_a_hostile_manifest_changes_nothing(
    manager: ChromaDBManager, folder_url: str, objects: Folder, tmp_path
) -> None:
    collection = new_collection(manager)
    manager.snapshot(*KEY, folder_url)
    collection.add(ids=["2"], embeddings=[[3.0, 4.0]])
    ((name, path),) = objects.objects("snapshots").items()
    sound = json.loads(path.read_text())
    (tmp_path / "secret").write_text("secret")
    for what, hostile in HOSTILE.items():
        content = hostile(sound)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SnapshotError, match=re.escape(folder_url)):
            manager.restore(*KEY, folder_url)
        assert sorted(tmp_path.rglob("*")) == before, what
        assert collection.count() == 2, what
    path.write_text(json.dumps(sound))
    with pytest.raises(SnapshotError, match=re.escape(f"{folder_url}/doc/azure/snapshots/none.json")):
        manager.restore(*KEY, f"{folder_url}/doc/azure/snapshots/none.json")
    manager.restore(*KEY, f"{folder_url}/doc/azure/snapshots/{name}")
    assert collection.count() == 1


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing"])
def test_a_damaged_object_is_named_and_changes_nothing(manager, folder_url, objects: Folder, damage: str) -> None:
    collection = new_collection(manager)
    manager.snapshot(*KEY, folder_url)
    collection.add(ids=["2"], embeddings=[[3.0, 4.0]])
    name, path = max(objects.objects("files").items(), key=lambda item: item[1].stat().st_size)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"" if damage == "shorter" else bytes([content[-1] ^ 1])))
    with pytest.raises(SnapshotError, match=re.escape(f"{folder_url}/doc/azure/files/{name}")):
        manager.restore(*KEY, folder_url)
    assert collection.count() == 2
    if damage != "changed":
        # The next snapshot does not rely on it.
        manager.snapshot(*KEY, folder_url)
        manager.restore(*KEY, folder_url)


def test_the_snapshot_of_a_newer_chroma_is_refused(manager, folder_url: str, objects: Folder) -> None:
    collection = new_collection(manager)
    manager.snapshot(*KEY, folder_url)
    ((_, path),) = objects.objects("snapshots").items()
    manifest = json.loads(path.read_text())
    file = objects.path / "doc/azure/files" / manifest["files"]["chroma.sqlite3"]["object"]
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("update migrations set version = version + 100 where dir = 'metadb'")
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(file.with_name(f"{checksum}-00000000"))
    newer = changed(
        manifest,
        sha256=checksum,
        object=f"{checksum}-00000000",
        size=file.with_name(f"{checksum}-00000000").stat().st_size,
    )
    path.write_text(json.dumps(newer))
    with pytest.raises(SnapshotError, match="install the Chroma that made it"):
        manager.restore(*KEY, folder_url)
    assert collection.count() == 1


def test_the_requests_for_google_and_azure_reach_their_servers(manager, monkeypatch) -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404, "no such thing here")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{listening.server_port}"
        new_collection(manager)
        options = {**vars(manager._options)}
        for url, its in {
            "gs://mybucket/some/place": {"base_url": endpoint, "skip_signature": "true"},
            "az://mycontainer/some/place": {
                "account_name": "account",
                "endpoint": endpoint,
                "skip_signature": "true",
            },
        }.items():
            manager.shutdown()
            manager = ChromaDBManager(**{**options, "bucket_options": {**its, "allow_http": "true"}})
            with pytest.raises(SnapshotError, match=url):
                manager.restore(*KEY, url)
        listening.shutdown()
    assert len(asked) == 2
    for path, name in zip(asked, ("mybucket", "mycontainer"), strict=True):
        assert name in path
        assert "prefix=some%2Fplace%2Fdoc%2Fazure%2Fsnapshots%2F" in path
