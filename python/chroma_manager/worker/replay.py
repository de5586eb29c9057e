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

    from chroma_manager.durability.reconnect import Replayed

# What may be spent on vectors that a query cannot reach after the replay.
SECONDS_FOR_RECONNECTING = 5.0

# A checkpoint is taken after a replay that took so many seconds, or of more than so many rows.
LONG_REPLAY = 1.0
LONG_LOG = 5_000


class Replay:
    """The replays of one database.

    Attributes:
        needs_checkpoint: Whether the last replay was so long that a checkpoint is taken before the database is used: a
            process that is killed again would repeat all of it, and each time more.
        has_failed: Whether Chroma has failed to replay the log. It is tried once: what is wrong (a full disk, say) is
            then reported to whoever calls.
    """

    def __init__(self, directory: Path) -> None:
        """Replays nothing yet.

        Args:
            directory: The database's.
        """
        self._directory = directory
        self.needs_checkpoint = False
        self.has_failed = False

    def run(self, bindings: Any, replayed: Iterable[Replayed], rows: int, *, may_checkpoint: bool) -> bool:
        """Has Chroma replay its log, and reconnects what it has replayed.

        Args:
            bindings: Chroma's binding.
            replayed: What there is to replay.
            rows: Of the log, that are in no checkpoint.
            may_checkpoint: Whether a checkpoint may be taken now.

        Returns:
            Whether the binding can be used. Otherwise it is to be closed and opened again, after a checkpoint or after
            another recovery.
        """
        try:
            began = time.monotonic()
            reconnect.replay(bindings, replayed)
            is_long = time.monotonic() - began > LONG_REPLAY or rows > LONG_LOG
            self.needs_checkpoint = is_long and may_checkpoint and not self.needs_checkpoint
            if not self.needs_checkpoint:
                suspected = [reconnect.suspected(self._directory, part) for part in replayed]
                reconnect.connect(bindings, suspected, SECONDS_FOR_RECONNECTING)
        except BaseException:  # a panic of Chroma is not an Exception
            traceback.print_exc()
            self.has_failed, self.needs_checkpoint = True, False
            return False
        return not self.needs_checkpoint
