"""How large should a draft's vocabulary map be? The cost and the coverage of sizes, for choosing ``draft.vocabSize``.

Cost: one server per size, each with an untrained draft, answers in turn (tests/bench/stream_timing.py). A round costs
the same with an untrained and with a trained draft. Coverage: measured for the initial map, and for the map that the
trainer would choose from the first answers (tests/bench/coverage.py).

Prints a row per size: milliseconds per round, median [quartiles], and coverage per domain.

Takes about ten minutes on two quiet cores (estimated), after recording each domain once, which takes some minutes.
Needs a CPU only. Every server uses one thread, in bf16.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft
from tests.assets.sglang_server import sglang_server
from tests.assets.traces.recorded import domain_traces
from tests.bench.bench_command import bench_parser, exit_on_sigterm, load_around, load_average
from tests.bench.coverage import coverage_by_budget
from tests.bench.markdown import markdown_table, median_and_quartiles
from tests.bench.stream_timing import CONCURRENCIES, StepTiming, time_in_turn
from tests.traffic.prompts import Domain

from aurora_api.v1alpha1.target import TargetSpec
from aurora_runtime.training.model import initial_draft
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.target.target_model import load_target

ANSWER_TOKENS = 48


def coverage_by_size(domain: Domain, requests: int, sizes: Sequence[int], counted: int) -> list[list[str]]:
    """Two cells per size: the coverage of the initial map, and of the map chosen from ``counted`` answer tokens."""
    target, traces = load_target(TargetSpec(model=str(ensure_model()))), domain_traces(domain, requests)
    vocab, special = target.identity.vocab_size, target.special_tokens
    maps = [VocabularyMap.of(initial_draft.initial_vocabulary(size, vocab, special), vocab) for size in sizes]
    return [[f"{share:.3f}" for share, _ in coverage_by_budget(traces, each, special, [counted])] for each in maps]


def round_timings(sizes: Sequence[int], rounds: int) -> dict[tuple[str, int], list[StepTiming]]:
    """The timings of all requests, by size and concurrency."""
    model = ensure_model()
    with tempfile.TemporaryDirectory(prefix="vocabulary-bench-") as folder, contextlib.ExitStack() as stack:
        servers = []
        for size in sizes:
            draft = write_random_draft(Path(folder) / str(size), model, draft_vocabulary=size)
            log = Path(folder) / f"{size}.log"
            servers.append((str(size), stack.enter_context(sglang_server(model, draft, log=log))))
        return time_in_turn(servers, rounds, ANSWER_TOKENS)


def main() -> None:
    parser = bench_parser("tests.bench.vocabulary", __doc__)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[4096, 8192, 16384, 32768, 49152],
        help="entries of the maps; one server runs for each",
    )
    parser.add_argument(
        "--counted-tokens", type=int, default=2000, help="answer tokens that the trainer's map is chosen from"
    )
    parser.add_argument(
        "--traffic",
        nargs="+",
        type=Domain,
        choices=list(Domain),
        default=[Domain.EXTRACTION, Domain.DOCSTRINGS],
        help="domains whose coverage is measured",
    )
    parser.add_argument(
        "--requests", type=int, default=160, help="recorded requests per domain, held-out ones included"
    )
    parser.add_argument("--rounds", type=int, default=6, help="measured rounds, at least 2; one more warms up")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds {options.rounds} is too few: quartiles need at least 2 rounds")
    exit_on_sigterm()
    torch.set_num_threads(1)
    shares = [
        coverage_by_size(domain, options.requests, options.sizes, options.counted_tokens) for domain in options.traffic
    ]
    load_before = load_average()
    timings = round_timings(options.sizes, options.rounds)
    print(f"{load_around(load_before)}; one thread per process; bf16\n")
    head = ["entries", *(f"ms per round at concurrency {c}" for c in CONCURRENCIES)]
    maps = ("initial map", f"{options.counted_tokens:,} tokens counted")
    head += [f"coverage of {domain}, {each}" for domain in options.traffic for each in maps]
    rows = []
    for index, size in enumerate(options.sizes):
        cells = [median_and_quartiles([t.milliseconds_per_step for t in timings[str(size), c]]) for c in CONCURRENCIES]
        rows.append([f"{size:,}", *cells, *(share for each in shares for share in each[index])])
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
