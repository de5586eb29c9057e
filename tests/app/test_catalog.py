"""What the catalogue says to several workers, each of which has a `Catalog` of one file."""

from __future__ import annotations

import multiprocessing
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually
from rag_app.catalog import Catalog
from rag_app.errors import DuplicateError

BEGINNINGS = 50


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite3"


def test_a_file_that_another_model_left_half_embedded_is_known_by_the_one_that_finished_it(path: Path) -> None:
    before = Catalog(path, 30)
    file_id = before.add("birds.txt", "txt", 1, "digest", "azure-a")
    before.stored(file_id, 1)
    after = Catalog(path, 30)
    after.embed_again("azure-b")
    assert after.claim_to_embed() is not None
    assert after.ready(file_id, "azure-b")
    after.embed_again("azure-b")
    assert [file.status for file in after.files()] == ["ready"]
    before.embed_again("azure-a")
    assert [file.status for file in before.files()] == ["waiting"]


def test_a_deletion_that_fails_is_tried_again_after_pauses_that_grow(path: Path) -> None:
    catalog = Catalog(path, 30)
    catalog.say_alive()
    file_id = catalog.add("birds.txt", "txt", 1, "digest", "local")
    catalog.delete(file_id)
    pauses = []
    for _ in range(12):
        catalog.leave(file_id)
        with closing(sqlite3.connect(path)) as file:
            (remove_after,) = file.execute("select remove_after from files").fetchone()
        pauses.append(round(remove_after - time.time()))
        assert catalog.claim_to_remove() is None
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_a_catalogue_of_an_earlier_version_is_used(path: Path) -> None:
    file_id = Catalog(path, 30).add("birds.txt", "txt", 1, "digest", "local")
    with closing(sqlite3.connect(path)) as file:
        for name in ("removals_failed", "remove_after"):
            file.execute(f"alter table files drop column {name}")
    catalog = Catalog(path, 30)
    catalog.delete(file_id)
    catalog.leave(file_id)
    assert catalog.files() == []


def test_what_a_dead_worker_has_half_stored_can_be_added_again(path: Path) -> None:
    dead, other = Catalog(path, 0.1), Catalog(path, 0.1)
    dead.say_alive()
    dead.add("birds.txt", "txt", 1, "digest", "local")
    with pytest.raises(DuplicateError, match=r"birds\.txt is here already"):
        other.add("birds.txt", "txt", 1, "digest", "local")
    assert eventually(lambda: other.claim_to_remove() is not None)
    other.add("birds.txt", "txt", 1, "digest", "local")


def test_content_that_is_deleted_while_it_is_added_again_is_added_or_is_there(path: Path) -> None:
    catalog = Catalog(path, 30)

    def add_and_delete(_: int) -> None:
        with suppress(DuplicateError):
            catalog.delete(catalog.add("birds.txt", "txt", 1, "digest", "local"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_and_delete, range(1000)))


def begin(root: Path, together: Any, problems: Any) -> None:
    """Opens new catalogues, each at the same moment as the other workers do."""
    problem = ""
    for number in range(BEGINNINGS):
        together.wait(60)
        try:
            Catalog(root / f"{number}", 30).say_alive()
        except sqlite3.Error as error:
            problem = repr(error)
    problems.put(problem)


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_workers_that_begin_at_once_share_a_new_catalogue(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    together, problems = fork.Barrier(4), fork.Queue()
    workers = [fork.Process(target=begin, args=(tmp_path, together, problems)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [problems.get(timeout=60) for _ in workers] == [""] * 4
    for worker in workers:
        worker.join(60)
    assert all(Catalog(tmp_path / f"{number}", 30).workers() == 4 for number in range(BEGINNINGS))
