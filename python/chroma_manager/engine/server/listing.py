"""A list of a Chroma server, read page by page while others add to it and delete from it.

A server has its databases and collections in an order of its own (by name, by id, by the time of creation), and a page
is what is at an offset in it at that moment. A deletion moves what is behind it forward, over that offset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# How many databases or collections are asked for at once. A server may bound how many it returns.
PAGE = 100


def read(ask: Callable[[Mapping[str, int]], Sequence[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """All that is in a list for as long as it is read, each once.

    Args:
        ask: Asks for the page with this ``limit`` and ``offset``.
    """
    known: set[str] = set()
    offset = 0
    while True:
        page = ask({"limit": PAGE, "offset": offset})
        # Each page begins with the last item of the one before. If it does not, some may have moved in front of it.
        if offset and (not page or page[0]["id"] not in known):
            offset = max(offset - PAGE, 0)
            continue
        new = [item for item in page if item["id"] not in known]
        known.update(item["id"] for item in new)
        yield from new
        if len(page) < 2:
            return
        offset += len(page) - 1
