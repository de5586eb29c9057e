"""Has Chroma replay its log after a recovery, before the first call is answered.

What is recovered, and what there is to replay, `durability` decides. Here is what becomes of a replay that takes long,
or fails.
"""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any

from chroma_manager.durability import reconnect

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chroma_manager.durability.batch_journal import Batches
    from chroma_manager.durability.reconnect import Replayed

# What may be spent on vectors that a query cannot reach after the replay.
SECONDS_FOR_RECONNECTING = 5.0


class Replay:
    """The replays of one database.

    Attributes:
        seconds: How long the last one took.
        has_failed: Whether Chroma has failed to replay the log. It is tried once: what is wrong (a full disk, say) is
            then reported to whoever calls.
    """

    def __init__(self, directory: Path, batches: Batches) -> None:
        """Replays nothing yet.

        Args:
            directory: The database's.
            batches: The journals of its batches, which are told what is written to the log.
        """
        self._directory = directory
        self._batches = batches
        self.seconds = 0.0
        self.has_failed = False

    def run(self, bindings: Any, replayed: Iterable[Replayed]) -> bool:
        """Has Chroma replay its log, and reconnects what it has replayed.

        Args:
            bindings: Chroma's binding.
            replayed: What there is to replay.

        Returns:
            Whether the binding can be used. Otherwise it is to be closed and opened again, after another recovery.
        """
        try:
            began = time.monotonic()
            reconnect.replay(bindings, replayed)
            self.seconds = time.monotonic() - began
            suspected = [reconnect.suspected(self._directory, part) for part in replayed]
            for collection, rows in reconnect.connect(bindings, suspected, SECONDS_FOR_RECONNECTING).items():
                self._batches.wrote(collection, rows)
        except BaseException:  # a panic of Chroma is not an Exception
            traceback.print_exc()
            self.has_failed = True
        return not self.has_failed
