"""Recorded requests with the verify rounds that a draft of ours would have caused, rejected proposals included.

The recorded traces hold roots only, because no draft took part. Here one does: it proposes chains or trees as it would
in the engine (greedily, on its own states; tests/integration/test_trained_as_served.py shows that SGLang proposes the
same), the answer decides what is accepted, and the target is asked for its distribution at every node, the rejected
ones included. As in service the draft begins untrained and is replaced by one that learnt from what came before.

Invariant: a rejected node's distribution is the target's for the prefix that ends with it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.traces import RequestTrace
from tests.assets.model import causal_model
from tests.assets.proposals import Tree, propose
from tests.assets.recorded_traces import TOP_K, cached, domain_prompts, kept_as, prompts, recorded
from tests.assets.trained_draft import day_0, learn
from tests.traffic.prompts import Domain

REVISION: Final = 1
"""Part of the cache's name: raise it when the generation below changes."""
PHASE: Final = 40
"""Requests that one draft serves."""
TRAFFIC: Final[dict[str, Callable[[int], list[str]]]] = {
    "json": prompts,
    "docstrings": partial(domain_prompts, Domain.DOCSTRINGS),
}
"""The first so many messages of a kind."""
CHAINS: Final = "drafted"
TREES: Final = "treed"
SHAPES: Final = {CHAINS: DraftSpec(steps=3), TREES: DraftSpec(steps=3, branching=3, draft_tokens=8)}
"""How a round is drafted, by its name in the cache: chains, and trees as wide as the CPU engine is tested with."""


def drafted_traces(domain: str, count: int = 160, shape: str = CHAINS) -> list[RequestTrace]:
    """The first ``count`` requests of ``domain`` with rounds; made once (some minutes of one core) and cached."""
    messages = TRAFFIC[domain](count)
    name = kept_as(f"{domain}-{shape}", messages, REVISION)
    return cached(name, lambda: serve(recorded(domain, messages), SHAPES[shape]))


def serve(traces: Sequence[RequestTrace], spec: DraftSpec) -> Iterator[RequestTrace]:
    """Each trace with the rounds of the draft in force; a new draft every :data:`PHASE` requests."""
    model = causal_model()
    draft, vocabulary = day_0()
    for version, start in enumerate(range(0, len(traces), PHASE)):
        if start:
            draft, _ = day_0()
            learn(draft, vocabulary, traces[:start])
        for trace in traces[start : start + PHASE]:
            yield with_rounds(trace, propose(draft, vocabulary, trace, spec), model, version)


@dataclasses.dataclass(frozen=True)
class Round:
    """A tree below the token at ``root``; ``path`` are the nodes that were right, from the root, which always is."""

    root: int
    tree: Tree
    path: tuple[int, ...]

    @property
    def accepted(self) -> int:
        return len(self.path) - 1


def rounds_of(trace: RequestTrace, proposals: Sequence[Tree]) -> list[Round]:
    """Greedy verification along the answer; ``proposals`` are those behind each answer token but the last."""
    tokens, rounds = trace.tokens.tolist(), list[Round]()
    at = trace.prompt_length
    while at < len(tokens) - 1:
        tree = proposals[at - trace.prompt_length]
        path = [0]
        for following in tokens[at + 1 :]:
            right = [n for n, up in enumerate(tree.parents) if up == path[-1] and tree.tokens[n] == following]
            if not right:
                break
            path.append(right[0])
        rounds.append(Round(at, tree, tuple(path)))
        at += len(path)
    return rounds


@torch.inference_mode()
def with_rounds(trace: RequestTrace, proposals: Sequence[Tree], model: Any, version: int) -> RequestTrace:
    """``trace`` with the rounds that ``proposals`` cause, and what ``model`` says at every node.

    One pass over the request with the rejected nodes behind it, each seeing the request up to its round's root, its
    ancestors and itself, at the position where it was proposed.
    """
    rounds, length = rounds_of(trace, proposals), trace.tokens.shape[0]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    tokens, positions = trace.tokens.tolist(), list(range(length))
    views, where = list[Tensor](), list[int]()  # what each rejected node sees; the row of every node in its order
    total = length + sum(len(r.tree.tokens) - len(r.path) for r in rounds)
    for r in rounds:
        rows, depths = list[int](), list[int]()
        for node, (token, up) in enumerate(zip(r.tree.tokens, r.tree.parents, strict=True)):
            depths.append(depths[up] + 1 if node else 0)
            if node in r.path:
                rows.append(r.root + depths[node])
                continue
            rows.append(len(tokens))
            view = torch.zeros(total, dtype=torch.bool)
            view[: r.root + 1] = True
            ancestor = node
            while ancestor:
                view[rows[ancestor]] = True
                ancestor = r.tree.parents[ancestor]
            views.append(view)
            tokens.append(token)
            positions.append(r.root + depths[node])
        where += rows
    wide = torch.nn.functional.pad(seen, (0, total - length))
    mask = torch.zeros(1, 1, total, total, dtype=model.dtype)
    mask.masked_fill_(~torch.cat([wide, *(view[None] for view in views)]), torch.finfo(model.dtype).min)
    ids, places = torch.tensor([tokens], dtype=torch.int64), torch.tensor([positions], dtype=torch.int64)
    logits = model(ids, attention_mask=mask, position_ids=places).logits[0]
    top = logits[where].float().log_softmax(-1).topk(TOP_K)
    return dataclasses.replace(
        trace,
        root=torch.tensor([r.root for r in rounds], dtype=torch.int32),
        node_count=torch.tensor([len(r.tree.tokens) for r in rounds], dtype=torch.int32),
        accepted=torch.tensor([r.accepted for r in rounds], dtype=torch.int32),
        version=torch.full((len(rounds),), version, dtype=torch.int32),
        node_token=torch.tensor([t for r in rounds for t in r.tree.tokens], dtype=torch.int32),
        node_parent=torch.tensor([up for r in rounds for up in r.tree.parents], dtype=torch.int16),
        node_accepted=torch.tensor([n in r.path for r in rounds for n in range(len(r.tree.tokens))]),
        top_ids=top.indices.to(torch.int32),
        top_logprobs=top.values.to(torch.float16),
        rest=(1 - top.values.exp().sum(-1)).clamp(0, 1).to(torch.float16),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("domain", choices=sorted(TRAFFIC))
    parser.add_argument("--shape", choices=list(SHAPES), default=CHAINS)
    options = parser.parse_args()
    for served in drafted_traces(options.domain, shape=options.shape)[::PHASE]:
        print(f"version {int(served.version[0])}: {served.answer_tokens} tokens in {served.root.shape[0]} rounds")
