"""The figures of a run as SVG, each for light and for dark pages."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from contenders import NAMES
from figure_style import style, unpadded
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from report import DRAWN_FROM, THEMES, figure_file
from results import Results, digest, sizes_of
from rows import BASELINE, OURS, Row, rows

# Told apart by those who do not see red and green, too; ours are the strong ones.
COLORS = {
    "light": dict(zip(NAMES, ("#6e7781", "#a3874e", "#c2410c", "#8250df", "#2da8c9", "#0550ae"), strict=True)),
    "dark": dict(zip(NAMES, ("#9198a1", "#cdb37a", "#fb8f44", "#c297ff", "#56d4dd", "#58a6ff"), strict=True)),
}
MARKERS = dict(zip(NAMES, "osD^v*", strict=True))
SIZES = {name: 11 if name == OURS else 6 for name in NAMES}


def draw(run: dict[str, Any], growth: dict[str, Any]) -> list[Path]:
    """Writes all of them."""
    return [
        drawn(name, theme, run if name == "compared" else growth, drawing)
        for theme in THEMES
        for name, drawing in (("compared", compared), ("growth", grown))
    ]


def drawn(name: str, theme: str, run: dict[str, Any], drawing: Callable[[dict[str, Any], str], Figure]) -> Path:
    """Writes one, with the digest of what it is drawn from. It has no date, so that it changes only if that does."""
    file = figure_file(name, theme)
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None, "Creator": None, "Source": digest(DRAWN_FROM[name])}
    with mpl.rc_context(style(theme, "bench")):
        drawing(run, theme).savefig(file, transparent=True, metadata=metadata)
    file.write_text(unpadded(file.read_text()))
    return file


def compared(run: dict[str, Any], theme: str) -> Figure:
    """A line for each headline: how many times as good as chromadb each contender is, with its rounds."""
    results, sizes = run["results"], sizes_of(run)
    shown = [row for row in rows(sizes) if row.is_headline and not row.is_change]
    figure = Figure(figsize=(10, 1 + 0.36 * len(shown)), layout="constrained")
    axes = figure.subplots()
    others = [name for name in NAMES if name != BASELINE]
    for place, row in enumerate(shown):
        for name in others:
            gains = gains_of(row, name, results)
            if gains:
                color = COLORS[theme][name]
                axes.plot([min(gains), max(gains)], [place, place], color=color, linewidth=2, alpha=0.6)
                axes.plot(statistics.median(gains), place, MARKERS[name], color=color, markersize=SIZES[name])
    axes.axvline(1, color=COLORS[theme][BASELINE], linewidth=1.5)
    axes.set_yticks(range(len(shown)), [row.title(sizes).replace("`", "") for row in shown])
    axes.invert_yaxis()
    axes.set_xscale("log")
    numbered(axes.xaxis, (1,))
    axes.set_xlabel("times as good as chromadb (the line at 1); to the right is better")
    looks = [{"color": COLORS[theme][name], "marker": MARKERS[name], "markersize": SIZES[name]} for name in others]
    handles = [Line2D([], [], linestyle="", label=name, **look) for name, look in zip(others, looks, strict=True)]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(others))
    return figure


def gains_of(row: Row, name: str, results: Results) -> list[float]:
    """How many times as good in each round; a row in which nothing is left over has no such number."""
    factors = [factor for factor in row.factors(results, name, BASELINE) if factor > 0]
    return factors if row.more_is_better else [1 / factor for factor in factors]


PANELS = (
    ("growing_threads", "threads", "queries/s", "queries a second, by threads that ask"),
    ("growing_databases", "databases", "opening ms", "opening the next database, ms, by databases open"),
    ("growing_databases", "databases", "MB", "memory of all processes, MB, by databases open"),
    ("growing_records", "records", "query ms", "a query, ms, by records"),
    ("growing_records", "records", "add /s", "records added in a second, by records there"),
)


def grown(growth: dict[str, Any], theme: str) -> Figure:
    """A panel for each curve."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    panels = figure.subplots(3, 2).ravel()
    for axes, (scenario, x, y, title) in zip(panels, PANELS, strict=False):
        marks: set[float] = set()
        for name in NAMES:
            said = growth["results"].get(scenario, {}).get(name, [])
            if said and not isinstance(said, str):
                marks.update(said[0][x])
                curve(axes, said, x, y, {"color": COLORS[theme][name], "marker": MARKERS[name], "label": name})
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xscale("log")
        axes.set_xticks(sorted(marks), [plain(value) for value in sorted(marks)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_yscale("log")
        numbered(axes.yaxis, (1, 2, 5))
    panels[-1].axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[-1].legend(handles, labels, loc="center", fontsize=10)
    return figure


def curve(axes: Axes, said: list[dict[str, list[float]]], x: str, y: str, look: dict[str, str]) -> None:
    """The medians of the rounds, and in a fainter color from where to where these go."""
    # A logarithmic axis has no zero.
    points = list(zip(*[[max(value, 1e-3) for value in figures[y]] for figures in said], strict=True))
    axes.plot(said[0][x], [statistics.median(values) for values in points], markersize=4, **look)
    lowest, highest = [min(values) for values in points], [max(values) for values in points]
    axes.fill_between(said[0][x], lowest, highest, color=look["color"], alpha=0.2, linewidth=0)


def numbered(axis: Axis, steps: Sequence[int]) -> None:
    """A logarithmic axis with numbers at these steps of every decade."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_formatter(NullFormatter())


def plain(value: float) -> str:
    """A number without an exponent."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
