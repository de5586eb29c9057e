"""The figures of a run as SVG, each for light and for dark pages."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from contenders import NAMES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from results import ROOT, Results, sizes_of
from rows import BASELINE, Row, rows

FOLDER = ROOT / "docs/figures"
# Told apart by those who do not see red and green, too; ours are the strong ones.
COLORS = {
    "light": dict(zip(NAMES, ("#6e7781", "#a3874e", "#c2410c", "#8250df", "#2da8c9", "#0550ae"), strict=True)),
    "dark": dict(zip(NAMES, ("#9198a1", "#cdb37a", "#fb8f44", "#c297ff", "#56d4dd", "#58a6ff"), strict=True)),
}
MARKERS = dict(zip(NAMES, "osD^v*", strict=True))
INK = {"light": "#1f2328", "dark": "#f0f6fc"}
FAINT = {"light": "#d1d9e0", "dark": "#3d444d"}


def draw(run: dict[str, Any], growth: dict[str, Any]) -> list[Path]:
    """Writes all of them."""
    written = []
    for theme in COLORS:
        with mpl.rc_context(style(theme)):
            for name, figure in (("compared", compared(run, theme)), ("growth", grown(growth, theme))):
                written.append(FOLDER / f"{name}-{theme}.svg")
                written[-1].parent.mkdir(parents=True, exist_ok=True)
                # Without a date, a second run on the same file writes the same bytes.
                figure.savefig(written[-1], transparent=True, metadata={"Date": None, "Creator": None})
                written[-1].write_text(unpadded(written[-1].read_text()))
    return written


def unpadded(svg: str) -> str:
    """Without the blanks that matplotlib leaves at the ends of lines."""
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())


def style(theme: str) -> dict[str, Any]:
    """Readable on a page of that theme."""
    ink, faint = INK[theme], FAINT[theme]
    return {
        "svg.hashsalt": "bench",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": faint,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": faint,
        "grid.linewidth": 0.5,
        "xtick.color": ink,
        "ytick.color": ink,
        "legend.frameon": False,
    }


def compared(run: dict[str, Any], theme: str) -> Figure:
    """A line for each headline: how many times as good as chromadb each contender is, with its rounds."""
    results, sizes = run["results"], sizes_of(run)
    shown = [row for row in rows(sizes) if row.is_headline and row.median(results, BASELINE)]
    figure = Figure(figsize=(9, 1 + 0.36 * len(shown)), layout="constrained")
    axes = figure.subplots()
    others = [name for name in NAMES if name != BASELINE]
    for place, row in enumerate(shown):
        for name in others:
            gains = gains_of(row, name, results)
            if gains:
                color = COLORS[theme][name]
                axes.plot([min(gains), max(gains)], [place, place], color=color, linewidth=2, alpha=0.6)
                label = {} if place else {"label": name}
                axes.plot(statistics.median(gains), place, MARKERS[name], color=color, markersize=7, **label)
    axes.axvline(1, color=COLORS[theme][BASELINE], linewidth=1.5)
    axes.set_yticks(range(len(shown)), [row.title(sizes).replace("`", "") for row in shown])
    axes.invert_yaxis()
    logarithmic(axes, "x")
    axes.set_xlabel("times as good as chromadb (the line at 1); to the right is better")
    handles = [
        mpl.lines.Line2D([], [], color=COLORS[theme][n], marker=MARKERS[n], linestyle="", label=n) for n in others
    ]
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
        for name in NAMES:
            said = growth["results"].get(scenario, {}).get(name, [])
            if said and not isinstance(said, str):
                curves = [[max(value, 1e-3) for value in figures[y]] for figures in said]
                middle = [statistics.median(values) for values in zip(*curves, strict=True)]
                color = COLORS[theme][name]
                axes.plot(said[0][x], middle, color=color, marker=MARKERS[name], markersize=4, label=name)
                ends = [(min(values), max(values)) for values in zip(*curves, strict=True)]
                axes.fill_between(said[0][x], *zip(*ends, strict=True), color=color, alpha=0.2, linewidth=0)
        axes.set_title(title, fontsize=9, loc="left")
        logarithmic(axes, "x")
        logarithmic(axes, "y")
    panels[-1].axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[-1].legend(handles, labels, loc="center", fontsize=10)
    return figure


def logarithmic(axes: Axes, direction: str) -> None:
    """With plain numbers at the ticks."""
    axis = axes.xaxis if direction == "x" else axes.yaxis
    (axes.set_xscale if direction == "x" else axes.set_yscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
