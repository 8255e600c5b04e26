"""How much faster does a pod answer than stock SGLang at its best, after a draft learned from live traffic?

For each domain, an untrained draft first learns from live requests (tests/bench/served/live_training.py). Then all arms
(tests/bench/served/arms.py) run side by side, with the same traffic behind them. In every round all arms answer the
same fresh conversations in turn, at each concurrency.

``bfcl`` and ``humaneval`` are public sets: PYTHONPATH must have what tests/setup/datasets.sh prints. ``mixed`` shuffles
four kinds of requests. ``chat`` has two turns behind a shared system prompt. ``prose`` shows what speculation costs
where nobody can guess much.

Prints one section per domain. Exits with 1 when an answer differs beyond a near tie, or when a request failed. A domain
whose result is in --out already is left out, so a run that ended early goes on.

On two quiet cores a domain takes 20 to 60 minutes. Needs a CPU only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Final

from tests.assets.bench_engine import engine_arguments, engine_device
from tests.assets.model import ensure_model
from tests.bench.bench_command import bench_parser, commit, measuring
from tests.bench.served.arms import Arm, ArmSpec, Servers, arms_of
from tests.bench.served.live_training import LiveTraining, TrafficPart, train_on_live_traffic
from tests.bench.served.messages import RESERVED, reserved, traffic
from tests.bench.served.paired_rounds import MeasurementPlan, measure
from tests.bench.served.speed_report import Outcome, as_json, count_failures, section

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import DType
from aurora_runtime.cpu.launch_settings import DEFAULT_KV_TOKENS
from aurora_runtime.validation.rounds import near_tie_bound

LEARNED_TOKENS: Final = {
    "bfcl": 8_000,
    "humaneval": 5_000,
    "json": 20_000,
    "docstrings": 20_000,
    "prose": 0,
    "mixed": 20_000,
    "chat": 20_000,
}
"""Answer tokens of traffic that the draft learns from, by domain. 0: the draft stays untrained."""
UNTRAINED_CONVERSATIONS: Final = 100
"""What servers answer before they are measured beside an untrained draft alone."""
MAX_ANSWER_TOKENS: Final = 64
SPARE_TOKENS: Final = 64
"""Room in the KV cache beside each request, so that no server retracts one."""


def train(domain: str, tokens: int, folder: Path) -> LiveTraining:
    """Let a draft learn from the live traffic of ``domain``."""
    parts = [TrafficPart(domain, tokens)] if tokens else []
    spec = DraftSpec()
    return train_on_live_traffic(parts, folder / f"draft-{domain}-{tokens}", spec, spec.steps, MAX_ANSWER_TOKENS)


async def measure_domain(
    domain: str, arms: tuple[Arm, ...], training: LiveTraining, options: argparse.Namespace, folder: Path
) -> Outcome:
    """Start the servers, let them answer what the draft learned from, measure, and stop the servers."""
    from transformers import AutoTokenizer

    model, concurrencies = ensure_model(), tuple(options.concurrency)
    bound = near_tie_bound(DType.BFLOAT16)
    plan = MeasurementPlan(arms, concurrencies, options.rounds, options.per_worker, bound)
    fresh, before = reserved(domain)[: plan.needed], traffic(domain)
    requests = training.checkpoints[-1].record.requests
    answered = requests // len(fresh[0].turns) if requests else UNTRAINED_CONVERSATIONS
    tokenizer = AutoTokenizer.from_pretrained(model)
    longest = max(len(tokenizer(one.system + "".join(one.turns))["input_ids"]) for one in (*fresh, *before))
    room = longest + 2 * MAX_ANSWER_TOKENS + SPARE_TOKENS
    kv_tokens = max(DEFAULT_KV_TOKENS, room * max(*concurrencies, 8))
    spec = ArmSpec(str(model), engine_device(), kv_tokens, DType.BFLOAT16.value, extra_args=engine_arguments())
    async with Servers(spec, folder, arms, tokenizer, MAX_ANSWER_TOKENS) as servers:
        # The warm-up is of traffic that no server has answered, as far as there is some.
        await servers.learn(before[:answered], (before[answered:] or before)[: plan.warmups_needed])
        measured = await measure(servers, plan, fresh)
        return Outcome(domain, plan, measured, training, answered)


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.served", __doc__)
    parser.add_argument("--traffic", nargs="+", choices=RESERVED, default=["bfcl", "humaneval"], help="domains")
    parser.add_argument(
        "--tokens", type=int, help="answer tokens that the draft learns from (default: 0 to 20,000, by domain)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which every arm answers fresh conversations")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4], help="requests in flight per batch")
    parser.add_argument("--per-worker", type=int, default=4, help="conversations per batch and unit of concurrency")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 5], help="steps of the arms with a fixed draft")
    parser.add_argument("--out", type=Path, help="folder for served-DOMAIN.md, served-DOMAIN.json and the drafts")
    options = parser.parse_args()
    needed = options.rounds * options.per_worker * sum(options.concurrency)
    if short := [domain for domain in options.traffic if needed > RESERVED[domain]]:
        parser.error(
            f"the run needs {needed} fresh conversations, and {short[0]} has {RESERVED[short[0]]}: lower --rounds or"
            " --per-worker"
        )
    return options


def main() -> None:
    options = _options()
    failures, code = 0, commit()
    for domain in options.traffic:
        if options.out and (options.out / f"served-{domain}.json").exists():
            continue
        with measuring("tests.bench.served", code) as measurement:
            tokens = LEARNED_TOKENS[domain] if options.tokens is None else options.tokens
            training = train(domain, tokens, options.out or measurement.folder)
            drafts = [one.draft for one in training.checkpoints]
            arms = arms_of(drafts[-1], drafts[0], options.steps, measurement.folder)
            outcome = asyncio.run(measure_domain(domain, arms, training, options, measurement.folder))
        text = f"{measurement.origin}\n\n{section(outcome)}\n"
        print(f"\n{text}", flush=True)
        if options.out:
            (options.out / f"served-{domain}.md").write_text(text)
            (options.out / f"served-{domain}.json").write_text(
                json.dumps(as_json(outcome, measurement.origin), indent=1)
            )
        failures += count_failures(outcome)
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
