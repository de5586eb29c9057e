"""Two runs beside each other: what the newer one made slower, beyond what the rounds of each differ by themselves.

Where the row has chromadb, both runs are taken as multiples of it, round by round, so that the runs may be of two
machines, or of one that was busier.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from report import table
from results import sizes_of
from rows import BASELINE, Row, rows

OURS = ("embedded", "isolated")
# Less than this is nothing, however narrow the spread.
SLIGHT = 1.05


class Difference(NamedTuple):
    """A row of a contender in two runs; `factor` over one is worse."""

    what: str
    contender: str
    old: list[float]
    new: list[float]
    factor: float
    is_worse: bool
    is_better: bool


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Difference]:
    """Those of our engines that both runs have."""
    sizes = sizes_of(new)
    for row in rows(sizes):
        for contender in OURS:
            before, after = (comparable(row, contender, run["results"]) for run in (old, new))
            if before and after:
                yield difference(f"{row.title(sizes)}{row.unit and f', {row.unit}'}", contender, row, before, after)


def comparable(row: Row, contender: str, results: dict[str, Any]) -> list[float]:
    """As multiples of the baseline, if that is there. Of what may be nothing, less than one is nothing."""
    if row.is_change or not row.unit:
        return [max(each, 1.0) for each in row.rounds(results, contender)]
    factors = [factor for factor in row.factors(results, contender, BASELINE) if factor > 0]
    return factors or [each for each in row.rounds(results, contender) if each > 0]


def difference(what: str, contender: str, row: Row, old: list[float], new: list[float]) -> Difference:
    """Worse or better is only what no round of the other run has reached."""
    factor = statistics.median(new) / statistics.median(old)
    is_higher, is_lower = min(new) > max(old), max(new) < min(old)
    if row.more_is_better:
        factor, is_higher, is_lower = 1 / factor, is_lower, is_higher
    return Difference(
        what, contender, old, new, factor, is_higher and factor > SLIGHT, is_lower and factor < 1 / SLIGHT
    )


def comparison(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], bool]:
    """A table of all of them, and whether anything is worse."""
    found = list(differences(old, new))
    lines = [
        (each.what, each.contender, ranged(each.old), ranged(each.new), f"{each.factor:.2f}x", word(each))
        for each in found
    ]
    header = ("what", "engine", f"old, {old['revision']}", f"new, {new['revision']}", "worse by", "")
    return list(table(header, lines)), any(each.is_worse for each in found)


def ranged(values: list[float]) -> str:
    """The median, and from where to where the rounds go."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def word(found: Difference) -> str:
    """What to say of it."""
    return "**slower**" if found.is_worse else "better" if found.is_better else ""
