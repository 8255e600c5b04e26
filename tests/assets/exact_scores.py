"""The target's own opinion in fp32, by transformers: how far apart two next tokens lie.

It exists to tell a near tie from an error without asking the engine under test. Invariant: one forward pass over the
whole prefix in fp32, with no cache, no draft and none of our operators.
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
    """The gap between two tokens' logits, and whether no other token's lies above either."""

    gap: float
    top_two: bool


def margin_of(logits: Tensor, one: int, other: int) -> Margin:
    """The margin of two token ids under ``logits`` ``[V]``."""
    weakest = torch.minimum(logits[one], logits[other])
    above = int((logits > weakest).sum())  # at most the other of the two
    return Margin(gap=float((logits[one] - logits[other]).abs()), top_two=above <= 1)


class ExactTarget:
    """The model in ``path``, its weights widened to fp32."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def margin(self, prefix: Sequence[int], one: int, other: int) -> Margin:
        """The margin of two tokens as the next one after ``prefix``."""
        logits = self._model(torch.tensor([list(prefix)]), logits_to_keep=1, use_cache=False).logits[0, -1]
        return margin_of(logits, one, other)
