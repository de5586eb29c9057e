"""What a database that is not there means: a new one, an error, or that the app puts it there."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chromadb
import pytest
from chroma_manager import ChromaDBManager, InstanceNotFoundError, InstanceOpenError, ManagerConfigurationError
from conftest import directory, eventually, new_collection, on_every_engine

KEY = ("doc", "azure")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A database with one record, as a bucket has it."""
    path = tmp_path / "bucket"
    with chromadb.PersistentClient(path) as client:
        client.create_collection("rag_collection", embedding_function=None).add(ids=["theirs"], embeddings=[[1.0, 2.0]])
    return path


@pytest.fixture
def download(stored: Path) -> Callable[[str, str, Path], None]:
    """What an app's own download does."""

    def download(_file_id: str, _embedding_type: str, target: Path) -> None:
        shutil.copytree(stored, target, dirs_exist_ok=True)

    return download


def with_option(manager: ChromaDBManager, on_missing) -> ChromaDBManager:
    """The same manager as if it had been made with another option."""
    options = {**vars(manager._options), "on_missing": on_missing}
    manager.shutdown()
    return ChromaDBManager(**options)


def ids(collection) -> list[str]:
    return sorted(collection.get(include=[])["ids"])


def assert_nothing_is_left(manager: ChromaDBManager) -> None:
    assert not directory(manager).parent.exists()


def test_what_is_provided_leaves_what_is_not_of_the_database(manager: ChromaDBManager, download) -> None:
    index = directory(manager) / "0a1b2c3d-0000-4000-8000-0123456789ab"
    for file in (index / "header.bin", directory(manager) / "originals" / "document.pdf"):
        file.parent.mkdir(parents=True)
        file.write_text("x")
    quarantined, noted = (directory(manager) / ".chroma_manager" / name for name in ("damaged-1", "checkpoint.json"))
    quarantined.mkdir(parents=True)
    noted.write_text("{}")
    assert ids(manager.get_collection(*KEY, "rag_collection", on_missing=download)) == ["theirs"]
    assert (directory(manager) / "originals" / "document.pdf").exists()
    assert quarantined.exists()
    assert not index.exists()


@on_every_engine
def test_it_is_created_unless_something_else_is_said(manager: ChromaDBManager) -> None:
    assert manager.get_client(*KEY).list_collections() == []
    assert with_option(manager, "create").get_client("doc", "other").list_collections() == []


@pytest.mark.parametrize("ask", ["get_client", "get_instance", "get_collection"])
def test_as_an_error_nothing_is_created(manager: ChromaDBManager, ask: str) -> None:
    strict = with_option(manager, "error")
    arguments = (*KEY, "rag_collection") if ask == "get_collection" else KEY
    with pytest.raises(InstanceNotFoundError, match=r'doc/azure.*on_missing is "error"') as caught:
        getattr(strict, ask)(*arguments)
    assert (caught.value.file_id, caught.value.path) == ("doc", str(directory(strict)))
    assert_nothing_is_left(strict)
    getattr(strict, ask)(*arguments, on_missing="create")
    getattr(strict, ask)(*arguments)


def test_as_an_error_a_removed_database_is_not_brought_back_by_a_thread_that_knew_it(manager, stored: Path) -> None:
    """The app takes a file off the disk, a cached chatbot asks for it, and only then it is downloaded again."""
    strict = with_option(manager, "error")
    shutil.copytree(stored, directory(strict))
    collection = strict.get_collection(*KEY, "rag_collection")
    assert ids(collection) == ["theirs"]
    shutil.rmtree(directory(strict).parent)
    for ask in (
        lambda: strict.get_collection(*KEY, "rag_collection"),
        lambda: strict.get_client(*KEY),
        collection.count,
    ):
        with pytest.raises(InstanceNotFoundError):
            ask()
        assert_nothing_is_left(strict)
    shutil.copytree(stored, directory(strict))
    assert ids(strict.get_collection(*KEY, "rag_collection")) == ids(collection) == ["theirs"]


def test_a_callable_puts_it_there_once_while_others_wait(manager: ChromaDBManager, download) -> None:
    goes_on = threading.Event()
    calls: list[tuple[str, str, Path]] = []

    def slow_download(*arguments) -> None:
        calls.append(arguments)
        assert goes_on.wait(60)
        download(*arguments)

    putting = with_option(manager, slow_download)
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(lambda: ids(putting.get_collection(*KEY, "rag_collection"))) for _ in range(8)]
        assert eventually(lambda: calls)
        # Whoever waits does so without the interpreter; and another database is nobody's business here.
        assert putting.get_client("doc", "other", on_missing="create").list_collections() == []
        assert not directory(putting).exists()
        goes_on.set()
        assert [one.result(60) for one in found] == [["theirs"]] * 8
    assert [call[:2] for call in calls] == [KEY]
    assert {path.name for path in directory(putting).parent.iterdir()} == {"azure", "other"}


def test_a_callable_is_called_again_for_a_database_that_was_removed(manager: ChromaDBManager, download) -> None:
    collection = manager.get_collection(*KEY, "rag_collection", on_missing=download)
    collection.add(ids=["ours"], embeddings=[[3.0, 4.0]])
    shutil.rmtree(directory(manager))
    assert ids(manager.get_collection(*KEY, "rag_collection", on_missing=download)) == ["theirs"]
    assert ids(collection) == ["theirs"]
    manager.cleanup_all_instances()
    assert ids(manager.get_collection(*KEY, "rag_collection", on_missing=download)) == ["theirs"]


def test_a_callable_may_restore_a_snapshot_or_build_the_database_with_the_manager(manager, tmp_path: Path) -> None:
    new_collection(manager)
    manager.snapshot(*KEY, tmp_path / "snapshot")
    manager.delete_instance(*KEY)

    def restore(file_id: str, embedding_type: str, _: Path) -> None:
        manager.restore(file_id, embedding_type, tmp_path / "snapshot")

    def build(file_id: str, embedding_type: str, _: Path) -> None:
        collection = manager.get_collection(file_id, embedding_type, "rag_collection", on_missing="create")
        collection.add(ids=["built"], embeddings=[[1.0, 2.0]])

    assert ids(manager.get_collection(*KEY, "rag_collection", on_missing=restore)) == ["1"]
    assert ids(manager.get_collection("doc", "other", "rag_collection", on_missing=build)) == ["built"]
    assert {path.name for path in directory(manager).parent.iterdir()} == {"azure", "other"}


def test_a_callable_that_waits_for_itself_is_told_so(manager: ChromaDBManager) -> None:
    def ask(file_id: str, embedding_type: str, _: Path) -> None:
        manager.get_client(file_id, embedding_type, on_missing=ask)

    with pytest.raises(InstanceOpenError, match=r'doc/azure.*on_missing="create"'):
        manager.get_client(*KEY, on_missing=ask)
    assert_nothing_is_left(manager)


def test_what_a_callable_raises_is_raised_and_the_next_one_tries_again(manager: ChromaDBManager, download) -> None:
    class NoNetworkError(Exception):
        pass

    def broken(file_id: str, embedding_type: str, target: Path) -> None:
        download(file_id, embedding_type, target)
        raise NoNetworkError

    with pytest.raises(NoNetworkError):
        manager.get_client(*KEY, on_missing=broken)
    assert_nothing_is_left(manager)
    assert ids(manager.get_collection(*KEY, "rag_collection", on_missing=download)) == ["theirs"]


def test_a_callable_that_puts_nothing_there_is_an_error(manager: ChromaDBManager) -> None:
    with pytest.raises(InstanceNotFoundError, match=r"doc/azure.*on_missing was called.*chroma\.sqlite3"):
        manager.get_client(*KEY, on_missing=lambda _file_id, _type, target: (target / "readme").write_text("x"))
    assert_nothing_is_left(manager)


def test_a_process_that_is_killed_while_it_puts_a_database_there_leaves_none(manager, script, download, stored) -> None:
    code = f"""
import os, shutil, signal
def killed(file_id, embedding_type, target):
    shutil.copytree({str(stored)!r}, target, dirs_exist_ok=True)
    os.kill(os.getpid(), signal.SIGKILL)
ChromaDBManager(base_path={manager._options.base_path!r}).get_client("doc", "azure", on_missing=killed)
"""
    with pytest.raises(AssertionError, match="exit -9"):
        script(code).finish()
    assert len(list(directory(manager).parent.iterdir())) == 1
    with pytest.raises(InstanceNotFoundError):
        manager.get_client(*KEY, on_missing="error")
    assert ids(manager.get_collection(*KEY, "rag_collection", on_missing=download)) == ["theirs"]
    assert [path.name for path in directory(manager).parent.iterdir()] == ["azure"]


def test_a_database_that_is_there_is_never_replaced(manager: ChromaDBManager, download) -> None:
    new_collection(manager)
    manager.cleanup_all_instances()
    assert ids(manager.get_collection(*KEY, "rag_collection", on_missing=download)) == ["1"]

    def late(*arguments) -> None:
        new_collection(manager, "late").add(ids=["2"], embeddings=[[1.0, 1.0]])
        download(*arguments)

    assert manager.get_client("late", "azure", on_missing=late).get_collection("rag_collection").count() == 2


@pytest.mark.parametrize("remove", ["while it is open", "while it is closed", "with the manager"])
def test_a_name_that_was_removed_and_is_created_again_is_told_of(manager, caplog, remove: str) -> None:
    with caplog.at_level(logging.WARNING, "chroma_manager"):
        new_collection(manager)
        assert caplog.messages == []
        if remove == "with the manager":
            manager.delete_instance(*KEY)
        else:
            if remove == "while it is closed":
                manager.cleanup_all_instances()
            shutil.rmtree(directory(manager))
        caplog.clear()
        new_collection(manager)
    created = [message for message in caplog.messages if "created again, empty" in message]
    assert len(created) == 1
    assert "doc/azure" in created[0]
    assert "on_missing" in created[0]


@pytest.mark.parametrize("bad", ["no", b"create", 1, None])
def test_what_it_may_be_is_said(manager: ChromaDBManager, bad: object) -> None:
    options = {**vars(manager._options), "on_missing": bad}
    manager.shutdown()
    with pytest.raises(ManagerConfigurationError, match=r"on_missing=.*\"create\", \"error\" or a callable"):
        ChromaDBManager(**options)
    other = ChromaDBManager(base_path=options["base_path"])
    if bad is not None:
        with pytest.raises((TypeError, ValueError), match=r"on_missing=.*\"create\", \"error\" or a callable"):
            other.get_client(*KEY, on_missing=bad)
        assert_nothing_is_left(other)
