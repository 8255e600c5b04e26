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

from aurora_runtime.pinned_copy import copy_to_device
from aurora_runtime.precision import autocast
from aurora_runtime.training.data.batch import Batch, collate
from aurora_runtime.training.data.batch_bound import BatchBound
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.unroll import unroll
from aurora_runtime.training.model.vocabulary_map import VocabularyMap

UNKNOWN_ID: Final = -1
"""Stands in :func:`expected_ids` where the token that followed is not known."""
OUTSIDE_VOCABULARY_ID: Final = -2
"""Stands in :func:`expected_ids` where the draft's vocabulary lacks the token that followed."""
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
        expected = expected_ids(group, steps, vocabulary)
        correct = _correct_proposals(draft, collate(group, steps, vocabulary).to(device), expected)
        for i, example in enumerate(group):
            following = expected[i, : example.root_count, 0]
            n = int((following != UNKNOWN_ID).sum())
            example_rounds, example_tokens = simulate_verification(correct[i, :n])
            rounds.append(example_rounds)
            tokens.append(example_tokens)
            covered += int((following[:n] >= 0).sum())
    return HeldOutResult(tuple(rounds), tuple(tokens), covered / max(sum(tokens), 1))


def expected_ids(examples: Sequence[Example], steps: int, vocabulary: VocabularyMap) -> Tensor:
    """The draft's id of the token that followed, or one of the two constants above, ``[B, R, J]`` int64."""
    expected = torch.full((len(examples), max(e.root_count for e in examples), steps), UNKNOWN_ID, dtype=torch.int64)
    for index, e in enumerate(examples):
        position = e.first_root + torch.arange(e.root_count)[:, None] + 1 + torch.arange(steps)  # [n, J]
        following = vocabulary.to_draft_ids(e.tokens[(position + 1).clamp(max=e.slots)])
        ids = torch.where(following < 0, OUTSIDE_VOCABULARY_ID, following)
        expected[index, : e.root_count] = torch.where(position < e.slots, ids, UNKNOWN_ID)
    return expected


def _correct_proposals(draft: DraftModel, batch: Batch, expected: Tensor) -> Tensor:
    """Whether each greedy proposal is the token that followed, ``[B, R, J]`` bool; false where none is known.

    ``expected`` and the result are on the CPU.
    """
    correct = torch.zeros_like(expected, dtype=torch.bool)
    device = batch.weight.device
    with autocast(device.type):
        for step, out in enumerate(unroll(draft, batch.trunk, batch.levels)):
            known = expected[:, :, step] != UNKNOWN_ID
            chosen = copy_to_device(known.flatten().nonzero().flatten(), device)
            proposed = draft.logits(out.flatten(0, 1).index_select(0, chosen)).argmax(-1).cpu()
            correct[:, :, step][known] = proposed == expected[:, :, step][known]
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
