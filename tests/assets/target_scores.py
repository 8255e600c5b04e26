"""The target's logits, computed by transformers, to tell a near tie from an error.

The engine under test must not be its own reference. Invariant: the logits come from plain forward passes over whole
texts, without a cache, a draft or any kernel of this project.
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
    """How two tokens compare under the target's logits."""

    lead: float
    """The logit of the first token minus the logit of the second."""
    gap: float
    """The highest logit of all tokens minus the lower logit of the two. It is small if both tokens take part in a tie,
    which may have more than two members."""


def margin_of(logits: Tensor, one: int, other: int) -> Margin:
    """The margin of two token ids under ``logits``, ``[V]``."""
    weaker = torch.minimum(logits[one], logits[other])
    return Margin(lead=float(logits[one] - logits[other]), gap=float(logits.max() - weaker))


class TargetScores:
    """Logits of the model in the directory ``path``, computed in ``dtype``."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], last: int = 1) -> Tensor:
        """The logits for the token after each of the ``last`` positions of ``tokens``: ``[last, V]``, float32."""
        scores: Tensor = self._model(torch.tensor([list(tokens)]), logits_to_keep=last, use_cache=False).logits[0]
        return scores.float()

    def margin(self, prefix: Sequence[int], one: int, other: int) -> Margin:
        """The margin of two tokens as continuations of ``prefix``."""
        return margin_of(self.logits(prefix)[0], one, other)


def rounding_effects(
    exact: TargetScores, coarse: TargetScores, prompt: Sequence[int], answer: Sequence[int]
) -> list[float]:
    """How much coarse arithmetic changes the gap between the two best tokens, at each token of ``answer``."""
    tokens = [*prompt, *answer[:-1]]
    exact_logits, coarse_logits = exact.logits(tokens, len(answer)), coarse.logits(tokens, len(answer))
    best = exact_logits.topk(2).indices
    change = (coarse_logits.gather(1, best) - exact_logits.gather(1, best)).diff(dim=1)
    return [float(x) for x in change.abs().flatten()]
