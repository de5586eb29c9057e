"""What is made of the file of a run: the tables of README.md, and docs/benchmark.md, which has all of it.

Needs nothing but the standard library and numpy, so a test can hold the pages against the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import problem
from contenders import NAMES
from results import GROWTH as GROWTH_FILE
from results import LATEST, ROOT, Results, digest, sizes_of
from rows import OURS, Row, rows

README = ROOT / "README.md"
PAGE = ROOT / "docs/benchmark.md"
# The figures, and the file that each is drawn from.
DRAWN_FROM = {"compared": LATEST, "growth": GROWTH_FILE}
THEMES = ("light", "dark")
COMPARED = "how many times as good as chromadb each of them is"
GROWTH = "how cost grows with threads, databases and records"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def stale(run: dict[str, Any], growth: dict[str, Any]) -> Iterable[Path]:
    """The pages and figures that are not what is made of the files of the runs."""
    yield from (page for page, text in pages(run, growth).items() if page.read_text() != text)
    for name, file in DRAWN_FROM.items():
        for theme in THEMES:
            drawn = figure_file(name, theme)
            if not drawn.exists() or digest(file) not in drawn.read_text():
                yield drawn


def figure_file(name: str, theme: str) -> Path:
    """Where a figure is."""
    return ROOT / f"docs/figures/{name}-{theme}.svg"


def pages(run: dict[str, Any], growth: dict[str, Any]) -> dict[Path, str]:
    """The text that each page has to have."""
    return {
        README: between_marks(README.read_text(), readme_part(run)),
        PAGE: between_marks(PAGE.read_text(), page_part(run, growth)),
    }


def between_marks(page: str, part: str) -> str:
    """A page with this part of it replaced."""
    pattern = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    assert pattern.search(page), f"no {BEGIN}"
    return pattern.sub(lambda _: part, page)


def readme_part(run: dict[str, Any]) -> str:
    """The headlines, and what goes wrong."""
    headlines = [row for row in rows(sizes_of(run)) if row.is_headline]
    return "\n".join(
        (*problem_table(run), "", *speed_table(headlines, run), "", *picture("docs/figures/compared", COMPARED), "")
    )


def page_part(run: dict[str, Any], growth: dict[str, Any]) -> str:
    """Everything, with the spread."""
    every = rows(sizes_of(run))
    return "\n".join(
        (
            *circumstances_table(run),
            "",
            *problem_table(run),
            "",
            *speed_table(every, run, spread=True),
            "",
            *picture("figures/compared", COMPARED),
            "",
            "## How cost grows",
            "",
            *picture("figures/growth", GROWTH),
            "",
            *circumstances_table(growth),
            "",
        )
    )


def circumstances_table(run: dict[str, Any]) -> Iterable[str]:
    """Of what the figures are."""
    machine, versions = run["machine"], {name: number for name, number in run["versions"].items() if number}
    lines = {
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "machine": f"{machine['cores']} cores ({machine['processor']}), {machine['memory GB']} GB, {machine['system']}",
        "load before the run": f"{machine['load before']}",
        "vectors": f"{run['sizes']['dimension']:,} dimensions",
        "revision, time (UTC), duration": f"{run['revision']}, {run['made']}, {run['seconds']} s",
    }
    return table(("the figures are of", ""), lines.items())


def picture(path: str, alternative: str) -> Iterable[str]:
    """A figure for light and dark pages."""
    yield f'<picture><source media="(prefers-color-scheme: dark)" srcset="{path}-dark.svg">'
    yield f'<img alt="{alternative}" src="{path}-light.svg"></picture>'


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterable[str]:
    """Markdown."""
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join(['---'] * len(header))} |"
    for line in lines:
        yield f"| {' | '.join(line)} |"


def problem_table(run: dict[str, Any]) -> Iterable[str]:
    """What goes wrong: texts, and no figures."""
    names = problem.CONTENDERS
    lines = [
        (str(scenario.run.__doc__), *(told(run["results"].get(scenario.name, {}).get(name, "")) for name in names))
        for scenario in problem.SCENARIOS
    ]
    return table(("what", *names), lines)


def told(said: Any) -> str:
    """What a scenario has said, or why it could not."""
    return said if isinstance(said, str) else said[0]["said"]


def speed_table(shown: Iterable[Row], run: dict[str, Any], *, spread: bool = False) -> Iterable[str]:
    """A row for each figure: the median of its rounds of every contender, and what comes of the bound."""
    results, sizes = run["results"], sizes_of(run)
    lines = [
        (
            f"{row.title(sizes)}{row.unit and f', {row.unit}'}",
            *(cell(row, name, results, spread) for name in NAMES),
            verdict(row, results),
        )
        for row in shown
    ]
    return table(("what", *NAMES, f"`{OURS}` is held to"), lines)


def cell(row: Row, contender: str, results: Results, spread: bool) -> str:
    """The median, with how far the rounds are from it at most."""
    median = row.median(results, contender)
    if median is None:
        return row.failure(results, contender)
    text = number(median)
    rounds = row.rounds(results, contender)
    if spread and median and len(rounds) > 1:
        text += f" ±{max(abs(each - median) for each in rounds) / abs(median):.0%}"
    return text


def number(value: float) -> str:
    """With as many digits as it is worth."""
    size = abs(value)
    if size >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def verdict(row: Row, results: Results) -> str:
    """The bound, and what was measured of it; in bold where it is missed."""
    bound = row.bound
    if bound is None:
        return ""
    measured, is_kept = row.measured(results), row.is_kept(results)
    other = "the queries alone" if bound.figure else bound.than
    least_or_most = "at least" if row.more_is_better else "at most"
    terms = {
        "times": f"{least_or_most} {bound.value:g}x {other}",
        "more": f"{other} + {bound.value:g}",
        "faster": f"{bound.value:g} times faster than {other}",
        "limit": f"{least_or_most} {bound.value:g}",
    }[bound.kind]
    if measured is None:
        return f"{terms}: not measured"
    found = {"times": f"{measured:.2f}x", "more": f"{measured:+.2f}", "faster": f"{measured:.1f} times"}
    text = f"{terms}: {found.get(bound.kind, number(measured))}"
    return text if is_kept else f"**{text}**"
