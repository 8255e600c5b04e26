"""A domain shift in service: the draft that stays as it was before, and the one that goes on learning.

One pod is asked by one domain and then by another, live (tests/bench/served/live.py). Then the draft of day 0, the one
from before the shift and the one from its end are measured side by side on unseen prompts of both domains: what a
service would have if its draft had stayed as it was, and what is left of the first domain afterwards.

    python -m tests.bench.served.shift [--domains json docstrings] [--tokens 20000 60000] [--rounds 6] [--shape 3]
                                       [--vocabulary 16384] [--out DIR]

Exits non-zero when an answer differs beyond a near tie or a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tests.bench.bench_command import commit, machine
from tests.bench.served.line import LONGEST_ANSWER, line_of, said, serve, shape, unrolled
from tests.bench.served.live import Checkpoint, Part, checkpoints
from tests.bench.served.measure import Plan
from tests.bench.served.messages import DOMAINS, RESERVED
from tests.bench.served.report import Outcome, as_json, equality_table, live_line, ratio_of, said_ratio, table

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import DType
from aurora_runtime.validation.answer_equality import near_tie

CONCURRENCIES = (1, 4)
PER_WORKER = 4


def report(drafts: Sequence[Checkpoint], outcomes: Sequence[Outcome]) -> str:
    """Each domain's table, and the two drafts beside each other."""
    static, adapted = drafts[1:]
    parts = [f"- {live_line(outcomes[0].live)}"]
    for outcome in outcomes:
        lines = list[str]()
        for concurrency in outcome.plan.concurrencies:
            cells = [outcome.measured.cell(one.name, concurrency).accept_length or 0.0 for one in (static, adapted)]
            found = ratio_of(outcome, adapted.name, static.name, concurrency)
            lines.append(
                f"- {outcome.traffic}, concurrency {concurrency}: the draft that went on learning is "
                f"{said_ratio(found)} as fast as the one from before the shift; acceptance length {cells[1]:.2f} "
                f"against {cells[0]:.2f}"
            )
        parts += [f"**{outcome.traffic}**", table(outcome), "\n".join(lines), equality_table(outcome.measured.equality)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs=2, choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--tokens", type=int, nargs=2, default=[20_000, 60_000], help="answer tokens of each")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--shape", type=shape, default=DraftSpec(), metavar="STEPS[xBRANCHESxTOKENS]")
    parser.add_argument("--vocabulary", type=int, default=DraftSpec().vocab_size)
    parser.add_argument("--out", type=Path, default=None, help="directory for shift.md, shift-*.json and the drafts")
    options = parser.parse_args()
    if (needed := options.rounds * PER_WORKER * sum(CONCURRENCIES)) > RESERVED:
        parser.error(f"{needed} prompts are needed, and {RESERVED} are reserved: fewer rounds")
    torch.set_num_threads(1)
    # A plain SIGTERM would end this process without ending the servers.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    code = commit()
    spec = options.shape.model_copy(update={"vocab_size": options.vocabulary})
    parts = [Part(domain, tokens) for domain, tokens in zip(options.domains, options.tokens, strict=True)]
    with tempfile.TemporaryDirectory(prefix="shift-bench-") as work:
        before = os.getloadavg()[0]
        told = [f"{part.domain}-{part.tokens}" for part in parts]
        kept = "-".join(("shift", *told, said(spec), str(spec.vocab_size), code)).replace(" ", "")
        depth = unrolled([spec])
        drafts, live = checkpoints(parts, (options.out or Path(work)) / kept, spec, depth, LONGEST_ANSWER)
        line = line_of(drafts, (), (spec,))
        plan = Plan(line.arms, CONCURRENCIES, options.rounds, PER_WORKER, near_tie(DType.BFLOAT16))
        outcomes = list[Outcome]()
        for domain in options.domains:
            measured = asyncio.run(serve(domain, line, plan, (), Path(work)))
            outcomes.append(
                Outcome(
                    domain, plan, measured, drafts, live, line.arms[0].name, (), line.trained, spec.vocab_size, depth
                )
            )
        load = f"load before {before:.1f}, after {os.getloadavg()[0]:.1f}"
    where = f"`python -m tests.bench.served.shift {' '.join(sys.argv[1:])}`; {machine()}; commit {code}; {load}"
    learnt = "\n".join(f"- {one.name}: {dataclasses.asdict(one.learnt)}" for one in drafts)
    text = f"{where}\n\n{learnt}\n{report(drafts, outcomes)}\n"
    print(f"\n{text}", flush=True)
    if options.out:
        (options.out / "shift.md").write_text(text)
        for outcome in outcomes:
            (options.out / f"shift-{outcome.traffic}.json").write_text(json.dumps(as_json(outcome, where), indent=1))
    wrong = sum(one.different for outcome in outcomes for one in outcome.measured.equality.values())
    wrong += sum(sample.failures for outcome in outcomes for sample in outcome.measured.samples)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
