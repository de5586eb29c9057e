"""Checkpoints that are taken while the database is open, and what becomes of one that is interrupted."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from chroma_manager import ChromaDBManager, ChromaManagerError
from chroma_manager.durability.open_checkpoint import OpenCheckpoint
from chroma_manager.options import ENGINES
from chroma_manager.worker import background_checkpoint
from chroma_manager.worker.background_checkpoint import BackgroundCheckpoint
from conftest import (
    called,
    directory,
    engine_of,
    eventually,
    has_ended,
    kill_engines,
    log_of,
    long,
    queried,
    sql,
    suspend,
)
from model import Model

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

# So many records make one due.
ENOUGH = 10_000


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


@pytest.fixture
def model(manager: ChromaDBManager) -> Model:
    """With some records, whose engine process is there."""
    model = Model(manager)
    model.add(100)
    return model


def add_enough(model: Model) -> None:
    for _ in range(0, ENOUGH, 2500):
        model.add(2500)


def positions(manager: ChromaDBManager) -> list[int]:
    """The sequence ids up to which the copies in the manifest have applied the log."""
    file = directory(manager) / ".chroma_manager" / "checkpoint.json"
    content = json.loads(file.read_text())["content"] if file.exists() else {}
    return [index["position"] for index in content.values()]


def checkpoint_process(manager: ChromaDBManager) -> psutil.Process:
    """The process that copies and proves, once it is there."""
    engine = engine_of(manager)
    assert eventually(lambda: bool(called(engine.children(), "chroma-copy")))
    (process,) = called(engine.children(), "chroma-copy")
    return process


def copies(manager: ChromaDBManager) -> list[str]:
    """The names of the copies of index files."""
    return [path.name for path in (directory(manager) / ".chroma_manager").glob("*@*")]


def have_suspended(
    manager: ChromaDBManager, model: Model, *, is_copying: bool = False
) -> tuple[psutil.Process, threading.Thread]:
    """That process, in the middle of a checkpoint, where it stays; and a thread whose last call may wait for it.

    If it is to be copying, most calls wait for it. It reads what it is told in a second thread.
    """
    is_enough = threading.Event()

    def add() -> None:
        # Where the database is removed, the last call fails.
        with contextlib.suppress(ChromaManagerError):
            while not is_enough.is_set():
                model.add(2500)

    adding = threading.Thread(target=add)
    adding.start()
    process = checkpoint_process(manager)
    while is_copying and process.num_threads() < 2:
        time.sleep(0.001)
    suspend(process)
    is_enough.set()
    adding.join(3)
    return process, adding


def test_one_is_kept_and_its_rows_are_purged_while_the_database_stays_open(
    manager: ChromaDBManager, model: Model
) -> None:
    engine = engine_of(manager)
    database = {file.fd for file in engine.open_files() if file.path.endswith("chroma.sqlite3")}
    add_enough(model)
    # On a slow machine it was taken before the last of these writes.
    assert eventually(lambda: any(position > 1000 for position in positions(manager)))
    assert eventually(lambda: queried(manager, "select count(*) from embeddings_queue")[0][0] < ENOUGH - 1000)
    assert eventually(lambda: engine.children() == [])
    assert database <= {file.fd for file in engine.open_files() if file.path.endswith("chroma.sqlite3")}
    assert (directory(manager) / ".chroma_manager" / "open").exists()
    assert len(copies(manager)) == 1
    assert log_of(manager).read_text() == ""
    model.assert_is_there()
    kill_engines()
    model.assert_is_there()
    manager.cleanup_all_instances()
    assert manager.verify("doc", "azure").ok


@pytest.mark.parametrize(
    "step", ["manifest written in the background", *long("file copied", "copied", "log shortened in the background")]
)
def test_a_kill_at_a_step_of_one_loses_nothing(
    manager: ChromaDBManager, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Some of the steps are those of the process that copies; then the engine process goes on without it."""
    model = Model(manager)
    monkeypatch.setenv("CHROMA_MANAGER_KILL_AT", step)
    model.add(100)
    killed = engine_of(manager)
    monkeypatch.delenv("CHROMA_MANAGER_KILL_AT")
    is_ours = step == "manifest written in the background"
    add_enough(model)
    assert eventually(lambda: has_ended(killed) if is_ours else killed.children() == [])
    assert is_ours or eventually(lambda: len(copies(manager)) == len(positions(manager)), 5), "half a copy takes room"
    model.add(100)
    model.assert_is_there()
    kill_engines()
    model.assert_is_there()
    assert manager.verify("doc", "azure").ok


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_kills_of_everything_at_any_moment_lose_nothing(manager: ChromaDBManager, model: Model, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(3):
        killer = threading.Timer(chance.uniform(0.5, 3.0), kill_engines)
        killer.start()
        for _ in range(chance.randint(3, 6)):
            model.add(2500)
        killer.join()
        model.assert_is_there()


def closes(manager: ChromaDBManager, _: Path) -> None:
    manager.cleanup_all_instances()


def snapshots(manager: ChromaDBManager, path: Path) -> None:
    manager.snapshot("doc", "azure", path / "snapshot")


def compacts(manager: ChromaDBManager, _: Path) -> None:
    manager.compact("doc", "azure")


@pytest.mark.parametrize(
    ("work", "is_copying"),
    [
        (closes, True),
        *(pytest.param(work, False, marks=pytest.mark.long) for work in (closes, snapshots, compacts)),
    ],
)
def test_whoever_closes_the_database_ends_it(
    manager: ChromaDBManager,
    model: Model,
    tmp_path: Path,
    work: Callable[[ChromaDBManager, Path], None],
    is_copying: bool,
) -> None:
    process, adding = have_suspended(manager, model, is_copying=is_copying)
    began = time.monotonic()
    work(manager, tmp_path)
    assert time.monotonic() - began < 15
    assert has_ended(process)
    adding.join(60)
    assert eventually(lambda: len(copies(manager)) == 1)
    model.assert_is_there()
    kill_engines()
    model.assert_is_there()


def test_a_collection_may_be_deleted_while_its_copy_is_proven(manager: ChromaDBManager, model: Model) -> None:
    Model(manager, "other").add(1500)
    model.add(1500)
    # Without an engine process, which would take checkpoints of its own, and remove these copies.
    kill_engines()
    checkpoint = OpenCheckpoint(directory(manager))
    checkpoint.copy([])
    sql(directory(manager), "delete from collections where name = 'other'")
    proven, segments = checkpoint.prove()
    assert [*proven] == segments, "of the collection that is there"
    assert len(segments) == 1


def test_the_copy_of_a_deleted_collection_goes_with_the_next_one(manager: ChromaDBManager, model: Model) -> None:
    Model(manager, "other").add(1500)
    add_enough(model)
    assert eventually(lambda: len(positions(manager)) == len(copies(manager)) == 2)
    manager.get_client("doc", "azure").delete_collection("other")
    add_enough(model)
    assert eventually(lambda: len(positions(manager)) == len(copies(manager)) == 1)
    model.assert_is_there()


@pytest.mark.parametrize("ending", [signal.SIGSTOP, signal.SIGKILL])
def test_half_an_answer_is_none_and_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: signal.Signals
) -> None:
    """Of a database with some hundred collections it is longer than what a pipe holds."""
    monkeypatch.setattr(background_checkpoint, "ANSWERS_WITHIN", 2)
    program = "import os, sys; print('ready', flush=True); sys.stdin.readline(); print('half', end='', flush=True);"
    program += f"os.kill(os.getpid(), {ending:d})"
    arguments = {"packages": {}, "version": "", "python": {"command": [sys.executable], "checkpoint": ["-c", program]}}
    (tmp_path / ".chroma_manager").mkdir()
    checkpoint = BackgroundCheckpoint(arguments, tmp_path)
    assert checkpoint.begin([])
    assert checkpoint.purge(lambda: False) is None
    assert not checkpoint.is_there, "it purges nothing more"
    assert not checkpoint.is_interrupted


def test_a_deletion_ends_it(manager: ChromaDBManager, model: Model) -> None:
    process, adding = have_suspended(manager, model)
    path = directory(manager)
    assert manager.delete_instance("doc", "azure")
    adding.join(60)
    assert has_ended(process)
    assert not path.exists()


def test_where_the_directory_is_removed_it_ends_with_the_engine_process(manager: ChromaDBManager, model: Model) -> None:
    engine = engine_of(manager)
    process, adding = have_suspended(manager, model)
    moved = directory(manager).rename(directory(manager).with_name("moved"))
    shutil.rmtree(moved)
    adding.join(60)
    new = Model(manager)
    new.add(10)
    new.assert_is_there()
    assert eventually(lambda: has_ended(engine) and has_ended(process))


def test_it_ends_with_an_engine_process_that_is_killed(manager: ChromaDBManager, model: Model) -> None:
    engine = engine_of(manager)
    process, adding = have_suspended(manager, model)
    engine.kill()
    process.resume()
    assert eventually(lambda: has_ended(process))
    adding.join(60)
    model.assert_is_there()


@pytest.mark.long
def test_where_the_process_cannot_work_the_database_is_closed_for_it_instead(
    manager: ChromaDBManager, model: Model
) -> None:
    process, adding = have_suspended(manager, model)
    process.kill()
    adding.join(60)
    deadline = time.monotonic() + 60
    while positions(manager) == [] and time.monotonic() < deadline:
        model.add(2500)
    assert positions(manager) != []
    model.assert_is_there()
