"""The pictures of a report, drawn by matplotlib: each in light and in dark colours, as SVG without any script.

Invariant: nothing but numbers, times and our own words is drawn, so no text of others reaches a picture.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Final, NamedTuple

import numpy as np
from matplotlib import rcParams, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from aurora_protocol.evidence_records import RatioEstimate, VerdictKind

WIDTH_INCHES: Final = 9.0
MAX_CONCURRENCIES: Final = 4
"""Most concurrencies of the picture of speedups. The table has all."""
MAX_LABELS: Final = 24
"""Most versions with a label on an axis."""
MARKERS: Final = "osD^"
STRETCHES: Final = 24
"""Stretches of the axis over which live acceptance is averaged for the line."""


SERIES: Final = ("C0", "C1", "C2", "C3")
"""Colours of the style files, by their place in the cycle."""
VERDICTS: Final = {VerdictKind.PASS: "C4", VerdictKind.REJECT: "C5", VerdictKind.INCONCLUSIVE: "C6"}
Draw = Callable[[Axes], None]


class Picture(NamedTuple):
    """One picture as two data URLs."""

    light: str
    dark: str


class VersionSpeed(NamedTuple):
    """The throughput of one version over no speculation, one ratio for each concurrency."""

    version: int
    ratios: Sequence[RatioEstimate]
    served: bool


class Span(NamedTuple):
    """A stretch of time: in which a version was active, or in which it was measured."""

    version: int
    start: datetime
    end: datetime
    verdict: VerdictKind | None = None


def _picture(draw: Draw, height_inches: float) -> Picture:
    return Picture(*(_svg_url(draw, height_inches, theme) for theme in ("light", "dark")))


def _svg_url(draw: Draw, height_inches: float, theme: str) -> str:
    with (
        resources.as_file(resources.files("aurora_cli.report")) as folder,
        style.context([folder / "picture.mplstyle", folder / f"{theme}.mplstyle"]),
    ):
        figure = Figure((WIDTH_INCHES, height_inches), layout="constrained")
        draw(figure.add_subplot())
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}"


def _legend(axes: Axes, handles: Sequence[Line2D | Patch]) -> None:
    axes.figure.legend(handles=list(handles), loc="outside upper left", ncols=5)


def _version_axis(axes: Axes, versions: Sequence[int]) -> None:
    step = -(-len(versions) // MAX_LABELS)
    axes.set_xticks(range(0, len(versions), step), [str(version) for version in versions[::step]])
    axes.set_xlim(-0.6, len(versions) - 0.4)
    axes.set_xlabel("version of the draft")
    axes.grid(visible=False, axis="x")


def speedups(speeds: Sequence[VersionSpeed]) -> Picture | None:
    """Throughput of each version over no speculation with 95 % intervals, by concurrency. None without any."""
    if not speeds:
        return None
    concurrencies = sorted({ratio.concurrency for one in speeds for ratio in one.ratios})[:MAX_CONCURRENCIES]

    def draw(axes: Axes) -> None:
        axes.axhline(1.0, color=rcParams["text.color"], linewidth=1, linestyle=(0, (4, 3)))
        hollow = Line2D(
            [], [], marker="o", color=rcParams["text.color"], fillstyle="none", linestyle="", label="never served"
        )
        marks = [hollow]
        for concurrency, marker, colour in zip(concurrencies, MARKERS, SERIES, strict=False):
            shift = (len(marks) - (len(concurrencies) + 1) / 2) * 0.16
            for place, one in enumerate(speeds):
                for ratio in (each for each in one.ratios if each.concurrency == concurrency):
                    face = colour if one.served else "none"
                    axes.vlines(place + shift, ratio.low, ratio.high, color=colour, linewidth=1.6)
                    axes.plot(place + shift, ratio.estimate, marker, color=colour, markerfacecolor=face, markersize=5)
            label = f"{concurrency} at a time"
            marks.append(Line2D([], [], marker=marker, color=colour, linestyle="", label=label))
        _version_axis(axes, [one.version for one in speeds])
        axes.set_ylabel("speedup over no speculation")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}x")
        _legend(axes, [*marks[1:], hollow])

    return _picture(draw, 3.6)


Points = Sequence[tuple[float, float]]
"""Learned tokens and acceptance length."""


def acceptance(held_out: Points, live: Points) -> Picture | None:
    """Acceptance length over the tokens that training had learned. None without any point."""
    if not held_out and not live:
        return None

    def draw(axes: Axes) -> None:
        draft, traffic = SERIES[:2]
        if live:
            x, y = np.array(live).T
            axes.plot(x, y, "o", color=traffic, markersize=3, alpha=0.35, markeredgewidth=0)
            stretch = np.minimum((x / max(x.max(), 1.0) * STRETCHES).astype(int), STRETCHES - 1)
            means = [(x[stretch == one].mean(), y[stretch == one].mean()) for one in np.unique(stretch)]
            axes.plot(*np.array(means).T, color=traffic, linewidth=1.8)
        if held_out:
            axes.plot(*np.array(held_out).T, "s-", color=draft, markersize=4.5, linewidth=1.8)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("traced tokens that training had learned")
        axes.set_ylabel("answer tokens per verify round")
        axes.grid(visible=False, axis="x")
        held = Line2D([], [], marker="s", color=draft, label="held-out requests, at each version")
        shards = Line2D([], [], marker="o", markersize=3, color=traffic, label="live traffic: shards, and their mean")
        _legend(axes, [held, shards])

    return _picture(draw, 3.4)


_DECISIONS: Final[Mapping[VerdictKind | None, str]] = {VerdictKind.PASS: "^", VerdictKind.REJECT: "v"}


def _day(moment: datetime) -> float:
    """A point in time on matplotlib's axis: days since 1970."""
    return moment.timestamp() / 86400


def _colour(verdict: VerdictKind | None) -> str:
    return VERDICTS[verdict] if verdict else rcParams["text.color"]


def timeline(
    served: Sequence[Span], measured: Sequence[Span], decided: Sequence[tuple[datetime, VerdictKind | None]]
) -> Picture | None:
    """Which version was served, what was measured and what was decided, on one axis of time. None without any.

    Args:
        decided: the time of each decision: a promotion (Pass), a rejection or a rollback (Reject), another one (None).
    """
    spans = (*served, *measured)
    if not spans:
        return None
    start, end = min(_day(each.start) for each in spans), max(_day(each.end) for each in spans)

    def draw(axes: Axes) -> None:
        axes.xaxis_date()
        for number, each in enumerate(served):
            left, width = _day(each.start), _day(each.end) - _day(each.start)
            axes.barh(2, width, left=left, height=0.62, color=SERIES[0], alpha=0.25 if number % 2 else 0.5)
            if width > (end - start) / 30:
                axes.text(
                    left + width / 2, 2, str(each.version), ha="center", va="center", color=rcParams["axes.titlecolor"]
                )
        for each in measured:
            width = max(_day(each.end) - _day(each.start), (end - start) / 300)
            axes.barh(1, width, left=_day(each.start), height=0.5, color=_colour(each.verdict))
        for time, verdict in decided:
            axes.plot(_day(time), 0, _DECISIONS.get(verdict, "D"), color=_colour(verdict), markersize=6)
        axes.set_yticks([2, 1, 0], ["served", "measured", "decided"])
        margin = max((end - start) / 60, 0.01)
        axes.set_xlim(start - margin, end + margin)
        axes.set_ylim(-0.6, 2.6)
        axes.set_xlabel("time (UTC)")
        axes.grid(visible=False, axis="y")
        names = {"passed": VerdictKind.PASS, "rejected": VerdictKind.REJECT, "undecided": VerdictKind.INCONCLUSIVE}
        _legend(axes, [Patch(color=VERDICTS[kind], label=name) for name, kind in names.items()])

    return _picture(draw, 2.4)


def cost(measured: Sequence[Span]) -> Picture | None:
    """How long the measurement of each version took, by verdict. None without any."""
    if not measured:
        return None

    def draw(axes: Axes) -> None:
        minutes = [max(0.0, (each.end - each.start).total_seconds() / 60) for each in measured]
        axes.bar(range(len(measured)), minutes, width=0.4, color=[_colour(each.verdict) for each in measured])
        _version_axis(axes, [each.version for each in measured])
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylabel("minutes of measuring")

    return _picture(draw, 2.2)
