"""A horizontal axis of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from aurora_cli.report.charts.canvas import Canvas
from aurora_cli.report.charts.scale import Scale, time_ticks
from aurora_cli.report.page.markup import Markup


@dataclass(frozen=True)
class TimeAxis:
    """Places of moments on a canvas."""

    canvas: Canvas
    start: datetime
    end: datetime

    @property
    def _scale(self) -> Scale:
        return self.canvas.x_scale(0.0, max(1.0, (self.end - self.start).total_seconds()))

    def __call__(self, moment: datetime) -> float:
        return self._scale((moment - self.start).total_seconds())

    def stretch(self, start: datetime, end: datetime) -> tuple[float, float]:
        """Both ends of a stretch of time. The only stretch of an axis without a length takes all of it."""
        if self.start == self.end:
            return self._scale.start, self._scale.end
        return self(start), self(end)

    def draw(self, title: str) -> Iterator[Markup]:
        """The axis with its labels."""
        ticks = time_ticks(self.start, self.end, 4 if self.canvas.narrow else 9)
        yield from self.canvas.x_axis(self._scale, ticks, title)
