"""How many databases are open at once, and how large: `max_engines`, with each engine, and `max_memory`."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from chroma_manager import ChromaDBManager, InstanceOpenError, ManagerConfigurationError
from chroma_manager.options import ENGINES, SERVER
from conftest import (
    CallInside,
    InCall,
    PausingIds,
    all_at_once,
    engine_of,
    engines,
    eventually,
    get_with,
    in_thread,
    new_collection,
)


def open_files(manager: ChromaDBManager) -> list[str]:
    return [instance["file_id"] for instance in manager.stats()["instances"].values()]


@pytest.fixture(params=ENGINES)
def bounded(request: pytest.FixtureRequest, tmp_path: Path) -> ChromaDBManager:
    if request.param == SERVER:
        return request.getfixturevalue("chroma_server").manager(max_engines=2)
    return ChromaDBManager(base_path=tmp_path / "db", engine=request.param, max_engines=2)


def test_the_one_that_was_not_used_for_the_longest_time_is_closed_and_its_handles_go_on(bounded) -> None:
    collections = {name: new_collection(bounded, name) for name in ("a", "b")}
    client = bounded.get_client("b", "azure")
    collections["a"].count()
    collections["c"] = new_collection(bounded, "c")
    assert sorted(open_files(bounded)) == ["a", "c"]
    assert collections["b"].count() == 1
    assert sorted(open_files(bounded)) == ["b", "c"]
    assert bounded.get_client("b", "azure") is client
    assert bounded.stats()["evictions"] == 2


def test_threads_that_use_more_than_may_be_open_all_get_their_turn(bounded) -> None:
    def work(i: int) -> int:
        collection = new_collection(bounded, f"doc{i}")
        for n in range(10):
            collection.add(ids=[f"{n}"], embeddings=[[1.0, float(n)]])
            assert len(open_files(bounded)) <= 2
        return collection.count()

    assert all_at_once(5, work) == [10] * 5


def test_one_with_a_call_under_way_is_not_closed(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded", max_engines=2)
    busy = CallInside(new_collection(manager, "busy"))
    new_collection(manager, "idle")
    new_collection(manager, "third")
    assert sorted(open_files(manager)) == ["busy", "third"]
    assert busy.finish() == ["1"]


def test_where_all_are_in_use_it_waits_for_one(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", max_engines=1)
    collection = new_collection(manager)
    (engine,) = psutil.Process().children()
    call = InCall(engine, collection.count)
    other = InCall(engine, lambda: new_collection(manager, "other").count())
    engine.resume()
    assert (call.finish(), other.finish()) == (1, 1)
    assert open_files(manager) == ["other"]


def test_the_bound_is_of_processes(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated", max_engines=3)
    for i in range(8):
        new_collection(manager, f"doc{i}")
        assert len(engines()) <= 3
    manager.cleanup_all_instances()
    assert eventually(lambda: psutil.Process().children() == [])
    assert new_collection(manager).count() == 1


def test_a_failed_opening_gives_its_place_back(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", max_engines=1)
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "bad").write_text("a file in the way")
    for _ in range(3):
        with pytest.raises(Exception, match="bad/azure"):
            manager.get_client("bad", "azure")
    assert new_collection(manager).count() == 1


def test_a_closed_database_s_clients_are_forgotten_when_it_is_idle(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", max_engines=1, idle_timeout=None)
    client = manager.get_client("evicted", "azure")
    new_collection(manager)
    assert in_thread(lambda: manager.cleanup_old_instances(max_idle=0)) == 1
    assert manager.get_client("evicted", "azure") is not client


@pytest.mark.timeout(30)
def test_a_call_within_the_call_that_takes_the_only_place_is_refused(tmp_path: Path) -> None:
    """It would wait for itself."""
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded", max_engines=1)
    collection = new_collection(manager)
    outcomes: list[object] = []

    def inside() -> None:
        with pytest.raises(InstanceOpenError, match="this very thread") as caught:
            manager.get_client("other", "azure")
        outcomes.append(caught.value.file_id)

    assert get_with(collection, PausingIds(inside))["ids"] == ["1"]
    assert outcomes == ["other"]


def test_a_cleanup_does_not_wait_for_the_place_that_an_opening_waits_for(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="embedded", max_engines=1)
    busy = CallInside(new_collection(manager, "busy"))
    opening = threading.Thread(target=lambda: new_collection(manager, "waits"))
    opening.start()
    time.sleep(0.2)
    cleanup = threading.Thread(target=lambda: manager.cleanup_instance("waits", "azure"))
    cleanup.start()
    cleanup.join(5)
    returned = not cleanup.is_alive()
    assert busy.finish() == ["1"]
    for thread in (opening, cleanup):
        thread.join(30)
    assert returned
    assert open_files(manager) == ["waits"]


# The memory of engine processes

measurable = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists() or "isolated" not in ENGINES, reason="only Linux tells it"
)

SIZES = {"small": 1, "middle": 1200, "large": 4000}


def sizes(manager: ChromaDBManager) -> dict[str, int]:
    return {instance["file_id"]: instance["memory"] for instance in manager.stats()["instances"].values()}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Databases of different sizes, and how many bytes an engine process has that has read one."""
    base = tmp_path_factory.mktemp("sizes")
    with ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None) as manager:
        for name, count in SIZES.items():
            collection = manager.get_collection(name, "azure", "rag_collection")
            vectors = np.random.default_rng(0).random((count, 1024), dtype=np.float32)
            for start in range(0, count, 1000):
                part = vectors[start : start + 1000]
                collection.add(ids=[str(start + i) for i in range(len(part))], embeddings=part)
        manager.cleanup_all_instances()
        read(manager)
        return base, sizes(manager)


def read(manager: ChromaDBManager) -> dict[str, object]:
    """Has each engine process load its index. The largest one is the first to be idle."""
    collections = {name: manager.get_collection(name, "azure", "rag_collection") for name in reversed(SIZES)}
    for collection in collections.values():
        collection.query(query_embeddings=[[1.0] * 1024], n_results=1)
    return collections


@measurable
def test_stats_tell_the_memory_of_each_engine_process(filled, tmp_path: Path) -> None:
    base, before = filled
    assert before["small"] < before["middle"] < before["large"]
    with ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None) as manager:
        read(manager)
        for name, size in sizes(manager).items():
            assert size == pytest.approx(engine_of(manager, name).memory_full_info().pss, rel=0.2)


@measurable
def test_beyond_the_budget_the_largest_idle_one_is_closed_and_its_handles_go_on(filled) -> None:
    base, before = filled
    budget = sum(before.values()) - before["large"] // 2
    with ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None, max_memory=budget) as manager:
        collections = read(manager)
        assert eventually(lambda: "large" not in sizes(manager))
        time.sleep(3)
        assert sorted(sizes(manager)) == ["middle", "small"]
        assert manager.stats()["evictions"] == 1
        assert collections["large"].count() == SIZES["large"]


@measurable
def test_within_the_budget_none_is_closed(filled) -> None:
    base, before = filled
    budget = 2 * sum(before.values())
    with ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None, max_memory=budget) as manager:
        read(manager)
        time.sleep(5)
        assert sorted(sizes(manager)) == sorted(SIZES)


@pytest.mark.long
@measurable
def test_one_with_a_call_in_flight_or_just_used_is_not_closed_for_the_budget(filled) -> None:
    base, _ = filled
    with ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None, max_memory=1) as manager:
        collections = read(manager)
        call = InCall(engine := engine_of(manager, "large"), collections["large"].count)
        until = time.monotonic() + 6
        while time.monotonic() < until:
            collections["middle"].count()
            time.sleep(0.1)
        opened = sorted(sizes(manager))
        engine.resume()
        assert call.finish() == SIZES["large"]
        assert opened == ["large", "middle"]
        assert eventually(lambda: sizes(manager) == {})
        assert collections["middle"].count() == SIZES["middle"]


def test_a_budget_is_refused_with_the_engine_that_cannot_keep_it(tmp_path: Path) -> None:
    with pytest.raises(ManagerConfigurationError, match="max_memory=1000: with engine='embedded'"):
        ChromaDBManager(base_path=tmp_path, engine="embedded", max_memory=1000)
    assert ChromaDBManager(base_path=tmp_path, engine="embedded", max_memory=None) is not None
