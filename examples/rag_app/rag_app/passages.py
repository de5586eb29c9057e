"""Passages: pieces of a text that are embedded and quoted, each with where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

LONGEST = 800  # characters

_WORD = re.compile(r"\w")
# A line goes on in the next one, unless that is an item of a list, a row of a table, or a heading.
_LINE_END = re.compile(r"\n(?=[^\S\n]*(?:[-*+#|>]|\d+[.)])\s)")


class Part(NamedTuple):
    """What a parser finds: a page, or a paragraph, with its number."""

    unit: str
    number: int
    text: str


class Passage(NamedTuple):
    """A piece of text of at most ``LONGEST`` characters, and where it stands: ``page 3``, ``paragraphs 4-6``."""

    text: str
    place: str


def cut(parts: Iterable[Part]) -> Iterator[Passage]:
    """Joins short parts, and cuts long ones between words. Pages are not joined, and pieces without a word left out."""
    joined: list[Part] = []
    length = 0
    for part in _pieces(parts):
        if joined and (_is_another_page(joined[-1], part) or length + len(part.text) > LONGEST):
            yield _passage(joined)
            joined, length = [], 0
        joined.append(part)
        length += len(part.text) + 1
    if joined:
        yield _passage(joined)


def paragraphs(text: str) -> Iterator[Part]:
    """Returns the paragraphs of a text, which blank lines separate, numbered from 1."""
    written = (paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip())
    return (Part("paragraph", number, paragraph) for number, paragraph in enumerate(written, 1))


def _pieces(parts: Iterable[Part]) -> Iterator[Part]:
    for part in parts:
        for piece in _cut_text("\n".join(" ".join(line.split()) for line in _LINE_END.split(part.text.strip()))):
            if _WORD.search(piece):
                yield part._replace(text=piece)


def _cut_text(text: str) -> Iterator[str]:
    """Pieces of about the same length, so that none is a mere rest."""
    begin = 0
    while (left := len(text) - begin) > LONGEST:
        pieces = -(-left // LONGEST)
        target = -(-left // pieces)
        spaces = [text.rfind(blank, begin + target // 2, begin + target + 1) for blank in "\n "]
        end = max(spaces) if max(spaces) > 0 else begin + target
        yield text[begin:end]
        begin = end
        while text[begin : begin + 1].isspace():
            begin += 1
    if begin < len(text):
        yield text[begin:]


def _is_another_page(before: Part, part: Part) -> bool:
    return part.unit == "page" and part.number != before.number


def _passage(joined: list[Part]) -> Passage:
    first, last = joined[0], joined[-1]
    one = first.number == last.number
    place = f"{first.unit} {first.number}" if one else f"{first.unit}s {first.number}-{last.number}"
    return Passage("\n".join(part.text for part in joined), place)
