"""The target's own opinion of next tokens, by transformers: what tells a near tie from an error.

It exists so that the engine under test is not asked about itself. Invariant: plain forward passes over whole texts,
with no cache, no draft and none of our operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Margin:
    """By how much one token's logit exceeds another's (negative: falls short), and how far the best lies above both.

    ``gap`` is from the best of all tokens to the weaker of the two, so three tokens may share a tie.
    """

    lead: float
    gap: float


def margin_of(logits: Tensor, one: int, other: int) -> Margin:
    """The margin of two token ids under ``logits`` ``[V]``."""
    weaker = torch.minimum(logits[one], logits[other])
    return Margin(lead=float(logits[one] - logits[other]), gap=float(logits.max() - weaker))


class TargetScores:
    """The model in ``path``, computed in ``dtype``."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], last: int = 1) -> Tensor:
        """Of the tokens after each of the ``last`` positions of ``tokens``: ``[last, V]`` fp32."""
        scores: Tensor = self._model(torch.tensor([list(tokens)]), logits_to_keep=last, use_cache=False).logits[0]
        return scores.float()

    def margin(self, prefix: Sequence[int], one: int, other: int) -> Margin:
        """The margin of two tokens as the next one after ``prefix``."""
        return margin_of(self.logits(prefix)[0], one, other)


def rounding(exact: TargetScores, coarse: TargetScores, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """How far coarse arithmetic moves the gap between the two best tokens, at each token of ``answer``."""
    tokens = [*prompt, *answer[:-1]]
    fine, rough = exact.logits(tokens, len(answer)), coarse.logits(tokens, len(answer))
    best = fine.topk(2).indices
    moved = (rough.gather(1, best) - fine.gather(1, best)).diff(dim=1)
    return [float(x) for x in moved.abs().flatten()]
