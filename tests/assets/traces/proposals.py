"""The chains and trees that a draft proposes after every token of an answer, grown as SGLang 0.5.23 grows them.

Each step keeps the ``branching`` likeliest nodes and proposes ``branching`` tokens below each of them
(sglang/srt/speculative/spec_utils.py, ``select_top_k_tokens``). The likeliest of all proposed nodes form the tree
(eagle_utils.py, ``organize_draft_results``). The likelihood of a node is the product of the draft's probabilities along
its path. Invariant: parents come before children, because a node is at most as likely as its parent and ties go to the
earlier node.
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
    """The nodes of one verify round. The first node is the root."""

    tokens: tuple[int, ...]
    """The target id of each node."""
    parents: tuple[int, ...]
    """The index of each node's parent; -1 for the root."""


@dataclass(frozen=True)
class _Candidates:
    """``N`` proposed nodes after each of ``A`` answer tokens."""

    score: Tensor  # [A, N] likelihood
    token: Tensor  # [A, N] int64, target ids
    parent: Tensor  # [A, N] int64, index among the candidates of all steps; -1 below the root


@torch.inference_mode()
def propose(draft: DraftModel, vocabulary: VocabularyMap, trace: RequestTrace, spec: DraftSpec) -> list[Tree]:
    """The draft's tree after each answer token but the last. A tree has ``tokens_per_round`` nodes, root included."""
    first, slots = trace.prompt_length, trace.tokens.shape[0] - 1
    root_slot = torch.arange(first - 1, slots - 1)
    trunk = Trunk(
        aux=trace.hidden[None, :slots],
        tokens=trace.tokens[None, 1:].long(),
        start=torch.zeros(1, dtype=torch.int64),
        root_slot=root_slot[None],
    )
    candidates = _grow(draft, vocabulary, Unrolling(draft, trunk), root_slot.numel(), spec)
    return _prune(candidates, trace.tokens[first:-1].tolist(), spec.tokens_per_round)


def _grow(
    draft: DraftModel, vocabulary: VocabularyMap, unrolling: Unrolling, places: int, spec: DraftSpec
) -> _Candidates:
    """The candidates of all steps, in the order of the steps, after each of ``places`` answer tokens."""
    k, steps, count_before = spec.branching, list[_Candidates](), 0
    beam, score = torch.full((places, 1), -1), torch.ones(places, 1)  # the nodes to extend, and their likelihoods
    while True:
        likely = draft.logits(unrolling.outputs)[0].float().softmax(-1).topk(k)  # [A * beam, k]
        scores = (score[:, :, None] * likely.values.view(places, -1, k)).flatten(1)
        tokens = vocabulary.to_target[likely.indices].view(places, -1)
        steps.append(_Candidates(scores, tokens, beam.repeat_interleave(k, dim=1)))
        if len(steps) == spec.steps:
            break
        kept = _likeliest(scores, k)
        parents = torch.arange(places)[:, None] * beam.shape[1] + kept // k
        unrolling.descend(Level(tokens.gather(1, kept).view(1, -1), parents.view(1, -1)))
        beam, score = count_before + kept, scores.gather(1, kept)
        count_before += scores.shape[1]
    return _Candidates(
        *(torch.cat([getattr(step, name) for step in steps], dim=1) for name in ("score", "token", "parent"))
    )


def _likeliest(scores: Tensor, count: int) -> Tensor:
    """Indices ``[A, count]`` of the highest scores. Among equal scores the earlier one comes first."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


def _prune(candidates: _Candidates, roots: list[int], nodes: int) -> list[Tree]:
    """Trees of the likeliest ``nodes - 1`` candidates, one below each root."""
    kept = _likeliest(candidates.score, nodes - 1).sort(dim=1).values
    tokens, parents = candidates.token.gather(1, kept).tolist(), candidates.parent.gather(1, kept).tolist()
    trees = []
    for root, chosen, token, parent in zip(roots, kept.tolist(), tokens, parents, strict=True):
        index_of = {-1: 0, **{candidate: 1 + n for n, candidate in enumerate(chosen)}}
        trees.append(Tree((root, *token), (-1, *(index_of[p] for p in parent))))
    return trees
