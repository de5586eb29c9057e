"""What a RAG application does, on real text: embed files in parallel threads, ask all of them at once, clean up.

The text is prepared in ``corpus.py``, its embedding in ``embedding.py``; measurements are in ``figures.py``, and the
command line is `cli`. Needs the extra ``chroma-manager[demo]``.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

# Imported here, so that the ingest, which is measured, does not wait for it.
from chromadb.api.models.Collection import Collection
from chromadb.errors import ChromaError
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from chroma_manager.demo.corpus import Corpus, SourceFile, printable, python_reference, read_corpus, snippet
from chroma_manager.demo.embedding import Lsa, Vectors, questions_from_terms
from chroma_manager.demo.figures import Ingest, Report, StallMeter, resident_megabytes, table
from chroma_manager.errors import ChromaManagerError
from chroma_manager.manager import ChromaDBManager
from chroma_manager.options import LOCAL_ENGINES

if sys.platform != "win32":
    import resource

EMBEDDING_TYPE = "lsa"
REFERENCE_QUESTIONS = (
    "How does a with statement call __enter__ and __exit__?",
    "When are default parameter values evaluated in a function definition?",
    "What happens when an exception is raised inside a try statement with a finally clause?",
)

_BATCH = 100
# How many chunks the compared engines store, which takes some seconds.
_COMPARED_CHUNKS = 1000
_MOST_ASKING_THREADS = 128
_PASSAGES = 3
# More than are shown: neighbours overlap, and of lines with the same beginning only one is shown.
_PASSAGES_OF_A_FILE = 6
_SAME_CHARACTERS = 80
_FILES_OPEN_PER_DATABASE = 16
_FILES_OPEN_OTHERWISE = 256


class DemoError(ChromaManagerError):
    """The demo cannot go on; the message says because of which file or argument."""


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for.

    Attributes:
        paths: Text files and directories of them; none means the reference that ships with Python.
        questions: Questions to ask; none means questions that suit the corpus.
        base_path: Where the databases are kept; None means a temporary directory, removed at the end.
        threads: How many files are ingested at the same time.
        engine: As for ``ChromaDBManager``; None means the default, compared with the others.
    """

    paths: tuple[Path, ...] = ()
    questions: tuple[str, ...] = ()
    base_path: Path | None = None
    threads: int = 8
    engine: str | None = None


@dataclass(frozen=True, order=True)
class Passage:
    """A line of a file, and the distance of its chunk from the question: cosine, from 0 to 2."""

    distance: float
    file: str
    snippet: str


class Application:
    """A small RAG application: a database for each file, and the manager that opens them for any thread."""

    def __init__(self, manager: ChromaDBManager, corpus: Corpus, embedding: Lsa) -> None:
        """Takes a corpus and the embedding that was fitted on it."""
        self._manager = manager
        self.corpus = corpus
        self._embedding = embedding
        self._collection_name = f"rag_collection_{embedding.fingerprint}"
        self._stopping = threading.Event()

    def ingest(self, threads: int, stored: Callable[[int], None]) -> None:
        """Stores every file, ``threads`` at a time; calls ``stored`` with the number of chunks in each batch."""
        with _pool(threads) as pool:
            ingests = [
                pool.submit(self._ingest_file, file, self._embedding.vectors[place], stored)
                for file, place in self.corpus.files_in_chunks()
            ]
            try:
                for ingest in as_completed(ingests):
                    ingest.result()
            except BaseException:
                # The pool waits for its running jobs: they end at their next batch, not at their last.
                self._stopping.set()
                raise

    def ask(self, questions: Sequence[str]) -> Iterator[tuple[str, list[Passage]]]:
        """Asks all files each question at once, in a thread each; yields it with the nearest passages."""
        with _pool(min(len(self.corpus.files), _MOST_ASKING_THREADS)) as pool:
            for question in questions:
                vector = self._embedding.embed(question)
                if vector is None:
                    yield question, []
                    continue
                answers = pool.map(partial(self._ask_file, question, vector), self.corpus.files)
                yield question, _nearest(chain.from_iterable(answers))

    def _collection(self, file: SourceFile) -> Collection:
        return self._manager.get_collection(
            file.file_id, EMBEDDING_TYPE, self._collection_name, metadata={"hnsw:space": "cosine"}
        )

    def _ingest_file(self, file: SourceFile, vectors: Vectors, stored: Callable[[int], None]) -> None:
        with _naming(file):
            collection = self._collection(file)
            batch = min(_BATCH, self._manager.get_client(file.file_id, EMBEDDING_TYPE).get_max_batch_size())
            for start in range(0, len(file.chunks), batch):
                if self._stopping.is_set():
                    return
                documents = list(file.chunks[start : start + batch])
                ids = [f"{number:06d}" for number in range(start, start + len(documents))]
                # Not add: the demo can be repeated on a kept --base-path.
                collection.upsert(ids, embeddings=vectors[start : start + batch], documents=documents)
                stored(len(documents))

    def _ask_file(self, question: str, vector: Vectors, file: SourceFile) -> list[Passage]:
        with _naming(file):
            result = self._collection(file).query(
                query_embeddings=vector, n_results=_PASSAGES_OF_A_FILE, include=["documents", "distances"]
            )
        documents, distances = result["documents"] or [[]], result["distances"] or [[]]
        return [
            Passage(max(0.0, distance), file.name, snippet(text, question))
            for text, distance in zip(documents[0], distances[0], strict=True)
        ]


@contextmanager
def _naming(file: SourceFile) -> Iterator[None]:
    """Turns an error of Chroma's into one that names the file."""
    try:
        yield
    except ChromaError as error:
        raise DemoError(f"{file.name}: its database, {file.file_id}/{EMBEDDING_TYPE}, failed: {error}") from error


def run(options: DemoOptions) -> None:
    """Runs the demo. Answers and report go to stdout; progress, and the files that are left out, to stderr.

    Raises:
        ChromaManagerError: There is nothing to ingest, or a database could not be opened or used.
    """
    corpus = read_corpus(options.paths) if options.paths else python_reference()
    for rejected in corpus.rejected:
        print(f"chroma-manager: {rejected.name} is left out: {rejected.reason}", file=sys.stderr)
    if not corpus.files:
        raise DemoError("nothing to ingest: name at least one text file, in UTF-8")
    _allow_open_files(_FILES_OPEN_OTHERWISE + _FILES_OPEN_PER_DATABASE * len(corpus.files))
    embedding = Lsa(corpus.chunks)
    engine, *others = [options.engine] if options.engine else LOCAL_ENGINES
    with _manager(options.base_path, engine) as manager:
        ingests = [_demonstrate(manager, corpus, embedding, options)]
    for engine in others:
        with _manager(None, engine) as manager:
            part = corpus.beginning(_COMPARED_CHUNKS)
            ingests.append(_ingest(Application(manager, part, embedding), engine, options.threads))
    print(f"\n{table(ingests)}")
    if options.base_path:
        print(f"the databases are kept in {printable(options.base_path)}")


def _demonstrate(manager: ChromaDBManager, corpus: Corpus, embedding: Lsa, options: DemoOptions) -> Ingest:
    application = Application(manager, corpus, embedding)
    ingest = _ingest(application, options.engine or LOCAL_ENGINES[0], options.threads)
    for question, passages in application.ask(_questions(options, corpus, embedding)):
        print(_answer(question, passages), flush=True)
    memory, open_before = resident_megabytes(), len(manager.stats()["instances"])
    manager.cleanup_all_instances()
    open_after = len(manager.stats()["instances"])
    print(Report(len(corpus.files), len(corpus.chunks), memory, open_before, open_after))
    return ingest


def _ingest(application: Application, engine: str, threads: int) -> Ingest:
    chunks = len(application.corpus.chunks)
    began = time.perf_counter()
    with StallMeter() as meter, _progress_bar(f"ingesting ({engine})", chunks) as stored:
        application.ingest(threads, stored)
    return Ingest(engine, chunks, time.perf_counter() - began, meter.worst)


def _questions(options: DemoOptions, corpus: Corpus, embedding: Lsa) -> Sequence[str]:
    if options.questions:
        return options.questions
    if not options.paths:
        return REFERENCE_QUESTIONS
    questions = questions_from_terms(corpus, embedding)
    found = (
        "the questions are made of the terms that mark the largest files" if questions else "and no terms to ask about"
    )
    print(f"No --ask: {found}.\n")
    return questions


def _allow_open_files(count: int) -> None:
    # An open Chroma database has about eleven files open; many systems allow 256 or 1024 by default.
    if sys.platform == "win32":
        return
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or allowed >= count:
        return
    reachable = count if most == resource.RLIM_INFINITY else min(count, most)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, most))
        allowed = reachable
    if allowed < count:
        advice = "if a database cannot be opened, name fewer files or raise the limit (ulimit -n)"
        print(f"chroma-manager: {count} open files may be needed, {allowed} are allowed: {advice}", file=sys.stderr)


@contextmanager
def _manager(base_path: Path | None, engine: str) -> Iterator[ChromaDBManager]:
    temporary = partial(tempfile.TemporaryDirectory, prefix="chroma-manager-demo-")
    directory = nullcontext(str(base_path)) if base_path else temporary()
    with directory as path, ChromaDBManager(base_path=path, engine=engine) as manager:
        yield manager


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _progress_bar(title: str, chunks: int) -> Iterator[Callable[[int], None]]:
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=chunks)
        yield partial(progress.advance, task)


def _nearest(passages: Iterable[Passage]) -> list[Passage]:
    # A line in two files, or in two overlapping chunks, is one answer.
    distinct: dict[str, Passage] = {}
    for passage in sorted(passages):
        distinct.setdefault(passage.snippet[:_SAME_CHARACTERS], passage)
    return list(distinct.values())[:_PASSAGES]


def _answer(question: str, passages: Sequence[Passage]) -> str:
    lines = [question]
    for number, passage in enumerate(passages, 1):
        lines += [f"  {number}. {passage.file} (distance {passage.distance:.3f})", f"     {passage.snippet}"]
    if not passages:
        lines.append("  no word of this question occurs in the files")
    return "\n".join([*lines, ""])
