"""The pulse of the event loop: a task that sleeps for a moment, and notes by how much it woke too late.

What keeps the loop from running (a call that holds the interpreter lock, say) keeps every request waiting as long.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import NamedTuple

_BEAT_SECONDS = 0.02
_SAMPLE_SECONDS = 0.1
_KEPT = 600


class Sample(NamedTuple):
    """The worst of some beats.

    Attributes:
        number: Counts up from 1.
        late: Milliseconds by which the latest beat came too late.
        seconds: How long the sample took: as long as the loop stood still, at least.
    """

    number: int
    late: float
    seconds: float


class Pulse:
    """Samples of the last minute."""

    def __init__(self) -> None:
        """Is still until it beats."""
        self._samples: deque[Sample] = deque(maxlen=_KEPT)
        self._number = 0

    async def beat(self) -> None:
        """Beats until it is cancelled."""
        began, worst = time.monotonic(), 0.0
        while True:
            due = time.monotonic() + _BEAT_SECONDS
            await asyncio.sleep(_BEAT_SECONDS)
            now = time.monotonic()
            worst = max(worst, now - due)
            if now - began >= _SAMPLE_SECONDS:
                self._number += 1
                self._samples.append(Sample(self._number, round(worst * 1000, 1), round(now - began, 3)))
                began, worst = now, 0.0

    def since(self, number: int) -> list[Sample]:
        """Returns the samples after the one of that number."""
        return [sample for sample in self._samples if sample.number > number]
