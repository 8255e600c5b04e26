"""Where answer tokens came from over time, and how many tokens the draft proposed in a verify round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aurora_cli.report.charts.canvas import Canvas, legend, line, mark, panel
from aurora_cli.report.charts.scale import Scale, Tick, nice_range, number_ticks
from aurora_cli.report.page.markup import Markup, element
from aurora_cli.report.report import TrafficBin


def sources(bins: Sequence[TrafficBin]) -> Markup | None:
    """Shares of the answer tokens by source, oldest on the left. None without stored traffic."""
    if not bins:
        return None

    def draw(canvas: Canvas) -> Iterator[Markup]:
        across, up = canvas.x_scale(0.0, float(len(bins))), canvas.y_scale(0.0, 1.0)
        yield from canvas.y_axis(up, number_ticks(0.0, 1.0, 0.25, lambda value: f"{value:.0%}"))
        yield from canvas.x_axis(across, _ends(bins), "stored shards, oldest first (UTC)")
        gap = 1.0 if len(bins) > 1 else 0.0
        for place, one in enumerate(bins):
            bottom = 0.0
            tooltip = f"{_span(one)}: draft {one.from_draft:.0%}, target {one.from_target:.0%}, rest {one.rest:.0%}"
            for share, series in ((one.from_draft, "s0"), (one.from_target, "quiet"), (one.rest, "s2")):
                yield _bar(across(place) + gap, across(place + 1) - gap, up, (bottom, bottom + share), series, tooltip)
                bottom += share

    key = legend(
        ("square", "bar s0", "proposed by the draft"),
        ("square", "bar quiet", "the target's own, one a round"),
        ("square", "bar s2", "rest: lookup and first tokens"),
    )
    summary = (
        f"Sources of answer tokens in stored traffic; last: draft {bins[-1].from_draft:.0%},"
        f" target {bins[-1].from_target:.0%}, rest {bins[-1].rest:.0%}"
    )
    return element("div", element("h3", "Sources of answer tokens"), key, panel(draw, summary), class_="panel")


def _bar(left: float, right: float, up: Scale, ends: tuple[float, float], series: str, tooltip: str) -> Markup:
    top, bottom = up(ends[1]), up(ends[0])
    title = element("title", tooltip)
    return element(
        "rect", title, x=left, y=top, width=max(0.5, right - left), height=bottom - top, class_=f"bar {series}"
    )


def proposals(bins: Sequence[TrafficBin]) -> Markup | None:
    """Mean tokens that the draft proposed in a verify round, over time. None without stored traffic."""
    if not bins:
        return None
    low, high, step = nice_range(0.0, max(1.0, *(one.proposed_per_round for one in bins)), 5)

    def draw(canvas: Canvas) -> Iterator[Markup]:
        across, up = canvas.x_scale(0.0, float(len(bins))), canvas.y_scale(low, high)
        yield from canvas.y_axis(up, number_ticks(low, high, step))
        yield from canvas.x_axis(across, _ends(bins), "stored shards, oldest first (UTC)")
        yield line([(across(n + 0.5), up(one.proposed_per_round)) for n, one in enumerate(bins)], "line s0")
        for place, one in enumerate(bins):
            tooltip = f"{_span(one)}: {one.proposed_per_round:.2f} tokens a round"
            yield mark("circle", across(place + 0.5), up(one.proposed_per_round), 3, classes="mark s0", title=tooltip)

    summary = f"Tokens that the draft proposed per verify round; last {bins[-1].proposed_per_round:.2f}"
    key = legend(("circle", "mark s0", "mean of all rounds, those without a proposal of the draft included"))
    heading = element("h3", "Tokens that the draft proposed in a round")
    return element("div", heading, key, panel(draw, summary), class_="panel")


def _ends(bins: Sequence[TrafficBin]) -> list[Tick]:
    """A label at the first stretch of each day, or at each stretch of a single day."""
    days = (bins[-1].end - bins[0].start).total_seconds() > 86400
    labels = [f"{one.start:%d %b}" if days else f"{one.start:%H:%M}" for one in bins]
    return [
        Tick(number + 0.5, label) for number, label in enumerate(labels) if number == 0 or label != labels[number - 1]
    ]


def _span(one: TrafficBin) -> str:
    return f"{one.start:%Y-%m-%d %H:%M} to {one.end:%Y-%m-%d %H:%M}"
