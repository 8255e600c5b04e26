"""What do the plugin's hooks, its rounds without proposals, and the draft's catch-up cost?

A controller that chooses its rounds makes other rounds than a plain server. Their difference is not the cost of the
hooks. Here servers with the plugin are held to fixed arms, and are measured beside the plain server that makes the same
rounds:

- held to ``off``, beside a server without speculation;
- held to ``draft-N``, beside stock EAGLE-3 with as many steps;
- held to ``lookup-N``, beside SGLang's NGRAM with as many verified tokens;
- held to two arms in turn, beside one server for each of the two. Rounds in turn take longer than the two alone by the
  draft's catch-up.

The draft learned the domain. Servers that look up have answered the same requests before. In every round all arms
answer the same fresh prompts in turn. At most four servers run at a time.

Prints tokens per second, and the warm-up milliseconds of a verify round, with ratios that are paired by round. The
warm-up milliseconds come from streams of 32 tokens before each batch, of requests that servers with lookup have
answered before. Exits with 1 when an answer differs beyond a near tie, or when a request failed.

Takes 8 minutes on two cores with ``--rounds 4 --per-worker 3 --feed 20``, and by default about three times as long
(estimated). The first run also trains the draft. Needs a CPU only.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.assets.cache import cache_root
from tests.assets.model import ensure_model
from tests.assets.trained_draft import write_specialist
from tests.bench.bench_command import add_lock_option, bench_parser, measuring, new_file
from tests.bench.served.held_arms import Group, HeldArms, group_lineup, groups_of
from tests.bench.served.held_arms_report import catch_up_table, plain_table
from tests.bench.served.lineup import measure_lineup
from tests.bench.served.messages import LEARNED, RESERVED_MESSAGES, traffic
from tests.bench.served.paired_rounds import Measured, MeasurementPlan
from tests.bench.served.speed_report import equality_table
from tests.traffic.prompts import Domain

from aurora_api.v1alpha1.target import DType
from aurora_runtime.validation.rounds.answer_equality import near_tie_bound

SPECIALISTS: Final = {"json": Domain.EXTRACTION, "docstrings": Domain.DOCSTRINGS}
"""What the draft of each domain learned."""


@dataclasses.dataclass(frozen=True)
class MeasuredGroup:
    """One group of servers that ran side by side, and its samples."""

    group: Group
    measured: Measured

    @property
    def failures(self) -> int:
        """Different answers and failed requests."""
        different = sum(one.different for one in self.measured.equality.values())
        return different + sum(sample.counts.failures for sample in self.measured.samples)


def run_groups(options: argparse.Namespace, folder: Path) -> list[MeasuredGroup]:
    """Start, measure and stop one group of servers after another. ``folder`` is for the servers' files."""
    draft = write_specialist(ensure_model(), SPECIALISTS[options.traffic], cache_root() / "drafts")
    found = list[MeasuredGroup]()
    for number, group in enumerate(groups_of(options.draft_steps, options.lookup_steps, options.turns)):
        (place := folder / str(number)).mkdir()
        lineup = group_lineup(group, draft, options.draft_steps, place)
        plan = MeasurementPlan(
            lineup.arms, tuple(options.concurrency), options.rounds, options.per_worker, near_tie_bound(DType.BFLOAT16)
        )
        learned_from = traffic(options.traffic)[: options.feed]
        measured = asyncio.run(measure_lineup(options.traffic, lineup, plan, learned_from, place))
        found.append(MeasuredGroup(group, measured))
    return found


def report(groups: Sequence[MeasuredGroup], concurrencies: Sequence[int]) -> str:
    """The comparisons with plain servers, the catch-up, and the comparison of the answers."""
    plain = [(one.measured, held) for one in groups for held in one.group.held if one.group.beside_plain]
    turns = [(one.measured, held) for one in groups for held in one.group.held if held.catch_ups]
    equality = {
        f"group {number}: {name}": each
        for number, one in enumerate(groups, 1)
        for name, each in one.measured.equality.items()
    }
    parts = [plain_table(plain, concurrencies), catch_up_table(turns, concurrencies), equality_table(equality)]
    return "\n\n".join(parts)


def _turns(text: str) -> HeldArms:
    try:
        return HeldArms.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.served.arms", __doc__)
    parser.add_argument("--traffic", choices=LEARNED, default="docstrings", help="domain of the requests and the draft")
    parser.add_argument("--draft-steps", type=int, default=2, help="steps of the draft")
    parser.add_argument("--lookup-steps", type=int, default=3, help="tokens that lookup proposes")
    parser.add_argument(
        "--turns",
        type=_turns,
        metavar="ARM,ARM",
        help="two arms that rounds take in turn (default: lookup and draft with the draft's steps)",
    )
    parser.add_argument("--rounds", type=int, default=8, help="rounds in which every arm answers fresh prompts")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4], help="requests in flight per batch")
    parser.add_argument("--per-worker", type=int, default=4, help="prompts per batch and unit of concurrency")
    parser.add_argument("--feed", type=int, default=40, help="requests that servers with lookup answer before")
    parser.add_argument("--out", type=new_file, help="file for all samples, as JSON")
    add_lock_option(parser)
    options = parser.parse_args()
    try:
        options.turns = options.turns or HeldArms((f"lookup-{options.draft_steps}", f"draft-{options.draft_steps}"))
        groups_of(options.draft_steps, options.lookup_steps, options.turns)
    except ValueError as error:
        parser.error(str(error))
    needed = options.rounds * options.per_worker * sum(options.concurrency)
    if needed > (available := RESERVED_MESSAGES[options.traffic]):
        parser.error(f"the run needs {needed} fresh prompts and there are {available}: lower --rounds or --per-worker")
    return options


def main() -> None:
    options = _options()
    with measuring("tests.bench.served.arms", options.lock) as measurement:
        groups = run_groups(options, measurement.folder)
    print(f"\n{report(groups, options.concurrency)}\n\n{measurement.origin}", flush=True)
    if options.out:
        samples = [dataclasses.asdict(sample) for one in groups for sample in one.measured.samples]
        options.out.write_text(json.dumps({"provenance": measurement.origin, "samples": samples}, indent=1))
    raise SystemExit(1 if sum(one.failures for one in groups) else 0)


if __name__ == "__main__":
    main()
