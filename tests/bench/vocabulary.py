"""What the size of a vocabulary map costs and covers: the figures by which ``draft.vocabSize`` is chosen.

Cost: servers with untrained drafts of each size stand side by side and are asked in turn (tests/bench/engine.py); a
round costs the same whatever a draft has learnt. Coverage: of day 0's map, and of the one that the trainer would choose
from the first answers (tests/bench/coverage.py).

    python -m tests.bench.vocabulary [--sizes 4096 8192 16384 32768 49152] [--counted 2000] [--rounds 6]
                                     [--traffic extraction docstrings]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft
from tests.assets.recorded_traces import domain_traces
from tests.assets.sglang_server import sglang_server
from tests.bench.coverage import row
from tests.bench.engine import CONCURRENCIES, Timing, measure
from tests.traffic.prompts import Domain

from aurora_api.v1alpha1.target import TargetSpec
from aurora_runtime.training.model import initial_draft
from aurora_runtime.training.model.target import load_target
from aurora_runtime.training.model.vocabulary_map import VocabularyMap

ANSWER_TOKENS = 48


def covered(domain: Domain, requests: int, sizes: Sequence[int], counted: int) -> list[list[str]]:
    """Per size: the coverage of day 0's map, and of the one chosen from ``counted`` answer tokens."""
    target, traces = load_target(TargetSpec(model=str(ensure_model()))), domain_traces(domain, requests)
    vocab, special = target.identity.vocab_size, target.special_tokens
    maps = [VocabularyMap.of(initial_draft.vocabulary(size, vocab, special), vocab) for size in sizes]
    return [[f"{share:.3f}" for share, _ in row(traces, each, special, [counted])] for each in maps]


def costs(sizes: Sequence[int], rounds: int) -> dict[tuple[str, int], list[Timing]]:
    """Milliseconds per round, by size and concurrency."""
    model = ensure_model()
    with tempfile.TemporaryDirectory(prefix="vocabulary-bench-") as work, contextlib.ExitStack() as stack:
        servers = []
        for size in sizes:
            draft = write_random_draft(Path(work) / str(size), model, draft_vocabulary=size)
            log = Path(work) / f"{size}.log"
            servers.append((str(size), stack.enter_context(sglang_server(model, draft, log=log))))
        return measure(servers, rounds, ANSWER_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384, 32768, 49152])
    parser.add_argument("--counted", type=int, default=2000, help="answer tokens that the chosen map is made of")
    parser.add_argument(
        "--traffic", nargs="+", type=Domain, choices=list(Domain), default=[Domain.EXTRACTION, Domain.DOCSTRINGS]
    )
    parser.add_argument("--requests", type=int, default=160, help="recorded requests, held-out ones included")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("quartiles take two rounds at least")
    # A plain SIGTERM would end this process without ending the servers.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    torch.set_num_threads(1)
    shares = [covered(domain, options.requests, options.sizes, options.counted) for domain in options.traffic]
    before = os.getloadavg()[0]
    timings = costs(options.sizes, options.rounds)
    print(f"load before {before:.1f}, after {os.getloadavg()[0]:.1f}; one thread per process; bf16\n")
    head = ["entries", *(f"ms/round at {c}" for c in CONCURRENCIES)]
    head += [f"{domain}, {kind}" for domain in options.traffic for kind in ("day 0", f"{options.counted:,} counted")]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for place, size in enumerate(options.sizes):
        cells = [_cell([t.milliseconds for t in timings[str(size), c]]) for c in CONCURRENCIES]
        cells += [share for each in shares for share in each[place]]
        print("| " + " | ".join([f"{size:,}", *cells]) + " |")


def _cell(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} [{low:.1f}-{high:.1f}]"


if __name__ == "__main__":
    main()
