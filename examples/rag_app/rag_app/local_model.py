"""A model that downloads nothing: it embeds words, and answers by quoting. It has the interface of ``AzureOpenAI``."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

DIMENSIONS = 1024

_WORD = re.compile(r"\w+")
# A line of a list, of a table or of a heading is a sentence, too.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+(?=\s*(?:[-*#|]|\d+\.))")
_STEM = 5  # letters: connect, connects and connection begin alike
# Words that say nothing of what a text is about.
_STOP_WORDS = frozenset(
    _WORD.findall(
        """
        a about after all also am an and any are as at be because been before but by can could did do does for from had
        has have he her his how i if in into is it its just may me more most my no not of on one only or other our out
        over said say says she should so some such than that the their them then there these they this to up us was we
        were what when where which who why will with would you your
        """
    )
)
_QUOTED = 3
_LONGEST_QUOTE = 280


class LocalModel:
    """Embeds and answers in this process."""

    def __init__(self) -> None:
        """Loads nothing."""
        self.embeddings = SimpleNamespace(create=_embed)
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=_answer))


def _embed(*, model: str, input: Sequence[str]) -> Any:  # noqa: A002, ARG001 - as openai names them
    return SimpleNamespace(data=[SimpleNamespace(embedding=_vector(text)) for text in input])


def _vector(text: str) -> npt.NDArray[np.float32]:
    """A unit vector. Each feature has a dimension, and a sign, by its hash."""
    vector = np.zeros(DIMENSIONS, dtype=np.float32)
    for feature, count in Counter(_features(text)).items():
        place = zlib.crc32(feature.encode())
        # A word that is said ten times does not say ten times as much.
        vector[place % DIMENSIONS] += count**0.5 if place & 0x8000_0000 else -(count**0.5)
    if not vector.any():
        # Without a word to go by a text is like itself, and like no other.
        vector = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIMENSIONS, dtype=np.float32)
    return vector / float(np.linalg.norm(vector))


def _features(text: str) -> Iterator[str]:
    words = [word for word in _WORD.findall(text.casefold()) if word not in _STOP_WORDS]
    for word in words:
        yield word
        if len(word) > _STEM:
            yield word[:_STEM]
    yield from map(" ".join, pairwise(words))


def _answer(*, model: str, messages: Sequence[dict[str, str]], stream: bool) -> Iterator[Any]:  # noqa: ARG001
    """Quotes the sentences of the passages that have most in common with the question."""
    _, *passages, question = messages
    wanted = set(_features(question["content"]))
    quotes: list[tuple[int, str, int]] = []
    for number, passage in enumerate(passages, 1):
        _, _, text = passage["content"].partition("\n")
        sentences = [
            " ".join(sentence.split()).lstrip("-*#| ")
            for sentence in _SENTENCE_END.split(text)
            if _WORD.search(sentence)
        ]
        best = max(sentences, key=lambda sentence: len(wanted.intersection(_features(sentence))), default="")
        common = len(wanted.intersection(_features(best)))
        if common and best not in (quote for _, quote, _ in quotes):
            quotes.append((common, best, number))
    quotes.sort(key=lambda quote: -quote[0])
    if quotes:
        said = "\n\n".join(f"“{_shortened(quote)}” [{number}]" for _, quote, number in quotes[:_QUOTED])
    else:
        said = "None of the passages that come closest says anything about that."
    for piece in re.findall(r"\S+\s*", said):
        yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=piece))])


def _shortened(quote: str) -> str:
    if len(quote) <= _LONGEST_QUOTE:
        return quote
    return quote[:_LONGEST_QUOTE].rsplit(" ", 1)[0] + " …"
