"""Recorded requests with the verify rounds that a draft of ours would have caused, rejected proposals included.

The recorded traces hold roots only, because no draft took part. Here one does: it proposes chains as it would in the
engine (greedily, on its own states; tests/integration/test_trained_as_served.py shows that SGLang proposes the same),
the answer decides what is accepted, and the target is asked for its distribution at every node, the rejected ones
included. As in service the draft begins untrained and is replaced by one that learnt from what came before.

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

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.draft import Draft
from aurora_runtime.training.unroll import Level, Trunk, Unrolling
from aurora_runtime.training.vocabulary import Vocabulary
from tests.assets.model import ensure_model
from tests.assets.traces import TOP_K, cached, domain_traces, json_traces
from tests.assets.trained_draft import day_0, learn
from tests.traffic.prompts import Domain

REVISION: Final = 1
"""Part of the cache's name: raise it when the generation below changes."""
STEPS: Final = 3
PHASE: Final = 40
"""Requests that one draft serves."""
TRAFFIC: Final[dict[str, Callable[[int], list[RequestTrace]]]] = {
    "json": json_traces,
    "docstrings": partial(domain_traces, Domain.DOCSTRINGS),
}


def drafted_traces(domain: str, count: int = 160) -> list[RequestTrace]:
    """The first ``count`` requests of ``domain`` with rounds; made once (some minutes of one core) and cached."""
    return cached(f"{domain}-drafted-r{REVISION}-{count}", lambda: serve(TRAFFIC[domain](count)))


def serve(traces: Sequence[RequestTrace]) -> Iterator[RequestTrace]:
    """Each trace with the rounds of the draft in force; a new draft every :data:`PHASE` requests."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ensure_model(), dtype=torch.bfloat16).eval()
    draft, vocabulary = day_0()
    for version, start in enumerate(range(0, len(traces), PHASE)):
        if start:
            draft, _ = day_0()
            learn(draft, vocabulary, traces[:start])
        for trace in traces[start : start + PHASE]:
            yield with_rounds(trace, propose(draft, vocabulary, trace), model, version)


@torch.inference_mode()
def propose(draft: Draft, vocabulary: Vocabulary, trace: RequestTrace) -> Tensor:
    """What the draft proposes behind each answer token but the last, as target ids ``[A - 1, STEPS]``."""
    length, first = trace.tokens.shape[0], trace.prompt_length
    root = torch.arange(first - 1, length - 2)[None]
    slots = length - 1
    trunk = Trunk(
        aux=trace.hidden[None, :slots],
        tokens=trace.tokens[None, 1:].long(),
        start=torch.zeros(1, dtype=torch.int64),
        root=root,
    )
    unrolling = Unrolling(draft, trunk)
    own, proposals = torch.arange(root.shape[1])[None], list[Tensor]()
    while True:
        proposals.append(vocabulary.to_target[draft.logits(unrolling.outputs).argmax(-1)])
        if len(proposals) == STEPS:
            return torch.stack(proposals, dim=-1)[0]
        unrolling.descend(Level(proposals[-1], own))


@dataclasses.dataclass(frozen=True)
class Round:
    """A chain below the token at ``root``: its drafts, of which the first ``accepted`` were right."""

    root: int
    accepted: int
    drafts: tuple[int, ...]


def rounds_of(trace: RequestTrace, proposals: Tensor) -> list[Round]:
    """Greedy verification along the answer."""
    tokens, rounds = trace.tokens.tolist(), list[Round]()
    at = trace.prompt_length
    while at < len(tokens) - 1:
        drafts = proposals[at - trace.prompt_length].tolist()
        following = tokens[at + 1 : at + 1 + len(drafts)]
        right = [mine == theirs for mine, theirs in zip(drafts, following, strict=False)]
        accepted = right.index(False) if False in right else len(right)
        rounds.append(Round(at, accepted, tuple(drafts)))
        at += accepted + 1
    return rounds


@torch.inference_mode()
def with_rounds(trace: RequestTrace, proposals: Tensor, model: Any, version: int) -> RequestTrace:
    """``trace`` with the rounds that ``proposals`` cause, and what ``model`` says at every node."""
    rounds, length = rounds_of(trace, proposals), trace.tokens.shape[0]
    extra = [(r, d) for r in rounds for d in range(r.accepted, len(r.drafts))]  # rejected: round, place in the chain
    tokens = torch.cat([trace.tokens.long(), torch.tensor([r.drafts[d] for r, d in extra], dtype=torch.int64)])
    position = torch.cat([torch.arange(length), torch.tensor([r.root + 1 + d for r, d in extra], dtype=torch.int64)])
    total = length + len(extra)
    seen = torch.ones(total, total, dtype=torch.bool).tril()
    for i, (r, d) in enumerate(extra):
        row = length + i
        seen[row] = False
        seen[row, : r.root + r.accepted + 1] = True
        seen[row, row - (d - r.accepted) : row + 1] = True
    index = {(r.root, d): length + i for i, (r, d) in enumerate(extra)}
    mask = torch.zeros(1, 1, total, total, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
    logits = model(tokens[None], attention_mask=mask, position_ids=position[None]).logits[0]
    where = [r.root + d if d <= r.accepted else index[r.root, d - 1] for r in rounds for d in range(len(r.drafts) + 1)]
    top = logits[where].float().log_softmax(-1).topk(TOP_K)
    nodes = STEPS + 1
    depth = torch.arange(nodes).repeat(len(rounds))
    accepted = torch.tensor([r.accepted for r in rounds], dtype=torch.int32)
    return dataclasses.replace(
        trace,
        root=torch.tensor([r.root for r in rounds], dtype=torch.int32),
        node_count=torch.full((len(rounds),), nodes, dtype=torch.int32),
        accepted=accepted,
        version=torch.full((len(rounds),), version, dtype=torch.int32),
        node_token=torch.tensor([t for r in rounds for t in (int(trace.tokens[r.root]), *r.drafts)], dtype=torch.int32),
        node_parent=(depth - 1).to(torch.int16),
        node_accepted=depth <= accepted.repeat_interleave(nodes),
        top_ids=top.indices.to(torch.int32),
        top_logprobs=top.values.to(torch.float16),
        rest=(1 - top.values.exp().sum(-1)).clamp(0, 1).to(torch.float16),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("domain", choices=sorted(TRAFFIC))
    for served in drafted_traces(parser.parse_args().domain)[::PHASE]:
        print(f"version {int(served.version[0])}: {served.answer_tokens} tokens in {served.root.shape[0]} rounds")
