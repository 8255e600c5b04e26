"""Runs as curves: acceptance length over traffic, a panel per kind of traffic and matching.

Invariant: the same runs give the same bytes, so that a plot in the repository changes only when its figures do. Axes
and text are of one grey and the ground is left out, to be read on a light page and on a dark one.
"""

from __future__ import annotations

import contextlib
import io
import statistics
from collections.abc import Sequence
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tests.bench.learning.configurations import CONFIGURATIONS, PUBLISHED, REFERENCE
from tests.bench.learning.replay import Run
from tests.bench.learning.report import by_configuration, curve_of

GREY: Final = "#808080"
COLOURS: Final = ("#3b82f6", "#10b981", "#a855f7", "#f59e0b", "#06b6d4", "#ec4899", "#84a30c")
DASHES: Final = ("-", "--", ":", "-.")
PUBLISHED_COLOUR: Final = "#ef4444"


def plot(runs: Sequence[Run]) -> str:
    """An SVG: the mean over seeds, and between the lowest and the highest of them."""
    traffics, matches = (list(dict.fromkeys(values)) for values in ((r.traffic for r in runs), (r.match for r in runs)))
    with _style():
        figure = Figure(figsize=(6.5 * len(matches) + 2.5, 4.5 * len(traffics)), layout="constrained")
        panels = figure.subplots(len(traffics), len(matches), squeeze=False, sharey="row")
        lines = dict[str, Line2D]()
        for row, traffic in zip(panels, traffics, strict=True):
            for panel, match in zip(row, matches, strict=True):
                lines |= _panel(panel, [r for r in runs if (r.traffic, r.match) == (traffic, match)])
                panel.set_title(f"{traffic}, matched {match}")
                panel.set_xlabel("answer tokens of traffic")
            row[0].set_ylabel("acceptance length, held out")
        figure.legend(lines.values(), lines.keys(), loc="outside right upper")
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _style() -> contextlib.AbstractContextManager[None]:
    return mpl.rc_context(
        {
            "svg.hashsalt": "aurora",
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "text.color": GREY,
            "axes.labelcolor": GREY,
            "axes.edgecolor": GREY,
            "axes.titlecolor": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "grid.color": GREY,
            "legend.frameon": False,
        }
    )


def _panel(panel: Axes, runs: Sequence[Run]) -> dict[str, Line2D]:
    """Draw; returns a line per configuration."""
    lines = dict[str, Line2D]()
    for name, mine in by_configuration(runs).items():
        colour, dash = _ink(name)
        curves = [curve_of(r) for r in mine]
        values = list(zip(*(c.lengths for c in curves), strict=True))
        heavy = 2.5 if name in (PUBLISHED, REFERENCE) or CONFIGURATIONS[name].is_default else 1.2
        means = [statistics.fmean(v) for v in values]
        (lines[name],) = panel.plot(curves[0].tokens, means, color=colour, linestyle=dash, linewidth=heavy)
        panel.fill_between(
            curves[0].tokens, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.12, linewidth=0
        )
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    return lines


def _ink(name: str) -> tuple[str, str]:
    """A configuration's colour and dash, the same in every plot."""
    if name == PUBLISHED:
        return PUBLISHED_COLOUR, DASHES[0]
    place = [n for n in CONFIGURATIONS if n != PUBLISHED].index(name)
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
