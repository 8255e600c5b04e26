"""How many answer tokens must the trainer count until its vocabulary map covers a domain?

The bench counts the answer tokens of recorded requests to SmolLM2 (tests/assets/traces/recorded.py) in their order, as
the trainer does, and chooses a map from the counts. Coverage is the share of the held-out requests' answer tokens that
are in the map. Nothing is trained.

Prints, per domain, the coverage of the initial map and of the map after each number of tokens, with the number of
entries that were replaced.

Takes seconds per domain, after recording the domain once, which takes some minutes. Needs a CPU only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.assets.model import ensure_model
from tests.assets.traces.recorded import domain_traces
from tests.assets.trained_draft import untrained_draft
from tests.bench.bench_command import bench_parser
from tests.bench.markdown import markdown_row, markdown_table
from tests.traffic.prompts import Domain

from aurora_api.v1alpha1.target import TargetSpec
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.token_counts import counts_of
from aurora_runtime.training.model.vocabulary_map import VocabularyMap, best_map, coverage
from aurora_runtime.training.target.target_model import load_target


def coverage_by_budget(
    traces: Sequence[RequestTrace], initial: VocabularyMap, special: Sequence[int], budgets: Sequence[int]
) -> list[tuple[float, int]]:
    """The coverage of ``initial`` and of the map chosen after each of ``budgets``, with the number of replaced entries.

    Args:
        traces: requests of one domain. The held-out ones measure coverage, the others are counted.
        initial: the map to begin with.
        special: tokens that every map must hold.
        budgets: answer tokens to count, ascending.
    """
    vocab = initial.to_draft.numel()
    held_out = counts_of([e for t in traces if t.held_out for e in examples_of(t, vocab)], vocab)
    results = [(coverage(initial, held_out), 0)]
    counts, fresh = torch.zeros_like(held_out), iter([t for t in traces if not t.held_out])
    for budget in budgets:
        while int(counts.sum()) < budget and (trace := next(fresh, None)):
            counts += counts_of(examples_of(trace, vocab), vocab)
        ids = best_map(initial, counts, special)
        chosen = initial if ids is None else VocabularyMap.of(ids, vocab)
        replaced = (chosen.to_draft >= 0) & (initial.to_draft < 0)
        results.append((coverage(chosen, held_out), int(replaced.sum())))
    return results


def main() -> None:
    parser = bench_parser("tests.bench.coverage", __doc__)
    parser.add_argument(
        "--traffic", nargs="+", type=Domain, choices=list(Domain), default=list(Domain), help="domains to measure"
    )
    parser.add_argument(
        "--requests", type=int, default=160, help="recorded requests per domain, held-out ones included"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[500, 1000, 2000, 4000],
        help="answer tokens to count before a map is chosen, ascending",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    _, initial = untrained_draft()
    special = load_target(TargetSpec(model=str(ensure_model()))).special_tokens
    print(markdown_table(["traffic", "initial map", *(f"{n} tokens counted" for n in options.tokens)], []))
    for domain in options.traffic:
        traces = domain_traces(domain, options.requests)
        (first, _), *after = coverage_by_budget(traces, initial, special, options.tokens)
        cells = [f"{first:.3f}", *(f"{share:.3f} ({replaced} replaced)" for share, replaced in after)]
        print(markdown_row([domain, *cells]), flush=True)


if __name__ == "__main__":
    main()
