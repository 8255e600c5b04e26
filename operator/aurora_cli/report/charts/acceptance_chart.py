"""Acceptance length over the tokens that training has learned: on held-out requests, and of live traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from aurora_cli.report.charts.canvas import Canvas, legend, line, mark, responsive
from aurora_cli.report.charts.scale import nice_range, number_ticks
from aurora_cli.report.page.markup import Markup, element, joined
from aurora_cli.report.report import AcceptancePoint, Activation
from aurora_cli.tables.plain_text import count

_STRETCHES: Final = 24
"""Stretches of the axis over which live acceptance is averaged for the line."""


def acceptance(
    held_out: Sequence[AcceptancePoint], live: Sequence[AcceptancePoint], activations: Sequence[Activation]
) -> Markup | None:
    """Both acceptance lengths on one axis. None without any figure."""
    points = [*held_out, *live]
    if not points:
        return None
    last = max(one.learned_tokens for one in points)
    _, most, step_across = nice_range(0.0, max(1.0, last), 6)
    low, high, step = nice_range(1.0, max(1.5, *(one.accept_length for one in points)), 5)

    def draw(canvas: Canvas) -> Iterator[Markup]:
        across, up = canvas.x_scale(0.0, most), canvas.y_scale(low, high)
        yield from canvas.y_axis(up, number_ticks(low, high, step))
        ticks = number_ticks(0.0, most, step_across, lambda value: count(round(value)))
        yield from canvas.x_axis(across, ticks, "traced tokens that training had learned")
        taken = float("-inf")
        for activation in activations:
            x = across(activation.learned_tokens)
            yield element("line", x1=x, x2=x, y1=canvas.top, y2=canvas.height - canvas.bottom, class_="event")
            if x > taken + 26:
                yield element("text", f"v{activation.version}", x=x + 3, y=canvas.top + 9, class_="tick")
                taken = x
        for one in live:
            tooltip = f"live: {one.accept_length:.2f} after {count(round(one.learned_tokens))} tokens"
            place = (across(one.learned_tokens), up(one.accept_length))
            yield mark("circle", *place, 2.5, classes="mark s1 faint", title=tooltip)
        averaged = [(across(one.learned_tokens), up(one.accept_length)) for one in _averaged(live, most)]
        yield line(averaged, "line s1")
        yield line([(across(one.learned_tokens), up(one.accept_length)) for one in held_out], "line s0")
        for one in held_out:
            tooltip = f"held-out: {one.accept_length:.2f} after {count(round(one.learned_tokens))} tokens"
            yield mark("square", across(one.learned_tokens), up(one.accept_length), 4, classes="mark s0", title=tooltip)

    return joined((legend(*_meanings(held_out, live, activations)), responsive(draw, _summary(held_out, live))))


def _meanings(
    held_out: Sequence[AcceptancePoint], live: Sequence[AcceptancePoint], activations: Sequence[Activation]
) -> Iterator[tuple[str, str, str]]:
    if held_out:
        yield "square", "mark s0", "held-out requests, simulated, at each version"
    if live:
        yield "circle", "mark s1", "live traffic: each stored shard, and their mean"
    if activations:
        yield "bar", "event", "a version became active"


def _averaged(live: Sequence[AcceptancePoint], most: float) -> Iterator[AcceptancePoint]:
    """The mean of each stretch of the axis, weighted by verify rounds."""
    for _, group in groupby(live, key=lambda one: int(one.learned_tokens / most * _STRETCHES)):
        own = list(group)
        weight = sum(one.weight for one in own)
        yield AcceptancePoint(
            sum(one.learned_tokens * one.weight for one in own) / weight,
            sum(one.accept_length * one.weight for one in own) / weight,
            weight,
        )


def _summary(held_out: Sequence[AcceptancePoint], live: Sequence[AcceptancePoint]) -> str:
    parts = [
        f"{name} from {points[0].accept_length:.2f} to {points[-1].accept_length:.2f}"
        for name, points in (("on held-out requests", held_out), ("of live traffic", live))
        if points
    ]
    return f"Acceptance length over learned tokens: {', '.join(parts)}"
