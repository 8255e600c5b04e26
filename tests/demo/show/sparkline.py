"""A row of figures as a row of blocks, the oldest at the left."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """All values in at most `width` blocks, the smallest as the lowest block and the largest as the highest.

    Where there are more values than blocks, a block is the mean of its stretch. Equal values are lowest blocks. None is
    a space.
    """
    shown = _means(values, width)
    known = [value for value in shown if value is not None]
    low = min(known, default=0.0)
    span = max(known, default=0.0) - low

    def block(value: float | None) -> str:
        if value is None:
            return " "
        return BLOCKS[min(len(BLOCKS) - 1, int((value - low) / span * len(BLOCKS)))] if span > 0 else BLOCKS[0]

    return "".join(map(block, shown))


def _means(values: Sequence[float | None], width: int) -> list[float | None]:
    """The values themselves if there is room for them, else the means of `width` stretches of nearly equal length."""
    if len(values) <= width:
        return list(values)
    bounds = [len(values) * number // width for number in range(width + 1)] if width > 0 else []
    stretches = [[value for value in values[a:b] if value is not None] for a, b in pairwise(bounds)]
    return [fmean(stretch) if stretch else None for stretch in stretches]
