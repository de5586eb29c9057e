"""An app that tells a model what it does, and how to read back what there is."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
from chroma_manager import ChromaDBManager, ChromaManagerError, InstanceCorruptError
from chromadb.config import Settings
from chromadb.errors import ChromaError
from model import Found, Model, State, Value, faults_in
from plan import Plan

DIMENSION = 8
KEY = ("doc", "azure")

# Chroma rewrites its index files every so many records, and so a few of them are enough.
REWRITES_AFTER = 50

# What is otherwise imported at the first use, in each forked process anew.
for _name in (
    *("chroma_manager.client", "chroma_manager.engine.settings", "chroma_manager.engine.isolated"),
    *("chromadb.api.rust", "chromadb.telemetry.product.posthog", "chromadb.utils.embedding_functions", "numpy.random"),
):
    importlib.import_module(_name)
SETTINGS = Settings(anonymized_telemetry=False)

logging.getLogger("chroma_manager").setLevel(logging.CRITICAL)


def new_manager(root: Path) -> ChromaDBManager:
    """The manager of the databases of a run."""
    return ChromaDBManager(base_path=root / "db", engine="isolated", settings=SETTINGS, idle_timeout=None)


def database_of(root: Path) -> Path:
    """The directory of the one database."""
    return root.joinpath("db", *KEY)


class App:
    """What a process does with the database; every call is an act of which the model is told."""

    def __init__(self, root: Path, model: Model, seed: int, plan: Plan | None = None) -> None:
        """Opens nothing yet."""
        self.root, self.model, self.seed, self._plan = root, model, seed, plan
        self.manager = new_manager(root)
        self.acts: list[str] = []
        self.errors: list[tuple[int, str]] = []
        self.faults: list[str] = []
        self._handles: dict[str, Any] = {}

    def act(self, what: str, call: Callable[[], Any], settle: Callable[[bool], None]) -> None:
        """Makes a call, and has the model settle that it was acknowledged, or that it is in doubt."""
        self.acts.append(what)
        if self._plan is not None:
            self._plan.begin_act(len(self.acts) - 1)
        try:
            call()
        except Exception as error:
            self.errors.append((len(self.acts) - 1, f"{what}: {type(error).__name__}: {error}"))
            self.faults += _faults_of(what, error)
            settle(False)
        else:
            settle(True)

    def client(self) -> Any:
        """This thread's client."""
        return self.manager.get_client(*KEY)

    def open(self) -> None:
        """Opens the database and reads what there is."""
        self.act("open", lambda: [one.count() for one in self.client().list_collections()], _ignore)

    def create(self, name: str, space: str = "l2", rewrites_after: int = REWRITES_AFTER) -> None:
        """Creates a collection."""
        index = {"space": space, "sync_threshold": rewrites_after, "batch_size": min(20, rewrites_after)}

        def call() -> None:
            # Again where it is not known whether there is one.
            client = self.client()
            method = client.get_or_create_collection if tried else client.create_collection
            tried.append(name)
            self._handles[name] = method(
                name, embedding_function=None, metadata={"note": "new"}, configuration={"hnsw": index}
            )

        tried = list[str]()
        self.act(f"create {name}", call, lambda is_certain: self.model.create(name, space, "new", is_certain))
        if name not in self._handles:
            tried.append(name)
            self.act(f"create {name} again", call, lambda is_certain: self.model.create(name, space, "new", is_certain))

    def write(self, method: str, name: str, ids: Iterable[str], version: int = 0) -> None:
        """Adds, upserts, updates or deletes records."""
        keys = list(ids)
        values: dict[str, State] = {
            key: None if method == "delete" else value_of(self.seed, name, key, version) for key in keys
        }
        try:
            collection = self._collection(name)
        except Exception as error:  # it is no write that failed
            self.errors.append((len(self.acts), f"{method} {name}: {type(error).__name__}: {error}"))
            return
        self.act(
            f"{method} {len(keys)} of {name}",
            lambda: write(collection, method, values),
            lambda is_certain: self.model.write(name, method, values, is_certain),
        )

    def _collection(self, name: str) -> Any:
        if name not in self._handles:
            self._handles[name] = self.client().get_collection(name, embedding_function=None)
        return self._handles[name]

    def rename(self, name: str, new: str) -> None:
        """Gives a collection another name."""
        self.act(
            f"rename {name}",
            lambda: self._collection(name).modify(name=new),
            lambda is_certain: self.model.rename(name, new, is_certain),
        )

    def annotate(self, name: str, note: str) -> None:
        """Replaces the metadata of a collection."""
        self.act(
            f"annotate {name}",
            lambda: self._collection(name).modify(metadata={"note": note}),
            lambda is_certain: self.model.annotate(name, note, is_certain),
        )

    def drop(self, name: str) -> None:
        """Deletes a collection."""
        self.act(
            f"drop {name}",
            lambda: self.client().delete_collection(name),
            lambda is_certain: self.model.drop(name, is_certain),
        )

    def snapshot(self, name: str) -> None:
        """Takes a snapshot to a directory beside the database."""
        self.act(
            "snapshot",
            lambda: self.manager.snapshot(*KEY, self.root / name),
            lambda is_certain: self.model.snapshot(name, is_certain),
        )

    def restore(self, name: str) -> None:
        """Puts a snapshot in the place of the database."""
        worlds, _ = self.model.snapshots[name]
        self.act(
            "restore",
            lambda: self.manager.restore(*KEY, self.root / name),
            lambda is_certain: self.model.restore(worlds, is_certain),
        )

    def repair(self) -> None:
        """Has the database verified and repaired; what the report says is for the checks to confirm."""
        self.act("repair", lambda: self.manager.verify(*KEY, repair=True), _ignore)

    def compact(self) -> None:
        """Has the files made smaller; what there is stays the same."""
        self.act("compact", lambda: self.manager.compact(*KEY), _ignore)

    def look(self) -> None:
        """Reads all there is, with the handles that had the fault."""

        def call() -> None:
            found = read(self.client())
            self.faults += faults_in(self.model.worlds, found, whole_batches=False)

        self.act("read", call, _ignore)

    def close(self) -> None:
        """In an orderly way, after a look at what there is."""
        self.look()
        self.act("close", self.manager.cleanup_all_instances, _ignore)
        # Handles from before a cleanup raise.
        self._handles.clear()

    def kill_engine(self) -> None:
        """And with it whatever it has not written."""
        pid = int((database_of(self.root) / ".chroma_manager.lock").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)


def _faults_of(what: str, error: Exception) -> list[str]:
    """A failed operation is no damage, and who calls is told of it by an exception that they can expect."""
    expected = isinstance(error, (ChromaError, ChromaManagerError)) and not isinstance(error, InstanceCorruptError)
    return [] if expected else [f"{what} raised {type(error).__name__}: {error}"]


def _ignore(_: bool) -> None:
    """The call changes nothing that a model knows."""


def value_of(seed: int, name: str, key: str, version: int) -> Value:
    """What a version of a record has; no other has it."""
    chance = np.random.default_rng(zlib.crc32(f"{seed}/{name}/{key}/{version}".encode()))
    vector = chance.random(DIMENSION, dtype=np.float32) + np.float32(0.01)
    return Value.of(vector, f"document {key} {version}", {"version": version})


def write(collection: Any, method: str, values: dict[str, State]) -> None:
    """Makes the call."""
    if method == "delete":
        collection.delete(ids=list(values))
        return
    given = [value for value in values.values() if value is not None]
    getattr(collection, method)(
        ids=list(values),
        embeddings=[value.array() for value in given],
        documents=[value.document for value in given],
        metadatas=[json.loads(value.metadata) for value in given],
    )


def read(client: Any) -> dict[str, Found]:
    """All that a client finds."""
    found = {}
    for listed in client.list_collections():
        collection = client.get_collection(listed.name, embedding_function=None)
        got = collection.get(include=["embeddings", "documents", "metadatas"])
        records = {
            key: Value.of(vector, document, metadata)
            for key, vector, document, metadata in zip(
                got["ids"], got["embeddings"], got["documents"], got["metadatas"], strict=True
            )
        }

        def query(vectors: list[Any], collection: Any = collection) -> list[list[str]]:
            nearest: list[list[str]] = collection.query(query_embeddings=vectors, n_results=1, include=[])["ids"]
            return nearest

        note = (collection.metadata or {}).get("note")
        found[listed.name] = Found(note, records, collection.count(), query)
    return found


def stock_client(path: Path) -> Any:
    """Chroma's own."""
    return chromadb.PersistentClient(path, settings=SETTINGS.model_copy())
