"""Plots acceptance length over traffic, as an SVG."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tests.bench.learning.configurations import CONFIGURATIONS, PUBLISHED, REFERENCE
from tests.bench.learning.curve import Curve
from tests.bench.learning.recipe_report import by_configuration, curve_of
from tests.bench.learning.recipe_run import RecipeRun
from tests.bench.plot_style import svg_text

COLOURS: Final = ("#3b82f6", "#10b981", "#a855f7", "#f59e0b", "#06b6d4", "#ec4899", "#84a30c")
DASHES: Final = ("-", "--", ":", "-.")
PUBLISHED_COLOUR: Final = "#ef4444"


@dataclass(frozen=True)
class Panel:
    """The curves of each configuration, one per seed, all evaluated after the same numbers of tokens."""

    title: str
    curves: Mapping[str, Sequence[Curve]]


def plot_runs(runs: Sequence[RecipeRun]) -> str:
    """A row of panels per kind of traffic, and a panel per matching."""
    matches = dict.fromkeys(r.match for r in runs)

    def panel(traffic: str, match: str) -> Panel:
        by_name = by_configuration([r for r in runs if (r.traffic, r.match) == (traffic, match)])
        curves = {name: [curve_of(r) for r in seeds] for name, seeds in by_name.items()}
        return Panel(f"{traffic}, matched {match}", curves)

    rows = [[panel(traffic, match) for match in matches] for traffic in dict.fromkeys(r.traffic for r in runs)]
    return draw_panels(rows)


def draw_panels(rows: Sequence[Sequence[Panel]]) -> str:
    """The SVG text of a grid of panels. The panels of a row share a scale.

    Lines are means over seeds. Bands reach from the lowest seed to the highest.
    """
    return svg_text(lambda: _draw_grid(rows))


def _draw_grid(rows: Sequence[Sequence[Panel]]) -> Figure:
    figure = Figure(figsize=(6.5 * len(rows[0]) + 2.5, 4.5 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharey="row")
    lines = dict[str, Line2D]()
    for row, panels in zip(grid, rows, strict=True):
        for axes, panel in zip(row, panels, strict=True):
            lines |= _draw_panel(axes, panel)
        row[0].set_ylabel("acceptance length, held out")
    figure.legend(lines.values(), lines.keys(), loc="outside right upper")
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> dict[str, Line2D]:
    """Draw ``panel``, and return its line per configuration."""
    lines = dict[str, Line2D]()
    for name, curves in panel.curves.items():
        colour, dash = _colour_and_dash(name)
        is_heavy = name in (PUBLISHED, REFERENCE) or CONFIGURATIONS[name].is_default
        tokens, values = curves[0].tokens, list(zip(*(c.lengths for c in curves), strict=True))
        means = [statistics.fmean(v) for v in values]
        width = 2.5 if is_heavy else 1.2
        (lines[name],) = axes.plot(tokens, means, color=colour, linestyle=dash, linewidth=width)
        low, high = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(tokens, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_title(panel.title)
    axes.set_xlabel("answer tokens of traffic")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return lines


def _colour_and_dash(name: str) -> tuple[str, str]:
    """A configuration's colour and dash, which are the same in every plot."""
    if name == PUBLISHED:
        return PUBLISHED_COLOUR, DASHES[0]
    index = [n for n in CONFIGURATIONS if n != PUBLISHED].index(name)
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
