"""The look of all plots, and their SVG text.

Axes and text are grey and the background is transparent, so that plots are readable on light and on dark pages.
Invariant: the same figures give the same bytes, so that a plot in the repository changes only with its data.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

GREY: Final = "#808080"
_STYLE: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), GREY),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), GREY),
    "svg.hashsalt": "aurora",  # without a salt, ids are random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "legend.frameon": False,
}


def svg_text(draw: Callable[[], Figure], settings: Mapping[str, Any] | None = None) -> str:
    """The SVG text of the figure that ``draw`` makes. ``settings`` are further settings of matplotlib."""
    values: dict[Any, Any] = {**_STYLE, **(settings or {})}
    with mpl.rc_context(values):
        out = io.StringIO()
        draw().savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # matplotlib leaves spaces at the ends of lines.
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
