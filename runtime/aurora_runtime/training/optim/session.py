"""The trained weights and the optimizer: one batch is one step.

Invariant: :meth:`Session.state` returns, and :meth:`Session.restore` takes, everything that decides the next step, so
that a resumed session continues identically. The vocabulary map is part of the state, because the head's rows mean
nothing without the map. Moments are stored in bf16 (half the bytes), so saving rounds the live moments too, and
likewise the average of the weights.
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
from aurora_runtime.training.optim.weight_update import MOMENTS, update_weights

log = logging.getLogger(__name__)
SEED: Final = 0
VOCABULARY: Final = "vocabulary"
"""Key of the map in a state: the target ids of the draft's tokens ``[draft_vocab]``."""
COUNTERS: Final = "counters"
"""Key in a state: optimizer steps, and trained positions with repetitions."""
GENERATOR: Final = "generator"
LOSS: Final = "loss"


class Session:
    """One draft in training on one device. Not thread-safe.

    ``averages``: whether the session keeps the average of the weights, which is served.
    """

    def __init__(
        self,
        draft: DraftModel,
        vocabulary: VocabularyMap,
        recipe: Recipe,
        device: torch.device,
        *,
        averages: bool = True,
    ) -> None:
        self.draft = draft.to(device)
        self.vocabulary, self.recipe, self.device = vocabulary, recipe, device
        self.generator = torch.Generator().manual_seed(SEED)
        self.steps = 0
        self.trained_positions = 0  # every repetition counted
        self.loss: float | None = None  # moving average
        window = recipe.max_average_window
        self._ema = WeightEma(self.draft, window) if averages and window > 1 else None
        self._optimizer = torch.optim.AdamW(
            self.draft.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0.0, fused=True
        )

    @property
    def served(self) -> DraftModel:
        """The draft that would be served: the average of the weights over the last steps."""
        return self._ema.draft if self._ema else self.draft

    def step(self, examples: Sequence[Example]) -> float:
        """One optimizer step on ``examples``; returns the loss of :func:`batch_loss`."""
        loss = float(self._backward(examples))
        if self.apply_gradients(loss):
            self.trained_positions += sum(e.slots for e in examples)
        return loss

    def batch(self, examples: Sequence[Example]) -> Batch:
        """``examples`` collated as the recipe unrolls them, on the session's device."""
        recipe = self.recipe
        batch = collate(examples, recipe.unroll_steps, self.vocabulary, with_rejected=recipe.discard > 0)
        return batch.to(self.device)

    def _backward(self, examples: Sequence[Example]) -> Tensor:
        """Leave the gradients of ``examples`` in the parameters; returns their loss."""
        loss = batch_loss(self.draft, self.batch(examples), self.recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def apply_gradients(self, loss: float) -> bool:
        """Update the weights from the gradients of a batch with this ``loss``; returns whether a step was taken.

        A batch whose loss or gradient is not finite is skipped. After the warm-up the learning rate stays constant,
        because traffic has no end towards which it could decay.
        """
        grads = [p.grad for p in self.draft.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads, foreach=True)
        if not (math.isfinite(loss) and bool(norm.isfinite())):
            log.error("skipped a batch whose loss or gradient is not finite")
            self._optimizer.zero_grad(set_to_none=True)
            return False
        rate = self.recipe.learning_rate * min(1.0, (self.steps + 1) / self.recipe.warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.steps += 1
        update_weights(self.draft, self._optimizer, self._ema, norm, self.recipe.max_gradient_norm)
        self._optimizer.zero_grad(set_to_none=True)
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        return True

    def round_moments(self) -> None:
        """Round the live moments to the precision that :meth:`state` stores."""
        for parameter in self.draft.parameters():
            for moment in MOMENTS:
                live = self._optimizer.state[parameter].get(moment)
                if live is not None:
                    live.copy_(live.to(torch.bfloat16))

    def state(self) -> dict[str, Tensor]:
        """Everything that decides the next step, on the CPU, with memory of its own."""
        self.round_moments()
        tensors = {f"weight.{n}": p.detach().to("cpu", copy=True) for n, p in self.draft.named_parameters()}
        tensors |= self._ema.state() if self._ema else {}
        for name, parameter in self.draft.named_parameters():
            for moment in MOMENTS:
                live = self._optimizer.state[parameter].get(moment)
                if live is not None:
                    tensors[f"{moment}.{name}"] = live.to(torch.bfloat16).cpu()
        tensors[VOCABULARY] = self.vocabulary.to_target.clone()
        tensors[GENERATOR] = self.generator.get_state()
        tensors[COUNTERS] = torch.tensor([self.steps, self.trained_positions])
        tensors[LOSS] = torch.tensor(float("nan") if self.loss is None else self.loss, dtype=torch.float64)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""
        self.vocabulary = VocabularyMap.of(tensors[VOCABULARY], self.draft.config.vocab_size)
        self.steps, self.trained_positions = (int(x) for x in tensors[COUNTERS])
        loss = float(tensors[LOSS])
        self.loss = None if math.isnan(loss) else loss
        self.generator.set_state(tensors[GENERATOR])
        self.draft.load_state_dict({n: tensors[f"weight.{n}"] for n, _ in self.draft.named_parameters()})
        if self._ema:
            self._ema.restore(tensors)
        for name, parameter in self.draft.named_parameters():
            if f"exp_avg.{name}" in tensors:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.steps), device=self.device),
                    **{moment: tensors[f"{moment}.{name}"].to(self.device, torch.float32) for moment in MOMENTS},
                }
