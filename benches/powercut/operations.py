"""What can be done to a database on a logged disk, and what each call is to have changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from device import run
from model import CollectionState, State, rows

KEY = ("doc", "azure")

# Chroma rewrites its index files every so many records.
SMALL: dict[str, Any] = {"hnsw": {"space": "l2", "batch_size": 10, "sync_threshold": 20}}
USUAL: dict[str, Any] = {"hnsw": {"space": "l2"}}


class Context:
    """Where operations work: a manager whose databases are on the logged disk."""

    def __init__(self, disk: Path) -> None:
        from chroma_manager import ChromaDBManager

        self.disk = disk
        self.base = disk / "db"
        self.manager = ChromaDBManager(base_path=self.base, engine="isolated", idle_timeout=None, repair="never")

    @property
    def directory(self) -> Path:
        return self.base.joinpath(*KEY)

    def collection(self, name: str, configuration: Any = None) -> Any:
        return self.manager.get_collection(*KEY, name, configuration=configuration)

    def snapshot(self, name: str) -> Path:
        return self.disk / "snapshots" / name

    @property
    def checkpoint(self) -> int:
        """Changes when a checkpoint is taken."""
        manifest = self.directory / ".chroma_manager" / "checkpoint.json"
        return manifest.stat().st_mtime_ns if manifest.exists() else 0


@dataclass(frozen=True)
class Operation:
    """A call, and what is there after it.

    Attributes:
        is_whole: In flight, it is all there or not at all.
        until: It is left out as soon as this is so; and the power is not cut before the last one that was not.
    """

    name: str
    do: Callable[[Context], object]
    change: Callable[[State], None] = lambda _: None
    is_whole: bool = False
    until: Callable[[Context], bool] | None = None


def opening() -> Operation:
    def change(state: State) -> None:
        state.collections = state.collections or {}

    return Operation("open", lambda context: context.manager.get_client(*KEY), change)


def closing() -> Operation:
    return Operation("close", lambda context: context.manager.cleanup_all_instances())


def creation(name: str, configuration: Any = None, **metadata: Any) -> Operation:
    def do(context: Context) -> None:
        client = context.manager.get_client(*KEY)
        client.create_collection(name, metadata=metadata or None, configuration=configuration or SMALL)

    def change(state: State) -> None:
        state.collections = (state.collections or {}) | {name: CollectionState(dict(metadata))}

    return Operation(f"create_collection {name}", do, change)


def modification(name: str, new: str | None = None, metadata: dict[str, Any] | None = None) -> Operation:
    def do(context: Context) -> None:
        context.manager.get_client(*KEY).get_collection(name).modify(name=new, metadata=metadata)

    def change(state: State) -> None:
        assert state.collections is not None
        collection = state.collections.pop(name)
        collection.metadata = collection.metadata if metadata is None else metadata
        state.collections[new or name] = collection

    return Operation(f"modify {name}", do, change, is_whole=True)


def deletion(name: str) -> Operation:
    def change(state: State) -> None:
        assert state.collections is not None
        del state.collections[name]

    return Operation(
        f"delete_collection {name}", lambda context: context.manager.get_client(*KEY).delete_collection(name), change
    )


def write(method: str, records: list[int], version: int, name: str = "one", **options: Any) -> Operation:
    def do(context: Context) -> None:
        collection = context.manager.get_client(*KEY).get_collection(name)
        if method == "delete":
            collection.delete(ids=[str(record) for record in records])
        else:
            getattr(collection, method)(**rows(records, version))

    def change(state: State) -> None:
        assert state.collections is not None
        of = state.collections[name].records
        for record in records:
            if method == "delete":
                of.pop(record, None)
            elif (method == "add" and record not in of) or (method == "update" and record in of) or method == "upsert":
                of[record] = version

    return Operation(f"{method} {len(records)}", do, change, is_whole=True, **options)


def snapshot(name: str) -> Operation:
    def do(context: Context) -> None:
        context.manager.snapshot(*KEY, context.snapshot(name))

    def change(state: State) -> None:
        state.snapshots[name] = state.copy().collections or {}

    return Operation(f"snapshot {name}", do, change, is_whole=True)


def restoration(name: str) -> Operation:
    def do(context: Context) -> None:
        context.manager.restore(*KEY, context.snapshot(name))

    def change(state: State) -> None:
        state.collections = state.copy().snapshots[name]

    return Operation(f"restore {name}", do, change, is_whole=True)


def removal() -> Operation:
    def change(state: State) -> None:
        state.collections = None

    return Operation("delete_instance", lambda context: context.manager.delete_instance(*KEY), change, is_whole=True)


def repair() -> Operation:
    def do(context: Context) -> None:
        report = context.manager.verify(*KEY, repair=True)
        assert report.ok, report.problems
        assert report.repaired

    def change(state: State) -> None:
        state.is_damaged = False

    return Operation("verify --repair", do, change)


def compaction() -> Operation:
    def do(context: Context) -> None:
        assert context.manager.compact(*KEY).rebuilt_indexes > 0

    return Operation("compact", do)


def kill() -> Operation:
    """Of the engine process, in the middle of nothing: the next opening recovers."""

    def do(_: Context) -> None:
        for engine in psutil.Process().children():
            engine.kill()
            engine.wait()

    return Operation("kill", do)


def damage() -> Operation:
    """Index and copy lose a file, without which Chroma cannot read them, but a repair finds all vectors."""

    def do(context: Context) -> None:
        for file in [
            *context.directory.glob("*/header.bin"),
            *context.directory.glob(".chroma_manager/*@*/header.bin"),
        ]:
            os.truncate(file, 10)
        run("sync", "--file-system", str(context.disk))

    def change(state: State) -> None:
        state.is_damaged = True

    return Operation("damage", do, change)


def stock(records: list[int], version: int, name: str) -> Operation:
    """Stock Chroma makes, or opens, the closed database, and writes to it."""

    def do(context: Context) -> None:
        import chromadb

        with chromadb.PersistentClient(context.directory) as client:
            collection = client.get_or_create_collection(name, configuration=SMALL)
            collection.upsert(**rows(records, version))

    def change(state: State) -> None:
        state.collections = state.collections or {}
        of = state.collections.setdefault(name, CollectionState())
        of.records |= dict.fromkeys(records, version)

    return Operation(f"stock Chroma upserts {len(records)}", do, change)


def range_of(begin: int, end: int) -> list[int]:
    return list(range(begin, end))
