"""How long an answer takes: from a database with one question at a time, and from eight files at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from contenders import Contender
from scenario import Figures, Scenario, Sizes, calls_of, p50, records, seconds, vectors

WARM_UP = 20


def reading(contender: Contender, sizes: Sizes) -> Figures:
    """One thread asks a large file: for neighbours, for a record, for the number of records."""
    collection = contender.collection("doc")
    questions = vectors(WARM_UP + sizes.calls, sizes.dimension, seed=1)
    ids = [str(i * 7 % sizes.records) for i in range(WARM_UP + sizes.calls)]
    calls: dict[str, Callable[[int], object]] = {
        "query": lambda n: collection.query(query_embeddings=[questions[n]], n_results=10),
        "get": lambda n: collection.get(ids=[ids[n]]),
        "count": lambda _: collection.count(),
    }
    figures = {}
    for name, call in calls.items():
        took = [seconds(lambda n=n, call=call: call(n)) for n in range(WARM_UP + sizes.calls)]
        figures[f"{name} ms"] = p50(took[WARM_UP:]) * 1e3
    return figures


def prepare_large(contender: Contender, sizes: Sizes) -> Figures:
    collection = contender.collection("doc")
    for call in calls_of(contender, sizes.records, sizes.records, sizes.dimension):
        collection.add(**call)
    return {}


def chat(contender: Contender, sizes: Sizes) -> Figures:
    """A request makes a pool of a thread for each file, and each asks its file: beside the same queries alone.

    Alone means in threads that exist, with the collections that they have: what no app can be faster than.
    """
    question = vectors(1, sizes.dimension, seed=1)
    files = [f"doc{n}" for n in range(sizes.chat_files)]

    def ask(file: str) -> object:
        return contender.collection(file).query(query_embeddings=question, n_results=3)

    def request() -> None:
        with ThreadPoolExecutor(len(files)) as pool:
            list(pool.map(ask, files))

    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in files]
        kept = [thread.submit(contender.collection, file).result() for thread, file in zip(threads, files, strict=True)]

        def queries() -> None:
            asked = [
                thread.submit(own.query, query_embeddings=question, n_results=3)
                for thread, own in zip(threads, kept, strict=True)
            ]
            for each in asked:
                each.result()

        requests, alone = [], []
        for _ in range(3 + sizes.requests):
            requests.append(seconds(request))
            alone.append(seconds(queries))
    return {"request ms": p50(requests[3:]) * 1e3, "alone ms": p50(alone[3:]) * 1e3}


def prepare_files(contender: Contender, sizes: Sizes) -> Figures:
    for n in range(sizes.chat_files):
        contender.collection(f"doc{n}").add(**records(sizes.chat_records, sizes.dimension, first=n))
    return {}


SCENARIOS = (
    Scenario(reading, prepare=prepare_large),
    Scenario(chat, prepare=prepare_files),
)
