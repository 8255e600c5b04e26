"""The training steps of two published online trainers, re-created from public descriptions. None of their code is here.

Both train an EAGLE-3 draft by its training-time test (arXiv 2503.01840): the draft is unrolled from every slot of whole
sequences, and is compared with the target's softmax over the draft's vocabulary, renormalised. A position counts where
the target's most likely token is in that vocabulary, and in answers only. Depth ``i`` weighs 0.8^i.

- SpecForge's online trainer (arXiv 2603.18567): 7 depths. The target's logits of all positions come from its forward
  pass. That pass is left out here, but for the product with the target's head.
- The published Aurora loop (github.com/togethercomputer/aurora, arXiv 2602.06932): 5 depths in its examples. The
  trainer holds the target's head, and computes the logits of answers from the last hidden states.

What differs from the two programs: weights are float32 without a second copy in bf16, attention and products are those
of our own draft, and their GPU kernels are left out. So the comparison is one of algorithms, and not of
implementations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.precision import autocast, product_dtype
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.unroll import Level, Trunk, unroll

STEP_DECAY: Final = 0.8


@dataclass(frozen=True)
class PublishedTrainer:
    """How one of the two trains."""

    name: str
    depths: int
    max_gradient_norm: float
    all_logits: bool
    """Whether the target's logits are computed at all positions, and not in answers only."""


PUBLISHED_TRAINERS: Final = (
    PublishedTrainer("SpecForge online, re-created", 7, 0.5, all_logits=True),
    PublishedTrainer("published Aurora loop, re-created", 5, 2.5, all_logits=False),
)


@dataclass(frozen=True)
class WholeSequences:
    """``B`` requests padded to ``T`` slots. Slot ``t`` holds the state at ``t``, and token ``t + 1``."""

    aux: Tensor  # [B, T, 3H]
    last: Tensor  # [B, T, H]: the target's last hidden states, from which its logits follow
    tokens: Tensor  # [B, T] int64
    answer: Tensor  # [B, T] bool: slots whose state predicts a token of the answer

    @classmethod
    def of(cls, traces: Sequence[RequestTrace]) -> WholeSequences:
        """Last hidden states are random: no step's cost depends on them."""
        slots, width = max(t.hidden.shape[0] for t in traces), traces[0].hidden.shape[1]
        aux = torch.zeros(len(traces), slots, width, dtype=traces[0].hidden.dtype)
        tokens = torch.zeros(len(traces), slots, dtype=torch.int64)
        answer = torch.zeros(len(traces), slots, dtype=torch.bool)
        for row, trace in enumerate(traces):
            own = trace.hidden.shape[0]
            aux[row, :own] = trace.hidden
            tokens[row, :own] = trace.tokens[1 : own + 1].long()
            answer[row, trace.prompt_length - 1 : own] = True
        generator = torch.Generator().manual_seed(len(traces))
        last = torch.randn(len(traces), slots, width // 3, generator=generator).to(aux.dtype)
        return cls(aux, last, tokens, answer)


class PublishedSession:
    """A draft in training as ``trainer`` trains it.

    Args:
        target_head: ``[vocab, H]``.
        ids: the target ids of the draft's tokens, ``[draft_vocab]``.
    """

    def __init__(self, trainer: PublishedTrainer, draft: DraftModel, target_head: Tensor, ids: Tensor) -> None:
        self._trainer, self._draft, self._ids = trainer, draft, ids
        self._head = target_head.to(product_dtype("cpu"))
        self._in_vocabulary = torch.zeros(target_head.shape[0], dtype=torch.bool).index_fill_(0, ids, True)
        self._optimizer = torch.optim.AdamW(draft.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def step(self, sequences: WholeSequences) -> float:
        """One optimizer step; returns the loss."""
        loss = self.loss(sequences)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._draft.parameters(), self._trainer.max_gradient_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def loss(self, sequences: WholeSequences) -> Tensor:
        """``sum_i 0.8^i`` times the mean soft cross-entropy of depth ``i``."""
        batch, slots = sequences.tokens.shape
        every_slot = torch.arange(slots).expand(batch, -1)
        trunk = Trunk(sequences.aux, sequences.tokens, torch.zeros(batch, dtype=torch.int64), every_slot)
        levels = [Level(_shifted(sequences.tokens, depth), every_slot) for depth in range(1, self._trainer.depths)]
        probabilities, counted = self._target(sequences)
        with autocast("cpu"):
            outputs = unroll(self._draft, trunk, levels)
            losses = []
            for depth, out in enumerate(outputs):
                # The state at slot t proposes token t + 2 + depth, which the target's state at t + 1 + depth predicts.
                expected, weight = probabilities[:, depth + 1 :], counted[:, depth + 1 :]
                logprobs = self._draft.logits(out[:, : expected.shape[1]]).float().log_softmax(-1)
                entropies = -(expected * logprobs).sum(-1)
                losses.append(STEP_DECAY**depth * (entropies * weight).sum() / weight.sum().clamp(min=1))
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _target(self, sequences: WholeSequences) -> tuple[Tensor, Tensor]:
        """The target's distribution over the draft's vocabulary ``[B, T, Vd]``, and which slots count ``[B, T]``."""
        wanted = torch.ones_like(sequences.answer) if self._trainer.all_logits else sequences.answer
        logits = (sequences.last[wanted].to(self._head.dtype) @ self._head.T).float()  # [n, V]
        probabilities = torch.zeros(*sequences.tokens.shape, self._ids.numel())
        probabilities[wanted] = logits[:, self._ids].softmax(-1)
        counted = torch.zeros(sequences.tokens.shape)
        counted[wanted] = self._in_vocabulary[logits.argmax(-1)].float()
        return probabilities, counted * sequences.answer


def _shifted(x: Tensor, by: int) -> Tensor:
    """``x`` ``[B, T, …]`` moved to the left by ``by`` slots, with zeros at the end."""
    return torch.cat([x[:, by:], torch.zeros_like(x[:, :by])], dim=1)
