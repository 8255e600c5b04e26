"""Tables of the page: the evidence of each version, and the parts that all tables share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from aurora_cli.report.measurements import outcome, over_off
from aurora_cli.report.page.markup import Child, Markup, element, joined
from aurora_cli.report.report import Measurement
from aurora_cli.report.training import duration
from aurora_cli.tables.plain_text import NONE
from aurora_protocol.evidence_records import Arm, VerdictKind

_BADGES: Final = {VerdictKind.PASS: "promoted", VerdictKind.REJECT: "rolled_back", VerdictKind.INCONCLUSIVE: "rejected"}


def table(*columns: str, rows: Sequence[Sequence[Child]]) -> Markup:
    """A table that scrolls sideways by itself on a narrow screen. An empty cell is a dash."""
    head = element("tr", *(element("th", name, scope="col") for name in columns))
    body = (element("tr", *(element("td", cell if cell not in (None, "") else NONE) for cell in row)) for row in rows)
    return element(
        "div",
        element("table", element("thead", head), element("tbody", *body)),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=", ".join(columns),
    )


def folded(summary: Child, *parts: Child, shown: bool = False) -> Markup:
    """Parts that a reader unfolds."""
    return element("details", element("summary", summary), *parts, open=shown)


def evidence(measurements: Sequence[Measurement], active: int | None) -> Markup:
    """The evidence of each measured version, the newest first. That of the active version is unfolded."""
    return joined(_measurement(one, shown=one.version == active) for one in reversed(measurements))


def earlier_attempts(measurements: Sequence[Measurement]) -> Markup | None:
    """One row for each attempt before the last one of its version and each concurrency, the newest first."""
    if not measurements:
        return None
    rows = [
        (
            str(one.version),
            str(one.attempt),
            f"{one.finished:%Y-%m-%d %H:%M}",
            str(one.active_version),
            outcome(one),
            str(ratio.concurrency) if ratio else None,
            f"{ratio.estimate:.3f}x" if ratio else None,
            f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio else None,
        )
        for one in reversed(measurements)
        for ratio in over_off(one, Arm.CANDIDATE) or (None,)
    ]
    columns = ("Version", "Attempt", "Ended (UTC)", "Against", "Verdict", "Concurrency", "Speedup", "95 % interval")
    return folded(f"Earlier attempts: {len(measurements)}, the newest version first", table(*columns, rows=rows))


def _measurement(one: Measurement, *, shown: bool) -> Markup:
    summary = joined(
        (
            f"Version {one.version} ",
            element("span", str(one.verdict), class_=f"badge {_BADGES[one.verdict]}"),
            f" against version {one.active_version}, attempt {one.attempt}, {one.finished:%Y-%m-%d}",
        )
    )
    return folded(
        summary,
        element("p", one.doubt, class_="doubt") if one.doubt else None,
        element("ul", *(element("li", reason) for reason in one.reasons)) if one.reasons else None,
        table("Ratio", "Concurrency", "Estimate", "95 % interval", "Rounds", "Paired", rows=list(_ratios(one))),
        table("Arm", "Concurrency", "Tokens/s", "Batches", "Failed", "Acceptance", "Measured", rows=list(_arms(one))),
        table(
            *("Answers of", "Compared with", "Prompts", "Identical", "Near ties", "Different"),
            rows=[
                (a.arm, a.reference, str(a.prompts), str(a.identical), str(a.near_ties), str(a.different))
                for a in one.answers
            ],
        ),
        element("p", f"{one.machine}. {one.engine}. {one.draft}. Took {duration(one.seconds)}.", class_="lead"),
        shown=shown,
    )


def _ratios(one: Measurement) -> Iterator[Sequence[Child]]:
    for ratio in one.ratios:
        yield (
            f"{ratio.numerator}/{ratio.denominator}",
            str(ratio.concurrency),
            f"{ratio.estimate:.3f}x",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
            str(ratio.rounds),
            "yes" if ratio.paired else "no, cached",
        )


def _arms(one: Measurement) -> Iterator[Sequence[Child]]:
    lengths = dict(one.acceptance_length)
    for speed in one.throughputs:
        length = None if speed.cached else lengths.get(speed.arm)
        yield (
            str(speed.arm),
            str(speed.concurrency),
            f"{speed.tokens_per_second:.1f}",
            str(speed.batches),
            str(speed.failures),
            None if length is None else f"{length:.2f}",
            "before" if speed.cached else "with the candidate",
        )
