"""Which version was served when, when versions were measured, and what was decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from aurora_cli.report.charts.canvas import Canvas, legend, mark, responsive
from aurora_cli.report.charts.time_axis import TimeAxis
from aurora_cli.report.page.markup import Markup, element, joined
from aurora_cli.report.report import Decision, DecisionKind, Measurement, ServedSpan
from aurora_protocol.evidence_records import VerdictKind

_KINDS: Final = {
    DecisionKind.PROMOTED: ("triangle", "mark good", "promoted"),
    DecisionKind.ROLLED_BACK: ("down", "mark bad", "rolled back"),
    DecisionKind.REJECTED: ("diamond", "mark warning", "rejected or undecided"),
    DecisionKind.PERSON: ("square", "mark s3", "decided by a person"),
    DecisionKind.OTHER: ("circle", "mark quiet", "other event"),
}
_VERDICTS: Final = {VerdictKind.PASS: "good", VerdictKind.REJECT: "bad", VerdictKind.INCONCLUSIVE: "warning"}
_LANES: Final = ("served", "measured", "decided")
_LANE: Final = 46.0
WIDE: Final = Canvas(920, 3 * _LANE + 62, narrow=False, left=84, top=10, bottom=44)
NARROW: Final = Canvas(360, 3 * _LANE + 62, narrow=True, left=76, top=10, bottom=44)


def timeline(
    served: Sequence[ServedSpan], measurements: Sequence[Measurement], decisions: Sequence[Decision]
) -> Markup | None:
    """Three lanes on one axis of time. None when nothing has happened yet."""
    moments = [
        *(moment for span in served for moment in (span.start, span.end)),
        *(moment for one in measurements for moment in (one.started, one.finished)),
        *(one.time for one in decisions),
    ]
    if not moments:
        return None
    start, end = min(moments), max(moments)

    def draw(canvas: Canvas) -> Iterator[Markup]:
        at = TimeAxis(canvas, start, end)
        yield from at.draw(f"{start:%d %b %Y} to {end:%d %b %Y} (UTC)")
        for number, lane in enumerate(_LANES):
            yield element(
                "text", lane, x=canvas.left - 8, y=_middle(canvas, number) + 4, text_anchor="end", class_="tick"
            )
        for number, span in enumerate(served):
            yield from _span(canvas, at, span, number)
        for one in measurements:
            yield _measured(canvas, at, one)
        for one_decision in decisions:
            shape, classes, _ = _KINDS[one_decision.kind]
            tooltip = f"{one_decision.time:%Y-%m-%d %H:%M} {one_decision.event}, version {one_decision.version}"
            yield mark(shape, at(one_decision.time), _middle(canvas, 2), 5, classes=classes, title=tooltip)

    kinds = {one.kind for one in decisions}
    bars = (
        *((("square", "bar good", "measured: passed"),) if _has(measurements, VerdictKind.PASS) else ()),
        *((("square", "bar bad", "measured: rejected"),) if _has(measurements, VerdictKind.REJECT) else ()),
        *((("square", "bar warning", "undecided"),) if _has(measurements, VerdictKind.INCONCLUSIVE) else ()),
    )
    key = legend(*bars, *(_KINDS[kind] for kind in _KINDS if kind in kinds))
    summary = (
        f"Timeline: {len(served)} stretches of served versions, {len(measurements)} measurements,"
        f" {len(decisions)} decisions"
    )
    return joined((key, responsive(draw, summary, wide=WIDE, narrow=NARROW)))


def _has(measurements: Sequence[Measurement], verdict: VerdictKind) -> bool:
    return any(one.verdict is verdict for one in measurements)


def _middle(canvas: Canvas, lane: int) -> float:
    return canvas.top + _LANE * (lane + 0.5)


def _span(canvas: Canvas, at: TimeAxis, span: ServedSpan, number: int) -> Iterator[Markup]:
    left, right = at(span.start), at(span.end)
    tooltip = f"version {span.version} from {span.start:%Y-%m-%d %H:%M} to {span.end:%Y-%m-%d %H:%M}"
    width, top = max(1.0, right - left - 1), _middle(canvas, 0) - 13
    classes = f"bar s0 {'faint' if number % 2 else ''}".strip()
    yield element("rect", element("title", tooltip), x=left, y=top, width=width, height=26, rx=3, class_=classes)
    label = f"v{span.version}"
    if width > len(label) * 8 + 4:
        on = "tick" if number % 2 else "tick on"
        yield element("text", label, x=left + width / 2, y=top + 17, text_anchor="middle", class_=on)


def _measured(canvas: Canvas, at: TimeAxis, one: Measurement) -> Markup:
    left, right = at(one.started), at(one.finished)
    tooltip = f"version {one.version}, attempt {one.attempt}: {one.verdict}, {one.started:%Y-%m-%d %H:%M}"
    return element(
        "rect",
        element("title", tooltip),
        x=left,
        y=_middle(canvas, 1) - 9,
        width=max(3.0, right - left),
        height=18,
        rx=2,
        class_=f"bar {_VERDICTS[one.verdict]}",
    )
