"""Shares of a whole over time: one stack for each stretch of time, and nothing where there is no figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from aurora_cli.report.charts.scale import number_ticks
from aurora_cli.report.charts.time_axis import TimeAxis
from aurora_cli.report.page.markup import Markup, element

Layer = tuple[str, str]
"""Name and classes of a share, from the bottom up."""


@dataclass(frozen=True)
class Stack:
    """The shares of one stretch of time, one for each layer. Their sum is 1."""

    start: datetime
    end: datetime
    shares: tuple[float, ...]


def stacked(axis: TimeAxis, stacks: Sequence[Stack], layers: Sequence[Layer], span: str) -> Iterator[Markup]:
    """The axes, and a stack for each stretch of time.

    Args:
        span: the time that the axis shows, in words.
    """
    canvas = axis.canvas
    up = canvas.y_scale(0.0, 1.0)
    yield from canvas.y_axis(up, number_ticks(0.0, 1.0, 0.25, lambda value: f"{value:.0%}"))
    yield from axis.draw(span)
    for stack in stacks:
        left, right = axis.stretch(stack.start, stack.end)
        gap = 1.0 if right - left > 6 else 0.0
        parts = ", ".join(f"{name} {share:.0%}" for (name, _), share in zip(layers, stack.shares, strict=True))
        tooltip = f"{stack.start:%Y-%m-%d %H:%M} to {stack.end:%Y-%m-%d %H:%M}: {parts}"
        bottom = 0.0
        for (_, classes), share in zip(layers, stack.shares, strict=True):
            if share > 0:
                yield element(
                    "rect",
                    element("title", tooltip),
                    x=left + gap,
                    y=up(bottom + share),
                    width=max(0.5, right - left - 2 * gap),
                    height=up(bottom) - up(bottom + share),
                    class_=classes,
                )
            bottom += share
