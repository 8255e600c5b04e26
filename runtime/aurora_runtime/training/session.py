"""The trained weights, the optimizer, and how one batch changes them.

Invariant: what :meth:`Session.state` returns and :meth:`Session.restore` takes is everything that decides the next
step, so that a resumed session continues identically. To keep that true with moments stored in bf16 (half the bytes),
saving rounds the live moments too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.draft import Draft
from aurora_runtime.training.examples import Batch, Example, Vocabulary, collate
from aurora_runtime.training.head import head_loss
from aurora_runtime.training.losses import Loss, forward_kl
from aurora_runtime.training.teacher import Teacher
from aurora_runtime.training.unroll import Trunk, unroll

log = logging.getLogger(__name__)
SEED: Final = 0


@dataclass(frozen=True)
class Recipe:
    """How a session learns. Defaults are measured by tests/bench/learning_smoke.py."""

    learning_rate: float = 1e-3
    unroll_steps: int = 3
    replay: int = 1
    loss: Loss = forward_kl
    step_decay: float = 0.8  # weight of step i is step_decay**i (EAGLE-3, and Aurora's published loop)
    warmup_steps: int = 10
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)  # a short memory: the stream drifts, and early steps must count
    batch_slots: int = 512
    prompt_weight: float = 0.0
    passes: int = 4  # a position is trained at most this often on average, replays included


class Session:
    """One draft in training on one device. Not thread-safe."""

    def __init__(self, draft: Draft, vocabulary: Vocabulary, recipe: Recipe, device: torch.device) -> None:
        self.draft = draft.to(device)
        self.vocabulary, self.recipe, self.device = vocabulary, recipe, device
        self.generator = torch.Generator().manual_seed(SEED)
        self.steps = 0
        self.seen = 0  # positions trained, every repetition counted
        self.loss: float | None = None
        self._optimizer = torch.optim.AdamW(
            self.draft.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0.0, fused=True
        )

    def step(self, examples: Sequence[Example]) -> float:
        """One optimizer step on ``examples``; returns the loss (mean over taught positions, steps weighted)."""
        batch = to_device(collate(examples, self.recipe.unroll_steps, self.vocabulary), self.device)
        loss = batch_loss(self.draft, batch, self.recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.draft.parameters(), self.recipe.clip, foreach=True)
        value = float(loss.detach())
        if not (math.isfinite(value) and bool(norm.isfinite())):
            log.error("a batch with a loss or a gradient that is not finite was left out")
            self._optimizer.zero_grad(set_to_none=True)
            return value
        rate = self.recipe.learning_rate * min(1.0, (self.steps + 1) / self.recipe.warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.seen += sum(e.slots for e in examples)
        self.loss = value if self.loss is None else 0.95 * self.loss + 0.05 * value
        return value

    def state(self) -> dict[str, Tensor]:
        """Everything that decides the next step, on the CPU."""
        tensors = {f"weight.{n}": p.detach().cpu() for n, p in self.draft.named_parameters()}
        for name, parameter in self.draft.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                live = self._optimizer.state[parameter].get(moment)
                if live is not None:
                    rounded = live.to(torch.bfloat16)
                    live.copy_(rounded)
                    tensors[f"{moment}.{name}"] = rounded.cpu()
        tensors["generator"] = self.generator.get_state()
        tensors["counters"] = torch.tensor([self.steps, self.seen])
        tensors["loss"] = torch.tensor(float("nan") if self.loss is None else self.loss, dtype=torch.float64)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""
        self.steps, self.seen = (int(x) for x in tensors["counters"])
        loss = float(tensors["loss"])
        self.loss = None if math.isnan(loss) else loss
        self.generator.set_state(tensors["generator"])
        self.draft.load_state_dict({n: tensors[f"weight.{n}"] for n, _ in self.draft.named_parameters()})
        for name, parameter in self.draft.named_parameters():
            if f"exp_avg.{name}" in tensors:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.steps)),
                    **{
                        moment: tensors[f"{moment}.{name}"].to(self.device, torch.float32)
                        for moment in ("exp_avg", "exp_avg_sq")
                    },
                }


def to_device(batch: Batch, device: torch.device) -> Batch:
    """``batch`` on ``device``."""
    if device.type == "cpu":
        return batch
    trunk = Trunk(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(batch.trunk).items()})
    teacher = Teacher(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(batch.teacher).items()})
    return Batch(
        trunk=trunk,
        row=batch.row.to(device),
        teacher=teacher,
        weight=batch.weight.to(device),
        expected=batch.expected.to(device),
        positions=batch.positions,
    )


def batch_loss(draft: Draft, batch: Batch, recipe: Recipe) -> Tensor:
    """Mean loss per step over its taught roots, the steps weighted by ``step_decay**i`` and normalised."""
    device = batch.row.device
    with torch.autocast(device.type, dtype=torch.bfloat16):
        outputs = unroll(draft, batch.trunk)
    rows, states, weights = [], [], []
    for step, out in enumerate(outputs):
        row = batch.row[:, :, step]
        chosen = row >= 0
        row = row[chosen]
        weight = batch.weight[row]
        weights.append(recipe.step_decay**step * weight / weight.sum().clamp(min=1e-6))
        rows.append(row)
        states.append(out[chosen])
    scale = sum(recipe.step_decay**step for step in range(len(outputs)))
    hidden = draft.norm(torch.cat(states))
    return head_loss(
        hidden,
        draft.lm_head.weight,
        recipe.loss,
        batch.teacher[torch.cat(rows)],
        torch.cat(weights) / scale,
        torch.bfloat16,
    )
