"""How the figures of all benches look, and how their files are written: readable on light and on dark pages."""

from __future__ import annotations

from typing import Any

INK = {"light": "#1f2328", "dark": "#f0f6fc"}
FAINT = {"light": "#d1d9e0", "dark": "#3d444d"}


def style(theme: str, salt: str) -> dict[str, Any]:
    """matplotlib's settings for a page of that theme; the salt makes the ids in a file those of one bench."""
    ink, faint = INK[theme], FAINT[theme]
    return {
        "svg.hashsalt": salt,
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


def unpadded(svg: str) -> str:
    """Without the blanks that matplotlib leaves at the ends of lines."""
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())
