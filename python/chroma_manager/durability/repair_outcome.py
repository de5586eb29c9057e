"""What repairing a damaged database achieved. The repair is in `verification`, which checkpoints do not import."""

from __future__ import annotations

from typing import NamedTuple


class RepairOutcome(NamedTuple):
    """What repairing a damaged database achieved.

    Attributes:
        done: Sentences about damage that was repaired.
        damaged: The collections that remain damaged: for each id a sentence that says what is wrong, and what of it can
            be saved.
    """

    done: list[str]
    damaged: dict[str, str]
