"""When live traffic moves to another domain, how much faster is a draft that goes on learning than one that stops?

One pod serves one domain and then another, live, while the trainer goes on (tests/bench/served/live_training.py). Then
three drafts are measured side by side on fresh prompts of both domains: the untrained draft, the draft before the
shift, and the last draft. A service whose draft stopped learning would serve the draft before the shift. The prompts of
the first domain show how much the last draft has forgotten.

A shape is written as the steps of a chain (3).

Prints one table per domain. Exits with 1 when an answer differs beyond a near tie, or when a request failed.

Takes about an hour on two quiet cores (estimated). Needs a CPU only.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from tests.bench.bench_command import bench_parser, measuring
from tests.bench.served.lineup import MAX_ANSWER_TOKENS, lineup_of, measure_lineup
from tests.bench.served.live_training import TrafficPart, train_on_live_traffic
from tests.bench.served.messages import DOMAINS, LEARNED, RESERVED_MESSAGES
from tests.bench.served.paired_rounds import MeasurementPlan
from tests.bench.served.round_shapes import SHAPE_METAVAR, describe_shape, parse_shape, unroll_steps
from tests.bench.served.speed_report import (
    Outcome,
    as_json,
    count_failures,
    describe_ratio,
    equality_table,
    period_line,
    ratio_of,
    speed_table,
)

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import DType
from aurora_runtime.validation.answer_equality import near_tie_bound

CONCURRENCIES = (1, 4)
PROMPTS_PER_WORKER = 4


def report(outcomes: Sequence[Outcome]) -> str:
    """Each domain's table, and a comparison of the two trained drafts."""
    training = outcomes[0].training
    _, stopped, adapted = training.checkpoints
    parts = [f"- {period_line(training.periods)}"]
    for outcome in outcomes:
        lines = list[str]()
        for concurrency in outcome.plan.concurrencies:
            before, after = (
                outcome.measured.summary(one.name, concurrency).acceptance_length or 0.0 for one in (stopped, adapted)
            )
            ratio = ratio_of(outcome, adapted.name, stopped.name, concurrency)
            lines.append(
                f"- {outcome.traffic}, concurrency {concurrency}: the draft that went on learning is "
                f"{describe_ratio(ratio)} as fast as the draft before the shift; acceptance length {after:.2f} "
                f"against {before:.2f}"
            )
        equality = equality_table(outcome.measured.equality)
        parts += [f"**{outcome.traffic}**", speed_table(outcome), "\n".join(lines), equality]
    return "\n\n".join(parts)


def run_shift(options: argparse.Namespace, folder: Path, code: str) -> list[Outcome]:
    """Learn from both domains, then measure the drafts on each. ``code`` is the commit."""
    spec = options.shape.model_copy(update={"vocab_size": options.vocabulary})
    parts = [TrafficPart(domain, tokens) for domain, tokens in zip(options.domains, options.tokens, strict=True)]
    traffic = [f"{part.domain}-{part.tokens}" for part in parts]
    run = "-".join(("shift", *traffic, describe_shape(spec), str(spec.vocab_size), code)).replace(" ", "")
    training = train_on_live_traffic(
        parts, (options.out or folder) / run, spec, unroll_steps([spec]), MAX_ANSWER_TOKENS
    )
    lineup = lineup_of(training.checkpoints, (), (spec,))
    plan = MeasurementPlan(
        lineup.arms, CONCURRENCIES, options.rounds, PROMPTS_PER_WORKER, near_tie_bound(DType.BFLOAT16)
    )
    outcomes = list[Outcome]()
    for domain in options.domains:
        measured = asyncio.run(measure_lineup(domain, lineup, plan, (), folder))
        outcomes.append(Outcome(domain, plan, measured, lineup, training, answered_before=0))
    return outcomes


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.served.shift", __doc__)
    parser.add_argument(
        "--domains",
        nargs=2,
        choices=DOMAINS,
        default=list(LEARNED),
        help="the domains before and after the shift",
    )
    parser.add_argument(
        "--tokens", type=int, nargs=2, default=[20_000, 60_000], help="answer tokens of traffic in each domain"
    )
    parser.add_argument("--rounds", type=int, default=6, help="rounds in which every arm answers fresh prompts")
    parser.add_argument(
        "--shape",
        type=parse_shape,
        default=DraftSpec(),
        metavar=SHAPE_METAVAR,
        help=f"shape of a verify round (default: a chain of {DraftSpec().steps} steps)",
    )
    parser.add_argument(
        "--vocabulary", type=int, default=DraftSpec().vocab_size, help="entries of the drafts' vocabulary map"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="directory for shift.md, shift-DOMAIN.json and the drafts; another run at the same commit measures these "
        "drafts again instead of training new ones",
    )
    options = parser.parse_args()
    available = min(RESERVED_MESSAGES[domain] for domain in options.domains)
    if (needed := options.rounds * PROMPTS_PER_WORKER * sum(CONCURRENCIES)) > available:
        parser.error(f"the run needs {needed} fresh prompts and there are {available}: lower --rounds")
    return options


def main() -> None:
    options = _options()
    with measuring("tests.bench.served.shift") as measurement:
        outcomes = run_shift(options, measurement.folder, measurement.code)
    checkpoints = outcomes[0].training.checkpoints
    records = "\n".join(f"- {one.name}: {dataclasses.asdict(one.record)}" for one in checkpoints)
    text = f"{measurement.origin}\n\n{records}\n{report(outcomes)}\n"
    print(f"\n{text}", flush=True)
    if options.out:
        (options.out / "shift.md").write_text(text)
        for outcome in outcomes:
            path = options.out / f"shift-{outcome.traffic}.json"
            path.write_text(json.dumps(as_json(outcome, measurement.origin), indent=1))
    raise SystemExit(1 if sum(map(count_failures, outcomes)) else 0)


if __name__ == "__main__":
    main()
