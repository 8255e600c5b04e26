"""How long a draft's guesses would have been: simulated acceptance length on held-out requests.

Invariant: it counts as serving counts (answer tokens per verify round, the bonus token included), on tokens that the
target really said. Every root is tried in one unrolled pass; rounds are then walked over the hits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_runtime.precision import autocast
from aurora_runtime.training.data.batch import collate
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.data.replay import pack
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.unroll import unroll
from aurora_runtime.training.model.vocabulary_map import VocabularyMap


@dataclass(frozen=True)
class HeldOut:
    """The outcome of an evaluation."""

    requests: int
    rounds: int
    tokens: int
    first_hits: float  # share of roots whose first guess was right
    coverage: float  # share of the answers' tokens that the draft's vocabulary map holds: no draft can say the others

    @property
    def accept_length(self) -> float:
        return self.tokens / max(self.rounds, 1)


@torch.inference_mode()
def evaluate(
    draft: DraftModel,
    examples: Sequence[Example],
    vocabulary: VocabularyMap,
    steps: int,
    *,
    slots: int = 1024,
    seconds: float = 20.0,
) -> HeldOut:
    """Greedy chains of ``steps`` guesses along each example's answer; stops early when ``seconds`` have passed, so the
    examples should come in the order of their importance."""
    device = draft.lm_head.weight.device
    deadline = time.monotonic() + seconds
    requests = rounds = tokens = hits = roots = inside = 0
    for group in pack(list(examples), slots):
        batch = collate(group, steps, vocabulary).to(device)
        known = batch.expected != -1
        right = torch.zeros_like(known)
        with autocast(device.type):
            for step, out in enumerate(unroll(draft, batch.trunk, batch.levels)):
                chosen = known[:, :, step]
                right[:, :, step][chosen] = draft.logits(out[chosen]).argmax(-1) == batch.expected[:, :, step][chosen]
        for i, example in enumerate(group):
            n = int(known[i, : example.roots, 0].sum())
            r, t = walk(right[i, :n].cpu())
            requests, rounds, tokens = requests + 1, rounds + r, tokens + t
            hits, roots = hits + int(right[i, :n, 0].sum()), roots + n
            inside += int((batch.expected[i, :n, 0] >= 0).sum())
        if time.monotonic() > deadline:
            break
    return HeldOut(requests, rounds, tokens, hits / max(roots, 1), inside / max(roots, 1))


def walk(right: Tensor) -> tuple[int, int]:
    """Rounds and tokens of greedy verification over ``right`` ``[N, J]``: whether guess ``j`` at root ``n`` is what the
    target said. A round at ``n`` commits its leading right guesses and one bonus token, within the answer."""
    leading = right.long().cumprod(-1).sum(-1).tolist()
    at = rounds = 0
    while at < len(leading):
        at += leading[at] + 1
        rounds += 1
    return rounds, len(leading)
