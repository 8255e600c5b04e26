"""What a draft proposes behind every token of an answer: chains and trees, as SGLang 0.5.23 grows them.

Each step keeps the ``top_k`` likeliest nodes and offers ``top_k`` tokens below each of them
(sglang/srt/speculative/spec_utils.py, ``select_top_k_tokens``); of all that were offered the likeliest make the tree
(eagle_utils.py, ``organize_draft_results``). A node is as likely as the product of the draft's probabilities down to
it. Invariant: parents come before children, because a node is at most as likely as its parent and ties go to the
earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.unroll import Level, Trunk, Unrolling
from aurora_runtime.training.model.vocabulary_map import VocabularyMap


@dataclass(frozen=True)
class Tree:
    """The nodes of one round by their place: target ids, and parents by place. The first is the root, -1 above it."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]


@dataclass(frozen=True)
class _Offered:
    """Candidates of one step behind ``A`` tokens."""

    score: Tensor  # [A, N]
    token: Tensor  # [A, N] int64, target ids
    parent: Tensor  # [A, N] int64: index among the candidates of all steps, -1 below the root


@torch.inference_mode()
def propose(draft: DraftModel, vocabulary: VocabularyMap, trace: RequestTrace, spec: DraftSpec) -> list[Tree]:
    """The draft's proposals after each answer token but the last: ``tokens_per_round`` nodes, the root included."""
    first, slots = trace.prompt_length, trace.tokens.shape[0] - 1
    root = torch.arange(first - 1, slots - 1)
    trunk = Trunk(
        aux=trace.hidden[None, :slots],
        tokens=trace.tokens[None, 1:].long(),
        start=torch.zeros(1, dtype=torch.int64),
        root=root[None],
    )
    offered = _grow(draft, vocabulary, Unrolling(draft, trunk), root.numel(), spec)
    return _pruned(offered, trace.tokens[first:-1].tolist(), spec.tokens_per_round)


def _grow(draft: DraftModel, vocabulary: VocabularyMap, unrolling: Unrolling, places: int, spec: DraftSpec) -> _Offered:
    """All candidates of all steps, a step's behind those of the steps before."""
    k, parts, before = spec.branching, list[_Offered](), 0
    beam, score = torch.full((places, 1), -1), torch.ones(places, 1)  # the nodes that offer, and their likelihood
    while True:
        likely = draft.logits(unrolling.outputs)[0].float().softmax(-1).topk(k)  # [A * beam, k]
        scores = (score[:, :, None] * likely.values.view(places, -1, k)).flatten(1)
        tokens = vocabulary.to_target[likely.indices].view(places, -1)
        parts.append(_Offered(scores, tokens, beam.repeat_interleave(k, dim=1)))
        if len(parts) == spec.steps:
            break
        kept = _likeliest(scores, k)
        above = torch.arange(places)[:, None] * beam.shape[1] + kept // k
        unrolling.descend(Level(tokens.gather(1, kept).view(1, -1), above.view(1, -1)))
        beam, score = before + kept, scores.gather(1, kept)
        before += scores.shape[1]
    return _Offered(*(torch.cat([getattr(p, name) for p in parts], dim=1) for name in ("score", "token", "parent")))


def _likeliest(scores: Tensor, count: int) -> Tensor:
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


def _pruned(offered: _Offered, roots: list[int], nodes: int) -> list[Tree]:
    kept = _likeliest(offered.score, nodes - 1).sort(dim=1).values
    tokens, parents = offered.token.gather(1, kept).tolist(), offered.parent.gather(1, kept).tolist()
    trees = []
    for root, chosen, token, parent in zip(roots, kept.tolist(), tokens, parents, strict=True):
        place = {-1: 0, **{candidate: 1 + n for n, candidate in enumerate(chosen)}}
        trees.append(Tree((root, *token), (-1, *(place[up] for up in parent))))
    return trees
