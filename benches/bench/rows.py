"""The rows of the tables: which figure of which scenario each of them is, and what `isolated` is held to.

How a row is printed is in `report.py`, how two runs of it are compared in `compare.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from results import Results
from scenario import Sizes

OURS = "isolated"
BASELINE = "chromadb"


@dataclass(frozen=True)
class Bound:
    """What a row promises of `isolated`, in the terms of another contender, or of another figure of its own.

    Attributes:
        value: How often, how much more, or how much; see `kind`.
        kind: "times" the other's figure, "more" than it, "faster" than it, or a "limit" of its own.
        than: The other contender; with `figure` alone, the same one.
        figure: The other figure; that of the row if it is not named.
    """

    value: float
    kind: str = "times"
    than: str = OURS
    figure: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the tables."""

    what: str
    scenario: str
    figure: str
    unit: str = "ms"
    bound: Bound | None = None
    more_is_better: bool = False
    is_headline: bool = False

    @property
    def is_change(self) -> bool:
        """Whether it is what something has grown by, which may be nothing: a multiple of that says nothing."""
        return self.figure.endswith(" more")

    def title(self, sizes: Sizes) -> str:
        """What is measured, with the sizes of the run."""
        return self.what.format(sizes=sizes, large=sizes.records)

    def rounds(self, results: Results, contender: str, figure: str = "") -> list[float]:
        """The figures of a contender; none if it has failed, or has no such call."""
        said = results.get(self.scenario, {}).get(contender, [])
        if isinstance(said, str):
            return []
        name = figure or self.figure
        return [figures[name] for figures in said if name in figures]

    def failure(self, results: Results, contender: str) -> str:
        """Why there are no figures, if it has failed."""
        said = results.get(self.scenario, {}).get(contender, [])
        return said if isinstance(said, str) else ""

    def median(self, results: Results, contender: str) -> float | None:
        """The median over the rounds."""
        rounds = self.rounds(results, contender)
        return statistics.median(rounds) if rounds else None

    def factors(self, results: Results, contender: str, than: str, figure: str = "") -> list[float]:
        """The figure as a multiple of another one, in each round: the machine's own speed is in both."""
        others = self.rounds(results, than, figure)
        pairs = zip(self.rounds(results, contender), others, strict=False)
        return [own / other for own, other in pairs if other > 0]

    def measured(self, results: Results) -> float | None:
        """What is held against the bound, in its terms."""
        if self.bound is None:
            return None
        return MEASURES[self.bound.kind](self, self.bound, results)

    def is_kept(self, results: Results) -> bool | None:
        """Whether the bound is; None if that is not known."""
        measured = self.measured(results)
        if measured is None or self.bound is None:
            return None
        at_least = self.bound.kind == "faster" or (self.bound.kind != "more" and self.more_is_better)
        return measured >= self.bound.value if at_least else measured <= self.bound.value


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _times(row: Row, bound: Bound, results: Results) -> float | None:
    return _median(row.factors(results, OURS, bound.than, bound.figure))


def _faster(row: Row, bound: Bound, results: Results) -> float | None:
    factors = row.factors(results, OURS, bound.than, bound.figure)
    return _median([1 / factor for factor in factors if factor > 0])


def _more(row: Row, bound: Bound, results: Results) -> float | None:
    pairs = zip(row.rounds(results, OURS), row.rounds(results, bound.than, bound.figure), strict=False)
    return _median([own - other for own, other in pairs])


def _limit(row: Row, _: Bound, results: Results) -> float | None:
    return row.median(results, OURS)


MEASURES: dict[str, Callable[[Row, Bound, Results], float | None]] = {
    "times": _times,
    "faster": _faster,
    "more": _more,
    "limit": _limit,
}

STALL = Bound(20, "limit")


def rows(sizes: Sizes) -> tuple[Row, ...]:
    """All of them, for a run of these sizes."""
    smallest, *others = [batch for batch, _ in sizes.batches]
    return (
        Row("opens a new database", "opening_new", "ms", bound=Bound(0.8, than="chromadb"), is_headline=True),
        Row("opens an existing one", "opening_existing", "ms", bound=Bound(1.5, than="embedded"), is_headline=True),
        Row("{sizes.opened_at_once} threads of a new process open one each, and add a record", "opening_at_once", "ms"),
        Row(
            "stores the demo's {sizes.demo_files} files in 8 threads",
            "demo",
            "/s",
            "chunks/s",
            Bound(1.2, than="embedded"),
            more_is_better=True,
            is_headline=True,
        ),
        *(
            Row(
                f"adds records, {batch:,} a call, nobody else there",
                "writing",
                f"add {batch} /s",
                "records/s",
                Bound(0.95, than="chromadb"),
                more_is_better=True,
                is_headline=batch in (smallest, others[-1]),
            )
            for batch in (smallest, *others)
        ),
        Row(
            "a query while another thread adds {sizes.meanwhile:,} in one call, p99",
            "reading_meanwhile",
            "query p99 ms",
            bound=Bound(150, "limit"),
            is_headline=True,
        ),
        Row(
            "the adding meanwhile",
            "reading_meanwhile",
            "add /s",
            "records/s",
            more_is_better=True,
        ),
        Row("worst stall of the app: adds {large:,}", "writing", "add stall ms", bound=STALL, is_headline=True),
        Row("worst stall of the app: upserts {sizes.existing} that exist", "writing", "upsert stall ms", bound=STALL),
        Row("worst stall of the app: updates {sizes.existing}", "writing", "update stall ms", bound=STALL),
        Row("worst stall of the app: gets {large:,} with embeddings", "writing", "get stall ms", bound=STALL),
        Row("worst stall of the app: deletes {sizes.deleted}", "writing", "delete stall ms", bound=STALL),
        Row("worst stall of the app: stores the demo's files", "demo", "stall ms", bound=STALL),
        Row(
            "upserts {sizes.existing} that exist",
            "writing",
            "upsert /s",
            "records/s",
            Bound(1.0, than="chromadb"),
            more_is_better=True,
            is_headline=True,
        ),
        Row(
            "updates {sizes.existing}",
            "writing",
            "update /s",
            "records/s",
            Bound(1.0, than="chromadb"),
            more_is_better=True,
        ),
        Row("gets {large:,} with embeddings", "writing", "get ms"),
        Row("deletes {sizes.deleted}", "writing", "delete ms"),
        Row(
            "adds one record a call",
            "single_records",
            "one thread /s",
            "records/s",
            Bound(1.5, than="chromadb"),
            more_is_better=True,
        ),
        Row(
            "adds one record a call, 8 threads into one database",
            "single_records",
            "eight threads /s",
            "records/s",
            Bound(3, than="chromadb"),
            more_is_better=True,
            is_headline=True,
        ),
        Row(
            "a query among {large:,}, ten results",
            "reading",
            "query ms",
            bound=Bound(0.1, "more", "chromadb"),
            is_headline=True,
        ),
        Row("gets a record by its id", "reading", "get ms", bound=Bound(0.1, "more", "chromadb")),
        Row("counts the records", "reading", "count ms", bound=Bound(0.1, "more", "chromadb")),
        Row(
            "`get_collection`, which the thread has had before",
            "finding",
            "get_collection us",
            "us",
            Bound(50, "faster", "guide"),
            is_headline=True,
        ),
        Row("`get_client`, the same", "finding", "get_client ns", "ns", Bound(2, "faster", "guide")),
        Row("a thread's first client of an open database", "finding", "first client us", "us"),
        Row(
            "a chat asks {sizes.chat_files} files, in a new pool of threads",
            "chat",
            "request ms",
            bound=Bound(1.5, figure="alone ms"),
            is_headline=True,
        ),
        Row("the same queries alone, in threads that are there", "chat", "alone ms"),
        Row("an idle engine process", "many_open", "engine process MB", "MB", Bound(5, "limit")),
        Row("one of {sizes.held} open databases: memory of all processes", "many_open", "MB each", "MB"),
        Row("one of {sizes.held} open databases: threads of the app", "many_open", "threads each", ""),
        Row("one of {sizes.held} open databases: descriptors of the app", "many_open", "descriptors each", ""),
        Row(
            "{sizes.passing:,} used once, at most {sizes.max_engines} kept open: memory at the end",
            "passing_through",
            "MB more",
            "MB more",
            Bound(10, "limit"),
            is_headline=True,
        ),
        Row("the same: descriptors of the app", "passing_through", "descriptors more", "more", Bound(0, "limit")),
        Row("the same: threads of the app", "passing_through", "threads more", "more", Bound(0, "limit")),
        Row("the same: processes", "passing_through", "processes more", "more", Bound(0, "limit")),
        Row(
            "recovers {sizes.recovered:,} records after a kill",
            "recovery",
            "s",
            "s",
            Bound(6, "limit"),
        ),
    )
