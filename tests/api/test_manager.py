"""There is one manager in a process; its options; how it ends, is passed on and is subclassed."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import os
import pickle
import weakref
from pathlib import Path

import pytest
from chroma_manager import ChromaDBManager, ClientClosedError, ManagerConfigurationError
from chromadb.config import Settings
from conftest import CallInside, all_at_once, new_collection, on_every_engine


class Subclass(ChromaDBManager):
    """An app's own manager, with an attribute and an `__init__` of its own."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.name = "mine"


@pytest.mark.parametrize("cls", [ChromaDBManager, Subclass])
def test_thirty_two_threads_that_make_the_first_one_get_the_same_one(cls, tmp_path: Path) -> None:
    managers = all_at_once(32, lambda _: cls(base_path=tmp_path))
    assert {id(manager) for manager in managers} == {id(managers[0])}
    assert type(managers[0]) is cls


@on_every_engine
def test_a_construction_without_options_returns_the_same_object(manager: ChromaDBManager) -> None:
    assert ChromaDBManager() is manager


def test_a_construction_with_the_same_options_returns_the_same_object(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    manager = ChromaDBManager("db", settings=Settings(allow_reset=True), idle_timeout=7)
    same = ChromaDBManager(base_path=tmp_path / "db", settings=Settings(allow_reset=True), idle_timeout=7.0)
    assert same is manager


def test_a_manager_that_nobody_holds_gives_way_to_one_with_other_options(tmp_path: Path) -> None:
    forgotten = weakref.ref(ChromaDBManager(base_path=tmp_path / "a"))
    assert new_collection(forgotten()).count() == 1
    thread = CallInside(new_collection(forgotten(), "busy"))
    with pytest.raises(ManagerConfigurationError, match="base_path"):
        ChromaDBManager(base_path=tmp_path / "b")
    assert thread.finish() == ["1"]
    del thread
    collection = new_collection(forgotten())
    with pytest.raises(ManagerConfigurationError, match="base_path"):
        ChromaDBManager(base_path=tmp_path / "b")
    assert collection.count() == 1
    del collection
    manager = ChromaDBManager(base_path=tmp_path / "b")
    assert forgotten() is None
    assert new_collection(manager).count() == 1
    assert Path(tmp_path, "b", "doc").exists()
    del manager
    manager = ChromaDBManager(base_path=tmp_path / "a", engine="embedded")
    assert new_collection(manager).count() == 1, "the first one has its databases still"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("base_path", "elsewhere"),
        ("idle_timeout", 1.0),
        ("lock_timeout", 1.0),
        ("max_engines", 7),
        ("compact_at_close", True),
        ("settings", Settings(allow_reset=True)),
    ],
)
@on_every_engine
def test_a_construction_with_another_option_is_refused_and_names_it(manager, option: str, value: object) -> None:
    with pytest.raises(ManagerConfigurationError, match=option):
        ChromaDBManager(**{option: value})
    assert ChromaDBManager() is manager


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("engine", "imaginary"),
        ("engine", None),
        ("idle_timeout", 0),
        ("idle_timeout", -1),
        ("idle_timeout", float("nan")),
        ("idle_timeout", "soon"),
        ("lock_timeout", -1),
        ("lock_timeout", float("inf")),
        ("lock_timeout", None),
        ("max_engines", 0),
        ("max_engines", -1),
        ("max_engines", 1 << 70),
        ("max_engines", 2.0),
        ("max_engines", True),
        ("max_memory", 0),
        ("max_memory", -1),
        ("max_memory", 1e9),
        ("max_memory", True),
        ("max_memory", "2G"),
        ("max_memory", 1 << 64),
        ("compact_at_close", None),
        ("compact_at_close", 1),
        ("call_timeout", 0),
        ("call_timeout", -1),
        ("call_timeout", "soon"),
        ("base_path", ""),
        ("base_path", 3),
        ("base_path", b"bytes"),
        ("base_path", "a\0b"),
        ("settings", {"allow_reset": True}),
        ("settings", Settings(chroma_api_impl="chromadb.api.fastapi.FastAPI")),
    ],
)
def test_an_option_that_cannot_be_is_refused_and_named(option: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ManagerConfigurationError, match=option):
        ChromaDBManager(**{option: value})
    assert ChromaDBManager(base_path=tmp_path) is not None, "nothing was made"


def test_a_call_timeout_is_refused_with_the_engine_that_cannot_keep_it(tmp_path: Path) -> None:
    with pytest.raises(ManagerConfigurationError, match="call_timeout=3: with engine='embedded'"):
        ChromaDBManager(base_path=tmp_path, engine="embedded", call_timeout=3)
    assert ChromaDBManager(base_path=tmp_path, engine="embedded", call_timeout=None) is not None


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="idle_timout"):
        ChromaDBManager(idle_timout=3)  # type: ignore[call-arg]


@on_every_engine
def test_after_shutdown_the_next_construction_configures_anew(manager: ChromaDBManager, tmp_path: Path) -> None:
    collection = new_collection(manager)
    manager.shutdown()
    manager.shutdown()
    other = ChromaDBManager(base_path=tmp_path / "other", idle_timeout=5)
    assert other is not manager
    with pytest.raises(ClientClosedError, match=r"get_client"):
        collection.count()
    with pytest.raises(ClientClosedError, match="ChromaDBManager"):
        manager.get_client("doc", "azure")
    manager.cleanup_all_instances()
    assert other.get_client("doc", "azure").heartbeat() > 0


def test_as_a_context_manager_it_is_shut_down_at_the_end(tmp_path: Path) -> None:
    with ChromaDBManager(base_path=tmp_path) as manager:
        collection = new_collection(manager)
        assert ChromaDBManager() is manager
    with pytest.raises(ClientClosedError):
        collection.count()


def test_a_subclass_is_the_one_manager_too(tmp_path: Path) -> None:
    mine = Subclass(base_path=tmp_path)
    assert ChromaDBManager() is mine
    assert Subclass() is mine
    assert mine.name == "mine"


@on_every_engine
def test_a_subclass_after_a_plain_manager_is_refused(manager: ChromaDBManager) -> None:
    with pytest.raises(ManagerConfigurationError, match="Subclass"):
        Subclass()
    assert ChromaDBManager() is manager


@on_every_engine
def test_it_copies_and_pickles_to_itself(manager: ChromaDBManager) -> None:
    assert copy.deepcopy(manager) is manager
    assert copy.copy(manager) is manager
    assert pickle.loads(pickle.dumps(manager)) is manager


def test_it_pickles_to_a_new_one_with_its_options_after_shutdown(tmp_path: Path) -> None:
    manager = ChromaDBManager(base_path=tmp_path, settings=Settings(allow_reset=True), idle_timeout=None)
    pickled = pickle.dumps(manager)
    manager.shutdown()
    again = pickle.loads(pickled)
    assert again is not manager
    with pytest.raises(ManagerConfigurationError, match="idle_timeout"):
        ChromaDBManager(idle_timeout=4)
    assert again.get_client("doc", "azure").get_settings().allow_reset


def count_in_worker(manager: ChromaDBManager, file_id: str) -> tuple[int, str, bool]:
    collection = manager.get_collection(file_id, "azure", "rag_collection")
    return collection.count(), manager._get_db_path(file_id, "azure"), ChromaDBManager() is manager


@pytest.mark.usefixtures("no_process_of_multiprocessing_is_left")
def test_it_can_be_passed_to_a_spawned_worker(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    manager = ChromaDBManager("db")
    new_collection(manager)
    manager.cleanup_all_instances()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(count_in_worker, manager, "doc").result(60)
    assert found == (1, str(tmp_path / "db" / "doc" / "azure"), True)


def test_settings_reach_every_database(tmp_path: Path) -> None:
    settings = Settings(allow_reset=True, persist_directory="/nowhere")
    manager = ChromaDBManager(base_path=tmp_path, settings=settings)
    collection = new_collection(manager)
    client = manager.get_client("doc", "azure")
    assert client.get_settings().persist_directory == str(tmp_path / "doc" / "azure")
    assert client.reset()
    assert client.list_collections() == []
    assert settings.persist_directory == "/nowhere", "what the app passed is the app's"
    assert collection.name == "rag_collection"


def test_a_relative_base_path_stays_where_it_was_when_the_app_changes_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    manager = ChromaDBManager(base_path="db")
    assert manager._get_db_path("doc", "azure") == os.path.join("db", "doc", "azure")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    manager.get_client("doc", "azure")
    assert (tmp_path / "db" / "doc" / "azure" / "chroma.sqlite3").is_file()


@on_every_engine
def test_chroma_s_own_settings_are_the_same_as_none_given(manager: ChromaDBManager, tmp_path: Path) -> None:
    from chromadb.config import Settings

    assert ChromaDBManager(settings=Settings()) is manager
    manager.shutdown()
    manager = ChromaDBManager(base_path=tmp_path, settings=Settings())
    assert ChromaDBManager(settings=None) is manager


def test_a_signal_handler_may_get_and_shut_down_the_manager_that_its_thread_shuts_down(script) -> None:
    code = """
from conftest import CallInside, new_collection
manager = ChromaDBManager(base_path=base)
call = CallInside(new_collection(manager))
def handler(number, frame):
    call.ids.released.set()
    ChromaDBManager().shutdown()
    print("handled")
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.3)
manager.shutdown()
print(call.finish())
"""
    assert script(code).finish().splitlines() == ["handled", "['1']"]


@on_every_engine
def test_a_late_shutdown_of_the_old_manager_leaves_the_new_one(manager: ChromaDBManager, tmp_path: Path) -> None:
    manager.shutdown()
    other = ChromaDBManager(base_path=tmp_path)
    manager.shutdown()
    assert ChromaDBManager() is other


def test_threads_that_are_switched_all_the_time_make_one_manager(tmp_path: Path) -> None:
    import sys

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            managers = all_at_once(16, lambda _: ChromaDBManager(base_path=tmp_path))
            assert len({id(manager) for manager in managers}) == 1
            managers[0].shutdown()
    finally:
        sys.setswitchinterval(interval)


def test_a_relative_base_path_is_the_same_as_itself(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    manager = ChromaDBManager("db")
    assert ChromaDBManager("db") is manager
    assert ChromaDBManager(Path("db")) is manager
