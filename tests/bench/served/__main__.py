"""What a draft that learnt from live traffic alone is worth in service: against no speculation, and against NGRAM.

A draft of day 0 learns from one domain's requests, live (tests/bench/served/live.py): of a pod that drafts in the first
of ``--shapes``, each the steps of a chain or, as a tree, steps x branches x verified tokens. Then servers stand side by
side: without speculation, with SGLang's NGRAM, which has answered the same requests, and with EAGLE-3, untrained and
after so many answer tokens of traffic (one server, swapped as pods swap it; the last draft also on one per further
shape). In every round all of them answer the same prompts, which none has seen, in turn and at each concurrency.

    python -m tests.bench.served [--traffic json docstrings] [--tokens 5000 20000] [--rounds 8]
                                  [--shapes 3 5 2x2x6] [--vocabulary 16384] [--out DIR]

On two quiet cores JSON extraction takes about 15 minutes and docstrings about 40. With ``--out`` the drafts are kept
for another run of the same commit. Exits non-zero when an answer differs beyond a near tie or a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

import torch
from tests.bench.bench_command import commit, machine
from tests.bench.bench_command import hold_lock as held
from tests.bench.served.line import LONGEST_ANSWER, SHAPES, line_of, said, serve, shape, unrolled
from tests.bench.served.live import Part, checkpoints
from tests.bench.served.measure import Plan
from tests.bench.served.messages import DOMAINS, RESERVED, traffic
from tests.bench.served.report import Outcome, as_json, section

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import DType
from aurora_runtime.validation.answer_equality import near_tie

MARKS: Final = {"json": (5_000, 20_000), "docstrings": (20_000, 80_000)}
"""Answer tokens of traffic at which a draft is measured."""
NGRAM_TOKENS: Final = (4, 12)
"""As many as our draft's, and SGLang's own default."""


def outcome_of(domain: str, options: argparse.Namespace, work: Path, code: str) -> Outcome:
    """Learn from live traffic, then measure: one domain from beginning to end. ``code`` is the commit."""
    marks = sorted(options.tokens or MARKS[domain])
    parts = [Part(domain, mark - before) for before, mark in itertools.pairwise((0, *marks))]
    spec, depth = options.shapes[0].model_copy(update={"vocab_size": options.vocabulary}), unrolled(options.shapes)
    kept = "-".join(map(str, ("drafts", domain, said(spec), spec.vocab_size, depth, *marks, code))).replace(" ", "")
    drafts, history = checkpoints(parts, (options.out or work) / kept, spec, depth, LONGEST_ANSWER)
    line = line_of(drafts, options.ngram, options.shapes)
    plan = Plan(line.arms, tuple(options.concurrency), options.rounds, options.per_worker, near_tie(DType.BFLOAT16))
    seen = traffic(domain)[: drafts[-1].learnt.requests]
    measured = asyncio.run(serve(domain, line, plan, seen, work))
    return Outcome(
        domain, plan, measured, drafts, history, line.arms[0].name, line.ngrams, line.trained, spec.vocab_size, depth
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traffic", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--tokens", type=int, nargs="+", default=None, help=f"marks (default: {MARKS})")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--per-worker", type=int, default=4, help="prompts per batch and unit of concurrency")
    parser.add_argument("--ngram", type=int, nargs="+", default=list(NGRAM_TOKENS), help="draft tokens of each NGRAM")
    parser.add_argument(
        "--shapes",
        type=shape,
        nargs="+",
        default=list(SHAPES),
        metavar="STEPS[xBRANCHESxTOKENS]",
        help="how a round is drafted; in the further ones the last draft is measured too",
    )
    parser.add_argument(
        "--vocabulary", type=int, default=DraftSpec().vocab_size, help="entries of the drafts' vocabulary map"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="directory for served-*.md, served-*.json and the drafts"
    )
    parser.add_argument("--lock", type=Path, default=None, help="hold this lock file while training and measuring")
    options = parser.parse_args()
    if (needed := options.rounds * options.per_worker * sum(options.concurrency)) > RESERVED:
        parser.error(f"{needed} prompts are needed, and {RESERVED} are reserved: fewer rounds, or fewer per worker")
    torch.set_num_threads(1)
    # A plain SIGTERM would end this process without ending the servers.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    wrong, code = 0, commit()
    for domain in options.traffic:
        with tempfile.TemporaryDirectory(prefix="served-bench-") as work, held(options.lock):
            before = os.getloadavg()[0]
            outcome = outcome_of(domain, options, Path(work), code)
            load = f"load before {before:.1f}, after {os.getloadavg()[0]:.1f}"
        where = f"`python -m tests.bench.served {' '.join(sys.argv[1:])}`; {machine()}; commit {code}; {load}"
        print(f"\n{where}\n\n{section(outcome)}\n", flush=True)
        if options.out:
            (options.out / f"served-{domain}.md").write_text(f"{where}\n\n{section(outcome)}\n")
            (options.out / f"served-{domain}.json").write_text(json.dumps(as_json(outcome, where), indent=1))
        wrong += sum(one.different for one in outcome.measured.equality.values())
        wrong += sum(sample.failures for sample in outcome.measured.samples)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
