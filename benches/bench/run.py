"""A run: the scenarios, of each its rounds, in which the contenders take turns.

Each time in a process of its own, on a directory of its own. The order is turned round with every round, so that
nobody is always the first.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alone import run_alone
from contenders import named
from results import Said
from scenario import Figures, Scenario, Sizes


class Turn(NamedTuple):
    """A contender's turn in a round of a scenario."""

    scenario: Scenario
    round: int
    contender: str


def measure(
    scenarios: Sequence[Scenario], contenders: Sequence[str], sizes: Sizes, rounds: int | None
) -> dict[str, Said]:
    """What every contender said in each round of every scenario; a text where one has failed."""
    progress = Progress(sum(1 for scenario in scenarios for _ in turns(scenario, contenders, rounds)))
    return {scenario.name: measured(scenario, contenders, sizes, rounds, progress) for scenario in scenarios}


def turns(scenario: Scenario, contenders: Sequence[str], rounds: int | None) -> Iterator[Turn]:
    """In which order."""
    taking = [name for name in scenario.contenders if name in contenders]
    for number in range(rounds or scenario.rounds):
        names = [name for name in taking if number == 0 or name not in scenario.once]
        yield from (Turn(scenario, number, name) for name in (names if number % 2 == 0 else reversed(names)))


def measured(
    scenario: Scenario, contenders: Sequence[str], sizes: Sizes, rounds: int | None, progress: Progress
) -> Said:
    """One scenario. Who has failed once has no further turn."""
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place:
        prepared = Prepared(scenario, Path(place), sizes)
        for turn in turns(scenario, contenders, rounds):
            before = said.setdefault(turn.contender, [])
            if not isinstance(before, str):
                outcome = taken(turn, prepared, sizes)
                if isinstance(outcome, str):
                    said[turn.contender] = outcome
                else:
                    before.append(outcome)
            progress.report(turn, said[turn.contender])
    return said


def taken(turn: Turn, prepared: Prepared, sizes: Sizes) -> Figures | str:
    """What comes of a turn."""
    base = prepared.base_for(turn)
    if isinstance(base, str):
        return base
    longest = turn.scenario.longest_seconds
    outcome = run_alone(turn.scenario.name, turn.contender, base, sizes, longest_seconds=longest)
    shutil.rmtree(base, ignore_errors=True)
    return outcome


class Prepared:
    """The directories of a scenario: an empty one for each turn, a copy of what was made for it, or that itself."""

    def __init__(self, scenario: Scenario, place: Path, sizes: Sizes) -> None:
        self._scenario = scenario
        self._place = place
        self._sizes = sizes
        self._made: dict[str, Path | str] = {}

    def base_for(self, turn: Turn) -> Path | str:
        """Where to run; a few words if it could not be made."""
        base = self._place / f"{turn.round}-{turn.contender}"
        if self._scenario.prepare is None:
            base.mkdir()
            return base
        if self._scenario.own_files:
            return self._make(turn.contender, base)
        maker = self._maker(turn.contender)
        if maker not in self._made:
            self._made[maker] = self._make(maker, self._place / maker)
        made = self._made[maker]
        return made if isinstance(made, str) else Path(shutil.copytree(made, base))

    def _maker(self, contender: str) -> str:
        """Who makes the files for a contender: the first with files of the same format."""
        storage = named(contender).storage
        return next(name for name in self._scenario.contenders if named(name).storage == storage)

    def _make(self, maker: str, path: Path) -> Path | str:
        path.mkdir()
        longest = self._scenario.longest_seconds
        said = run_alone(self._scenario.name, maker, path, self._sizes, part="prepare", longest_seconds=longest)
        return said if isinstance(said, str) else path


class Progress:
    """A line on standard error for each turn."""

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._done = 0
        self._began = time.monotonic()

    def report(self, turn: Turn, said: list[Figures] | str) -> None:
        self._done += 1
        failure = f": {said}" if isinstance(said, str) else ""
        at = time.monotonic() - self._began
        where = f"{turn.scenario.name}, round {turn.round + 1}, {turn.contender}"
        print(f"{at:4.0f} s  {self._done}/{self._turns}  {where}{failure}", file=sys.stderr)
