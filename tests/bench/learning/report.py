"""Runs as a Markdown table, with intervals over held-out requests, and as JSON."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Sequence
from typing import Any, Final

from tests.bench.learning.configurations import CONFIGURATIONS, REFERENCE
from tests.bench.learning.replay import Look, Run

RESAMPLES: Final = 2000


def table(runs: Sequence[Run]) -> str:
    """One table per kind of traffic: acceptance length at each look (mean over seeds), the difference to the reference
    at the last one with its 95 % interval, and what it took."""
    return "\n\n".join(_of(traffic, runs) for traffic in dict.fromkeys(r.traffic for r in runs))


def _of(traffic: str, every: Sequence[Run]) -> str:
    runs = [r for r in every if r.traffic == traffic]
    first = runs[0]
    marks = [f"{look.tokens / 1000:.1f}k" for look in first.looks]
    head = ["configuration", *marks, f"against {REFERENCE} [95 %]", "steps", "positions", "CPU s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in dict.fromkeys(r.configuration for r in runs):
        mine = sorted((r for r in runs if r.configuration == name), key=lambda r: r.seed)
        theirs = {r.seed: r for r in runs if r.configuration == REFERENCE}
        paired = [(r, theirs[r.seed]) for r in mine if r.seed in theirs]
        cells = [
            f"{name}: {CONFIGURATIONS[name].what}",
            *(_mean([r.looks[i].accept_length for r in mine]) for i in range(len(first.looks))),
            difference(paired) if paired and name != REFERENCE else "",
            "/".join(sorted({str(r.looks[-1].steps) for r in mine})),
            f"{statistics.fmean(r.positions for r in mine) / 1000:.0f}k",
            f"{statistics.fmean(r.cpu_seconds for r in mine):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    seeds, held = sorted({r.seed for r in runs}), first.looks[-1]
    caption = (
        f"Acceptance length on {len(held.rounds)} held-out requests ({sum(held.answers)} answer tokens) of {traffic}, "
        f"by answer tokens of traffic; {len(seeds)} seed(s)."
    )
    return caption + "\n\n" + "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


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


def as_json(runs: Sequence[Run], environment: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured."""
    return {"environment": environment, "runs": [dataclasses.asdict(r) for r in runs]}
