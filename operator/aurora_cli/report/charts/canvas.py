"""The frame of a chart: size, axes, grid and legend, drawn once for wide and once for narrow screens.

Why twice: a drawing that shrinks takes its letters along. The style sheet shows the one that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from aurora_cli.report.charts.scale import Scale, Tick
from aurora_cli.report.page.markup import Markup, element, joined

LETTER: Final = 6.6
"""About the width of a letter of a label."""


@dataclass(frozen=True)
class Canvas:
    """A drawing area with margins for the axes. The origin is the upper left corner."""

    width: float
    height: float
    narrow: bool
    left: float = 46.0
    right: float = 12.0
    top: float = 12.0
    bottom: float = 40.0

    def x_scale(self, low: float, high: float) -> Scale:
        return Scale(low, high, self.left, self.width - self.right)

    def y_scale(self, low: float, high: float) -> Scale:
        return Scale(low, high, self.height - self.bottom, self.top)

    def x_axis(self, scale: Scale, ticks: Iterable[Tick], title: str) -> Iterator[Markup]:
        """Labels below the drawing. Labels that would touch the one before are left out."""
        floor, taken = self.height - self.bottom, float("-inf")
        yield element("line", x1=self.left, x2=self.width - self.right, y1=floor, y2=floor, class_="axis")
        for tick in ticks:
            place, half = scale(tick.value), len(tick.label) * LETTER / 2
            if place - half < taken + 10:
                continue
            taken = place + half
            anchor = "end" if place + half > self.width else "middle"
            yield element("text", tick.label, x=place, y=floor + 16, text_anchor=anchor, class_="tick")
        middle = (self.left + self.width - self.right) / 2
        yield element("text", title, x=middle, y=self.height - 5, text_anchor="middle", class_="title")

    def y_axis(self, scale: Scale, ticks: Sequence[Tick]) -> Iterator[Markup]:
        """Labels on the left, and a line of the grid at each."""
        for tick in ticks:
            place = scale(tick.value)
            yield element("line", x1=self.left, x2=self.width - self.right, y1=place, y2=place, class_="grid")
            yield element("text", tick.label, x=self.left - 6, y=place + 4, text_anchor="end", class_="tick")


Drawing = Callable[[Canvas], Iterable[Markup]]
WIDE: Final = Canvas(920, 320, narrow=False)
NARROW: Final = Canvas(360, 270, narrow=True)
PANEL: Final = Canvas(420, 250, narrow=True)


def responsive(drawing: Drawing, summary: str, *, wide: Canvas = WIDE, narrow: Canvas = NARROW) -> Markup:
    """A chart for wide and for narrow screens.

    Args:
        summary: what the chart shows, for those who do not see it.
    """
    return joined((_svg(drawing, wide, summary, "chart wide"), _svg(drawing, narrow, summary, "chart narrow")))


def panel(drawing: Drawing, summary: str, canvas: Canvas = PANEL) -> Markup:
    """A small chart that stands beside others, or alone on a narrow screen."""
    return _svg(drawing, canvas, summary, "chart")


def _svg(drawing: Drawing, canvas: Canvas, summary: str, classes: str) -> Markup:
    box = f"0 0 {canvas.width:.0f} {canvas.height:.0f}"
    return element("svg", *drawing(canvas), viewBox=box, role="img", aria_label=summary, class_=classes)


# Marks ----------------------------------------------------------------------------------------------------------------

SHAPES: Final = ("circle", "square", "diamond", "triangle")


def mark(shape: str, x: float, y: float, size: float, *, classes: str, title: str = "") -> Markup:
    """A mark at a figure, with a title that a pointer shows."""
    tooltip = element("title", title) if title else None
    if shape == "circle":
        return element("circle", tooltip, cx=x, cy=y, r=size, class_=classes)
    if shape == "square":
        side = size * 1.8
        return element("rect", tooltip, x=x - side / 2, y=y - side / 2, width=side, height=side, class_=classes)
    if shape == "bar":
        return element("line", tooltip, x1=x, x2=x, y1=y - size * 1.5, y2=y + size * 1.5, class_=classes)
    corners = {
        "diamond": ((x, y - size * 1.4), (x + size * 1.4, y), (x, y + size * 1.4), (x - size * 1.4, y)),
        "triangle": ((x, y - size * 1.3), (x + size * 1.25, y + size), (x - size * 1.25, y + size)),
        "down": ((x, y + size * 1.3), (x + size * 1.25, y - size), (x - size * 1.25, y - size)),
    }[shape]
    return element("polygon", tooltip, points=corners, class_=classes)


def line(points: Sequence[tuple[float, float]], classes: str) -> Markup:
    """A line through places on the canvas."""
    return element("polyline", points=tuple(points), class_=classes)


def legend(*entries: tuple[str, str, str]) -> Markup:
    """Shape, classes and meaning of each kind of mark, above the chart."""
    return element(
        "p",
        *(
            element(
                "span",
                element("svg", mark(shape, 7, 7, 4.5, classes=classes), viewBox="0 0 14 14", aria_hidden="true"),
                meaning,
            )
            for shape, classes, meaning in entries
        ),
        class_="legend",
    )
