"""Simulated acceptance length of a draft on held-out requests.

Invariant: the simulation counts as serving does (answer tokens per verify round, the bonus token included), on tokens
that the target really generated. One unrolled pass proposes from every root. Greedy verification is then simulated from
the correctness of the proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_runtime.precision import autocast
from aurora_runtime.training.data.batch import UNKNOWN_ID, Batch, collate
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.data.slot_batches import batch_by_slots
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.unroll import unroll
from aurora_runtime.training.model.vocabulary_map import VocabularyMap


@dataclass(frozen=True)
class HeldOutResult:
    """The result of simulating a draft on held-out requests."""

    rounds: int  # verify rounds
    tokens: int  # answer tokens, bonus tokens included
    coverage: float  # share of the answers' tokens that are in the draft's vocabulary map, so that it can propose them

    @property
    def acceptance_length(self) -> float:
        return self.tokens / max(self.rounds, 1)


@torch.inference_mode()
def evaluate(
    draft: DraftModel,
    examples: Sequence[Example],
    vocabulary: VocabularyMap,
    steps: int,
    *,
    batch_slots: int = 1024,
) -> HeldOutResult:
    """Propose greedy chains of ``steps`` tokens along each example's answer."""
    device = draft.lm_head.weight.device
    rounds = tokens = covered = 0
    for group in batch_by_slots(examples, batch_slots):
        batch = collate(group, steps, vocabulary).to(device)
        correct = _correct_proposals(draft, batch)
        for i, example in enumerate(group):
            expected = batch.expected_ids[i, : example.root_count, 0]
            n = int((expected != UNKNOWN_ID).sum())
            example_rounds, example_tokens = simulate_verification(correct[i, :n].cpu())
            rounds, tokens = rounds + example_rounds, tokens + example_tokens
            covered += int((expected[:n] >= 0).sum())
    return HeldOutResult(rounds, tokens, covered / max(tokens, 1))


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
