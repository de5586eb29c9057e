"""What pages show is read once for all of them."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

from rag_app.shown import Shown


def test_many_pages_cost_as_many_readings_as_one() -> None:
    readings: list[float] = []

    def read() -> dict[str, Any]:
        readings.append(time.monotonic())
        return {"files": [], "changes": len(readings) // 3}

    async def look(shown: Shown, seen: list[dict[str, Any]]) -> None:
        while len(readings) < 4:
            state = await shown.state()
            if not seen or state is not seen[-1]:
                seen.append(state)
            await asyncio.sleep(0.02)

    async def open_pages() -> list[list[dict[str, Any]]]:
        shown, seen = Shown(read), [[] for _ in range(40)]
        await asyncio.gather(*(look(shown, each) for each in seen))
        return seen

    seen = asyncio.run(open_pages())
    assert len(readings) == 4
    assert all(after - before >= 0.25 for before, after in pairwise(readings))
    assert all([state["changes"] for state in each] == [0, 1] for each in seen)
