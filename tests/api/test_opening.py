"""Opening: once for all who ask at the same moment, one instance at a time, and a failure leaves nothing behind."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import chromadb
import chromadb.errors
import pytest
from chroma_manager import (
    ChromaDBManager,
    ChromaManagerError,
    ClientClosedError,
    InstanceLockedError,
    InstanceOpenError,
    InvalidKeyError,
)
from chroma_manager.options import LOCAL_ENGINES
from chroma_manager.storage import migrations
from chroma_manager.worker import template
from chromadb.db.migrations import InconsistentVersionError
from conftest import PausingIds, all_at_once, get_with, in_thread, new_collection

HOLD = """
manager = ChromaDBManager(base_path=base, engine='embedded')
manager.get_client("doc", "azure")
print("holding")
sys.stdin.readline()
"""


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    """What is said here of owners and of failures is of the engine `embedded`."""
    return ChromaDBManager(base_path=tmp_path / "db", engine="embedded", idle_timeout=None)


BAD_NAMES = ["", ".", "..", "a/b", "/etc", "..\\x", "a\\b", "a\0b", "a\nb", "\x7f", "x" * 256, "é" * 128, "\ud800"]
BAD_NAMES += [".chroma_manager.lock", ".chroma_manager.x.incoming"]


def test_eight_threads_that_open_the_same_instance_open_it_once(manager: ChromaDBManager) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for round_number in range(10):
            outcomes = all_at_once(8, lambda _, n=round_number: new_collection(manager, f"doc{n}").count())
            assert outcomes == [1] * 8
    finally:
        sys.setswitchinterval(interval)
    assert manager.stats()["openings"] == 10


def test_opening_one_instance_does_not_wait_for_another(tmp_path: Path, script) -> None:
    holder = script(HOLD)
    assert holder.read_line() == "holding"
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded", lock_timeout=60)
    waiting = threading.Thread(target=manager.get_client, args=("doc", "azure"))
    waiting.start()
    for i in range(4):
        assert in_thread(lambda i=i: new_collection(manager, f"other{i}").count()) == 1
    assert waiting.is_alive(), "it opened what another process holds"
    holder.say()
    holder.finish()
    waiting.join(60)
    assert "doc/azure" in manager.stats()["instances"]


def test_an_instance_that_another_process_holds_is_refused_at_once(manager: ChromaDBManager, script) -> None:
    holder = script(HOLD)
    assert holder.read_line() == "holding"
    with pytest.raises(InstanceLockedError) as caught:
        manager.get_client("doc", "azure")
    error = caught.value
    assert error.pid == holder.process.pid
    assert (error.file_id, error.embedding_type) == ("doc", "azure")
    for part in ("doc/azure", str(holder.process.pid), error.path, "cleanup_instance"):
        assert part in str(error)
    assert manager.stats()["errors"] == 1
    holder.say()
    holder.finish()
    assert new_collection(manager).count() == 1


def test_a_wait_for_another_process_ends_with_its_timeout(tmp_path: Path, script) -> None:
    holder = script(HOLD)
    assert holder.read_line() == "holding"
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded", lock_timeout=0.3)
    outcomes = all_at_once(4, lambda _: manager.get_client("doc", "azure"))
    assert [type(outcome) for outcome in outcomes] == [InstanceLockedError] * 4
    holder.say()
    holder.finish()


def test_the_instance_of_a_process_that_was_killed_can_be_opened(manager: ChromaDBManager, script) -> None:
    holder = script(HOLD)
    assert holder.read_line() == "holding"
    holder.process.kill()
    holder.process.wait()
    assert new_collection(manager).count() == 1


def test_ctrl_c_ends_an_opening_that_waits(script) -> None:
    holder = script(HOLD)
    assert holder.read_line() == "holding"
    code = """
manager = ChromaDBManager(base_path=base, engine='embedded', lock_timeout=60)
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.5)
try:
    manager.get_client("doc", "azure")
except KeyboardInterrupt:
    print("interrupted", manager.stats()["instances"])
"""
    assert script(code).finish() == "interrupted {}"
    holder.say()
    holder.finish()


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_is_no_name_is_refused_before_anything_is_touched(manager, tmp_path: Path, name: str) -> None:
    calls = [
        manager.get_client,
        lambda a, b: manager.get_instance(a, b, "ann"),
        lambda a, b: manager.get_collection(a, b, "rag_collection"),
        manager.cleanup_instance,
        manager._get_instance_key,
        manager._get_db_path,
    ]
    for call in calls:
        for part, arguments in {"file_id": (name, "azure"), "embedding_type": ("doc", name)}.items():
            with pytest.raises(InvalidKeyError, match=part):
                call(*arguments)
    assert issubclass(InvalidKeyError, ValueError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [None, 3, b"doc", ["doc"], Path("doc")], ids=repr)
def test_a_key_that_is_no_text_is_refused(manager: ChromaDBManager, name: object) -> None:
    with pytest.raises(InvalidKeyError, match="file_id must be a str"):
        manager.get_client(name, "azure")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["été 2024 (v2).pdf", "日本語", "..a", "-rf", "%2e%2e", "x" * 255, "a b"])
def test_unusual_names_are_names(manager: ChromaDBManager, name: str) -> None:
    assert new_collection(manager, name).count() == 1
    assert manager._get_instance_key(name, "azure") == f"{name}/azure"
    assert manager._get_db_path(name, "azure") == os.path.join(manager._options.base_path, name, "azure")
    assert Path(manager._get_db_path(name, "azure"), "chroma.sqlite3").is_file()


def open_error(manager: ChromaDBManager) -> InstanceOpenError:
    with pytest.raises(InstanceOpenError) as caught:
        manager.get_client("doc", "azure")
    error = caught.value
    assert isinstance(error, ChromaManagerError)
    assert error.path == manager._get_db_path("doc", "azure")
    assert "doc/azure" in str(error)
    assert error.path in str(error)
    assert manager.stats()["instances"] == {}
    return error


def test_a_file_in_the_way_is_an_error_and_stays(manager: ChromaDBManager, tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "doc").write_text("mine")
    assert isinstance(open_error(manager).__cause__, OSError)
    assert (tmp_path / "db" / "doc").read_text() == "mine"
    (tmp_path / "db" / "doc").unlink()
    assert new_collection(manager).count() == 1


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path, script) -> None:
    code = """
os.makedirs(base); os.chmod(base, 0o500)
manager = ChromaDBManager(base_path=base, engine='embedded')
if os.getuid() == 0: os.setuid(65534)
try:
    manager.get_client("doc", "azure")
except InstanceOpenError as error:
    print(type(error.__cause__).__name__, os.listdir(base))
"""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.owner() == tmp_path.owner() and parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)
    os.makedirs(tmp_path / "db")
    os.chown(tmp_path / "db", 65534, 65534) if os.getuid() == 0 else None
    assert script(code.replace("os.makedirs(base); ", "")).finish() == "PermissionError []"


def test_a_failed_opening_leaves_nothing_behind_and_the_next_tries_again(manager, tmp_path: Path, monkeypatch) -> None:
    import chroma_manager.engine.embedded

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    working = chroma_manager.engine.embedded.open_bindings
    monkeypatch.setattr(chroma_manager.engine.embedded, "open_bindings", fail)
    for _ in range(2):
        assert isinstance(open_error(manager).__cause__, OSError)
        assert list(tmp_path.iterdir()) == []
    outcomes = all_at_once(8, lambda _: manager.get_client("doc", "azure"))
    assert [type(outcome) for outcome in outcomes] == [InstanceOpenError] * 8
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(chroma_manager.engine.embedded, "open_bindings", working)
    assert new_collection(manager).count() == 1
    assert manager.stats()["errors"] == 10


def test_ctrl_c_while_opening_is_ctrl_c(manager: ChromaDBManager, monkeypatch) -> None:
    import chroma_manager.engine.embedded

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chroma_manager.engine.embedded, "open_bindings", interrupt)
        with pytest.raises(KeyboardInterrupt):
            manager.get_client("doc", "azure")
    assert new_collection(manager).count() == 1


def test_a_file_that_is_no_database_is_an_error_and_is_kept(manager: ChromaDBManager, tmp_path: Path) -> None:
    directory = tmp_path / "db" / "doc" / "azure"
    directory.mkdir(parents=True)
    (directory / "chroma.sqlite3").write_bytes(b"no database at all, but somebody's" * 100)
    cause = open_error(manager).__cause__
    assert isinstance(cause, (sqlite3.DatabaseError, chromadb.errors.ChromaError))
    assert [path.name for path in directory.iterdir()] == ["chroma.sqlite3"]


@pytest.mark.parametrize("engine", LOCAL_ENGINES)
def test_a_database_of_a_newer_chroma_is_refused_and_left_alone(engine: str, tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine=engine)
    new_collection(manager)
    manager.cleanup_all_instances()
    file = Path(manager._get_db_path("doc", "azure"), "chroma.sqlite3")
    with sqlite3.connect(file) as database:
        database.execute("insert into migrations values ('metadb', 99, '00099-new.sqlite.sql', 'select 1', 'x')")
    database.close()
    content = file.read_bytes()
    error = open_error(manager)
    assert isinstance(error.__cause__, InconsistentVersionError)
    assert "99" in str(error)
    for repair in (False, True):
        with pytest.raises(Exception, match=r"metadb.*99"):
            manager.verify("doc", "azure", repair=repair)
    with pytest.raises(Exception, match=r"metadb.*99"):
        manager.snapshot("doc", "azure", tmp_path / "snapshot")
    manager.cleanup_all_instances()
    assert file.read_bytes() == content
    with sqlite3.connect(file) as database:
        database.execute("delete from migrations where version = 99")
    database.close()
    assert new_collection(manager).count() == 1


def test_a_migration_that_only_the_installed_chroma_knows_is_no_newer_chroma(monkeypatch) -> None:
    installed = template.migrations()
    monkeypatch.setattr(migrations, "KNOWN_MIGRATIONS", {})
    migrations.refuse_newer(installed, template.migrations)
    with pytest.raises(InconsistentVersionError, match="99"):
        migrations.refuse_newer({**installed, "metadb": 99}, template.migrations)


def test_a_database_of_stock_chroma_is_opened_as_it_is(manager: ChromaDBManager, tmp_path: Path) -> None:
    code = """
import chromadb, sys
client = chromadb.PersistentClient(sys.argv[1])
client.create_collection("old", embedding_function=None).add(ids=["a"], embeddings=[[1.0, 2.0]], documents=["x"])
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "db" / "doc" / "azure")], check=True, timeout=60)
    assert manager.get_collection("doc", "azure", "old").get()["documents"] == ["x"]


def test_two_names_of_one_directory_are_one_database_with_one_owner(manager: ChromaDBManager, tmp_path: Path) -> None:
    new_collection(manager)
    (tmp_path / "db" / "alias").symlink_to(tmp_path / "db" / "doc")
    with pytest.raises(InstanceLockedError, match="this process") as caught:
        manager.get_client("alias", "azure")
    assert caught.value.pid == os.getpid()


def test_no_descriptors_left_is_an_error_and_work_goes_on_once_there_are(script) -> None:
    code = """
import resource
from conftest import new_collection
manager = ChromaDBManager(base_path=base, engine="embedded", idle_timeout=None)
first = new_collection(manager, "first")
used, hard = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the binding writes its panic there
opened = 0
try:
    for opened in range(20): manager.get_client(f"doc{opened}", "azure")
except InstanceOpenError as error:
    assert error.__cause__ is not None and f"doc{opened}/azure" in str(error)
    print("refused", 0 < opened < 20, first.count())
manager.cleanup_all_instances()
print(new_collection(manager, f"doc{opened}").count())
"""
    assert script(code).finish().splitlines() == ["refused True 1", "1"]


def test_a_signal_handler_may_clean_up_while_its_thread_waits_for_another_process(script) -> None:
    holder = script(HOLD)
    assert holder.read_line() == "holding"
    code = """
manager = ChromaDBManager(base_path=base, engine='embedded', lock_timeout=1)
def handler(number, frame):
    manager.cleanup_all_instances()
    print("cleaned up")
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    manager.get_client("doc", "azure")
except InstanceLockedError:
    print("still waited, as a caller who came later")
"""
    assert script(code).finish().splitlines() == ["cleaned up", "still waited, as a caller who came later"]
    holder.say()
    holder.finish()


def test_a_cleanup_does_not_wait_for_an_opening_that_waits(tmp_path: Path, script) -> None:
    holder = script(HOLD)
    assert holder.read_line() == "holding"
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded", lock_timeout=60)
    opening = threading.Thread(target=manager.get_client, args=("doc", "azure"))
    opening.start()
    time.sleep(0.3)
    begun = time.monotonic()
    manager.cleanup_all_instances()
    assert time.monotonic() - begun < 10, "the cleanup waited for the other process"
    assert opening.is_alive(), "whoever waits came later, and gets a new client"
    holder.say()
    holder.finish()
    opening.join(60)
    assert list(manager.stats()["instances"]) == ["doc/azure"]


def test_a_cleanup_from_within_an_opening_by_a_handle_closes_what_was_opened(manager, monkeypatch) -> None:
    import chroma_manager.engine.embedded
    from test_cleanup import files_open_in

    collection = new_collection(manager)
    assert manager.cleanup_old_instances(max_idle=0) == 1
    working = chroma_manager.engine.embedded.open_bindings

    def open_and_clean_up(*arguments: object) -> object:
        opened = working(*arguments)
        manager.cleanup_all_instances()
        return opened

    with monkeypatch.context() as patch:
        patch.setattr(chroma_manager.engine.embedded, "open_bindings", open_and_clean_up)
        with pytest.raises(ClientClosedError):
            collection.count()
    assert manager.stats()["instances"] == {}
    assert files_open_in(Path(manager._get_db_path("doc", "azure"))) == []


def test_an_sqlite_file_without_chroma_s_tables_is_chroma_s_to_judge(manager: ChromaDBManager) -> None:
    directory = Path(manager._get_db_path("doc", "azure"))
    directory.mkdir(parents=True)
    with sqlite3.connect(directory / "chroma.sqlite3") as database:
        database.execute("create table mine (x)")
    database.close()
    assert new_collection(manager).count() == 1


def test_a_database_without_its_tenant_is_an_error_when_it_is_opened(manager: ChromaDBManager) -> None:
    new_collection(manager)
    manager.cleanup_all_instances()
    with sqlite3.connect(Path(manager._get_db_path("doc", "azure"), "chroma.sqlite3")) as database:
        database.execute("delete from collections")
        database.execute("delete from databases")
        database.execute("delete from tenants")
    database.close()
    assert open_error(manager).__cause__ is not None


def test_a_call_within_a_call_does_not_wait_for_another_thread_s_opening(manager, monkeypatch) -> None:
    import chroma_manager.engine.embedded

    collection = new_collection(manager)
    opening, released = threading.Event(), threading.Event()
    working = chroma_manager.engine.embedded.open_bindings

    def open_slowly(*arguments: object) -> object:
        opening.set()
        assert released.wait(60)
        return working(*arguments)

    monkeypatch.setattr(chroma_manager.engine.embedded, "open_bindings", open_slowly)
    thread = threading.Thread(target=manager.get_client, args=("other", "azure"))
    thread.start()
    assert opening.wait(60)
    errors: list[object] = []

    def nested() -> None:
        try:
            manager.get_client("other", "azure")
        except InstanceOpenError as error:
            errors.append(error)

    try:
        assert get_with(collection, PausingIds(nested))["ids"] == ["1"]
    finally:
        released.set()
        thread.join(60)
    assert len(errors) == 1


def test_a_database_that_was_given_up_is_free_although_a_child_without_our_hooks_lives(script) -> None:
    """A fork from C, as of a library that starts a program, runs no hook of Python."""
    code = """
import ctypes
from conftest import new_collection
manager = ChromaDBManager(base_path=base)
new_collection(manager)
pid = ctypes.PyDLL(None).fork()
if pid == 0:
    time.sleep(20)
    os._exit(0)
try:
    manager.cleanup_all_instances()
    print(new_collection(manager).count())
finally:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""
    assert script(code).finish() == "1"


def test_the_known_migrations_are_those_of_the_chroma_that_they_are_said_to_be_of() -> None:
    installed = template.migrations()
    assert all(installed[name] >= version for name, version in migrations.KNOWN_MIGRATIONS.items())
    if chromadb.__version__ == "1.5.9":
        assert installed == migrations.KNOWN_MIGRATIONS


def test_a_transaction_that_a_killed_writer_left_is_rolled_back(manager: ChromaDBManager) -> None:
    new_collection(manager)
    manager.cleanup_all_instances()
    file = Path(manager._get_db_path("doc", "azure"), "chroma.sqlite3")
    code = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("pragma cache_size = 1")
database.execute("update embeddings_queue set vector = zeroblob(200000)")
database.execute("create table junk as select zeroblob(100000) from migrations")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=60)
    assert Path(f"{file}-journal").stat().st_size > 0, "the transaction is still there to be rolled back"
    collection = manager.get_collection("doc", "azure", "rag_collection")
    assert collection.get()["documents"] == ["one"]
