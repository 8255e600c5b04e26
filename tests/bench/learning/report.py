"""Runs as Markdown tables, with intervals over held-out requests, and as JSON."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.bench.learning.configurations import CONFIGURATIONS, PUBLISHED, REFERENCE
from tests.bench.learning.curve import Curve, mean, spread, thousands
from tests.bench.learning.learner import Look
from tests.bench.learning.matching import Match
from tests.bench.learning.replay import Run

RESAMPLES: Final = 2000
SHOWN: Final = 4
"""Looks with a column of their own; the plot and the JSON have all."""
HELD: Final = {
    Match.STEPS: "Matched optimizer steps: every row makes the same; who replays takes bigger batches",
    Match.TRAFFIC: "Matched traffic: every row makes the trainer's steps with its recipe, a replayed batch is one more",
}


def table(runs: Sequence[Run], repeating: Mapping[str, float]) -> str:
    """A table per kind of traffic and matching: acceptance length at some looks (mean and standard deviation over
    seeds), the traffic that it takes to be as good as the published loop at its end, the difference to the reference at
    the last look with its 95 % interval, and what it took. ``repeating`` are the traffics' distinct 4-grams."""
    sections = dict.fromkeys((r.traffic, r.match) for r in runs)
    return "\n\n".join(_section([r for r in runs if (r.traffic, r.match) == s], repeating[s[0]]) for s in sections)


def by_configuration(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """In the order of their appearance, by seed."""
    names = dict.fromkeys(r.configuration for r in runs)
    return {n: sorted((r for r in runs if r.configuration == n), key=lambda r: r.seed) for n in names}


def curve_of(run: Run) -> Curve:
    return Curve(tuple(float(look.tokens) for look in run.looks), tuple(look.accept_length for look in run.looks))


def _section(runs: Sequence[Run], distinct: float) -> str:
    rows, first = by_configuration(runs), runs[0]
    shown = range(len(first.looks))[:: -max(1, len(first.looks) // SHOWN)][:SHOWN][::-1]
    published = [curve_of(r) for r in rows.get(PUBLISHED, ())]
    marks = [thousands(first.looks[i].tokens) for i in shown]
    reach = f"as good as {PUBLISHED} at its end after (of {PUBLISHED}'s tokens) [seeds]"
    head = ["configuration", *marks, reach, f"against {REFERENCE} [95 %]", "steps", "positions", "CPU s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    references = {r.seed: r for r in rows.get(REFERENCE, ())}
    for name, mine in rows.items():
        paired = [(r, references[r.seed]) for r in mine if r.seed in references]
        cells = [
            label(name),
            *(spread([r.looks[i].accept_length for r in mine]) for i in shown),
            needed([curve_of(r) for r in mine], published) if published else "",
            difference(paired) if paired and name != REFERENCE else "",
            "/".join(sorted({str(r.looks[-1].steps) for r in mine})),
            f"{statistics.fmean(r.positions for r in mine) / 1000:.0f}k",
            f"{statistics.fmean(r.cpu_seconds for r in mine):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    seeds, held = {r.seed for r in runs}, first.looks[-1]
    caption = (
        f"{HELD[first.match]}. Acceptance length on {len(held.rounds)} held-out requests ({sum(held.answers)} answer "
        f"tokens) of {first.traffic}, by answer tokens of traffic; {len(seeds)} seed(s); distinct 4-grams of an answer "
        f"{distinct:.2f}."
    )
    return caption + "\n\n" + "\n".join(lines)


def label(name: str) -> str:
    how = CONFIGURATIONS[name]
    return f"{name}: {how.what}" + (" (the default)" if how.is_default else "")


def needed(mine: Sequence[Curve], published: Sequence[Curve]) -> str:
    """Traffic until the mean curve is where the published loop's ends, over what that loop needs to be there first;
    in brackets each seed's share against the same level, in ascending order."""
    base = mean(published)
    level = base.lengths[-1]
    least = base.reaches(level)
    at = mean(mine).reaches(level)
    if at is None or not least:
        return thousands(at)
    shares = sorted(t / least for t in (curve.reaches(level) for curve in mine) if t is not None)
    each = [f"{share:.2f}" for share in shares] + ["not reached"] * (len(mine) - len(shares))
    seeds = f" [{', '.join(each)}]" if len(mine) > 1 else ""
    return f"{thousands(at)} ({at / least:.2f}){seeds}"


def difference(paired: Sequence[tuple[Run, Run]]) -> str:
    """Mean difference at the last look, and its interval when held-out requests are drawn again (the same for both)."""
    generator = random.Random(0)  # noqa: S311 - a bootstrap
    requests = range(len(paired[0][0].looks[-1].rounds))

    def gap(drawn: Sequence[int]) -> float:
        return statistics.fmean(
            _length(mine.looks[-1], drawn) - _length(theirs.looks[-1], drawn) for mine, theirs in paired
        )

    gaps = sorted(gap(generator.choices(requests, k=len(requests))) for _ in range(RESAMPLES))
    low, high = gaps[int(0.025 * RESAMPLES)], gaps[int(0.975 * RESAMPLES)]
    return f"{gap(requests):+.2f} [{low:+.2f}, {high:+.2f}]"


def _length(look: Look, drawn: Sequence[int]) -> float:
    return sum(look.answers[i] for i in drawn) / sum(look.rounds[i] for i in drawn)


def as_json(runs: Sequence[Run], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was measured."""
    return {"environment": dict(environment), "runs": [dataclasses.asdict(r) for r in runs]}


def from_json(data: Mapping[str, Any]) -> list[Run]:
    """The inverse of :func:`as_json`."""
    return [
        Run(**{**r, "match": Match(r["match"]), "looks": tuple(_look(look) for look in r["looks"])})
        for r in data["runs"]
    ]


def _look(stored: Mapping[str, Any]) -> Look:
    return Look(stored["tokens"], stored["steps"], tuple(stored["rounds"]), tuple(stored["answers"]))
