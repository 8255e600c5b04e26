"""The draft's vocabulary map: the target's tokens that the draft can propose, and the best choice of such tokens.

A draft's head holds a part of the target's vocabulary. The initial draft takes the first ids, because no answers are
known yet. Once answer tokens are counted, a better map can be chosen. Invariant: a better map has the same size, keeps
the special tokens that the map holds (an answer must be able to end), never covers less of what was counted, and
replaces a token only by one that was counted more often. So the same counts never change a map twice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VocabularyMap:
    """The map in both directions."""

    to_target: Tensor  # [draft_vocab] int64
    to_draft: Tensor  # [vocab] int32, -1 outside

    @classmethod
    def of(cls, ids: Tensor, vocab_size: int) -> VocabularyMap:
        """The map of a draft whose tokens have the target ids ``ids`` ``[draft_vocab]``."""
        to_draft = torch.full((vocab_size,), -1, dtype=torch.int32)
        to_draft[ids] = torch.arange(ids.numel(), dtype=torch.int32)
        return cls(ids, to_draft)

    def to_draft_ids(self, ids: Tensor) -> Tensor:
        """Draft ids of target ``ids``, any shape, int64; -1 for tokens outside the map and for ids of -1."""
        return torch.where(ids >= 0, self.to_draft[ids.clamp(min=0).long()].long(), -1)


def coverage(vocabulary: VocabularyMap, counts: Tensor) -> float:
    """Share of all tokens counted in ``counts`` ``[vocab]`` that the map holds; 1 when none was counted."""
    total = float(counts.sum())
    return float(counts[vocabulary.to_target].sum()) / total if total else 1.0


def best_map(current: VocabularyMap, counts: Tensor, special_tokens: Collection[int]) -> Tensor | None:
    """The target ids, ascending ``[draft_vocab]``, of the map that covers most of ``counts`` ``[vocab]``.

    The map has the size of ``current`` and as many tokens as possible in common with it. None when ``current`` is the
    best map.
    """
    inside = current.to_draft >= 0
    special = torch.zeros_like(inside)
    special[list(special_tokens)] = True
    # Among equal counts, tokens of the current map go first, then lower ids: BPE's order, as in the initial draft.
    order = torch.argsort(inside.to(torch.int8), descending=True, stable=True)
    rank = counts.to(torch.float64).masked_fill(special & inside, torch.inf)
    order = order[torch.argsort(rank[order], descending=True, stable=True)]
    ids = order[: current.to_target.numel()].sort().values
    return None if bool(inside[ids].all()) else ids
