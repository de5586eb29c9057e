"""Instances on a Chroma server: they are created once, kept apart, found and deleted, in each layout."""

from __future__ import annotations

import chromadb.errors
import pytest
from chroma_manager import ChromaDBManager, InstanceNotFoundError, InvalidKeyError, ManagerConfigurationError
from chroma_server import HOST, ChromaServer
from chromadb.config import Settings
from conftest import all_at_once, new_collection, other_process


def test_each_instance_is_a_database_of_its_own_that_stock_chroma_sees(chroma_server: ChromaServer) -> None:
    manager = chroma_server.manager()
    new_collection(manager, "Report 1.pdf")
    new_collection(manager, "other")
    client = manager.get_client("Report 1.pdf", "azure")
    assert client.database == "cm.Report_201_2Epdf.azure"
    stock = chroma_server.client(client.tenant, "cm.Report_201_2Epdf.azure")
    assert [collection.name for collection in stock.list_collections()] == ["rag_collection"]
    assert stock.get_collection("rag_collection", embedding_function=None).get()["documents"] == ["one"]
    with pytest.raises(chromadb.errors.NotFoundError):
        chroma_server.client(client.tenant, "cm.third.azure")


def test_all_instances_are_in_one_database_where_that_is_wanted(chroma_server: ChromaServer) -> None:
    manager = chroma_server.manager(layout="collection", database="shared")
    for file_id in ("doc", "doc2"):
        new_collection(manager, file_id)
    client = manager.get_client("doc", "azure")
    stock = chroma_server.client(client.tenant, "shared")
    names = sorted(collection.name for collection in stock.list_collections())
    assert names == ["cm.doc.azure", "cm.doc.azure.rag_collection", "cm.doc2.azure", "cm.doc2.azure.rag_collection"]


def test_a_client_sees_and_takes_its_own_collections_alone(remote: ChromaDBManager) -> None:
    new_collection(remote, "doc2")
    stranger = remote.get_collection("doc2", "azure", "strange")
    client = remote.get_client("doc", "azure")
    assert (client.list_collections(), client.count_collections()) == ([], 0)
    for name in ("rag_collection", "strange", "../x", ".."):
        for call in (client.get_collection, client.delete_collection):
            with pytest.raises(chromadb.errors.NotFoundError, match="does not exist"):
                call(name)
    created = [client.create_collection(name, embedding_function=None) for name in ("one", "two", "three")]
    assert [collection.name for collection in created] == ["one", "two", "three"]
    with pytest.raises(Exception, match="already exists"):
        client.create_collection("one", embedding_function=None)
    assert sorted(collection.name for collection in client.list_collections()) == ["one", "three", "two"]
    everything = [collection.name for collection in client.list_collections()]
    assert [collection.name for collection in client.list_collections(limit=1, offset=1)] == everything[1:2]
    assert client.count_collections() == 3
    created[0].modify(name="first", metadata={"a": 1})
    assert created[0].name == "first"
    assert client.get_collection("first", embedding_function=None).metadata == {"a": 1}
    assert client.get_or_create_collection("first", embedding_function=None).id == created[0].id
    client.delete_collection("two")
    assert sorted(collection.name for collection in client.list_collections()) == ["first", "three"]
    assert stranger.count() == 0
    assert remote.get_client("doc2", "azure").count_collections() == 2


@pytest.mark.parametrize("name", ["ab", "a" * 513, "a b", "-ab", "ab-", "a..b", "a~b"])
def test_a_name_that_chroma_refuses_is_refused(remote: ChromaDBManager, name: str) -> None:
    with pytest.raises(chromadb.errors.InvalidArgumentError, match="name"):
        remote.get_collection("doc", "azure", name)


def test_unusual_keys_are_instances(remote: ChromaDBManager) -> None:
    names = ["été 2024 (v2).pdf", "日本語", "..a", "-rf", "%2e%2e", "a b", "x_", "x-", "A", "a"]
    for name in names:
        remote.get_collection(name, name, "rag_collection").add(ids=[name], embeddings=[[1.0, 2.0]])
    for name in names:
        assert remote.get_collection(name, name, "rag_collection").get()["ids"] == [name]
    assert sorted(key.file_id for key in remote._server.instances()) == sorted(names)
    with pytest.raises(InvalidKeyError, match="the limit is 508"):
        remote.get_client("é" * 100, "azure")


def test_two_processes_with_many_threads_create_one_instance_once(remote: ChromaDBManager, script) -> None:
    create = """
got = all_at_once(8, lambda i: str(manager.get_collection(f"doc{i % 2}", "azure", "rag_collection").id))
print(*got)
"""
    others = [other_process(script, remote, f"print('ready', flush=True)\ninput()\n{create}") for _ in range(2)]
    assert [other.read_line() for other in others] == ["ready"] * 2
    for other in others:
        other.say()
    got = [all_at_once(8, lambda i: str(remote.get_collection(f"doc{i % 2}", "azure", "rag_collection").id))]
    got += [other.finish().split() for other in others]
    assert {tuple(ids) for ids in got} == {tuple(got[0])}
    assert len(set(got[0])) == 2


def test_a_missing_instance_is_an_error_where_that_is_wanted(remote: ChromaDBManager) -> None:
    for ask in (remote.get_client, lambda *key, **options: remote.get_collection(*key, "rag_collection", **options)):
        with pytest.raises(InstanceNotFoundError, match=r'doc/azure.*on_missing is "error"') as caught:
            ask("doc", "azure", on_missing="error")
        assert caught.value.file_id == "doc"
    assert list(remote._server.instances()) == []
    remote.get_client("doc", "azure", on_missing="create")
    assert remote.get_client("doc", "azure", on_missing="error").list_collections() == []


def test_a_callable_for_missing_instances_is_refused(remote: ChromaDBManager) -> None:
    with pytest.raises(Exception, match="no directory"):
        remote.get_client("doc", "azure", on_missing=lambda *_: None)
    remote.shutdown()
    with pytest.raises(ManagerConfigurationError, match=r"on_missing=.*no directory"):
        ChromaDBManager(engine="server", on_missing=print)


def test_a_deleted_instance_is_gone_with_its_collections_and_no_other_is(remote: ChromaDBManager) -> None:
    collection = new_collection(remote)
    kept = [new_collection(remote, "doc2"), remote.get_collection("doc", "azure2", "rag_collection")]
    assert remote.delete_instance("doc", "azure")
    assert not remote.delete_instance("doc", "azure")
    with pytest.raises(Exception, match="doc/azure"):
        collection.count()
    assert [one.count() for one in kept] == [1, 0]
    with pytest.raises(InstanceNotFoundError):
        remote.get_client("doc", "azure", on_missing="error")
    assert new_collection(remote).count() == 1


def test_deleting_a_file_deletes_all_of_its_instances(remote: ChromaDBManager) -> None:
    for embedding_type in ("azure", "openai", "a_b.c"):
        remote.get_client("doc", embedding_type)
    new_collection(remote, "doc2")
    assert remote.delete_file("doc") == 3
    assert remote.delete_file("doc") == 0
    assert [str(key) for key in remote._server.instances()] == ["doc2/azure"]
    with pytest.raises(InvalidKeyError):
        remote.delete_file("../doc")


def test_a_handle_of_an_instance_that_another_process_deletes_says_so_and_a_new_one_begins_anew(remote, script) -> None:
    collection, *_ = [new_collection(remote, file_id) for file_id in ("doc", "doc2", "doc3")]
    client, other = remote.get_client("doc", "azure"), remote.get_client("doc2", "azure")
    assert client.heartbeat() > 0
    assert other.heartbeat() > 0
    delete = "print(*(manager.delete_file(name) for name in ('doc', 'doc2', 'doc3')))"
    assert other_process(script, remote, delete).finish() == "1 1 1"
    # Only the call that follows get_client() may create it. Whichever call is the first one finds out.
    for name, call in (
        ("doc", collection.count),
        ("doc", lambda: client.create_collection("other", embedding_function=None)),
        ("doc2", lambda: other.create_collection("other", embedding_function=None)),
        ("doc3", lambda: remote.get_collection("doc3", "azure", "rag_collection", on_missing="error")),
    ):
        with pytest.raises(InstanceNotFoundError, match=f"{name}/azure"):
            call()
    assert list(remote._server.instances(with_remains=True)) == []
    assert remote.get_client("doc", "azure") is client
    assert client.create_collection("other", embedding_function=None).count() == 0
    assert [found.name for found in client.list_collections()] == ["other"]
    assert remote.get_collection("doc3", "azure", "rag_collection").count() == 0


def test_a_reset_empties_the_instance_alone(chroma_server: ChromaServer, remote: ChromaDBManager) -> None:
    layout = remote._options.layout
    with pytest.raises(chromadb.errors.AuthorizationError, match="Reset is disabled by config"):
        remote.get_client("doc", "azure").reset()
    remote.shutdown()
    manager = chroma_server.manager(layout=layout, settings=Settings(allow_reset=True))
    kept, other = new_collection(manager), new_collection(manager, "other")
    assert manager.get_client("doc", "azure").reset()
    with pytest.raises(chromadb.errors.NotFoundError):
        kept.count()
    assert manager.get_client("doc", "azure", on_missing="error").list_collections() == []
    assert other.count() == 1


@pytest.mark.parametrize("task", ["snapshot", "restore", "verify", "compact"])
def test_what_cannot_be_done_to_a_remote_disk_says_what_to_do_instead(chroma_server, task: str, tmp_path) -> None:
    manager = chroma_server.manager()
    new_collection(manager)
    path = [tmp_path / "copy"] if task in ("snapshot", "restore") else []
    with pytest.raises(
        ManagerConfigurationError, match=rf"{task}\(\) is not possible with engine='server'.*: "
    ) as caught:
        getattr(manager, task)("doc", "azure", *path)
    assert (caught.value.file_id, caught.value.embedding_type) == ("doc", "azure")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lock_timeout": 3}, "lock_timeout"),
        ({"repair": "never"}, "repair"),
        ({"max_memory": 1 << 30}, "max_memory"),
        ({"compact_at_close": True}, "compact_at_close"),
        ({"layout": "table"}, "layout"),
        ({"database": "x"}, "database"),
        ({"cloud_host": "example.org"}, "cloud_host.*api_key"),
        ({"port": 0}, "port"),
        ({"port": "8000"}, "port"),
        ({"host": ""}, "host"),
        ({"host": "ftp://example.org"}, "host"),
        ({"host": "example.org:8000"}, "host='example.org:8000'"),
        ({"host": "http://example.org:port"}, "host"),
        ({"ssl": "yes"}, "ssl"),
        ({"max_connections": 0}, "max_connections"),
        ({"read_timeout": 0}, "read_timeout"),
        ({"retry_timeout": -1}, "retry_timeout"),
        ({"settings": Settings(chroma_api_impl="chromadb.api.segment.SegmentAPI")}, "settings"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) and "settings" not in value else "",
)
def test_an_option_that_a_server_cannot_keep_is_refused_and_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ManagerConfigurationError, match=named):
        ChromaDBManager(engine="server", **options)


@pytest.mark.parametrize("option", [{"host": "example.org"}, {"layout": "collection"}, {"read_timeout": 1.0}], ids=str)
def test_an_option_of_a_server_is_refused_with_another_engine(option: dict[str, object], tmp_path) -> None:
    with pytest.raises(ManagerConfigurationError, match=f"{next(iter(option))}.*engine='server'"):
        ChromaDBManager(base_path=tmp_path, **option)


def test_no_message_shows_a_secret(chroma_server: ChromaServer) -> None:
    secret = "s3cret-token"
    manager = chroma_server.manager(headers={"Authorization": secret})
    assert secret not in repr(manager)
    for options, named in (
        ({"headers": {"Authorization": f"other-{secret}"}}, "headers"),
        ({"headers": [secret]}, "headers"),
        ({"api_key": 3}, "api_key"),
    ):
        assert secret not in refused(named, **options)
    manager.shutdown()
    assert secret not in refused("api_key", engine="embedded", api_key=secret)
    # What an HTTP client would refuse with the value in its error, in the first request.
    token = Settings(
        chroma_client_auth_provider="chromadb.auth.token_authn.TokenAuthClientProvider",
        chroma_client_auth_credentials=f"{secret}\n",
    )
    for options, named in (
        *(({"headers": {"Authorization": secret + end}}, "headers.*'Authorization'") for end in ("\n", "\r", " ", "é")),
        ({"headers": {f"Bearer {secret}": "Authorization"}}, "headers: a name"),
        ({"api_key": f"{secret}\n"}, "api_key: .*newline"),
        ({"settings": token}, "settings: chroma_client_auth_credentials"),
        *(({"host": f"{start}me:{secret}@example.org"}, "^host: .*Authorization") for start in ("http://", "")),
        ({"cloud_host": f"me:{secret}@example.org", "api_key": secret}, "^cloud_host: "),
    ):
        assert secret not in refused(named, engine="server", **options)


def refused(named: str, **options: object) -> str:
    """All that a construction says that is refused, with the causes of that."""
    with pytest.raises(ManagerConfigurationError, match=named) as caught:
        ChromaDBManager(**options)
    # Without this file's own lines, which have the values.
    error, said = caught.value, []
    while error is not None:
        said.append(repr(error))
        error = error.__cause__ or error.__context__
    return "\n".join(said)


def test_statistics_say_where_an_instance_is(chroma_server: ChromaServer) -> None:
    manager = chroma_server.manager()
    new_collection(manager)
    found = manager.stats()["instances"]["doc/azure"]
    assert (found["engine"], found["memory"], found["threads"]) == ("server", None, 1)
    assert found["path"].startswith(f"http://{HOST}:{chroma_server.port}")
