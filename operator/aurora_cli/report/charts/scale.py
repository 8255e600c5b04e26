"""Scales and their ticks: from figures to places on a chart. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
MIN_RELATIVE_RANGE: Final = 1e-6
"""Narrowest range of an axis, as a share of its figures."""
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_TIME_STEPS: Final = (
    *(n * _MINUTE for n in (1, 2, 5, 10, 15, 30)),
    *(n * _HOUR for n in (1, 2, 3, 6, 12)),
    *(n * _DAY for n in (1, 2, 7, 14, 28, 91, 182, 365)),
)


@dataclass(frozen=True)
class Scale:
    """A linear scale: ``low`` lies at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of ``value``; values outside are drawn at the edge."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


@dataclass(frozen=True)
class Tick:
    """A value with its label."""

    value: float
    label: str


def nice_range(low: float, high: float, count: int) -> tuple[float, float, float]:
    """The range widened to multiples of a round step, and that step, for about ``count`` ticks.

    A range that is too narrow to be told apart from a point is widened first.
    """
    size = max(1.0, abs(low), abs(high))
    if high - low <= MIN_RELATIVE_RANGE * size:
        low, high = low - 0.5 * size, high + 0.5 * size
    step = _nice_step((high - low) / count)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def _nice_step(raw: float) -> float:
    size = 10.0 ** math.floor(math.log10(raw))
    return next(factor * size for factor in _STEPS if factor * size >= raw * (1 - 1e-9))


def number_ticks(low: float, high: float, step: float, label: Callable[[float], str] | None = None) -> Sequence[Tick]:
    """Ticks at each ``step`` from ``low`` to ``high``.

    Args:
        label: how a value is written. None: with the decimal places that the step needs.
    """
    decimals = next((places for places in range(6) if math.isclose(round(step, places), step)), 6)
    count = min(50, round((high - low) / step))
    values = [low + number * step for number in range(count + 1)]
    return [Tick(value, label(value) if label else f"{value:.{decimals}f}") for value in values]


def time_ticks(start: datetime, end: datetime, count: int) -> Sequence[Tick]:
    """At most about ``count`` ticks at full minutes, hours or days, in seconds since ``start``."""
    seconds = (end - start).total_seconds()
    step = next((one for one in _TIME_STEPS if seconds / one <= count), max(1.0, seconds))
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    since_midnight = (start - midnight).total_seconds()
    first = math.ceil(since_midnight / step) * step - since_midnight
    places = [first + number * step for number in range(count + 2) if first + number * step <= seconds]
    moments = [end if place == seconds else start + timedelta(seconds=place) for place in places]
    return [Tick(place, _moment(moment, step, seconds)) for place, moment in zip(places, moments, strict=True)]


def _moment(moment: datetime, step: float, seconds: float) -> str:
    if step >= _DAY:
        return f"{moment:%d %b %Y}" if seconds > 300 * _DAY else f"{moment:%d %b}"
    return f"{moment:%d %b %H:%M}" if seconds > _DAY else f"{moment:%H:%M}"
