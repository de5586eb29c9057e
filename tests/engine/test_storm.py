"""Every documented call, from 32 threads in random order, with random cleanups, on real databases."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
from chroma_manager import ChromaDBManager, ChromaManagerError
from chromadb.errors import ChromaError

THREADS = 32
FILES = 6
SECONDS = float(os.environ.get("STORM_SECONDS", "8"))


class Storm:
    def __init__(self, manager: ChromaDBManager) -> None:
        self.manager = manager
        self.end = time.monotonic() + SECONDS
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.unexpected: list[BaseException] = []
        self.kept: list[object] = []

    def run(self) -> None:
        random_state = random.Random(threading.get_ident())
        calls = [name for name in dir(self) if name.startswith("call_")]
        while time.monotonic() < self.end and not self.unexpected:
            # A thread of its own now and then, so that threads end in the middle of everything.
            name = random_state.choices(calls, [8 if "clean" not in name else 1 for name in calls])[0]
            key = (f"doc{random_state.randrange(FILES)}", "azure")
            if random_state.random() < 0.05:
                thread = threading.Thread(target=self.attempt, args=(name, key, random_state))
                thread.start()
                thread.join()
            else:
                self.attempt(name, key, random_state)

    def attempt(self, name: str, key: tuple[str, str], random_state: random.Random) -> None:
        try:
            getattr(self, name)(key, random_state)
            self.done[name] += 1
        except ChromaManagerError as error:
            self.refused[type(error).__name__] += 1
        except BaseException as error:
            self.unexpected.append(error)

    def collection(self, key, random_state):
        user = random_state.choice([None, None, "ann", "bob"])
        return self.manager.get_collection(*key, "rag_collection", user)

    def call_get_client(self, key, random_state) -> None:
        client = self.manager.get_client(*key)
        assert client is self.manager.get_client(*key) or client._server.bindings is not None
        self.kept[random_state.randrange(20) : 1] = [client]

    def call_get_instance(self, key, random_state) -> None:
        self.manager.get_instance(*key, random_state.choice([None, "ann"]), random_state.random() < 0.5).heartbeat()

    def call_upsert(self, key, random_state) -> None:
        ids = [str(random_state.randrange(200)) for _ in range(3)]
        self.collection(key, random_state).upsert(ids=list(dict.fromkeys(ids)), embeddings=[[1.0, 2.0]] * len(set(ids)))

    def call_add_and_query(self, key, random_state) -> None:
        collection = self.collection(key, random_state)
        record = f"{threading.get_ident()}-{random_state.random()}"
        collection.add(ids=[record], embeddings=[[random_state.random(), 1.0]], documents=[key[0]])
        found = collection.get(ids=[record])
        assert found["documents"] == [key[0]], "a record that was acknowledged is not there, or is another file's"
        collection.query(query_embeddings=[[1.0, 1.0]], n_results=2)
        collection.delete(ids=[record])

    def call_an_old_handle(self, key, random_state) -> None:
        if self.kept:
            random_state.choice(self.kept).count_collections()

    def call_stats(self, key, random_state) -> None:
        assert len(self.manager.stats()["instances"]) <= FILES
        assert self.manager._get_instance_key(*key) == "/".join(key)
        assert ChromaDBManager() is self.manager

    def call_clean_instance(self, key, random_state) -> None:
        self.manager.cleanup_instance(*key)

    def call_clean_all(self, key, random_state) -> None:
        if random_state.random() < 0.3:
            random_state.choice([self.manager.cleanup_all_instances, self.manager.cleanup])()

    def call_clean_old(self, key, random_state) -> None:
        self.manager.cleanup_old_instances(max_idle=random_state.random() * 0.05)

    def call_clean_thread(self, key, random_state) -> None:
        self.manager._clear_thread_local_clients()


def test_a_storm_of_all_calls_ends_with_nothing_open_and_no_error_but_ours(tmp_path: Path) -> None:
    process = psutil.Process()
    manager = ChromaDBManager(base_path=tmp_path / "db", idle_timeout=0.05)
    manager.get_client("warm", "azure")
    manager.cleanup_all_instances()
    time.sleep(0.3)
    threads_before, files_before = process.num_threads(), process.num_fds()
    storm = Storm(manager)
    threads = [threading.Thread(target=storm.run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if storm.unexpected:
        raise storm.unexpected[0]
    assert len(storm.done) == 10, f"a call never succeeded: {storm.done} {storm.refused}"
    assert set(storm.refused) <= {"ClientClosedError"}
    assert manager.stats()["openings"] > FILES
    manager.cleanup_all_instances()
    assert manager.stats()["instances"] == {}
    time.sleep(0.5)
    assert process.num_fds() <= files_before
    assert process.num_threads() <= threads_before
    for i in range(FILES):
        manager.get_collection(f"doc{i}", "azure", "rag_collection").query(query_embeddings=[[1.0, 1.0]], n_results=1)


def test_chroma_s_errors_are_not_ours() -> None:
    assert not issubclass(ChromaError, ChromaManagerError)
    assert not issubclass(ChromaManagerError, ChromaError)
