"""The text of the demo: its files, their file_ids, and the chunks that they are cut into.

Chunks are embedded in ``embedding.py``, stored and queried in ``run.py``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

CHUNK_CHARACTERS = 800
OVERLAP_CHARACTERS = 100

_PARAGRAPH_BREAK = "\n\n"
_PIECE_CHARACTERS = CHUNK_CHARACTERS - OVERLAP_CHARACTERS - len(_PARAGRAPH_BREAK)
_PIECE = re.compile(rf"(?s)\S.{{0,{_PIECE_CHARACTERS - 1}}}(?!\S)|\S{{{_PIECE_CHARACTERS}}}")
_READABLE_CHARACTERS = 50
_SNIPPET_CHARACTERS = 160
_SHORTEST_TELLING_WORD = 4
_WORD = re.compile(r"\w+")
_SENTENCE_START = re.compile(r"^|(?<=[.!?:;])[*\"')]*\s+(?=\S)")


class UnusableFileError(Exception):
    """A file that the demo leaves out; its message is the reason."""


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus.

    Attributes:
        file_id: Its file_id for the manager, a single path component.
        name: Its name for the user.
        chunks: Its text in overlapping pieces of at most ``CHUNK_CHARACTERS``.
    """

    file_id: str
    name: str
    chunks: tuple[str, ...]


@dataclass(frozen=True)
class Rejected:
    """A path that is left out of the corpus, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """The files that can be used, and the paths that cannot."""

    files: tuple[SourceFile, ...]
    rejected: tuple[Rejected, ...]

    @property
    def chunks(self) -> list[str]:
        """All chunks, file by file."""
        return [chunk for file in self.files for chunk in file.chunks]

    def files_in_chunks(self) -> Iterator[tuple[SourceFile, slice]]:
        """Yields each file with its place in ``chunks``."""
        start = 0
        for file in self.files:
            yield file, slice(start, start + len(file.chunks))
            start += len(file.chunks)

    def beginning(self, chunks: int) -> Corpus:
        """Returns the first files, up to so many chunks; the last file may be cut."""
        files: list[SourceFile] = []
        for file, place in self.files_in_chunks():
            if place.start < chunks:
                files.append(replace(file, chunks=file.chunks[: chunks - place.start]))
        return Corpus(tuple(files), ())


def python_reference() -> Corpus:
    """Returns the language reference that ships with this Python, each page a file."""
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415 - some distributions leave it out
    except ModuleNotFoundError:
        return Corpus(
            (), (Rejected("pydoc_data.topics", "this Python was packaged without it; name text files instead"),)
        )
    return Corpus(tuple(SourceFile(topic, topic, split(text)) for topic, text in sorted(topics.items())), ())


def read_corpus(paths: Iterable[Path]) -> Corpus:
    """Reads text files, and those in directories, at any depth, whose names do not begin with a dot."""
    rejected: list[Rejected] = []
    files: dict[str, SourceFile] = {}
    for path in paths:
        for read in map(_read, _members(path, rejected)):
            if isinstance(read, Rejected):
                rejected.append(read)
            else:
                files[read.file_id] = read
    return Corpus(tuple(files.values()), tuple(rejected))


def file_id_for(path: Path) -> str:
    """Returns the file_id of a path: its readable name, and a hash that distinguishes it from namesakes elsewhere."""
    real = Path(os.path.realpath(path))
    readable = re.sub(r"[^\w.-]+", "_", real.name)[:_READABLE_CHARACTERS]
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:10]
    return f"{readable}-{digest}"


def split(text: str) -> tuple[str, ...]:
    """Cuts a text into chunks of whole paragraphs where they fit; each begins with the end of the one before."""
    chunks: list[str] = []
    current = ""
    for piece in _pieces(text):
        if current and len(current) + len(_PARAGRAPH_BREAK) + len(piece) > CHUNK_CHARACTERS:
            chunks.append(current)
            current = _end_of(current)
        current = f"{current}{_PARAGRAPH_BREAK}{piece}" if current else piece
    return (*chunks, current) if current else ()


def snippet(text: str, question: str) -> str:
    """Returns the line of a text with the most words of the question, starting with a sentence."""
    line = " ".join(text.split())
    wanted = {word for word in _WORD.findall(question.lower()) if len(word) >= _SHORTEST_TELLING_WORD}

    def fitness(start: int) -> tuple[int, int]:
        words = _WORD.findall(line[start : start + _SNIPPET_CHARACTERS].lower())
        in_common = len(wanted.intersection(words))
        # The last of the best, which begins with the words; the beginning of the text if no word occurs.
        return in_common, start if in_common else -start

    start = max((match.end() for match in _SENTENCE_START.finditer(line)), key=fitness)
    end = start + _SNIPPET_CHARACTERS
    return f"{'...' if start else ''}{line[start:end]}{'...' if end < len(line) else ''}"


def printable(path: Path) -> str:
    """Returns a path on one line that every UTF-8 terminal can show."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _members(path: Path, rejected: list[Rejected]) -> list[Path]:
    if not os.path.isdir(path):
        return [path]
    errors: list[OSError] = []
    members: list[Path] = []
    for folder, folders, names in os.walk(path, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        members += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
    rejected += [_rejected(Path(error.filename), error) for error in errors]
    if not members and not errors:
        rejected.append(Rejected(printable(path), "a directory without files"))
    return members


def _rejected(path: Path, error: OSError | UnusableFileError) -> Rejected:
    reason = error.strerror if isinstance(error, OSError) else None
    return Rejected(printable(path), reason or str(error))


def _read(path: Path) -> SourceFile | Rejected:
    try:
        return _read_file(path)
    except (OSError, UnusableFileError) as error:
        return _rejected(path, error)


def _read_file(path: Path) -> SourceFile:
    # Reading a pipe or a device might never end.
    if os.path.exists(path) and not os.path.isfile(path):
        raise UnusableFileError("not a regular file")
    chunks = split(_decode(path.read_bytes()))
    if not chunks:
        raise UnusableFileError("empty: it has no words")
    return SourceFile(file_id_for(path), printable(path), chunks)


def _decode(content: bytes) -> str:
    if b"\0" in content:
        raise UnusableFileError("binary: it contains NUL bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableFileError(f"binary or not UTF-8: byte {error.start} cannot be decoded") from error


def _pieces(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in _PIECE.findall(paragraph.rstrip()):
            # A piece without a word has no terms, and so no vector.
            if _WORD.search(piece):
                yield piece


def _end_of(chunk: str) -> str:
    _, _, words = chunk[-OVERLAP_CHARACTERS - 1 :].partition(" ")
    return words.strip()
