"""The trained weights, the optimizer, and how one batch changes them.

Invariant: what :meth:`Session.state` returns and :meth:`Session.restore` takes is everything that decides the next
step, so that a resumed session continues identically; the vocabulary map is part of it, because the head's rows mean
nothing without it. To keep that true with moments stored in bf16 (half the bytes), saving rounds the live moments too,
and the mean of the weights likewise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.data.batch import Batch, collate
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.batch_loss import batch_loss
from aurora_runtime.training.optim.ema import WeightEma
from aurora_runtime.training.optim.recipe import Recipe

log = logging.getLogger(__name__)
SEED: Final = 0
MOMENTS: Final = ("exp_avg", "exp_avg_sq")
VOCABULARY: Final = "vocabulary"
"""Name of the map in a state: the target ids of the draft's tokens."""


class Session:
    """One draft in training on one device. Not thread-safe. ``offers``: whether what would be served is asked of it."""

    def __init__(
        self, draft: DraftModel, vocabulary: VocabularyMap, recipe: Recipe, device: torch.device, *, offers: bool = True
    ) -> None:
        self.draft = draft.to(device)
        self.vocabulary, self.recipe, self.device = vocabulary, recipe, device
        self.generator = torch.Generator().manual_seed(SEED)
        self.steps = 0
        self.seen = 0  # positions trained, every repetition counted
        self.loss: float | None = None
        averaged = offers and recipe.average_horizon > 1
        self._average = WeightEma(self.draft, recipe.average_horizon) if averaged else None
        self._optimizer = torch.optim.AdamW(
            self.draft.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0.0, fused=True
        )

    @property
    def served(self) -> DraftModel:
        """What would be served: the mean of the draft's weights over the last steps."""
        return self._average.draft if self._average else self.draft

    def step(self, examples: Sequence[Example]) -> float:
        """One optimizer step on ``examples``; returns the loss (mean over taught positions, steps weighted)."""
        value = float(self._backward(examples))
        if self.update(value):
            self.seen += sum(e.slots for e in examples)
        return value

    def batch(self, examples: Sequence[Example]) -> Batch:
        """``examples`` as the recipe unrolls them, on the session's device."""
        recipe = self.recipe
        found = collate(examples, recipe.unroll_steps, self.vocabulary, recipe.follow, branches=recipe.discard > 0)
        return found.to(self.device)

    def _backward(self, examples: Sequence[Example]) -> Tensor:
        """Leave the gradients of ``examples`` in the parameters; returns their loss."""
        loss = batch_loss(self.draft, self.batch(examples), self.recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self, loss: float) -> bool:
        """Apply the gradients of a batch that cost ``loss``, unless something is not finite; whether it was done.

        After a warm-up the rate stays what it is: the stream has no end towards which it could fall.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.draft.parameters(), self.recipe.clip, foreach=True)
        if not (math.isfinite(loss) and bool(norm.isfinite())):
            log.error("a batch with a loss or a gradient that is not finite was left out")
            self._optimizer.zero_grad(set_to_none=True)
            return False
        rate = self.recipe.learning_rate * min(1.0, (self.steps + 1) / self.recipe.warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        if self._average:
            self._average.follow()
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        return True

    def round_moments(self) -> None:
        """Round the live moments to what :meth:`state` stores."""
        for parameter in self.draft.parameters():
            for moment in MOMENTS:
                live = self._optimizer.state[parameter].get(moment)
                if live is not None:
                    live.copy_(live.to(torch.bfloat16))

    def state(self) -> dict[str, Tensor]:
        """Everything that decides the next step, on the CPU."""
        self.round_moments()
        tensors = {f"weight.{n}": p.detach().cpu() for n, p in self.draft.named_parameters()}
        tensors |= self._average.state() if self._average else {}
        for name, parameter in self.draft.named_parameters():
            for moment in MOMENTS:
                live = self._optimizer.state[parameter].get(moment)
                if live is not None:
                    tensors[f"{moment}.{name}"] = live.to(torch.bfloat16).cpu()
        tensors[VOCABULARY] = self.vocabulary.to_target
        tensors["generator"] = self.generator.get_state()
        tensors["counters"] = torch.tensor([self.steps, self.seen])
        tensors["loss"] = torch.tensor(float("nan") if self.loss is None else self.loss, dtype=torch.float64)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`. A state from before maps could change has none, and leaves the session's; one
        from before weights were averaged has no mean: it begins at the weights."""
        if VOCABULARY in tensors:
            self.vocabulary = VocabularyMap.of(tensors[VOCABULARY], self.draft.config.vocab_size)
        self.steps, self.seen = (int(x) for x in tensors["counters"])
        loss = float(tensors["loss"])
        self.loss = None if math.isnan(loss) else loss
        self.generator.set_state(tensors["generator"])
        self.draft.load_state_dict({n: tensors[f"weight.{n}"] for n, _ in self.draft.named_parameters()})
        if self._average:
            self._average.restore(tensors)
        for name, parameter in self.draft.named_parameters():
            if f"exp_avg.{name}" in tensors:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.steps), device=self.device),
                    **{moment: tensors[f"{moment}.{name}"].to(self.device, torch.float32) for moment in MOMENTS},
                }
