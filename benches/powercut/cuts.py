"""What may be on a disk after the power was cut: which cuts there are in a log, and the image that each leaves.

A disk has kept all that was written before its last flush, and any part of what was written after that: so a cut is a
position in the log, and a seed, which says what of the writes between the last flush and that position is there.

    seed 0    none of them
    seed 1    all of them, in their order
    others    some, at random; and of some of these only sectors, of 512 or of 4,096 bytes
"""

from __future__ import annotations

import mmap
import os
import random
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from device import EVENT, SIZES

NOTHING, EVERYTHING = 0, 1
SECTORS = (512, 4096)
PART_OF_WRITES, PART_OF_TORN = 0.5, 0.3


class Cut(NamedTuple):
    """A moment: after so many events of the log; and a seed."""

    position: int
    seed: int


class Log:
    """The log of a device, read."""

    def __init__(self, directory: Path, system: str) -> None:
        self._system = system
        with (directory / "events").open("rb") as events:
            self._events = list(EVENT.iter_unpack(events.read()))
        with (directory / "data").open("rb") as data:
            self._data = memoryview(mmap.mmap(data.fileno(), 0, access=mmap.ACCESS_READ))
        # Each as the position after it.
        self._flushes = [i + 1 for i, (_, length, _) in enumerate(self._events) if length == 0]

    def __len__(self) -> int:
        return len(self._events)

    def flushes(self, begin: int, end: int) -> int:
        """How many flushes there are between two positions."""
        return sum(begin < flush <= end for flush in self._flushes)

    def cuts(self, begin: int, end: int, between: int, seed: int) -> Iterator[Cut]:
        """A cut after each flush, and so many between it and the next, at random.

        After a flush the disk is what it is until the next one, should it keep nothing of what is written in between:
        so the cut is just before the next one, when most has been acknowledged. Flushes after which nothing was written
        make no difference.
        """
        chance = random.Random(seed)
        flushes = [begin, *(flush for flush in self._flushes if begin < flush <= end)]
        for flush, following in zip(flushes, [*flushes[1:], end + 1], strict=True):
            last = following - 1
            has_writes = last > flush
            if has_writes or last == end:
                yield Cut(last, NOTHING)
            for _ in range(between if has_writes else 0):
                # Every fourth is a disk that writes in order, as one without a cache does.
                in_order = chance.random() < 0.25
                yield Cut(chance.randint(flush + 1, last), EVERYTHING if in_order else chance.randint(2, 999))

    def after(self, position: int, end: int) -> Cut:
        """The hardest cut after a position: the disk has kept nothing that was written after its last flush."""
        return Cut(next((flush - 1 for flush in self._flushes if flush > position), end), NOTHING)

    def build(self, cut: Cut, image: Path) -> None:
        """Makes what is on the disk after a cut."""
        flush = self._flushes[bisect_right(self._flushes, cut.position) - 1] if self._flushes else 0
        descriptor = os.open(image, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(descriptor, SIZES[self._system])
            for offset, length, begin in self._events[:flush]:
                if length:
                    os.pwrite(descriptor, self._data[begin : begin + length], offset)
            for offset, part in self._kept(cut, flush):
                os.pwrite(descriptor, part, offset)
        finally:
            os.close(descriptor)

    def _kept(self, cut: Cut, flush: int) -> Iterator[tuple[int, memoryview]]:
        chance = random.Random(f"{cut.position} {cut.seed}")
        for offset, length, begin in self._events[flush : cut.position]:
            data = self._data[begin : begin + length]
            if cut.seed == EVERYTHING:
                yield offset, data
            elif cut.seed != NOTHING and chance.random() < PART_OF_WRITES:
                if chance.random() >= PART_OF_TORN:
                    yield offset, data
                    continue
                size = chance.choice(SECTORS)
                for start in range(0, length, size):
                    if chance.random() < PART_OF_WRITES:
                        yield offset + start, data[start : start + size]
