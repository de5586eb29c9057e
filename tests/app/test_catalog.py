"""What the catalogue says to several workers, each of which has a `Catalog` of one file."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from rag_app.catalog import Catalog


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
