"""A row of figures as a row of blocks, the newest at the right."""

from __future__ import annotations

from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last `width` values, the smallest as the lowest block and the largest as the highest.

    Equal values are lowest blocks. None is a space.
    """
    shown = values[-width:] if width > 0 else ()
    known = [value for value in shown if value is not None]
    if not known:
        return " " * len(shown)
    low, span = min(known), max(known) - min(known)

    def block(value: float | None) -> str:
        if value is None:
            return " "
        return BLOCKS[min(len(BLOCKS) - 1, int((value - low) / span * len(BLOCKS)))] if span > 0 else BLOCKS[0]

    return "".join(map(block, shown))
