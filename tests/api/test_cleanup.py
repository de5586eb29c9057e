"""Explicit cleanup is final and complete, whatever the threads are doing; idle closing is transparent."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import chromadb
import pytest
from chroma_manager import ChromaDBManager, ClientClosedError
from chromadb.config import Settings
from conftest import (
    CallInside,
    PausingIds,
    Script,
    all_at_once,
    directory,
    eventually,
    files_open_in,
    get_with,
    in_thread,
    new_collection,
    on_every_engine,
)


@on_every_engine
def test_cleanup_releases_an_instance_in_all_threads(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    go, cleaned = threading.Event(), threading.Event()
    outcomes: list[object] = []

    def other() -> None:
        client = manager.get_client("doc", "azure")
        theirs = manager.get_collection("doc", "azure", "rag_collection")
        go.set()
        assert cleaned.wait(60)
        for call in (client.heartbeat, theirs.count):
            try:
                outcomes.append(call())
            except Exception as error:
                outcomes.append(error)
        outcomes.append(manager.get_client("doc", "azure") is client)

    thread = threading.Thread(target=other)
    thread.start()
    assert go.wait(60)
    manager.cleanup_instance("doc", "azure")
    assert manager.stats()["instances"] == {}
    with pytest.raises(ClientClosedError, match=r"doc/azure.*get_client\(\)"):
        collection.count()
    cleaned.set()
    thread.join(60)
    assert [type(outcome) for outcome in outcomes[:2]] == [ClientClosedError, ClientClosedError]
    assert outcomes[2] is False


def test_the_error_of_a_closed_client_says_where(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    manager.cleanup_instance("doc", "azure")
    with pytest.raises(ClientClosedError) as caught:
        collection.get()
    error = caught.value
    assert (error.file_id, error.embedding_type, error.path) == ("doc", "azure", str(directory(manager)))


@on_every_engine
def test_cleanup_leaves_other_instances_alone(manager: ChromaDBManager) -> None:
    other = new_collection(manager, "other")
    new_collection(manager)
    manager.cleanup_instance("doc", "azure")
    assert other.count() == 1
    assert list(manager.stats()["instances"]) == ["other/azure"]


@on_every_engine
def test_after_cleanup_the_data_is_there_for_a_new_client(manager: ChromaDBManager) -> None:
    new_collection(manager)
    manager.cleanup_instance("doc", "azure")
    assert manager.get_collection("doc", "azure", "rag_collection").get()["documents"] == ["one"]


@on_every_engine
def test_cleanup_of_what_is_not_open_does_nothing(manager: ChromaDBManager, tmp_path: Path) -> None:
    manager.cleanup_instance("never", "opened")
    manager.cleanup_all_instances()
    manager.cleanup_all_instances()
    assert not (tmp_path / "db").exists()


def test_after_cleanup_the_directory_can_be_deleted_and_come_back(manager: ChromaDBManager) -> None:
    for round_number in range(5):
        collection = new_collection(manager)
        collection.add(ids=[f"round{round_number}"], embeddings=[[1.0, 2.0]])
        manager.cleanup_instance("doc", "azure")
        assert files_open_in(directory(manager)) == []
        shutil.rmtree(directory(manager).parent)
    assert not directory(manager).exists()


def test_after_cleanup_the_directory_can_be_replaced(manager: ChromaDBManager) -> None:
    new_collection(manager, "other")
    new_collection(manager).add(ids=["old"], embeddings=[[1.0, 2.0]])
    manager.cleanup_all_instances()
    shutil.rmtree(directory(manager))
    shutil.copytree(directory(manager, "other"), directory(manager))
    assert manager.get_collection("doc", "azure", "rag_collection").get()["ids"] == ["1"]


def test_after_cleanup_stock_chroma_can_open_the_directory(manager: ChromaDBManager) -> None:
    new_collection(manager)
    manager.cleanup_instance("doc", "azure")
    with chromadb.PersistentClient(str(directory(manager)), Settings(anonymized_telemetry=False)) as client:
        assert client.get_collection("rag_collection", embedding_function=None).get()["ids"] == ["1"]


def test_a_call_under_way_finishes_and_cleanup_waits_for_it(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    call = CallInside(collection)
    cleanup = threading.Thread(target=manager.cleanup_instance, args=("doc", "azure"))
    cleanup.start()
    cleanup.join(0.3)
    assert cleanup.is_alive(), "the database was closed under a call"
    with pytest.raises(ClientClosedError):
        collection.count()
    assert call.finish() == ["1"]
    cleanup.join(60)
    assert not cleanup.is_alive()
    assert files_open_in(directory(manager)) == []


def test_a_new_client_asked_for_during_a_cleanup_waits_for_it_and_works(manager: ChromaDBManager) -> None:
    call = CallInside(new_collection(manager))
    cleanup = threading.Thread(target=manager.cleanup_instance, args=("doc", "azure"))
    cleanup.start()
    assert eventually(lambda: manager.stats()["instances"]["doc/azure"]["clients"] == 0)
    counts: list[int] = []
    newcomer = threading.Thread(
        target=lambda: counts.append(manager.get_collection("doc", "azure", "rag_collection").count())
    )
    newcomer.start()
    newcomer.join(0.2)
    assert newcomer.is_alive(), "two databases were open at once"
    assert call.finish() == ["1"]
    newcomer.join(60)
    cleanup.join(60)
    assert counts == [1]
    assert manager.stats()["openings"] == 2


def test_a_cleanup_from_within_a_call_returns_and_the_call_finishes(manager: ChromaDBManager) -> None:
    """A signal handler or a finalizer may run in the middle of a call."""
    for cleanup in (lambda: manager.cleanup_instance("doc", "azure"), manager.cleanup_all_instances, manager.cleanup):
        collection = new_collection(manager)
        assert get_with(collection, PausingIds(cleanup))["ids"] == ["1"]
        with pytest.raises(ClientClosedError):
            collection.count()
        assert manager.stats()["instances"] == {}
        assert files_open_in(directory(manager)) == []


def test_a_shutdown_from_within_a_call_returns(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    assert get_with(collection, PausingIds(manager.shutdown))["ids"] == ["1"]
    assert files_open_in(directory(manager)) == []


@on_every_engine
def test_many_threads_may_clean_up_at_once(manager: ChromaDBManager) -> None:
    for i in range(4):
        new_collection(manager, f"doc{i}")
    calls = [manager.cleanup_all_instances, manager.cleanup, lambda: manager.cleanup_instance("doc0", "azure")]
    assert all_at_once(12, lambda i: calls[i % 3]()) == [None] * 12
    assert manager.stats()["instances"] == {}


@on_every_engine
def test_cleanup_works_from_a_thread_that_holds_nothing(manager: ChromaDBManager) -> None:
    new_collection(manager)
    assert in_thread(manager.cleanup_all_instances) is None
    assert manager.stats()["instances"] == {}


@pytest.mark.long
def test_what_closing_gives_back(script) -> None:
    """Threads, descriptors and memory of fifty databases, as in the evidence that stock Chroma keeps them all."""
    code = """
import psutil
def figures():
    process = psutil.Process()
    return process.memory_info().rss >> 20, process.num_threads(), process.num_fds()
def use(file_id):
    collection = manager.get_collection(file_id, "azure", "rag_collection")
    collection.add(ids=["1"], embeddings=[[1.0] * 1536])
    collection.query(query_embeddings=[[1.0] * 1536], n_results=1)
manager = ChromaDBManager(base_path=base, engine="embedded", idle_timeout=None)
use("warm"); manager.cleanup_all_instances(); time.sleep(0.5)
before = figures()
for i in range(50): use(f"doc{i}")
during = figures()
manager.cleanup_all_instances(); time.sleep(0.5)
after = figures()
print(*before, *during, *after)
"""
    figures = [int(figure) for figure in script(code).finish().split()]
    before, during, after = figures[:3], figures[3:6], figures[6:]
    assert during[1] - before[1] >= 50, "the databases were open"
    assert during[2] - before[2] >= 200
    assert after[1:] == before[1:]
    assert after[0] - before[0] <= (during[0] - before[0]) * 0.3


def test_an_idle_database_is_closed_and_handles_go_on(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path, idle_timeout=0.1)
    collection = new_collection(manager)
    client = manager.get_client("doc", "azure")
    assert eventually(lambda: manager.stats()["instances"] == {})
    assert eventually(lambda: files_open_in(directory(manager)) == [])
    assert collection.count() == 1
    assert client.count_collections() == 1
    assert in_thread(collection.count) == 1
    assert manager.stats()["openings"] >= 2


def test_a_database_in_a_call_is_not_idle(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path, idle_timeout=0.05)
    call = CallInside(new_collection(manager))
    time.sleep(0.4)
    assert list(manager.stats()["instances"]) == ["doc/azure"]
    assert call.finish() == ["1"]
    assert eventually(lambda: manager.stats()["instances"] == {})


@on_every_engine
def test_the_scheduler_s_call_closes_what_was_not_used(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    new_collection(manager, "fresh")
    assert manager.cleanup_old_instances() == 0
    assert manager.cleanup_old_instances(max_idle=300) == 0
    time.sleep(0.3)
    manager.get_client("fresh", "azure")
    assert manager.cleanup_old_instances(max_idle=0.2) == 1
    assert list(manager.stats()["instances"]) == ["fresh/azure"]
    assert collection.count() == 1, "closing what is idle is transparent"
    assert manager.cleanup_old_instances(max_idle=0) == 2
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="max_idle"):
            manager.cleanup_old_instances(max_idle=wrong)


@on_every_engine
def test_a_handle_of_an_idle_database_ends_with_an_explicit_cleanup(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    assert manager.cleanup_old_instances(max_idle=0) == 1
    manager.cleanup_instance("doc", "azure")
    with pytest.raises(ClientClosedError):
        collection.count()


@on_every_engine
def test_instances_that_come_and_go_leave_nothing_in_the_registry(manager: ChromaDBManager) -> None:
    for i in range(20):
        in_thread(lambda i=i: new_collection(manager, f"doc{i}"))
        manager.cleanup_old_instances(max_idle=0)
    stats = manager.stats()
    assert (stats["instances"], stats["openings"]) == ({}, 20)


def test_ctrl_c_ends_a_cleanup_that_waits(script) -> None:
    code = """
from conftest import CallInside, new_collection
manager = ChromaDBManager(base_path=base)
call = CallInside(new_collection(manager))
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    manager.cleanup_all_instances()
    print("cleanup did not wait")
except KeyboardInterrupt:
    print("interrupted")
print(call.finish(), manager.stats()["instances"])
"""
    started: Script = script(code)
    assert started.finish().splitlines() == ["interrupted", "['1'] {}"]


def test_a_signal_handler_may_clean_up_while_its_thread_opens(script) -> None:
    """SIGTERM during a request: the handler runs in the middle of whatever the main thread does."""
    code = """
from conftest import new_collection
manager = ChromaDBManager(base_path=base)
handled = []
def handler(number, frame):
    manager.cleanup_all_instances()
    handled.append(number)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.021)
end = time.monotonic() + 3
rounds = closed = 0
while time.monotonic() < end:
    try:
        new_collection(manager)
        rounds += 1
    except ClientClosedError:
        closed += 1
signal.setitimer(signal.ITIMER_REAL, 0)
manager.cleanup_all_instances()
assert len(handled) > 20 and rounds + closed > 0, (len(handled), rounds, closed)
print(manager.stats()["instances"])
"""
    assert script(code).finish() == "{}"
