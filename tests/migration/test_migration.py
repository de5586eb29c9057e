"""`chroma-manager migrate`: instances arrive complete, a killed run is continued, and nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chroma_manager import ChromaDBManager, MigrationError
from chroma_manager.cli.arguments import main
from chroma_manager.client import ManagedClient
from chroma_manager.engine.server.names import Key, name_of
from chroma_manager.migration import trees
from chroma_manager.server_options import LAYOUTS
from chroma_server import ChromaServer, behind_nginx
from chromadb.api.types import IntInvertedIndexConfig, Schema
from conftest import eventually, long, new_collection
from terminal import run_at_a_terminal

EVERYTHING = ["embeddings", "documents", "metadatas", "uris"]
KEYS = [("Report 2024.pdf", "azure"), ("doc", "azure"), ("doc", "text_3")]


def fill(manager: ChromaDBManager) -> None:
    """Three instances: collections of each kind of records, metadata and configuration."""
    vectors = np.random.default_rng(1).random((1200, 8), dtype=np.float32)
    manager.get_collection(*KEYS[0], "rag_collection", metadata={"pages": 3, "score": 1.0, "ok": True}).add(
        ids=[f"é{i}" for i in range(1200)],
        embeddings=vectors,
        documents=[f"text {i}" for i in range(1200)],
        metadatas=[{"page": i, "ok": i % 2 == 0, "score": i / 3} if i % 5 else None for i in range(1200)],
    )
    cosine = manager.get_collection(*KEYS[1], "cosine", configuration={"hnsw": {"space": "cosine"}})
    cosine.add(ids=["a", "b"], embeddings=[[3.0, 4.0], [-1.0, 0.5]], uris=["file:///a", "file:///b"])
    manager.get_collection(*KEYS[1], "empty")
    schema = Schema().delete_index(key="page", config=IntInvertedIndexConfig())
    indexed = manager.get_client(*KEYS[1]).create_collection("indexed", schema=schema)
    indexed.add(ids=["x"], embeddings=[[1.0, 2.0]], metadatas=[{"page": 1, "line": 2}])
    manager.get_client(*KEYS[2])


def content(manager: ChromaDBManager) -> dict[str, Any]:
    """All that is in the three instances."""
    found: dict[str, Any] = {}
    for key in KEYS:
        for collection in manager.get_client(*key, on_missing="error").list_collections():
            got = collection.get(include=EVERYTHING)
            rows = zip(got["ids"], got["embeddings"], got["documents"], got["metadatas"], got["uris"], strict=True)
            # A server's answers have decimals, and what was divided by its length is rounded on each side.
            records = {
                name: (np.float32(vector).astype(float).round(4).tolist(), *rest) for name, vector, *rest in rows
            }
            function = collection.configuration_json["embedding_function"]
            pages = collection.schema.serialize_to_json()["keys"].get("page")
            found[f"{key}/{collection.name}"] = (collection.metadata, function, pages, records)
        found[f"{key}"] = True
    return found


def server_arguments(options: dict[str, Any]) -> list[str]:
    names = ("tenant", "layout", "database")
    return [text for name in names if options.get(name) for text in (f"--{name}", options[name])]


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A base path with the three instances, and what is in them."""
    with ChromaDBManager(base_path=tmp_path / "here") as manager:
        fill(manager)
        return tmp_path / "here", content(manager)


There = tuple[Callable[[], ChromaDBManager], list[str]]


def a_tenant(server: ChromaServer, layout: str) -> There:
    """What makes a manager of a new tenant on a server, and the arguments that name it."""
    with server.manager(layout=layout) as manager:
        options = vars(manager._options)
    return lambda: ChromaDBManager(**options), [server.url, *server_arguments(options)]


@pytest.fixture
def there(chroma_server: ChromaServer) -> There:
    return a_tenant(chroma_server, LAYOUTS[0])


def results(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("layout", [LAYOUTS[0], *long(*LAYOUTS[1:])])
def test_instances_go_to_a_server_and_back(filled, chroma_server, layout: str, tmp_path: Path, capsys) -> None:
    path, expected = filled
    manager_there, arguments = a_tenant(chroma_server, layout)
    assert main(["migrate", str(path), "--to", *arguments]) == 0
    assert "Report 2024.pdf/azure: 1 collection, 1,200 records, 1,200 of them written" in capsys.readouterr().out
    with manager_there() as manager:
        assert content(manager) == expected
    assert main(["migrate", str(tmp_path / "back"), "--from", *arguments]) == 0
    with ChromaDBManager(base_path=tmp_path / "back") as manager:
        assert content(manager) == expected
        found = manager.get_collection(*KEYS[1], "cosine").query(query_embeddings=[[6.0, 8.0]], n_results=1)
        assert found["ids"] == [["a"]]
        assert found["distances"][0][0] == pytest.approx(0, abs=1e-5)
    with ChromaDBManager(base_path=path) as manager:
        assert content(manager) == expected, "the source was changed"


def test_a_second_run_writes_nothing_and_one_after_a_change_what_is_new(filled, there, capsys) -> None:
    path, _ = filled
    command = ["migrate", str(path), "--to", *there[1], "--json"]
    assert main(command) == 0
    assert [result["written"] for result in results(capsys)] == [1200, 3, 0]
    assert main(command) == 0
    assert [(result["records"], result["written"]) for result in results(capsys)] == [(1200, 0), (3, 0), (0, 0)]
    with ChromaDBManager(base_path=path) as manager:
        collection = manager.get_collection(*KEYS[0], "rag_collection")
        collection.update(ids=["é7"], metadatas=[{"page": -7}])
        collection.update(ids=["é8"], embeddings=[[1.0] * 8])
        collection.add(ids=["new"], embeddings=[[1.0] * 8], documents=["new"])
        expected = content(manager)
    assert main(command) == 0
    assert [result["written"] for result in results(capsys)] == [3, 0, 0]
    with there[0]() as manager:
        assert content(manager) == expected


def test_what_a_record_has_lost_its_copies_lose(tmp_path: Path, there, capsys) -> None:
    names = ["metadata", "all metadata", "document", "uri", "all"]
    whole = {"embeddings": [[1.0, 2.0]], "documents": ["text"], "metadatas": [{"old": 2, "k": 1}], "uris": ["u"]}
    left: dict[str, dict[str, Any]] = {
        "document": {**whole, "documents": None},
        "uri": {**whole, "uris": None},
        "all": {"embeddings": [[1.0, 2.0]]},
    }
    commands = [
        ["migrate", str(tmp_path / "db"), "--to", *there[1], "--json"],
        ["migrate", str(tmp_path / "back"), "--from", *there[1], "--json"],
    ]
    with ChromaDBManager(base_path=tmp_path / "db") as manager:
        collection = manager.get_collection("doc", "azure", "rag_collection")
        collection.add(ids=names, **{name: value * len(names) for name, value in whole.items()})
    assert [main(command) for command in commands] == [0, 0]
    with ChromaDBManager(base_path=tmp_path / "db") as manager:
        collection = manager.get_collection("doc", "azure", "rag_collection")
        collection.update(ids=names[:2], metadatas=[{"old": None}, {"old": None, "k": None}])
        collection.delete(ids=list(left))
        for name, record in left.items():
            collection.add(ids=[name], **record)
    capsys.readouterr()
    assert [main(command) for command in (*commands, *commands)] == [0, 0, 0, 0]
    assert [result["written"] for result in results(capsys)] == [5, 5, 0, 0]
    with ChromaDBManager(base_path=tmp_path / "back") as manager:
        got = manager.get_collection("doc", "azure", "rag_collection").get(include=EVERYTHING)
    rows = zip(got["ids"], got["documents"], got["metadatas"], got["uris"], strict=True)
    both = {"old": 2, "k": 1}
    assert {name: (document, metadata or None, uri) for name, document, metadata, uri in rows} == {
        "metadata": ("text", {"k": 1}, "u"),
        "all metadata": ("text", None, "u"),
        "document": (None, both, "u"),
        "uri": ("text", both, None),
        "all": (None, None, None),
    }


def test_values_of_metadata_that_are_equal_but_of_another_type_are_copied(tmp_path: Path, there, capsys) -> None:
    before = [1, 1.0, True, [1, 0], [1.0, 0.0]]
    after = [True, 1, 1.0, [True, False], [1, 0]]
    command = ["migrate", str(tmp_path / "db"), "--to", *there[1], "--json"]
    for values in (before, after):
        with ChromaDBManager(base_path=tmp_path / "db") as manager:
            collection = manager.get_collection("doc", "azure", "rag_collection")
            metadatas = [{"k": value} for value in values]
            collection.upsert(ids=list("abcde"), embeddings=[[1.0, 2.0]] * 5, metadatas=metadatas)
        assert [main(command), main(command)] == [0, 0]
        assert [result["written"] for result in results(capsys)] == [5, 0]
    with there[0]() as manager:
        got = manager.get_collection("doc", "azure", "rag_collection").get()
    assert repr([metadata["k"] for metadata in got["metadatas"]]) == repr(after)


CHANGES = {
    "l2": ([[1, 2], [1e-7, 0], [0.0, 1]], [[np.nextafter(np.float32(1), 2), 2], [0, 1e-7], [-0.0, 1]]),
    "cosine": ([[1, 2], [1e-7, 0], [1e-9, 2e-9]], [[1.00001, 2], [0, 1e-7], [1.00001e-9, 2e-9]]),
}


@pytest.mark.parametrize("space", CHANGES)
def test_the_least_change_of_a_vector_is_copied(space: str, tmp_path: Path, there, capsys) -> None:
    command = ["migrate", str(tmp_path / "db"), "--to", *there[1], "--json"]
    for vectors in CHANGES[space]:
        with ChromaDBManager(base_path=tmp_path / "db") as manager:
            configuration = {"hnsw": {"space": space}}
            collection = manager.get_collection("doc", "azure", "rag_collection", configuration=configuration)
            collection.upsert(ids=list("abc"), embeddings=np.float32(vectors))
        assert [main(command), main(command)] == [0, 0]
        assert [result["written"] for result in results(capsys)] == [3, 0]
    with there[0]() as manager:
        got = manager.get_collection("doc", "azure", "rag_collection").get(include=["embeddings"])
    rounding = 1e-6 if space == "cosine" else 0
    np.testing.assert_allclose(np.float32(got["embeddings"]), np.float32(CHANGES[space][1]), rtol=rounding, atol=0)


def test_with_cosine_vectors_of_any_length_are_equal_to_their_copies(tmp_path: Path, there, capsys) -> None:
    random = np.random.default_rng(1)
    vectors = random.normal(size=(300, 96)) * 10.0 ** random.uniform(-25, 17, size=(300, 1))
    vectors[:10] = 0
    with ChromaDBManager(base_path=tmp_path / "db") as manager:
        configuration = {"hnsw": {"space": "cosine"}}
        collection = manager.get_collection("doc", "azure", "rag_collection", configuration=configuration)
        collection.add(ids=[str(i) for i in range(300)], embeddings=np.float32(vectors))
    there_and_back = [[str(tmp_path / "db"), "--to", *there[1]], [str(tmp_path / "back"), "--from", *there[1]]]
    assert [main(["migrate", *arguments, "--json"]) for arguments in (*there_and_back, *there_and_back)] == [0] * 4
    assert [result["written"] for result in results(capsys)] == [300, 300, 0, 0]


@pytest.mark.long
def test_a_run_that_was_killed_is_continued_and_tells_how_far_it_is(tmp_path: Path, there, capsys) -> None:
    vectors = np.random.default_rng(1).random((5000, 4), dtype=np.float32)
    with ChromaDBManager(base_path=tmp_path / "db") as manager:
        collection = manager.get_collection("doc0", "azure", "rag_collection")
        collection.add(ids=[str(i) for i in range(5000)], embeddings=vectors)
        new_collection(manager, "doc1")
    command = ["migrate", str(tmp_path / "db"), "--to", *there[1], "--json"]
    run = subprocess.Popen([sys.executable, "-m", "chroma_manager.cli", *command], stdout=subprocess.DEVNULL)
    with there[0]() as manager:
        copy = manager.get_collection("doc0", "azure", "rag_collection", metadata=None)
        assert eventually(lambda: copy.count() >= 1000, 60)
        run.kill()
        run.wait()
        arrived = copy.count()
    assert 1000 <= arrived < 5000, "it was killed too late"
    assert main(command) == 0
    assert [(one["records"], one["written"]) for one in results(capsys)] == [(5000, 5000 - arrived), (1, 1)]
    with there[0]() as manager:
        got = manager.get_collection("doc0", "azure", "rag_collection").get(include=["embeddings"])
        assert len(got["ids"]) == 5000
        assert np.array_equal(np.float32(got["embeddings"]), [vectors[int(name)] for name in got["ids"]])
    _, _, said = run_at_a_terminal([sys.executable, "-m", "chroma_manager.cli", *command])
    assert "copying doc0/azure" in said
    assert "of 5,000 records compared" in said


def test_what_the_destination_has_of_its_own_is_told_and_left_alone_and_the_others_are_copied(
    filled, there, capsys
) -> None:
    path, expected = filled
    with there[0]() as manager:
        fill(manager)
        manager.get_collection(*KEYS[0], "rag_collection").add(ids=["theirs"], embeddings=[[1.0] * 8])
        manager.get_collection(*KEYS[1], "theirs")
        before = content(manager)
    assert main(["migrate", str(path), "--to", *there[1]]) == 1
    said = capsys.readouterr()
    assert "has 1,200 records, and its copy 1,201" in said.err
    assert "doc/azure has collections of its own where it is to be copied to: theirs" in said.err
    assert said.out.startswith("doc/text_3: 0 collections")
    with there[0]() as manager:
        assert content(manager) == before


def test_a_key_that_no_directory_can_have_is_told_and_the_others_are_copied(
    tmp_path: Path, chroma_server: ChromaServer, there, capsys
) -> None:
    with there[0]() as manager:
        manager.get_client("good", "azure")
        tenant = manager._options.tenant
    admin = chromadb.AdminClient(chroma_server.client(tenant, name_of(Key("good", "azure"))).get_settings())
    for key in (Key("..", "evil"), Key("a/b", "azure")):
        admin.create_database(name_of(key), tenant)
    assert main(["migrate", str(tmp_path / "inner" / "db"), "--from", *there[1]]) == 1
    said = capsys.readouterr()
    assert 'file_id ".." cannot name a directory' in said.err
    assert 'file_id "a/b" cannot name a directory' in said.err
    assert said.out == "good/azure: 0 collections, 0 records, all were there already\n"
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


@pytest.mark.long
def test_records_that_are_too_large_together_for_a_server_are_written_apart(tmp_path: Path, there, capsys) -> None:
    with ChromaDBManager(base_path=tmp_path / "db") as manager:
        collection = manager.get_collection("doc", "azure", "rag_collection")
        collection.add(ids=[str(i) for i in range(90)], embeddings=[[1.0, 2.0]] * 90, uris=["u" * 480_000] * 90)
    assert main(["migrate", str(tmp_path / "db"), "--to", *there[1], "--json"]) == 0
    assert [(result["records"], result["written"]) for result in results(capsys)] == [(90, 90)]


def test_requests_that_are_too_large_for_a_proxy_are_halved_and_a_record_that_is_is_named(
    tmp_path: Path, chroma_server: ChromaServer, there, monkeypatch, capsys
) -> None:
    lengths = [1_000] * 500 + [500_000, 300_000, 700_000]
    with ChromaDBManager(base_path=tmp_path / "db") as manager:
        large = manager.get_collection("large", "azure", "rag_collection")
        large.add(ids=["small", "large"], embeddings=[[1.0, 2.0]] * 2, documents=["d", "d" * 1_100_000])
        collection = manager.get_collection("many", "azure", "rag_collection")
        ids, documents = [str(i) for i in range(len(lengths))], ["d" * length for length in lengths]
        collection.add(ids=ids, embeddings=[[1.0, 2.0]] * len(ids), documents=documents)
    monkeypatch.setenv("AUTHORIZATION", "Bearer s3cret")
    with behind_nginx(chroma_server, tmp_path, "s3cret", "1m") as port:
        server = [f"http://127.0.0.1:{port}", *there[1][1:], "--header-env", "Authorization", "AUTHORIZATION"]
        assert main(["migrate", str(tmp_path / "db"), "--to", *server, "--json"]) == 1
    said = capsys.readouterr()
    assert "record 'large' of collection 'rag_collection' is too large" in said.err
    assert json.loads(said.out.splitlines()[1])["written"] == len(ids)
    with there[0]() as manager:
        got = manager.get_collection("many", "azure", "rag_collection").get()
    assert dict(zip(got["ids"], got["documents"], strict=True)) == dict(zip(ids, documents, strict=True))


@pytest.mark.parametrize("other", [{"metadata": {"mine": 1}}, {"configuration": {"hnsw": {"space": "ip"}}}], ids=str)
def test_another_collection_of_the_same_name_is_left_alone(filled, there, capsys, other: dict[str, Any]) -> None:
    path, _ = filled
    with there[0]() as manager:
        stamp = {"file_id": KEYS[1][0], "embedding_type": KEYS[1][1]}
        manager.get_client(*KEYS[1]).create_collection("empty", **{"metadata": stamp, **other})
    assert main(["migrate", str(path), "--to", *there[1]]) == 1
    assert (
        "collection 'empty' of doc/azure exists where it is to be copied to, and is another one"
        in capsys.readouterr().err
    )


def test_an_app_that_has_the_databases_open_goes_on(tmp_path: Path, there, capsys) -> None:
    with ChromaDBManager(base_path=tmp_path / "db") as manager:
        collection = new_collection(manager)
        stop, written, errors = threading.Event(), [1], []

        def write() -> None:
            try:
                while not stop.is_set():
                    collection.upsert(ids=["1"], embeddings=[[1.0, float(len(written))]])
                    written.append(len(written))
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        command = [sys.executable, "-m", "chroma_manager.cli", "migrate", str(tmp_path / "db"), "--to", *there[1]]
        code = subprocess.run(command, check=False, capture_output=True, text=True)
        stop.set()
        thread.join(60)
        assert code.returncode in (0, 1), code.stderr
        assert code.returncode == 0 or "changed meanwhile" in code.stderr
        assert errors == []
        assert len(written) > 1
        assert subprocess.run(command, check=False).returncode == 0
        expected = collection.get(include=["embeddings"])["embeddings"].tolist()
        client = manager.get_client("doc", "azure")
        client._admin_client.create_database("mine")
        client.set_database("mine")
        client.create_collection("mine")
        assert main(command[3:]) == 1
        assert "1 collection in tenant 'default_tenant', database 'mine'" in capsys.readouterr().err
    with there[0]() as manager:
        got = manager.get_collection("doc", "azure", "rag_collection").get(include=["embeddings"])
        assert np.array_equal(got["embeddings"], expected)


# What has root obey the modes of files.
AS_OTHERS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.skipif(shutil.which(AS_OTHERS[0]) is None, reason="root reads everything")
@pytest.mark.parametrize("closed", ["doc", "doc/azure"])
def test_a_directory_that_cannot_be_read_is_told_and_the_others_are_copied(closed: str, tmp_path: Path, there) -> None:
    base = tmp_path / "db"
    with ChromaDBManager(base_path=base) as manager:
        new_collection(manager, "doc")
        new_collection(manager, "other")
    (base / closed).chmod(0)
    without_rights = AS_OTHERS if os.geteuid() == 0 else []
    command = [*without_rights, sys.executable, "-m", "chroma_manager.cli", "migrate", str(base), "--to", *there[1]]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    (base / closed).chmod(0o700)
    assert f"Permission denied: '{base / closed}" in run.stderr
    assert run.stdout == "other/azure: 1 collection, 1 record, 1 of them written\n"
    assert run.returncode == 1


def plain_database(path: Path, name: str) -> None:
    """One of stock Chroma."""
    with chromadb.PersistentClient(path) as client:
        client.create_collection("rag_collection", embedding_function=None).add(ids=[name], embeddings=[[1.0, 2.0]])


def test_plain_chroma_directories_become_instances(tmp_path: Path, there, monkeypatch, capsys) -> None:
    tree = tmp_path / "mine"
    for path in ("doc/azure", "customers/7/doc", "alone", ".hidden/doc"):
        plain_database(tree / path, path)
    assert main(["migrate", str(tmp_path / "db"), "--from", str(tree)]) == 1
    assert "has a file_id, but no embedding_type: give one with --embedding-type" in capsys.readouterr().err
    assert not (tmp_path / "db").exists()
    monkeypatch.chdir(tree)
    given = ["--from", ".", "--embedding-type", "ada"]
    assert main(["migrate", str(tmp_path / "db"), *given]) == 0
    assert main(["migrate", *given, "--to", *there[1]]) == 0
    expected = {("doc", "azure"): "doc/azure", ("customers__7", "doc"): "customers/7/doc", ("alone", "ada"): "alone"}
    for make in (lambda: ChromaDBManager(base_path=tmp_path / "db"), there[0]):
        with make() as manager:
            for key, name in expected.items():
                assert manager.get_client(*key, on_missing="error").get_collection("rag_collection").get()["ids"] == [
                    name
                ]
    with chromadb.PersistentClient(tree / "doc" / "azure") as client:
        assert client.get_collection("rag_collection", embedding_function=None).get()["ids"] == ["doc/azure"]


def in_other_databases(manager: ChromaDBManager, name: str) -> Iterator[ManagedClient]:
    """A client of an instance, in two databases that are not the instance, one after the other."""
    client = manager.get_client(name, "azure")
    for tenant, database in (("acme", "default_database"), ("default_tenant", "team2")):
        client.set_tenant(tenant, database)
        yield client


@pytest.mark.parametrize(
    "arguments",
    [
        ["{source}", "--to", "{server}"],
        ["{copy}", "--from", "{source}", "--engine", "embedded"],
        *long(["--from", "{source}", "--to", "{server}"], ["{copy}", "--from", "{source}"]),
    ],
    ids=" ".join,
)
def test_what_a_source_has_in_other_databases_is_named_and_fails(
    arguments: list[str], tmp_path: Path, there, capsys
) -> None:
    names = ("both", "others")
    with ChromaDBManager(base_path=tmp_path / "source") as manager:
        manager.get_collection("both", "azure", "rag_collection").add(ids=["1"], embeddings=[[1.0, 2.0]])
        for name in names:
            admin = manager.get_client(name, "azure")._admin_client
            admin.create_tenant("acme")
            for tenant, database in (("default_tenant", "team2"), ("acme", "default_database"), ("acme", "empty")):
                admin.create_database(database, tenant)
            for client in in_other_databases(manager, name):
                client.create_collection("rag_collection").add(ids=["2"], embeddings=[[3.0]])
            client.create_collection("mine")
    places = {"{source}": [str(tmp_path / "source")], "{copy}": [str(tmp_path / "copy")], "{server}": there[1]}
    command = ["migrate", *(text for argument in arguments for text in places.get(argument, [argument]))]

    assert main(command) == 1
    said = capsys.readouterr()
    assert said.out == ""
    for line, name in zip(said.err.splitlines(), names, strict=True):
        assert f"{name}/azure has more than can be copied" in line
        assert "1 collection in tenant 'acme', database 'default_database'; 2 collections in tenant" in line
        assert "tenant 'default_tenant', database 'team2'. Copy" in line
    with there[0]() if "{server}" in arguments else ChromaDBManager(base_path=tmp_path / "copy") as manager:
        assert manager.get_client("both", "azure").get_collection("rag_collection").get()["ids"] == ["1"]
        assert [manager.get_client(name, "azure").count_collections() for name in names] == [1, 0]

    with ChromaDBManager(base_path=tmp_path / "source") as manager:
        for name in names:
            for client in in_other_databases(manager, name):
                for collection in client.list_collections():
                    client.delete_collection(collection.name)
    assert main(command) == 0


def test_a_tree_whose_keys_cannot_be_told_is_refused(tmp_path: Path) -> None:
    for path in ("a/b/type", "a__b/type"):
        (tmp_path / "same" / path).mkdir(parents=True)
        (tmp_path / "same" / path / "chroma.sqlite3").touch()
    with pytest.raises(MigrationError, match="would both be a__b/type"):
        trees.find(tmp_path / "same", None)
    with pytest.raises(MigrationError, match="is a database itself"):
        trees.find(tmp_path / "same" / "a__b" / "type", None)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(MigrationError, match=r"no chroma\.sqlite3"):
        trees.find(tmp_path / "nothing", None)
    assert trees.find(tmp_path / "same" / "a__b", "x") == {Key("type", "x"): tmp_path / "same" / "a__b" / "type"}


def test_credentials_come_from_the_environment(filled, own_server: ChromaServer, tmp_path, monkeypatch, capsys) -> None:
    with behind_nginx(own_server, tmp_path, "s3cret") as port:
        command = ["migrate", str(filled[0]), "--to", f"http://127.0.0.1:{port}"]
        assert main(command) == 1
        assert "HTTP 401" in capsys.readouterr().err
        header = ["--header-env", "Authorization", "AUTHORIZATION"]
        with pytest.raises(SystemExit, match="2"):
            main([*command, *header])
        assert "AUTHORIZATION is not set" in capsys.readouterr().err
        monkeypatch.setenv("AUTHORIZATION", "Bearer s3cret")
        assert main([*command, *header]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}"], "name two of"),
        (["{tmp}", "--from", "http://127.0.0.1:1", "--to", "http://127.0.0.1:1"], "name two of"),
        (["--from", "http://127.0.0.1:1", "--to", "http://127.0.0.1:1"], "cannot both be servers"),
        (["{tmp}", "--to", "127.0.0.1:8000"], "is not a URL"),
        (["{tmp}", "--from", "{tmp}/missing"], "No such file"),
        (["{tmp}", "--from", "{tmp}", "--tenant", "mine"], "--tenant is about a server"),
        (["{tmp}", "--to", "http://127.0.0.1:1", "--embedding-type", "x"], "--embedding-type is about"),
    ],
)
def test_arguments_that_name_no_source_and_destination_are_refused(
    arguments, said: str, tmp_path: Path, capsys
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["migrate", *(argument.format(tmp=tmp_path) for argument in arguments)])
    assert said in capsys.readouterr().err


def test_a_base_path_without_instances_is_an_error(tmp_path: Path, chroma_server: ChromaServer, capsys) -> None:
    assert main(["migrate", str(tmp_path), "--to", chroma_server.url]) == 1
    assert f"there is no instance to copy in {tmp_path}" in capsys.readouterr().err
