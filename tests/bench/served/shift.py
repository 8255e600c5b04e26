"""When live traffic moves to another domain, how much faster is a draft that goes on learning than one that stops?

One pod serves one domain and then another, live, while the trainer goes on (tests/bench/served/live_training.py). Then
the draft before the shift and the last draft are measured side by side with off, each with a fixed number of steps, on
fresh conversations of both domains. A service whose draft stopped learning would serve the draft before the shift. The
first domain shows how much the last draft has forgotten.

Prints one table per domain. Exits with 1 when an answer differs beyond a near tie, or when a request failed.

Takes about an hour on two quiet cores (estimated). Needs a CPU only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from tests.bench.bench_command import bench_parser, measuring
from tests.bench.served.__main__ import MAX_ANSWER_TOKENS, measure_domain
from tests.bench.served.arms import Arm
from tests.bench.served.live_training import LiveTraining, TrafficPart, train_on_live_traffic
from tests.bench.served.messages import RESERVED
from tests.bench.served.speed_report import (
    Outcome,
    as_json,
    count_failures,
    describe_ratio,
    equality_table,
    period_line,
    speed_table,
)

from aurora_api.v1alpha1.draft import DraftSpec, Shape
from aurora_runtime.engine.speculation_flags import Eagle3

STOPPED, ADAPTED = "draft before the shift", "draft that went on learning"


def report(outcomes: Sequence[Outcome]) -> str:
    """Each domain's table, and a comparison of the two drafts."""
    parts = [f"- {period_line(outcomes[0].training.periods)}"]
    for outcome in outcomes:
        lines = [
            f"- {outcome.domain}, concurrency {concurrency}: the {ADAPTED} is"
            f" {describe_ratio(outcome.measured.ratio(ADAPTED, STOPPED, concurrency))} as fast as the {STOPPED}"
            for concurrency in outcome.plan.concurrencies
        ]
        equality = equality_table(outcome.measured.equality)
        parts += [f"**{outcome.domain}**", speed_table(outcome), "\n".join(lines), equality]
    return "\n\n".join(parts)


def run_shift(options: argparse.Namespace, folder: Path) -> list[Outcome]:
    """Learn from both domains, then measure the drafts on each."""
    spec = DraftSpec(shape=Shape.FIXED)
    parts = [TrafficPart(domain, tokens) for domain, tokens in zip(options.domains, options.tokens, strict=True)]
    run = "-".join(("shift", *(f"{part.domain}-{part.tokens}" for part in parts)))
    training = train_on_live_traffic(parts, (options.out or folder) / run, spec, spec.steps, MAX_ANSWER_TOKENS)
    arms = _arms(training, spec)
    return [asyncio.run(measure_domain(domain, arms, training, options, folder)) for domain in options.domains]


def _arms(training: LiveTraining, spec: DraftSpec) -> tuple[Arm, ...]:
    _, stopped, adapted = (Eagle3(one.draft.folder, one.draft.version, spec) for one in training.checkpoints)
    return (
        Arm("off", "off", experienced=False),
        Arm(STOPPED, "stopped", stopped, experienced=False),
        Arm(ADAPTED, "adapted", adapted, experienced=False),
    )


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.served.shift", __doc__)
    parser.add_argument(
        "--domains", nargs=2, choices=RESERVED, default=["json", "docstrings"], help="before and after the shift"
    )
    parser.add_argument(
        "--tokens", type=int, nargs=2, default=[20_000, 60_000], help="answer tokens of traffic in each domain"
    )
    parser.add_argument("--rounds", type=int, default=6, help="rounds in which every arm answers fresh conversations")
    parser.add_argument(
        "--out",
        type=Path,
        help="directory for shift.md, shift-DOMAIN.json and the drafts; another run measures these drafts again",
    )
    parser.set_defaults(concurrency=[1, 4], per_worker=4)
    options = parser.parse_args()
    available = min(RESERVED[domain] for domain in options.domains)
    if (needed := options.rounds * options.per_worker * sum(options.concurrency)) > available:
        parser.error(f"the run needs {needed} fresh conversations and there are {available}: lower --rounds")
    return options


def main() -> None:
    options = _options()
    with measuring("tests.bench.served.shift") as measurement:
        outcomes = run_shift(options, measurement.folder)
    text = f"{measurement.origin}\n\n{report(outcomes)}\n"
    print(f"\n{text}", flush=True)
    if options.out:
        (options.out / "shift.md").write_text(text)
        for outcome in outcomes:
            path = options.out / f"shift-{outcome.domain}.json"
            path.write_text(json.dumps(as_json(outcome, measurement.origin), indent=1))
    raise SystemExit(1 if sum(map(count_failures, outcomes)) else 0)


if __name__ == "__main__":
    main()
