"""Reports runs as Markdown tables, with intervals over held-out requests, and as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.bench.learning.configurations import CONFIGURATIONS, PUBLISHED, REFERENCE
from tests.bench.learning.learner import Evaluation
from tests.bench.learning.matching import Match
from tests.bench.learning.recipe_run import RecipeRun
from tests.bench.markdown import markdown_table

RESAMPLES: Final = 2000
EVALUATION_COLUMNS: Final = 4
"""Evaluations with a column of their own. The plot and the JSON have all of them."""
MATCHING_CAPTIONS: Final = {
    Match.STEPS: "Matched optimizer steps: every row takes the same steps, and rows that replay take larger batches",
    Match.TRAFFIC: "Matched traffic: every row takes the trainer's steps, and a replayed batch is one more step",
}


@dataclass(frozen=True)
class Curve:
    """Acceptance ``lengths`` after ``tokens`` answer tokens of traffic, ascending; linear between them."""

    tokens: tuple[float, ...]
    lengths: tuple[float, ...]

    def tokens_to_reach(self, level: float) -> float | None:
        """Tokens at which the curve first reaches ``level``; None when it never does."""
        if self.lengths[0] >= level:
            return self.tokens[0]
        points = zip(self.tokens, self.lengths, strict=True)
        for (before, low), (after, high) in itertools.pairwise(points):
            if high >= level:
                return before + (level - low) / (high - low) * (after - before)
        return None


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves that were evaluated after the same numbers of tokens."""
    lengths = zip(*(curve.lengths for curve in curves), strict=True)
    return Curve(curves[0].tokens, tuple(statistics.fmean(values) for values in lengths))


def format_thousands(tokens: float | None) -> str:
    return "not reached" if tokens is None else f"{tokens / 1000:.1f}k"


def mean_and_deviation(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and the standard deviation where there are several values."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def table(runs: Sequence[RecipeRun], distinct_4grams: Mapping[str, float]) -> str:
    """A table per kind of traffic and matching.

    Columns:

    - the acceptance length at some evaluations (mean and standard deviation over seeds);
    - the traffic needed to reach the final acceptance length of the published loop;
    - the difference to the reference at the last evaluation, with its 95 % interval;
    - the steps, positions and CPU seconds.

    Args:
        distinct_4grams: share of distinct 4-grams per kind of traffic, for the caption.
    """
    groups = dict.fromkeys((r.traffic, r.match) for r in runs)
    sections = [
        _section([r for r in runs if (r.traffic, r.match) == group], distinct_4grams[group[0]]) for group in groups
    ]
    return "\n\n".join(sections)


def by_configuration(runs: Sequence[RecipeRun]) -> dict[str, list[RecipeRun]]:
    """The runs of each configuration by seed, in the order in which the configurations first appear."""
    names = dict.fromkeys(r.configuration for r in runs)
    return {n: sorted((r for r in runs if r.configuration == n), key=lambda r: r.seed) for n in names}


def curve_of(run: RecipeRun) -> Curve:
    tokens = tuple(float(evaluation.tokens) for evaluation in run.evaluations)
    return Curve(tokens, tuple(evaluation.acceptance_length for evaluation in run.evaluations))


def _section(runs: Sequence[RecipeRun], distinct: float) -> str:
    by_name, first = by_configuration(runs), runs[0]
    count = len(first.evaluations)
    columns = range(count)[:: -max(1, count // EVALUATION_COLUMNS)][:EVALUATION_COLUMNS][::-1]
    published = [curve_of(r) for r in by_name.get(PUBLISHED, ())]
    marks = [format_thousands(first.evaluations[i].tokens) for i in columns]
    needed = f"traffic needed to equal {PUBLISHED} at its end (over {PUBLISHED}'s own) [seeds]"
    head = ["configuration", *marks, needed, f"against {REFERENCE} [95 %]", "steps", "positions", "CPU s"]
    references = {r.seed: r for r in by_name.get(REFERENCE, ())}
    rows = []
    for name, seeds in by_name.items():
        paired = [(r, references[r.seed]) for r in seeds if r.seed in references]
        rows.append(
            [
                label(name),
                *(mean_and_deviation([r.evaluations[i].acceptance_length for r in seeds]) for i in columns),
                traffic_needed([curve_of(r) for r in seeds], published) if published else "",
                difference(paired) if paired and name != REFERENCE else "",
                "/".join(sorted({str(r.evaluations[-1].steps) for r in seeds})),
                f"{statistics.fmean(r.positions for r in seeds) / 1000:.0f}k",
                f"{statistics.fmean(r.cpu_seconds for r in seeds):.0f}",
            ]
        )
    seed_count, last = len({r.seed for r in runs}), first.evaluations[-1]
    caption = (
        f"{MATCHING_CAPTIONS[first.match]}. Acceptance length on {len(last.rounds)} held-out requests "
        f"({sum(last.answers)} answer tokens) of {first.traffic}, by answer tokens of traffic; {seed_count} seed(s); "
        f"distinct 4-grams of an answer {distinct:.2f}."
    )
    return caption + "\n\n" + markdown_table(head, rows)


def label(name: str) -> str:
    """A configuration's name and description."""
    configuration = CONFIGURATIONS[name]
    return f"{name}: {configuration.description}" + (" (the default)" if configuration.is_default else "")


def traffic_needed(curves: Sequence[Curve], published: Sequence[Curve]) -> str:
    """The traffic until the mean curve reaches the level at which the published loop ends.

    The brackets hold this traffic as a share of the traffic with which the published loop first reaches the level: for
    the mean, and for each seed in ascending order.
    """
    published_mean = mean_curve(published)
    level = published_mean.lengths[-1]
    published_tokens = published_mean.tokens_to_reach(level)
    tokens = mean_curve(curves).tokens_to_reach(level)
    if tokens is None or not published_tokens:
        return format_thousands(tokens)
    reached = [t for t in (curve.tokens_to_reach(level) for curve in curves) if t is not None]
    shares = [f"{share:.2f}" for share in sorted(t / published_tokens for t in reached)]
    shares += ["not reached"] * (len(curves) - len(shares))
    seeds = f" [{', '.join(shares)}]" if len(curves) > 1 else ""
    return f"{format_thousands(tokens)} ({tokens / published_tokens:.2f}){seeds}"


def difference(paired: Sequence[tuple[RecipeRun, RecipeRun]]) -> str:
    """The mean difference at the last evaluation, with its 95 % interval.

    The interval is a bootstrap over the held-out requests. Both runs of a pair use the same resampled requests.
    """
    generator = random.Random(0)  # noqa: S311 - a bootstrap
    requests = range(len(paired[0][0].evaluations[-1].rounds))

    def mean_difference(drawn: Sequence[int]) -> float:
        return statistics.fmean(
            _acceptance_length(run.evaluations[-1], drawn) - _acceptance_length(reference.evaluations[-1], drawn)
            for run, reference in paired
        )

    differences = sorted(mean_difference(generator.choices(requests, k=len(requests))) for _ in range(RESAMPLES))
    low, high = differences[int(0.025 * RESAMPLES)], differences[int(0.975 * RESAMPLES)]
    return f"{mean_difference(requests):+.2f} [{low:+.2f}, {high:+.2f}]"


def _acceptance_length(evaluation: Evaluation, requests: Sequence[int]) -> float:
    """The acceptance length over some of the held-out requests, by their numbers. A request may come twice."""
    return sum(evaluation.answers[i] for i in requests) / sum(evaluation.rounds[i] for i in requests)


def as_json(runs: Sequence[RecipeRun], environment: Mapping[str, Any]) -> dict[str, Any]:
    """All measurements."""
    return {"environment": dict(environment), "runs": [dataclasses.asdict(r) for r in runs]}


def from_json(data: Mapping[str, Any]) -> list[RecipeRun]:
    """The inverse of :func:`as_json`."""
    return [
        RecipeRun(**{**r, "match": Match(r["match"]), "evaluations": tuple(map(_evaluation, r["evaluations"]))})
        for r in data["runs"]
    ]


def _evaluation(stored: Mapping[str, Any]) -> Evaluation:
    return Evaluation(stored["tokens"], stored["steps"], tuple(stored["rounds"]), tuple(stored["answers"]))
