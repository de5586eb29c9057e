"""What all open pages show, which is read once for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

_EVERY_SECONDS = 0.25


class Shown:
    """The state of the app as its pages show it, at most a quarter of a second old."""

    def __init__(self, read: Callable[[], dict[str, Any]]) -> None:
        """Reads nothing yet.

        Args:
            read: Reads the state, in a thread.
        """
        self._read = read
        self._state: dict[str, Any] = {}
        self._until = 0.0
        self._reading = asyncio.Lock()

    async def state(self) -> dict[str, Any]:
        """Returns the state: the same object for as long as nothing changes."""
        async with self._reading:
            if time.monotonic() >= self._until:
                state = await asyncio.to_thread(self._read)
                if state != self._state:
                    self._state = state
                self._until = time.monotonic() + _EVERY_SECONDS
        return self._state
