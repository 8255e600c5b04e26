"""The chains that a draft proposes after every token of an answer: the likeliest token, and so on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.unroll import Level, Trunk, Unrolling
from aurora_runtime.training.model.vocabulary_map import VocabularyMap


@dataclass(frozen=True)
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
