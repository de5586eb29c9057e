"""How a text is cut into passages, in the process that reads it."""

from __future__ import annotations

import time

import pytest
from rag_app.passages import LONGEST, Part, cut


@pytest.mark.parametrize(
    ("part", "count", "pieces"),
    [
        ("漢" * 4_900_000, 1, 6125),
        ("a", 100_000, 250),
        ("x" + "\n" * 20_000 + "x", 1, 1),
    ],
    ids=["one paragraph", "short paragraphs", "empty lines"],
)
def test_no_text_takes_long_to_cut(part: str, count: int, pieces: int) -> None:
    parts = [Part("paragraph", number, part) for number in range(count)]
    began = time.process_time()
    passages = list(cut(parts))
    assert time.process_time() - began < 1
    assert len(passages) == pieces
    assert max(len(passage.text) for passage in passages) <= LONGEST
    text = "".join(passage.text for passage in passages)
    assert "".join(text.split()) == "".join((part * count).split())
