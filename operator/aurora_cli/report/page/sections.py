"""The sections of the page. Each heads with its question, and answers with a chart, a table, or why there is none.

Invariant: the figures of every chart are in a table too, so nothing is told by colour or by a pointer alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from aurora_cli.report.charts.acceptance_chart import acceptance
from aurora_cli.report.charts.timeline_chart import timeline
from aurora_cli.report.charts.traffic_charts import proposals, shapes, source_shares, sources
from aurora_cli.report.charts.version_charts import MAX_CONCURRENCIES, speedups, throughputs
from aurora_cli.report.page.markup import Child, Markup, element, joined, text
from aurora_cli.report.page.tables import folded, table
from aurora_cli.report.report import Decision, Figure, Report, TrafficBin
from aurora_cli.report.training import duration
from aurora_cli.tables.plain_text import count

_TIME = "%Y-%m-%d %H:%M"
_NO_SHARD = "No shard with rounds was read."


def section(name: str, question: str, lead: str, *parts: Child) -> Markup:
    """One section with its heading and a sentence that says how to read it."""
    return element(
        "section",
        element("h2", question, id=name),
        element("p", lead, class_="lead") if lead else None,
        *parts,
        aria_labelledby=name,
    )


def nothing(reason: str) -> Markup:
    """Stands for a chart without figures."""
    return element("p", reason, class_="nothing")


def figures(found: Iterable[Figure]) -> Markup:
    """Figures side by side, each with what it is."""
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", one.name),
                element("dd", *_value(one.value), class_="value" if one.value else "value unknown"),
                element("dd", one.note, class_="note") if one.note else None,
            )
            for one in found
        ),
        class_="figures",
    )


def _value(value: str) -> Iterator[Child]:
    """A figure, with its interval in smaller letters."""
    estimate, bracket, interval = value.partition(" (")
    yield estimate or "not known"
    if bracket:
        yield element("small", f" ({interval}")


def speedup(report: Report) -> Markup:
    """Speedup over off by version."""
    lead = (
        "Answer tokens per second over those without speculation, measured with equal prompts. Lines are 95 %"
        " intervals. On the dashed line speculation changes nothing."
    )
    chart = speedups(report.speeds, report.served_versions)
    rows = [
        (
            str(one.version),
            str(ratio.concurrency),
            f"{ratio.estimate:.3f}x",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
            "yes" if one.version in report.served_versions else "no",
            one.outcome,
        )
        for one in report.speeds
        for ratio in one.ratios
    ]
    columns = ("Version", "Concurrency", "Speedup", "95 % interval", "Served", "Verdict")
    return section(
        "speedup", "How much faster is each version?", lead, *_chart(chart, _why_none(report), columns, rows)
    )


def _chart(
    chart: Markup | None, why_none: str, columns: Sequence[str], rows: Sequence[Sequence[Child]]
) -> Iterator[Markup]:
    """A chart with its figures, or why there is none."""
    if chart is None:
        yield nothing(why_none)
    else:
        yield element("figure", chart)
        yield folded("Figures", table(*columns, rows=rows))


def _why_none(report: Report) -> str:
    return "Nothing was measured yet." if report.versions else "No stored version was read, so there are no figures."


def tokens_per_second(report: Report) -> Markup:
    """Tokens per second of each version beside off."""
    lead = "What the measurements saw, by number of concurrent requests. A hollow mark was measured at another time."
    charts = [throughputs(report.measurements, one) for one in report.concurrencies[:MAX_CONCURRENCIES]]
    more = len(report.concurrencies) - MAX_CONCURRENCIES
    parts = (
        element("div", *charts, class_="panels") if any(charts) else nothing(_why_none(report)),
        nothing(f"{more} more concurrencies are in the tables of evidence.") if more > 0 else None,
    )
    return section("throughput", "How many tokens per second, against off?", lead, *parts)


def acceptance_length(report: Report) -> Markup:
    """Acceptance over learned tokens."""
    lead = (
        "Answer tokens per verify round, the target's own token included: 1 is no help at all. Live traffic is placed"
        " at the tokens that training had learned when a shard was written."
    )
    chart = acceptance(report.held_out, report.live, report.activations)
    rows = [
        *(("held-out", f"{point.learned_tokens:.0f}", f"{point.accept_length:.2f}") for point in report.held_out),
        *(("live", f"{point.learned_tokens:.0f}", f"{point.accept_length:.2f}") for point in report.live),
    ]
    columns = ("Traffic", "Learned tokens", "Acceptance length")
    why_none = "Neither a held-out acceptance length nor a shard was read."
    return section("acceptance", "Does the draft learn?", lead, *_chart(chart, why_none, columns, rows))


def traffic(report: Report) -> Markup:
    """Sources and sizes of proposals over time."""
    lead = (
        "From the shards of traces that are still stored, by the time at which they were written. Nothing is drawn"
        " where no shard was written."
    )
    charts = [one for one in (sources(report.traffic), proposals(report.traffic)) if one is not None]
    if not charts:
        return section("traffic", "Where do answer tokens come from?", lead, nothing(_NO_SHARD))
    rows = [
        (*_stretch(one), *(f"{share:.1%}" for share in source_shares(one)), f"{one.proposed_per_round:.2f}")
        for one in report.traffic.bins
    ]
    columns = ("From (UTC)", "To (UTC)", "Draft", "Lookup", "Target", "Rest", "Proposed a round")
    parts = (element("div", *charts, class_="panels"), folded("Figures", table(*columns, rows=rows)))
    return section("traffic", "Where do answer tokens come from?", lead, *parts)


def round_shapes(report: Report) -> Markup:
    """Shapes of verify rounds over time."""
    lead = (
        "Shares of the verify rounds in stored shards, by who proposed and how many tokens. A round counts once for"
        " each of its requests, and as lookup where lookup's tokens replaced the draft's. Nothing is drawn where no"
        " shard says it."
    )
    chart = shapes(report.traffic)
    why_none = "No shard that was read says which shapes its rounds had." if report.traffic.bins else _NO_SHARD
    columns = ("From (UTC)", "To (UTC)", *(one.name for one in report.traffic.series))
    rows = [(*_stretch(one), *(f"{share:.1%}" for share in one.shapes)) for one in report.traffic.bins if one.shapes]
    return section("shapes", "Which shapes do verify rounds have?", lead, *_chart(chart, why_none, columns, rows))


def _stretch(one: TrafficBin) -> tuple[str, str]:
    return f"{one.start:{_TIME}}", f"{one.end:{_TIME}}"


def coverage(report: Report) -> Markup:
    """The newest vocabulary coverage."""
    lead = "Share of held-out answer tokens that are in the draft's vocabulary. The draft can propose no others."
    if report.coverage is None:
        return section(
            "coverage", "Does the draft's vocabulary fit?", lead, nothing("The trainer has not reported it.")
        )
    percent = f"{report.coverage:.1%}"
    bar = element(
        "svg",
        element("rect", x=0, y=0, width=300, height=12, rx=6, class_="meter"),
        element("rect", x=0, y=0, width=300 * report.coverage, height=12, rx=6, class_="bar s0"),
        viewBox="0 0 300 12",
        role="img",
        aria_label=f"vocabulary coverage {percent}",
        class_="coverage",
    )
    return section("coverage", "Does the draft's vocabulary fit?", lead, element("p", percent, class_="value"), bar)


def history(report: Report) -> Markup:
    """Rolls and rollbacks."""
    lead = "Every change of the active version that the store keeps, and the last decisions of the status."
    chart = timeline(report.served, report.measurements, report.decisions)
    if chart is None:
        return section("history", "What was rolled out, and what was rolled back?", lead, nothing("Nothing yet."))
    rows = [_decision(one) for one in reversed(report.decisions)]
    decided = table("Time (UTC)", "Event", "Version", "Reason", rows=rows) if rows else None
    return section(
        "history",
        "What was rolled out, and what was rolled back?",
        lead,
        element("figure", chart),
        folded(f"{len(rows)} decisions, the last one first", decided, shown=len(rows) <= 12) if decided else None,
    )


def _decision(one: Decision) -> tuple[Child, ...]:
    event = element("span", one.event, class_=f"badge {one.kind.name.lower()}")
    return f"{one.time:{_TIME}}", event, str(one.version), one.message or f"recorded by the {one.source}"


def cost(report: Report) -> Markup:
    """The cost of training and of measurements."""
    lead = "Work, time, and held devices. Seconds that devices were busy, energy and money are not recorded."
    rows = [
        (
            str(one.version),
            f"{one.created:{_TIME}}",
            count(one.learned_tokens),
            None if one.step is None else str(one.step),
            None if one.held_out_accept_length is None else f"{one.held_out_accept_length:.2f}",
            None if one.measuring_seconds is None else duration(one.measuring_seconds),
            None if one.verdict is None else str(one.verdict),
            "yes" if one.served else "no",
        )
        for one in reversed(report.versions)
    ]
    columns = (
        *("Version", "Registered (UTC)", "Learned tokens", "Steps", "Held-out acceptance", "Measured for"),
        *("Verdict", "Served"),
    )
    versions = folded(f"{len(rows)} versions, the newest first", table(*columns, rows=rows)) if rows else None
    return section("cost", "What did it cost?", lead, figures(report.training), versions)


def unknown(report: Report) -> Markup:
    """Facts that no record holds."""
    sentences = joined(element("li", text(one)) for one in report.unknown)
    return section("unknown", "What does this report not know?", "", element("ul", sentences))
