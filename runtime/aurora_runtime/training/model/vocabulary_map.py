"""The draft's vocabulary map: which of the target's tokens the draft can say, and which it should.

A draft's head holds a part of the target's vocabulary. Day 0 knows no answers and takes the first ids; once answers are
counted, the tokens that they are made of are known. Invariant: a better map has the same size, keeps the special tokens
that the map holds (an answer must be able to end), never covers less of what was counted, and replaces a token only by
one that was seen more often, so that the same counts never change a map twice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VocabularyMap:
    """The map, both ways."""

    to_target: Tensor  # [draft_vocab] int64
    to_draft: Tensor  # [vocab] int32, -1 outside

    @classmethod
    def of(cls, ids: Tensor, vocab: int) -> VocabularyMap:
        """From the target ids of the draft's tokens."""
        back = torch.full((vocab,), -1, dtype=torch.int32)
        back[ids] = torch.arange(ids.numel(), dtype=torch.int32)
        return cls(ids, back)

    def drafted(self, ids: Tensor) -> Tensor:
        """Draft ids of target ``ids``, any shape, int64; -1 for what the map does not hold and for ids of -1."""
        return torch.where(ids >= 0, self.to_draft[ids.clamp(min=0).long()].long(), -1)


def coverage(vocabulary: VocabularyMap, counts: Tensor) -> float:
    """Share of what was counted, ``[vocab]``, that the map holds; 1 of nothing."""
    total = float(counts.sum())
    return float(counts[vocabulary.to_target].sum()) / total if total else 1.0


def better(current: VocabularyMap, counts: Tensor, special: Collection[int]) -> Tensor | None:
    """The target ids, ascending, of the map of ``current``'s size that covers most of ``counts`` ``[vocab]`` and has as
    many tokens as possible in common with it; None where that is ``current`` itself."""
    inside = current.to_draft >= 0
    kept = torch.zeros_like(inside)
    kept[list(special)] = True
    # What counts the same stays if it is in the map, and lower ids go first: BPE's order, as on day 0.
    order = torch.argsort(inside.to(torch.int8), descending=True, stable=True)
    rank = counts.to(torch.float64).masked_fill(kept & inside, torch.inf)
    order = order[torch.argsort(rank[order], descending=True, stable=True)]
    ids = order[: current.to_target.numel()].sort().values
    return None if bool(inside[ids].all()) else ids
