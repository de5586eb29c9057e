"""How cost grows: with the threads that ask, with the databases that are open, with the records of one of them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from contenders import Contender
from holding import holds
from scenario import Figures, Scenario, Sizes, all_in_threads, p50, records, seconds, vectors

ASKED_RECORDS = 2000
SECONDS = 1.0
QUESTIONS = 100
BATCH = 1000


def growing_threads(contender: Contender, sizes: Sizes) -> Figures:
    """Threads that ask one database, one question after another: how many are answered in a second."""
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= sizes.grown_threads]
    questions = vectors(QUESTIONS, sizes.grown_dimension, seed=1)
    contender.collection("doc").query(query_embeddings=[questions[0]], n_results=10)
    return {"threads": counts, "queries/s": [answered(contender, n, questions) for n in counts]}


def answered(contender: Contender, threads: int, questions: Iterable[object]) -> float:
    """Questions answered in a second."""
    questions, answers, took = list(questions), [0] * threads, [0.0] * threads

    def ask(i: int) -> None:
        collection = contender.collection("doc")
        collection.query(query_embeddings=[questions[0]], n_results=10)
        began = time.perf_counter()
        while took[i] < SECONDS:
            collection.query(query_embeddings=[questions[answers[i] % QUESTIONS]], n_results=10)
            answers[i] += 1
            took[i] = time.perf_counter() - began

    all_in_threads(threads, ask)
    return sum(count / seconds for count, seconds in zip(answers, took, strict=True))


def prepare_asked(contender: Contender, sizes: Sizes) -> Figures:
    contender.collection("doc").add(**records(ASKED_RECORDS, sizes.grown_dimension))
    return {}


def growing_databases(contender: Contender, sizes: Sizes) -> Figures:
    """Databases that stay open, each with a record: the opening of the last ones, and the memory of all of them."""
    contender.max_engines = sizes.grown_databases + 1
    kept = [contender.collection("first")]
    before = holds()["MB"]
    marks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if n <= sizes.grown_databases]
    opening: list[float] = []
    memory: list[float] = []
    took: list[float] = []
    for n in range(1, marks[-1] + 1):
        took.append(seconds(lambda n=n: kept.append(contender.collection(f"doc{n}"))))
        kept[-1].add(ids=["1"], embeddings=vectors(1, sizes.grown_dimension))
        if n in marks:
            opening.append(p50(took) * 1e3)
            memory.append(holds()["MB"] - before)
            took.clear()
    return {"databases": marks, "opening ms": opening, "MB": memory}


def growing_records(contender: Contender, sizes: Sizes) -> Figures:
    """Records of one database: a query among so many, and the rate of the records that were added last."""
    marks = [n for n in (10, 100, 1000, 10_000, 100_000) if n <= sizes.grown_records]
    collection = contender.collection("doc")
    questions = vectors(QUESTIONS, sizes.grown_dimension, seed=1)
    query: list[float] = []
    rate: list[float] = []
    have = 0
    for mark in marks:
        took, before = 0.0, have
        while have < mark:
            batch = records(min(BATCH, mark - have), sizes.grown_dimension, have)
            took += seconds(lambda batch=batch: collection.add(**batch))
            have += len(batch["ids"])
        rate.append((have - before) / took)
        asked = [seconds(lambda q=q: collection.query(query_embeddings=[q], n_results=10)) for q in questions]
        query.append(p50(asked) * 1e3)
    return {"records": marks, "query ms": query, "add /s": rate}


SCENARIOS = (
    Scenario(growing_threads, prepare=prepare_asked, rounds=2),
    Scenario(growing_databases, rounds=1, longest_seconds=600),
    Scenario(growing_records, rounds=1, longest_seconds=900),
)
