"""The figure of a run: how long each chat took, and how late the event loop was, in light and in dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from figure_style import style, unpadded
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from table import ROOT, percentile

# As in `benches/bench/figures.py`: ours is the strong one.
COLORS = {
    "light": {"isolated": "#0550ae", "embedded": "#c2410c"},
    "dark": {"isolated": "#58a6ff", "embedded": "#fb8f44"},
}
TITLES = {"rest": "chats alone", "ingest": "chats while files are uploaded and embedded"}
KINDS = {"chat": "a chat, ms", "pulse": "event loop late by, ms"}


def drawn(run: dict[str, Any], theme: str) -> Path:
    """Writes it. It has no date, so that it changes only if the run does."""
    colors = COLORS[theme]
    file = ROOT / f"docs/figures/load-{theme}.svg"
    with mpl.rc_context(style(theme, "load")):
        figure = Figure(figsize=(10, 5), layout="constrained")
        panels = figure.subplots(len(KINDS), len(TITLES), sharex=True, sharey="row")
        for row, (kind, label) in zip(panels, KINDS.items(), strict=True):
            for axes, (phase, title) in zip(row, TITLES.items(), strict=True):
                for engine, phases in run["results"].items():
                    measured = phases[phase][kind]
                    seconds, values = zip(*worst_of_each_second(measured) or [(0, 1)], strict=True)
                    look = {"color": colors[engine], "markersize": 3.5, "alpha": 0.7, "label": engine}
                    axes.plot(seconds, values, "o", markeredgewidth=0, **look)
                    p99 = percentile([ms for _, ms in measured], 0.99)
                    axes.axhline(max(p99 or 1, 1), color=colors[engine], linewidth=1, linestyle="--")
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
                if kind == "chat":
                    axes.set_title(title, fontsize=9, loc="left")
            row[0].set_ylabel(label)
        for axes in panels[-1]:
            axes.set_xlabel("seconds; the worst of each; the dashed lines are the 99th percentiles of all")
        handles, labels = panels[0][0].get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside upper center", ncols=2)
        for handle in legend.legend_handles:
            handle.set_markersize(7)
        figure.savefig(file, transparent=True, metadata={"Date": None, "Creator": None})
    file.write_text(unpadded(file.read_text()))
    return file


def worst_of_each_second(measured: list[list[float]]) -> list[tuple[int, float]]:
    worst: dict[int, float] = {}
    for second, milliseconds in measured:
        worst[int(second)] = max(milliseconds, 1, worst.get(int(second), 1))
    return sorted(worst.items())
