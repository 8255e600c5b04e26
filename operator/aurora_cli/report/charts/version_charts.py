"""Charts whose horizontal axis is the version: speedup over off, and tokens per second of each arm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from aurora_cli.report.charts.canvas import SHAPES, Canvas, legend, mark, panel, responsive
from aurora_cli.report.charts.scale import Scale, Tick, nice_range, number_ticks
from aurora_cli.report.page.markup import Markup, element, joined
from aurora_cli.report.report import Measurement, Ratio, Throughput, VersionSpeed
from aurora_protocol.evidence_records import Arm

MAX_CONCURRENCIES: Final = 4
"""Most concurrencies of a chart. The tables have all."""
_ARMS: Final = {
    Arm.OFF: ("square", "quiet", "off: no speculation"),
    Arm.NGRAM: ("triangle", "s2", "SGLang's NGRAM"),
    Arm.CANDIDATE: ("circle", "s0", "the version"),
}


def speedups(speeds: Sequence[VersionSpeed], served: frozenset[int]) -> Markup | None:
    """Throughput of each version over no speculation, by concurrency. None when none was measured."""
    concurrencies = tuple(sorted({ratio.concurrency for one in speeds for ratio in one.ratios}))[:MAX_CONCURRENCIES]
    if not speeds:
        return None
    bounds = [value for one in speeds for ratio in one.ratios for value in (ratio.low, ratio.estimate, ratio.high)]
    low, high, step = nice_range(min(0.95, *bounds), max(1.05, *bounds), 6)

    def draw(canvas: Canvas) -> Iterator[Markup]:
        across, up = canvas.x_scale(-0.5, len(speeds) - 0.5), canvas.y_scale(low, high)
        yield from canvas.y_axis(up, number_ticks(low, high, step, lambda value: f"{value:.4g}x"))
        yield from canvas.x_axis(across, _version_ticks(speeds), "version of the draft")
        left, right = canvas.left, canvas.width - canvas.right
        yield element("line", x1=left, x2=right, y1=up(1.0), y2=up(1.0), class_="reference")
        spread = min(14.0, (across(1) - across(0)) / (len(concurrencies) + 1))
        for place, one in enumerate(speeds):
            for ratio in one.ratios:
                if ratio.concurrency in concurrencies:
                    series = concurrencies.index(ratio.concurrency)
                    x = across(place) + (series - (len(concurrencies) - 1) / 2) * spread
                    yield from _interval(x, up, ratio, series, one, filled=one.version in served)

    last = speeds[-1]
    summary = (
        f"Speedup over no speculation of {len(speeds)} versions with 95 % intervals; newest, version {last.version}: "
        + ", ".join(f"{one.estimate:.2f} at concurrency {one.concurrency}" for one in last.ratios)
    )
    entries = [(SHAPES[n], f"mark s{n}", f"concurrency {c}") for n, c in enumerate(concurrencies)]
    key = legend(*entries, ("circle", "mark hollow", "hollow: never served"))
    return joined((key, responsive(draw, summary)))


def _interval(x: float, up: Scale, ratio: Ratio, series: int, one: VersionSpeed, *, filled: bool) -> Iterator[Markup]:
    tooltip = (
        f"version {one.version}, concurrency {ratio.concurrency}: {ratio.estimate:.2f}x"
        f" [{ratio.low:.2f}, {ratio.high:.2f}], {one.outcome}"
    )
    yield element("line", x1=x, x2=x, y1=up(ratio.low), y2=up(ratio.high), class_=f"whisker s{series}")
    classes = f"mark s{series}{'' if filled else ' hollow'}"
    yield mark(SHAPES[series], x, up(ratio.estimate), 4.5, classes=classes, title=tooltip)


def _version_ticks(versions: Sequence[VersionSpeed | Measurement]) -> Iterable[Tick]:
    return [Tick(float(place), str(one.version)) for place, one in enumerate(versions)]


def throughputs(measurements: Sequence[Measurement], concurrency: int) -> Markup | None:
    """Tokens per second of each measured version beside no speculation, at one concurrency. None without any."""
    drawn = [one for one in measurements if _speeds(one, concurrency)]
    if not drawn:
        return None
    arms = [arm for arm in _ARMS if any(arm in _speeds(one, concurrency) for one in drawn)]
    highest = max(speed.tokens_per_second for one in drawn for speed in _speeds(one, concurrency).values())
    low, high, step = nice_range(0.0, max(1.0, highest), 5)

    def draw(canvas: Canvas) -> Iterator[Markup]:
        across, up = canvas.x_scale(-0.5, len(drawn) - 0.5), canvas.y_scale(low, high)
        yield from canvas.y_axis(up, number_ticks(low, high, step, lambda value: f"{value:.6g}"))
        yield from canvas.x_axis(across, _version_ticks(drawn), "version")
        for place, one in enumerate(drawn):
            speeds = _speeds(one, concurrency)
            ends = [up(speeds[arm].tokens_per_second) for arm in (Arm.OFF, Arm.CANDIDATE) if arm in speeds]
            if len(ends) == 2:
                yield element("line", x1=across(place), x2=across(place), y1=ends[0], y2=ends[1], class_="whisker s0")
            for arm, speed in speeds.items():
                shape, series, meaning = _ARMS[arm]
                when = ", measured before" if speed.cached else ""
                tooltip = f"version {one.version}, {meaning}: {speed.tokens_per_second:.1f} tokens/s{when}"
                classes = f"mark {series}{' hollow' if speed.cached else ''}"
                yield mark(shape, across(place), up(speed.tokens_per_second), 4, classes=classes, title=tooltip)

    summary = f"Tokens per second by version at concurrency {concurrency}, beside no speculation"
    heading = element("h3", f"Concurrency {concurrency}")
    key = legend(*((_ARMS[arm][0], f"mark {_ARMS[arm][1]}", _ARMS[arm][2]) for arm in arms))
    return element("div", heading, key, panel(draw, summary), class_="panel")


def _speeds(one: Measurement, concurrency: int) -> dict[Arm, Throughput]:
    """By arm. Samples of the measurement itself win over those of a cached baseline."""
    found: dict[Arm, Throughput] = {}
    for speed in one.throughputs:
        if speed.concurrency == concurrency and speed.arm in _ARMS and speed.arm not in found:
            found[speed.arm] = speed
    return found
