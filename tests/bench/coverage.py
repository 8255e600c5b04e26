"""How much of the answers a vocabulary map holds that is chosen from so many answer tokens, as the trainer chooses it.

Recorded requests to SmolLM2 (recorded_traces.py): counted are those that are trained on, in their order, covered
are the answers of the held-out ones. Nothing is trained, so a run takes seconds, and recording a domain some minutes
once.

    python -m tests.bench.coverage [--traffic extraction sql docstrings] [--tokens 500 1000 2000 4000]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from tests.assets.model import ensure_model
from tests.assets.recorded_traces import domain_traces
from tests.assets.trained_draft import day_0
from tests.traffic.prompts import Domain

from aurora_api.v1alpha1.target import TargetSpec
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.token_counts import counts_of
from aurora_runtime.training.model.target import load_target
from aurora_runtime.training.model.vocabulary_map import VocabularyMap, better, coverage


def row(
    traces: Sequence[RequestTrace], current: VocabularyMap, special: Sequence[int], budgets: Sequence[int]
) -> list[tuple[float, int]]:
    """What ``current`` and then the better map by each of ``budgets`` covers, and how many tokens were replaced."""
    vocab = current.to_draft.numel()
    held_out = counts_of([e for t in traces if t.held_out for e in examples_of(t, vocab)], vocab)
    found = [(coverage(current, held_out), 0)]
    counts, fresh = torch.zeros_like(held_out), iter([t for t in traces if not t.held_out])
    for budget in budgets:
        while int(counts.sum()) < budget and (trace := next(fresh, None)):
            counts += counts_of(examples_of(trace, vocab), vocab)
        ids = better(current, counts, special)
        after = current if ids is None else VocabularyMap.of(ids, vocab)
        new = (after.to_draft >= 0) & (current.to_draft < 0)
        found.append((coverage(after, held_out), int(new.sum())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traffic", nargs="+", type=Domain, choices=list(Domain), default=list(Domain))
    parser.add_argument("--requests", type=int, default=160, help="recorded requests, held-out ones included")
    parser.add_argument("--tokens", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    options = parser.parse_args()
    torch.set_num_threads(1)
    _, first = day_0()
    special = load_target(TargetSpec(model=str(ensure_model()))).special_tokens
    head = ["traffic", "day 0", *(f"{n} tokens counted" for n in options.tokens)]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for domain in options.traffic:
        before, *after = row(domain_traces(domain, options.requests), first, special, options.tokens)
        cells = [f"{before[0]:.3f}", *(f"{share:.3f} ({replaced} replaced)" for share, replaced in after)]
        print("| " + " | ".join([domain, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
