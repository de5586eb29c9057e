"""What a database goes through while faults are injected: lives, each with what was there before it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import KEY, App, database_of, stock_client, value_of, write


def ids(prefix: str, count: int) -> list[str]:
    """Of records."""
    return [f"{prefix}{i}" for i in range(count)]


@dataclass(frozen=True)
class Life:
    """A life of a database.

    Attributes:
        name: As on the command line.
        play: What is done while operations are counted and fail.
        prepare: What was done before, without faults; once for all runs.
        damage: What happened to the closed database after that.
        first_aid: What a fresh app does to open it afterwards.
    """

    name: str
    play: Callable[[App], None]
    prepare: Callable[[App], None] | None = None
    damage: Callable[[Path], None] | None = None
    first_aid: Callable[[Any], None] | None = None


def _new(app: App) -> None:
    app.create("one")
    app.write("add", "one", ids("a", 40))
    app.write("add", "one", ids("b", 30))
    app.write("upsert", "one", [*ids("a", 10), *ids("c", 10)], 1)
    app.write("update", "one", ids("b", 15), 1)
    app.write("delete", "one", ids("a", 5))
    app.write("add", "one", ids("d", 30))
    app.close()


def _two_collections(app: App) -> None:
    app.create("one")
    app.create("two", "cosine")
    app.write("add", "one", ids("a", 120))
    app.write("add", "two", ids("a", 70))
    app.write("delete", "one", ids("a", 5))
    app.close()


def _known(app: App) -> None:
    app.open()
    app.write("update", "one", ids("a", 60)[10:], 1)
    app.write("add", "two", ids("b", 20))
    app.write("delete", "one", ids("a", 20)[15:])
    app.write("upsert", "two", ids("a", 40), 1)
    app.close()


def _left_open(app: App) -> None:
    _two_collections(app)
    app.write("update", "one", ids("a", 60)[10:], 1)
    app.write("upsert", "two", ids("b", 20), 1)
    app.write("delete", "one", ids("a", 20)[15:])
    app.kill_engine()


def _left_open_new(app: App) -> None:
    app.create("one")
    app.write("add", "one", ids("a", 120))
    app.write("delete", "one", ids("a", 5))
    app.write("update", "one", ids("a", 40)[5:], 1)
    app.kill_engine()


def _recovered(app: App) -> None:
    app.open()
    app.write("add", "one", ids("r", 20), 2)
    app.close()


def _snapshot(app: App) -> None:
    app.open()
    app.write("update", "one", ids("a", 60)[10:], 1)
    app.snapshot("first")
    app.write("add", "two", ids("s", 20))
    app.close()


def _with_snapshot(app: App) -> None:
    _two_collections(app)
    app.snapshot("first")
    app.create("three")
    app.write("add", "three", ids("a", 60))
    app.write("update", "one", ids("a", 60)[10:], 1)
    app.drop("two")
    app.close()


def _restored(app: App) -> None:
    app.open()
    app.write("update", "one", ids("a", 100)[60:], 2)
    app.restore("first")
    app.open()
    app.write("upsert", "one", ids("e", 20), 3)
    app.close()


def _thinned(app: App) -> None:
    _two_collections(app)
    app.write("delete", "one", ids("a", 100)[5:])
    app.write("delete", "two", ids("a", 30))
    app.close()


def _compacted(app: App) -> None:
    app.open()
    app.write("update", "one", ids("a", 120)[100:], 1)
    app.compact()
    app.open()
    app.write("upsert", "two", ids("e", 20), 3)
    app.close()


def _index_is_cut_off(database: Path) -> None:
    """The log has rows of it no more, and the checkpoint has a copy."""
    for file in database.glob("[!.]*/data_level0.bin"):
        os.truncate(file, 40)


def _length_is_gone(database: Path) -> None:
    for file in database.glob("[!.]*/length.bin"):
        file.unlink()


def _repaired(app: App) -> None:
    app.repair()
    app.open()
    app.write("add", "one", ids("g", 20), 1)
    app.close()


def _repair(manager: Any) -> None:
    manager.verify(*KEY, repair=True)


def _three_collections(app: App) -> None:
    _two_collections(app)
    app.create("three")
    app.write("add", "three", ids("a", 60))
    app.create("four")
    app.write("add", "four", ids("a", 10))
    app.close()


def _collections(app: App) -> None:
    app.open()
    app.rename("one", "one-renamed")
    app.drop("three")
    app.annotate("two", "changed")
    app.create("five")
    app.write("add", "five", ids("a", 60))
    app.drop("five")
    app.write("upsert", "two", ids("a", 10), 1)
    app.drop("four")
    app.create("six")
    app.close()


def _made_by_chroma(app: App) -> None:
    app.manager.shutdown()
    database_of(app.root).mkdir(parents=True)
    client = stock_client(database_of(app.root))
    index = {"sync_threshold": 50, "batch_size": 20}
    one = client.create_collection(
        "one", embedding_function=None, metadata={"note": "new"}, configuration={"hnsw": index}
    )
    values = {key: value_of(app.seed, "one", key, 0) for key in ids("a", 120)}
    write(one, "add", dict(values))
    client.close()
    app.model.create("one", "l2", "new", True)
    app.model.write("one", "add", values, True)


def _adopted(app: App) -> None:
    app.open()
    app.write("update", "one", ids("a", 60)[10:], 1)
    app.write("delete", "one", ids("a", 20)[15:])
    app.write("add", "one", ids("b", 20))
    app.close()


def _many(app: App) -> None:
    app.create("one", rewrites_after=1000)
    app.write("add", "one", ids("a", 1100))
    app.close()


def _background(app: App) -> None:
    """So many writes, slowly, that a checkpoint is taken while the database is open."""
    app.create("one", rewrites_after=1000)
    app.write("add", "one", ids("a", 1100))
    for version in (1, 2):
        app.write("update", "one", ids("a", 1100), version)
    app.write("delete", "one", ids("a", 100))
    app.close()


LIVES = {
    life.name: life
    for life in (
        Life("new", _new),
        Life("known", _known, _two_collections),
        Life("many", _many),
        Life("background", _background),
        Life("recovery", _recovered, _left_open),
        Life("recovery-without-checkpoint", _recovered, _left_open_new),
        Life("snapshot", _snapshot, _two_collections),
        Life("restore", _restored, _with_snapshot),
        Life("compact", _compacted, _thinned),
        Life("collections", _collections, _three_collections),
        Life("made-by-chroma", _adopted, _made_by_chroma),
        Life("repair-of-an-index", _repaired, _two_collections, _index_is_cut_off, _repair),
        Life("repair-of-a-length", _repaired, _two_collections, _length_is_gone, _repair),
    )
}


def copy_tree(source: Path, target: Path) -> None:
    """With the times of the files, which checkpoints know."""
    shutil.copytree(source, target, symlinks=True)
