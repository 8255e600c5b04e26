"""Markdown tables, and figures as their cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of ``rows``, a line each."""
    lines = [markdown_row(head), "|" + "---|" * len(head)]
    return "\n".join([*lines, *map(markdown_row, rows)])


def markdown_row(cells: Sequence[object]) -> str:
    """One line of a table, for printing rows as they are measured."""
    return "| " + " | ".join(map(str, cells)) + " |"


def geometric_mean_and_interval(ratios: Sequence[float]) -> str:
    """``geometric mean [low, high]``, the 95 % interval by the normal distribution. Takes dozens of ratios."""
    logs = [math.log(ratio) for ratio in ratios]
    mean, error = statistics.fmean(logs), 1.96 * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{math.exp(mean):.3f} [{math.exp(mean - error):.3f}, {math.exp(mean + error):.3f}]"


def median_and_quartiles(values: Sequence[float], digits: int = 1) -> str:
    """``median [lower quartile-upper quartile]``. Takes at least two values."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:,.{digits}f} [{low:,.{digits}f}-{high:,.{digits}f}]"
