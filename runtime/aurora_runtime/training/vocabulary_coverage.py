"""Decides when the draft changes its vocabulary map, from counts of the answers' tokens.

A change has a cost: every engine loads another map with the next version, and the head's rows of the new tokens start
untrained. So a map changes rarely, and only for a statistically certain gain. Invariants: a map is fitted to requests
that are trained on, and evaluated on held-out requests. The counts are saved with the weights, so that a resumed
trainer decides like one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.data.token_counts import counts_of
from aurora_runtime.training.model.vocabulary_map import VocabularyMap, best_map, coverage

MIN_TOKENS_BEFORE_CHANGE: Final = 512
"""Answer tokens before the first change. A map fitted to so few already covers 0.96 of later answers
(docs/results/vocabulary-map.md), and :data:`MIN_Z_SCORE` keeps a map that would be no better from coming."""
TOKENS_BETWEEN_CHANGES: Final = 8_192
"""Answer tokens between two changes: as many as one candidate at ``publishTokens``, so that a candidate tries each map
before the next change."""
COUNT_WINDOW_TOKENS: Final = 65_536
"""Bound of the counted answer tokens. Beyond it all counts are halved, so that old traffic loses its weight."""
TARGET_COVERAGE: Final = 0.98
"""A map with this coverage or more stays: then three tokens in a row include one outside the map once in 17 times."""
MIN_GAIN: Final = 0.01
"""Least gain in coverage. Less would be below the least gain in acceptance length that a candidate needs."""
MIN_Z_SCORE: Final = 3.0
"""Standard errors that the gain must exceed, because a few held-out requests prove little."""
COUNTS, TOKENS_UNTIL_CHANGE = "coverage.counts", "coverage.tokens_until_change"


@dataclass(frozen=True)
class VocabularyChange:
    """A map that is worth changing to, and the share of held-out answers covered before and after."""

    ids: Tensor  # [draft_vocab] int64, ascending
    replaced: int
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"vocabulary map changed: covers {self.after:.2f} of answers, was {self.before:.2f}; "
            f"{self.replaced:,} tokens replaced"
        )


class VocabularyCoverage:
    """Counts the tokens of the answers that are trained on, and proposes a change of the map from the counts."""

    def __init__(self, vocab_size: int, special_tokens: Sequence[int]) -> None:
        """``vocab_size`` and ``special_tokens`` are the target's."""
        self._special_tokens = tuple(special_tokens)
        self._counts = torch.zeros(vocab_size, dtype=torch.float64)
        self._tokens_until_change = MIN_TOKENS_BEFORE_CHANGE
        self._counted_since_review = False

    def add(self, examples: Sequence[Example]) -> None:
        """Count fresh examples, once each."""
        new = counts_of(examples, self._counts.numel())
        self._counts += new
        while float(self._counts.sum()) > COUNT_WINDOW_TOKENS:
            self._counts /= 2
        self._tokens_until_change = max(0, self._tokens_until_change - int(new.sum()))
        self._counted_since_review = True

    def review(self, vocabulary: VocabularyMap, held_out: Sequence[Example]) -> VocabularyChange | None:
        """The change to make now, or None. The caller must apply the change, because the wait for the next one begins.

        Nothing is reviewed before the wait is over, or while nothing was counted since the last review.
        """
        if self._tokens_until_change or not self._counted_since_review:
            return None
        self._counted_since_review = False
        held_out_counts = counts_of(held_out, self._counts.numel())
        change = worthwhile_change(vocabulary, self._counts, held_out_counts, self._special_tokens)
        if change is not None:
            self._tokens_until_change = TOKENS_BETWEEN_CHANGES
        return change

    def state(self) -> dict[str, Tensor]:
        """The tensors that outlive the process."""
        return {
            COUNTS: self._counts.clone(),
            TOKENS_UNTIL_CHANGE: torch.tensor(self._tokens_until_change),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""
        self._counts = tensors[COUNTS].clone()
        self._tokens_until_change = int(tensors[TOKENS_UNTIL_CHANGE])


def worthwhile_change(
    vocabulary: VocabularyMap, counts: Tensor, held_out_counts: Tensor, special_tokens: Sequence[int]
) -> VocabularyChange | None:
    """The best map by ``counts`` ``[vocab]``, if ``held_out_counts`` ``[vocab]`` show a large and certain gain."""
    before = coverage(vocabulary, held_out_counts)
    ids = best_map(vocabulary, counts, special_tokens) if before < TARGET_COVERAGE else None
    if ids is None:
        return None
    after = VocabularyMap.of(ids, counts.numel())
    inside_after, inside_before = after.to_draft >= 0, vocabulary.to_draft >= 0
    added, removed = inside_after & ~inside_before, inside_before & ~inside_after
    gained, lost = int(held_out_counts[added].sum()), int(held_out_counts[removed].sum())
    # Each of these tokens votes for or against the change. If the change made no difference, the standard error of
    # gained - lost would be the root of their sum.
    threshold = max(MIN_GAIN * int(held_out_counts.sum()), MIN_Z_SCORE * math.sqrt(gained + lost))
    if gained - lost < threshold:
        return None
    return VocabularyChange(ids, int(added.sum()), before, coverage(after, held_out_counts))
