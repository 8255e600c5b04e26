"""Live traffic over time: the shapes of verify rounds, the sources of answer tokens, and what the draft proposed.

Invariant: a stretch of time without a shard stays empty, and no line crosses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from aurora_cli.report.charts.canvas import Canvas, legend, line, mark, panel, responsive
from aurora_cli.report.charts.scale import nice_range, number_ticks
from aurora_cli.report.charts.stacked_shares import Stack, stacked
from aurora_cli.report.charts.time_axis import TimeAxis
from aurora_cli.report.page.markup import Markup, element, joined
from aurora_cli.report.report import ShapeKind, ShapeSeries, Traffic, TrafficBin

_SHADES = 7
"""Shades of the draft's colour in the page's style. The longest draft has the strongest."""


def shapes(traffic: Traffic) -> Markup | None:
    """Shares of the verify rounds by shape, oldest on the left. None where no shard says them."""
    known = [one for one in traffic.bins if one.shapes]
    if not known:
        return None
    layers = list(zip((one.name for one in traffic.series), series_looks(traffic.series), strict=True))
    stacks = [Stack(one.start, one.end, one.shapes) for one in known]
    key = legend(
        *(("square", classes, _meaning(one)) for one, (_, classes) in zip(traffic.series, layers, strict=True))
    )
    last = ", ".join(f"{name} {share:.0%}" for (name, _), share in zip(layers, known[-1].shapes, strict=True))
    summary = f"Shapes of verify rounds over time; last: {last}"
    return joined(
        (key, responsive(lambda canvas: stacked(_axis(canvas, traffic), stacks, layers, _title(traffic)), summary))
    )


def series_looks(series: Sequence[ShapeSeries]) -> list[str]:
    """The look of each series. Neighbouring lengths of the draft have shades of one colour."""
    lengths = [one for one in series if one.kind is ShapeKind.DRAFT and len(one.steps) == 1]
    shades = {
        one: round(_SHADES - place * (_SHADES - 1) / max(1, len(lengths) - 1)) for place, one in enumerate(lengths)
    }
    looks = {
        ShapeKind.DRAFT: "bar s1",
        ShapeKind.LOOKUP: "bar s2",
        ShapeKind.NO_PROPOSAL: "bar s3",
        ShapeKind.OFF: "bar quiet",
    }
    return [f"bar s0 shade{shades[one]}" if one in shades else looks[one.kind] for one in series]


def _meaning(one: ShapeSeries) -> str:
    if one.kind is ShapeKind.LOOKUP:
        low, high = one.steps[0], one.steps[-1]
        return f"lookup, {low} to {high} tokens" if low < high else f"lookup-{low}"
    return "no proposal in a round of others" if one.kind is ShapeKind.NO_PROPOSAL else one.name


def sources(traffic: Traffic) -> Markup | None:
    """Shares of the answer tokens by source, oldest on the left. None without stored traffic."""
    if not traffic.bins:
        return None
    last = traffic.bins[-1]
    names = (
        ("draft", "bar s0", "proposed by the draft"),
        ("lookup", "bar s2", "proposed by lookup"),
        ("target", "bar quiet", "the target's own"),
        ("rest", "bar s3", "rest: lookup or first tokens, not told apart"),
    )
    drawn = [place for place in range(len(names)) if any(source_shares(one)[place] for one in traffic.bins)]
    layers = [names[place][:2] for place in drawn]
    stacks = [Stack(one.start, one.end, tuple(source_shares(one)[n] for n in drawn)) for one in traffic.bins]
    shares = ", ".join(f"{names[place][0]} {source_shares(last)[place]:.0%}" for place in drawn)
    summary = f"Sources of answer tokens over time; last: {shares}"
    key = legend(*(("square", *names[place][1:]) for place in drawn))
    drawing = panel(lambda canvas: stacked(_axis(canvas, traffic), stacks, layers, _title(traffic)), summary)
    return element("div", element("h3", "Sources of answer tokens over time"), key, drawing, class_="panel")


def source_shares(one: TrafficBin) -> tuple[float, ...]:
    """Shares of the draft, of lookup, of the target, and the rest."""
    return one.from_draft, one.from_lookup, one.from_target, one.rest


def proposals(traffic: Traffic) -> Markup | None:
    """Mean tokens that the draft proposed in a verify round, over time. None without stored traffic."""
    bins = traffic.bins
    if not bins:
        return None
    low, high, step = nice_range(0.0, max(1.0, *(one.proposed_per_round for one in bins)), 5)

    def draw(canvas: Canvas) -> Iterator[Markup]:
        across, up = _axis(canvas, traffic), canvas.y_scale(low, high)
        yield from canvas.y_axis(up, number_ticks(low, high, step))
        yield from across.draw(_title(traffic))
        places = [(sum(across.stretch(one.start, one.end)) / 2, up(one.proposed_per_round)) for one in bins]
        for (before, after), ends in zip(pairwise(bins), pairwise(places), strict=True):
            if before.end == after.start:
                yield line(ends, "line s0")
        for one, place in zip(bins, places, strict=True):
            tooltip = f"{one.start:%Y-%m-%d %H:%M} to {one.end:%Y-%m-%d %H:%M}: {one.proposed_per_round:.2f} a round"
            yield mark("circle", *place, 3, classes="mark s0", title=tooltip)

    summary = f"Tokens that the draft proposed per verify round; last {bins[-1].proposed_per_round:.2f}"
    key = legend(("circle", "mark s0", "mean of all rounds, those without a proposal of the draft included"))
    heading = element("h3", "Tokens that the draft proposed in a round")
    return element("div", heading, key, panel(draw, summary), class_="panel")


def _axis(canvas: Canvas, traffic: Traffic) -> TimeAxis:
    return TimeAxis(canvas, traffic.bins[0].start, traffic.bins[-1].end)


def _title(traffic: Traffic) -> str:
    return f"{traffic.bins[0].start:%d %b %Y %H:%M} to {traffic.bins[-1].end:%d %b %Y %H:%M} (UTC)"
