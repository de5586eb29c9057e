"""A model of a collection, to compare with after kills and failures."""

from __future__ import annotations

import random

import chromadb
import numpy as np
from chroma_manager import ChromaDBManager

DIMENSION = 16


def vectors(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, DIMENSION), dtype=np.float32)


class Model:
    """What a collection must hold: writes that were acknowledged, and one that may or may not have taken effect."""

    def __init__(self, manager: ChromaDBManager, name: str = "model") -> None:
        self.manager = manager
        self.name = name
        self.records: dict[str, np.ndarray] = {}
        self.seed = 0

    def collection(self) -> chromadb.Collection:
        return self.manager.get_collection("doc", "azure", self.name)

    def write(self, method: str, ids: list[str]) -> None:
        self.seed += 1
        rows = vectors(self.seed, len(ids))
        if method == "delete":
            self.collection().delete(ids=ids)
            for i in ids:
                self.records.pop(i, None)
            return
        getattr(self.collection(), method)(ids=ids, embeddings=rows)
        for i, row in zip(ids, rows, strict=True):
            if (method != "add" or i not in self.records) and (method != "update" or i in self.records):
                self.records[i] = row

    def add(self, count: int) -> None:
        self.write("add", [f"{self.seed}-{i}" for i in range(count)])

    def write_anything(self, chance: random.Random) -> None:
        method = chance.choice(["add", "add", "upsert", "update", "delete"])
        known = chance.sample(sorted(self.records), min(20, len(self.records)))
        new = [f"{self.seed}-{i}" for i in range(150)] if method in ("add", "upsert") else []
        if known or new:
            self.write(method, [*known, *new])

    def assert_is_there(self) -> None:
        collection = self.collection()
        got = collection.get(include=["embeddings"])
        assert sorted(got["ids"]) == sorted(self.records)
        for i, row in zip(got["ids"], got["embeddings"], strict=True):
            assert np.array_equal(row.astype(np.float32), self.records[i]), i
        asked = list(self.records)[::37]
        if asked:
            found = collection.query(query_embeddings=[self.records[i] for i in asked], n_results=5)["ids"]
            # The index is approximate: a vector in some thousands is not found, without any kill too.
            assert sum(i not in ids for i, ids in zip(asked, found, strict=True)) <= 1
