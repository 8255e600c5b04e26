"""Simulated acceptance length of a draft on held-out requests.

Invariant: the simulation counts as serving does (answer tokens per verify round, the bonus token included), on tokens
that the target really generated. One unrolled pass proposes from every root. Greedy verification is then simulated from
the correctness of the proposals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.precision import autocast
from aurora_runtime.training.data.batch import UNKNOWN_ID, Batch, collate
from aurora_runtime.training.data.batch_bound import BatchBound
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.unroll import unroll
from aurora_runtime.training.model.vocabulary_map import VocabularyMap

EVALUATION_BOUND: Final = BatchBound(roots=512, slots=16_384)


@dataclass(frozen=True)
class HeldOutResult:
    """The result of simulating a draft on held-out requests. Rounds and tokens are given for each example."""

    rounds: tuple[int, ...]  # verify rounds
    tokens: tuple[int, ...]  # answer tokens, bonus tokens included
    coverage: float  # share of the answers' tokens that are in the draft's vocabulary map, so that it can propose them

    @property
    def acceptance_length(self) -> float:
        return sum(self.tokens) / max(sum(self.rounds), 1)

    def error_of_gain(self, other: HeldOutResult) -> float:
        """The standard error of the difference in acceptance length from ``other``, on the same examples.

        An example's part of the difference is linearised, as usual for ratios (Cochran 1977, section 2.11). Infinite
        with fewer than two examples.
        """
        if len(self.rounds) < 2:
            return math.inf
        parts = [own - its for own, its in zip(self._deviations(), other._deviations(), strict=True)]
        return math.sqrt(sum(part * part for part in parts) * len(parts) / (len(parts) - 1))

    def _deviations(self) -> list[float]:
        """How far each example moves the acceptance length from that of all."""
        total = max(sum(self.rounds), 1)
        return [
            (tokens - self.acceptance_length * rounds) / total
            for tokens, rounds in zip(self.tokens, self.rounds, strict=True)
        ]


@torch.inference_mode()
def evaluate(
    draft: DraftModel,
    examples: Sequence[Example],
    vocabulary: VocabularyMap,
    steps: int,
) -> HeldOutResult:
    """Propose greedy chains of ``steps`` tokens along each example's answer."""
    device = draft.lm_head.weight.device
    rounds, tokens, covered = list[int](), list[int](), 0
    for group in EVALUATION_BOUND.batches(examples):
        batch = collate(group, steps, vocabulary).to(device)
        correct = _correct_proposals(draft, batch)
        for i, example in enumerate(group):
            expected = batch.expected_ids[i, : example.root_count, 0]
            n = int((expected != UNKNOWN_ID).sum())
            example_rounds, example_tokens = simulate_verification(correct[i, :n].cpu())
            rounds.append(example_rounds)
            tokens.append(example_tokens)
            covered += int((expected[:n] >= 0).sum())
    return HeldOutResult(tuple(rounds), tuple(tokens), covered / max(sum(tokens), 1))


def _correct_proposals(draft: DraftModel, batch: Batch) -> Tensor:
    """Whether each greedy proposal is the token that followed, ``[B, R, J]`` bool; false where none is known."""
    known = batch.expected_ids != UNKNOWN_ID
    correct = torch.zeros_like(known)
    with autocast(known.device.type):
        for step, out in enumerate(unroll(draft, batch.trunk, batch.levels)):
            chosen = known[:, :, step]
            expected = batch.expected_ids[:, :, step][chosen]
            correct[:, :, step][chosen] = draft.logits(out[chosen]).argmax(-1) == expected
    return correct


def simulate_verification(correct: Tensor) -> tuple[int, int]:
    """Rounds and committed tokens of greedy verification along ``N`` roots.

    ``correct`` ``[N, J]`` says whether proposal ``j`` at root ``n`` is the token that followed. A round at root ``n``
    commits the leading correct proposals and one bonus token, but no token after the answer.
    """
    accepted = correct.long().cumprod(-1).sum(-1).tolist()
    position = rounds = 0
    while position < len(accepted):
        position += accepted[position] + 1
        rounds += 1
    return rounds, len(accepted)
