"""The table of a run, which is in `docs/app.md`. It needs nothing but Python, so that a test can compare both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benches/results/load.json"
PAGE = ROOT / "docs/app.md"
BEGIN, END = "<!-- load: begin -->\n", "<!-- load: end -->"
ENGINES = ("isolated", "embedded")
PHASES = ("rest", "ingest")
BOUND = 2.0
ROWS = (
    ("a chat, median, ms", "chat", 0.5),
    ("a chat, p99, ms", "chat", 0.99),
    ("an upload until its answer, p99, ms", "upload", 0.99),
    ("the event loop's lateness, p99, ms", "pulse", 0.99),
    ("the event loop's lateness, worst, ms", "pulse", 1.0),
)


def percentile(values: list[float], share: float) -> float | None:
    """The value that this share of them does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def with_table(page: str, run: dict[str, Any]) -> str:
    """The page with the table of this run in it."""
    return page[: page.index(BEGIN) + len(BEGIN)] + report(run) + page[page.index(END) :]


def report(run: dict[str, Any]) -> str:
    """The table, and under what it was made."""
    lines = [
        "| | " + " | ".join(f"{engine}, at {phase}" for engine in ENGINES for phase in PHASES) + " |",
        "| --- |" + " --- |" * (len(ENGINES) * len(PHASES)),
    ]
    for title, kind, share in ROWS:
        cells = [
            percentile([ms for _, ms in run["results"][engine][phase][kind]], share)
            for engine in ENGINES
            for phase in PHASES
        ]
        lines.append(f"| {title} | " + " | ".join("" if cell is None else f"{cell:,.0f}" for cell in cells) + " |")
    counted = [
        f"{len(phase['chat'])} chats, {len(phase['upload'])} uploads, {phase['failed']} failed"
        for engine in ENGINES
        for phase in (run["results"][engine][name] for name in PHASES)
    ]
    lines.append("| what was sent | " + " | ".join(counted) + " |")
    ratios = ", ".join(f"{engine} {ratio(run, engine):.2f}" for engine in ENGINES)
    circumstances = (
        f"Made {run['made']} on {run['cores']} cores (load before: {run['load before']}), {run['seconds']} s a phase.\n"
        f"p99 of a chat during ingest, as a multiple of that at rest: {ratios}. `isolated` is held to {BOUND:g}."
    )
    if run["load before"] > 1:
        circumstances += "\nThe machine was busy with other work: the figures say little, and are to be made again."
    return "\n".join([*lines, "", circumstances, ""])


def ratio(run: dict[str, Any], engine: str) -> float:
    rest, ingest = (
        percentile([ms for _, ms in run["results"][engine][phase]["chat"]], 0.99) for phase in ("rest", "ingest")
    )
    return (ingest or 0) / (rest or 1)
