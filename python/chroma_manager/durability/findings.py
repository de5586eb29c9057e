"""What was found out about a database on its way to being opened, for those who report it. Nothing is decided here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chroma_manager.durability.reconnect import Replayed


class Findings:
    """What was found in one database, whose directory this process owns.

    Attributes:
        replayed: What Chroma has yet to replay after a recovery. Whoever has it do so empties the list.
        repaired: Sentences on damage that was found and is repaired. The next verification reports them, and empties
            the list.
        damaged: The collections that remain damaged: for each id a sentence that says what is wrong, and what of it can
            be saved. Their indexes are left alone.
        notices: Sentences for whoever opens the database. Whoever passes them on empties the list.
    """

    def __init__(self) -> None:
        """Nothing is found yet."""
        self.replayed: list[Replayed] = []
        self.repaired: list[str] = []
        self.damaged: dict[str, str] = {}
        self.notices: list[str] = []

    def log(self, sentence: str) -> None:
        """Records damage that was repaired, in the log of the engine process."""
        self.repaired.append(sentence)
        print(sentence, file=sys.stderr)

    def notify(self, sentence: str) -> None:
        """Records damage that was repaired, for whoever opens the database."""
        self.repaired.append(sentence)
        self.notices.append(sentence)

    def refuse(self, damaged: dict[str, str]) -> None:
        """Records the collections that remain damaged."""
        self.damaged = damaged
        self.replayed = [one for one in self.replayed if one.newest.collection not in damaged]
        self.notices += [f"{sentence}; calls on it are refused" for sentence in damaged.values()]
