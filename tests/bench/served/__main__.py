"""How much faster are drafts that learned from live traffic than no speculation, and than SGLang's NGRAM?

First an untrained draft learns from one domain's live requests (tests/bench/served/live_training.py). The live pod
drafts in the first of --shapes. Then these servers run side by side:

- without speculation;
- with NGRAM, after NGRAM has answered the same live requests;
- with EAGLE-3. One server swaps, as pods do, between the untrained draft and the draft after each number of answer
  tokens. The last draft also runs on one more server per further shape;
- with --controller, the speculation controller with each of these drafts, on servers of their own that have answered
  the same live requests, and with the untrained draft on one that has answered nothing.

In every round all arms answer the same fresh prompts in turn, at each concurrency.

Nobody can guess much of ``prose``, so it shows what speculation costs where it gains little. It is measured with the
untrained draft. ``mixed`` shuffles four kinds of requests, and ``turns`` has them in turn.

A shape is written as the steps of a chain (3).

Prints one section per domain. Exits with 1 when an answer differs beyond a near tie, or when a request failed.

On two quiet cores JSON extraction takes about 15 minutes and docstrings about 40. Needs a CPU only.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Final

from tests.bench.bench_command import add_lock_option, bench_parser, commit, measuring
from tests.bench.served.lineup import (
    CONTROLLED,
    DEFAULT_SHAPES,
    MAX_ANSWER_TOKENS,
    lineup_of,
    measure_lineup,
    with_controller,
)
from tests.bench.served.live_training import TrafficPart, train_on_live_traffic
from tests.bench.served.messages import DOMAINS, LEARNED, RESERVED_MESSAGES, traffic
from tests.bench.served.paired_rounds import MeasurementPlan
from tests.bench.served.round_shapes import SHAPE_METAVAR, describe_shape, parse_shape, unroll_steps
from tests.bench.served.speed_report import Outcome, as_json, count_failures, section

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_api.v1alpha1.target import DType
from aurora_runtime.validation.answer_equality import near_tie_bound

CHECKPOINT_TOKENS: Final = {
    "json": (5_000, 20_000),
    "docstrings": (20_000, 80_000),
    "prose": (),
    "mixed": (20_000,),
    "turns": (20_000,),
}
"""Answer tokens of traffic after which a draft is measured, by domain. Without any, only the untrained draft is."""
UNTRAINED_REQUESTS: Final = 100
"""Requests that servers with lookup answer before they are measured beside an untrained draft alone."""
NGRAM_TOKENS: Final = (4, 12)
"""Draft tokens of the NGRAM arms: as many as our draft verifies, and SGLang's own default."""


def run_domain(domain: str, options: argparse.Namespace, folder: Path, code: str) -> Outcome:
    """Train on the live traffic of one domain, then measure the drafts. ``code`` is the commit."""
    marks = sorted(CHECKPOINT_TOKENS[domain] if options.tokens is None else options.tokens)
    parts = [TrafficPart(domain, mark - before) for before, mark in itertools.pairwise((0, *marks))]
    spec, unroll = options.shapes[0].model_copy(update={"vocab_size": options.vocabulary}), unroll_steps(options.shapes)
    run = "-".join(map(str, ("drafts", domain, describe_shape(spec), spec.vocab_size, unroll, *marks, code)))
    training = train_on_live_traffic(
        parts, (options.out or folder) / run.replace(" ", ""), spec, unroll, MAX_ANSWER_TOKENS
    )
    drafts = training.checkpoints[-1:] if options.same_history else training.checkpoints
    lineup = lineup_of(drafts, options.ngram, options.shapes)
    if options.controller is not None:
        pods = options.controller or CONTROLLED
        scopes = list(dict.fromkeys(options.lookup or [LookupScope.SPECULATOR]))
        lineup = with_controller(lineup, training.checkpoints, spec, folder, pods, scopes)
    lineup = dataclasses.replace(lineup, same_history=options.same_history)
    plan = MeasurementPlan(
        lineup.arms, tuple(options.concurrency), options.rounds, options.per_worker, near_tie_bound(DType.BFLOAT16)
    )
    learned_from = traffic(domain)[: training.checkpoints[-1].record.requests or UNTRAINED_REQUESTS]
    measured = asyncio.run(measure_lineup(domain, lineup, plan, learned_from, folder))
    return Outcome(domain, plan, measured, lineup, training, answered_before=len(learned_from))


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.served", __doc__)
    parser.add_argument("--traffic", nargs="+", choices=DOMAINS, default=list(LEARNED), help="domains to measure")
    defaults = "; ".join(
        f"{domain} {' '.join(map(str, marks)) or 'none'}" for domain, marks in CHECKPOINT_TOKENS.items()
    )
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="*",
        help="answer tokens of traffic after which the draft is measured; without a number, only the untrained draft "
        f"is (default: {defaults})",
    )
    parser.add_argument("--rounds", type=int, default=8, help="rounds in which every arm answers fresh prompts")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4], help="requests in flight per batch")
    parser.add_argument("--per-worker", type=int, default=4, help="prompts per batch and unit of concurrency")
    parser.add_argument(
        "--ngram", type=int, nargs="+", default=list(NGRAM_TOKENS), help="draft tokens of each NGRAM arm"
    )
    parser.add_argument(
        "--shapes",
        type=parse_shape,
        nargs="+",
        default=list(DEFAULT_SHAPES),
        metavar=SHAPE_METAVAR,
        help="shapes of a verify round: the live pod drafts in the first, and the last draft is measured in all "
        f"(default: a chain of {DEFAULT_SHAPES[0].steps} steps)",
    )
    parser.add_argument(
        "--vocabulary", type=int, default=DraftSpec().vocab_size, help="entries of the drafts' vocabulary map"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="directory for served-DOMAIN.md, served-DOMAIN.json and the drafts; another run at the same commit "
        "measures these drafts again instead of training new ones",
    )
    _add_controller_options(parser)
    parser.add_argument(
        "--same-history",
        action="store_true",
        help="servers without lookup answer the traffic, too, before they are measured; of the drafts only the last "
        "one is measured, because a swap empties the cache of its server",
    )
    add_lock_option(parser)
    options = parser.parse_args()
    _refuse_impossible(parser, options)
    return options


def _add_controller_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--controller",
        nargs="*",
        choices=CONTROLLED,
        help="measure pods with the speculation controller too; without a name, one that is fresh and one with each "
        "draft",
    )
    parser.add_argument(
        "--lookup",
        nargs="+",
        type=LookupScope,
        choices=[LookupScope.REQUEST, LookupScope.SPECULATOR],
        help="with --controller: where its lookup may look, in the request or in all of the speculator's "
        "(default: Speculator, as NGRAM does; the default of a pod is Request)",
    )


def _refuse_impossible(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with an error when the options cannot be measured."""
    if options.lookup is not None and options.controller is None:
        parser.error("--lookup needs --controller")
    needed, available = options.rounds * options.per_worker * sum(options.concurrency), RESERVED_MESSAGES
    if short := [domain for domain in options.traffic if needed > available[domain]]:
        parser.error(
            f"the run needs {needed} fresh prompts, and {short[0]} has {available[short[0]]}: "
            "lower --rounds or --per-worker"
        )


def main() -> None:
    options = _options()
    failures, code = 0, commit()
    for domain in options.traffic:
        with measuring("tests.bench.served", options.lock, code) as measurement:
            outcome = run_domain(domain, options, measurement.folder, code)
        text = f"{measurement.origin}\n\n{section(outcome)}\n"
        print(f"\n{text}", flush=True)
        if options.out:
            (options.out / f"served-{domain}.md").write_text(text)
            data = as_json(outcome, measurement.origin)
            (options.out / f"served-{domain}.json").write_text(json.dumps(data, indent=1))
        failures += count_failures(outcome)
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
