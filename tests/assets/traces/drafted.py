"""Recorded requests with the verify rounds that one of our drafts would have caused, rejected draft tokens included.

Recorded traces contain only the rounds' roots, because no draft took part. Here a draft takes part. It proposes chains
greedily on its own states, as in the engine (tests/integration/trained/test_trained_as_served.py shows that SGLang
proposes the same). The recorded answer decides which nodes are
accepted. The target gives its distribution at every node, rejected nodes included. As in service, the draft begins
untrained, and later drafts learn from earlier requests.

Invariant: a rejected node's distribution is the target's distribution after the prefix that ends with this node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.unroll import Level, Trunk, Unrolling
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from tests.assets.model import causal_model
from tests.assets.traces.recorded import (
    TOP_K,
    cache_name,
    cached_traces,
    domain_messages,
    json_messages,
    recorded,
)
from tests.assets.traces.sources import sources_without_controller
from tests.assets.trained_draft import train_draft, untrained_draft
from tests.traffic.prompts import Domain

REVISION: Final = 2
"""A part of the cached files' names. Raise it when the generation below changes."""
REQUESTS_PER_DRAFT: Final = 40
MESSAGES_BY_DOMAIN: Final[dict[str, Callable[[int], list[str]]]] = {
    "json": json_messages,
    "docstrings": partial(domain_messages, Domain.DOCSTRINGS),
}
"""Name of a domain -> a function that returns the domain's first messages, as many as asked for."""
DRAFT_STEPS: Final = 3


def drafted_traces(domain: str, count: int = 160) -> list[RequestTrace]:
    """The first ``count`` requests of ``domain`` with verify rounds.

    The first call takes some minutes of one core. Later calls read the cache.
    """
    messages = MESSAGES_BY_DOMAIN[domain](count)
    name = cache_name(f"{domain}-drafted", messages, REVISION)
    return cached_traces(name, lambda: simulate_service(recorded(domain, messages)))


def simulate_service(traces: Sequence[RequestTrace]) -> Iterator[RequestTrace]:
    """Each trace with the verify rounds of the draft that serves it.

    A new draft serves every :data:`REQUESTS_PER_DRAFT` requests. It has been trained on all requests before.
    """
    model = causal_model()
    draft, vocabulary = untrained_draft()
    for version, start in enumerate(range(0, len(traces), REQUESTS_PER_DRAFT)):
        if start:
            draft, _ = untrained_draft()
            train_draft(draft, vocabulary, traces[:start])
        for trace in traces[start : start + REQUESTS_PER_DRAFT]:
            yield with_verify_rounds(trace, propose(draft, vocabulary, trace, DRAFT_STEPS), model, version)


@dataclasses.dataclass(frozen=True)
class Tree:
    """The nodes of one verify round. The first node is the root."""

    tokens: tuple[int, ...]
    """The target id of each node."""
    parents: tuple[int, ...]
    """The index of each node's parent; -1 for the root."""


@torch.inference_mode()
def propose(draft: DraftModel, vocabulary: VocabularyMap, trace: RequestTrace, steps: int) -> list[Tree]:
    """The draft's chain of ``steps`` tokens after each answer token but the last."""
    first, slots = trace.prompt_length, trace.tokens.shape[0] - 1
    root_slot = torch.arange(first - 1, slots - 1)
    trunk = Trunk(
        aux=trace.hidden[None, :slots],
        aux_scale=torch.ones(1, slots),
        tokens=trace.tokens[None, 1:].long(),
        start=torch.zeros(1, dtype=torch.int64),
        root_slot=root_slot[None],
    )
    unrolling, places = Unrolling(draft, trunk), torch.arange(root_slot.numel())
    chains = [trace.tokens[first:-1]]
    for step in range(steps):
        chains.append(vocabulary.to_target[draft.logits(unrolling.outputs)[0].argmax(-1)])
        if step < steps - 1:
            unrolling.descend(Level(chains[-1][None], places[None]))
    parents = tuple(range(-1, steps))
    return [Tree(tuple(tokens), parents) for tokens in torch.stack(chains, dim=1).tolist()]


@dataclasses.dataclass(frozen=True)
class Round:
    """One verify round."""

    root: int
    """The position of the root in the request's tokens."""
    tree: Tree
    """The nodes below the token at ``root``."""
    path: tuple[int, ...]
    """The nodes that verification accepts, from the root (which is always accepted) downwards."""

    @property
    def accepted(self) -> int:
        return len(self.path) - 1


def rounds_of(trace: RequestTrace, proposals: Sequence[Tree]) -> list[Round]:
    """Verify the proposals greedily along the answer. ``proposals`` has a tree for each answer token but the last."""
    tokens, rounds = trace.tokens.tolist(), list[Round]()
    root = trace.prompt_length
    while root < len(tokens) - 1:
        tree = proposals[root - trace.prompt_length]
        path = [0]
        for next_token in tokens[root + 1 :]:
            matching = [
                node
                for node, parent in enumerate(tree.parents)
                if parent == path[-1] and tree.tokens[node] == next_token
            ]
            if not matching:
                break
            path.append(matching[0])
        rounds.append(Round(root, tree, tuple(path)))
        root += len(path)
    return rounds


@dataclasses.dataclass
class _Layout:
    """The request's tokens, followed by all rejected nodes, as one input of ``T`` tokens for the target."""

    tokens: list[int]
    positions: list[int]
    """The position of each token. A rejected node has the position at which it was proposed."""
    node_rows: list[int]
    """The row of each node of each round, in the order of the rounds. An accepted node is a token of the request."""
    visible: Tensor
    """``[T, T]`` bool: whether a row attends to a column."""


def _lay_out(trace: RequestTrace, rounds: Sequence[Round]) -> _Layout:
    """A rejected node attends to the request up to the root of its round, to its ancestors and to itself."""
    length = trace.tokens.shape[0]
    tokens, positions = trace.tokens.tolist(), list(range(length))
    total = length + sum(len(r.tree.tokens) - len(r.path) for r in rounds)
    visible = torch.zeros(total, total, dtype=torch.bool)
    visible[:length, :length] = torch.ones(length, length, dtype=torch.bool).tril()
    node_rows = list[int]()
    for r in rounds:
        rows, depths = list[int](), list[int]()
        for node, (token, parent) in enumerate(zip(r.tree.tokens, r.tree.parents, strict=True)):
            depths.append(depths[parent] + 1 if node else 0)
            if node in r.path:
                rows.append(r.root + depths[node])
                continue
            row = len(tokens)
            rows.append(row)
            visible[row, : r.root + 1] = True
            ancestor = node
            while ancestor:
                visible[row, rows[ancestor]] = True
                ancestor = r.tree.parents[ancestor]
            tokens.append(token)
            positions.append(r.root + depths[node])
        node_rows += rows
    return _Layout(tokens, positions, node_rows, visible)


@torch.inference_mode()
def with_verify_rounds(trace: RequestTrace, proposals: Sequence[Tree], model: Any, version: int) -> RequestTrace:
    """``trace`` with the verify rounds that ``proposals`` cause, and the distribution of ``model`` at every node.

    One forward pass computes all distributions.
    """
    rounds = rounds_of(trace, proposals)
    layout = _lay_out(trace, rounds)
    mask = torch.zeros(1, 1, *layout.visible.shape, dtype=model.dtype)
    mask.masked_fill_(~layout.visible, torch.finfo(model.dtype).min)
    tokens = torch.tensor([layout.tokens], dtype=torch.int64)
    positions = torch.tensor([layout.positions], dtype=torch.int64)
    logits = model(tokens, attention_mask=mask, position_ids=positions).logits[0]
    top = logits[layout.node_rows].float().log_softmax(-1).topk(TOP_K)
    return dataclasses.replace(
        trace,
        root=torch.tensor([r.root for r in rounds], dtype=torch.int32),
        node_count=torch.tensor([len(r.tree.tokens) for r in rounds], dtype=torch.int32),
        accepted=torch.tensor([r.accepted for r in rounds], dtype=torch.int32),
        version=torch.full((len(rounds),), version, dtype=torch.int32),
        source=sources_without_controller(torch.tensor([len(r.tree.tokens) for r in rounds])),
        node_token=torch.tensor([token for r in rounds for token in r.tree.tokens], dtype=torch.int32),
        node_parent=torch.tensor([parent for r in rounds for parent in r.tree.parents], dtype=torch.int16),
        node_accepted=torch.tensor([node in r.path for r in rounds for node in range(len(r.tree.tokens))]),
        top_ids=top.indices.to(torch.int32),
        top_logprobs=top.values.to(torch.float16),
        uncaptured_mass=(1 - top.values.exp().sum(-1)).clamp(0, 1).to(torch.float16),
    )
