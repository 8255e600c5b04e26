"""How a session trains: all hyperparameters in one place, compared by tests/bench/learning."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self

from aurora_runtime.training.data.batch_bound import BatchBound
from aurora_runtime.training.objective.position_losses import LOSSES, Loss, forward_kl

WARM_START_STEPS: Final = 50
"""Optimizer steps over which the learning rate rises when training starts from a published head, or from a trained
draft without its optimizer's moments. Such a draft's trainer that restarts within these steps resumes with moments, and
so at the full rate.

Adam's first steps have the size of the learning rate whatever the gradient is, which can throw a trained head off its
optimum before the moments know the gradient. So the rate begins at a fiftieth of its full value.

On traffic like the head's, 25, 50 and 100 steps could not be told apart. With 10 steps acceptance length was 0.08 lower
at one of five evaluations (one order of requests, docs/results/learning.md). More steps should delay learning on other
traffic, which was not measured.
"""

MEASURED_RATE: Final = 1e-3
MEASURED_WIDTH: Final = 576
"""The learning rate that is best for drafts of this hidden size (docs/results/learning.md)."""


def default_learning_rate(width: int) -> float:
    """The learning rate for a draft whose hidden states have ``width`` elements.

    Adam moves each weight by about the learning rate. A product sums ``width`` such moves, so with the same rate a
    wider draft changes more in a step. The rate therefore falls in inverse proportion to the width (arXiv 2203.03466,
    table 3). Drafts narrower than :data:`MEASURED_WIDTH` get no higher rate.
    """
    return MEASURED_RATE * min(1.0, MEASURED_WIDTH / width)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters. Measurements with tests/bench/learning chose the defaults (docs/results/learning.md)."""

    learning_rate: float = MEASURED_RATE
    unroll_steps: int = 3
    replay: int = 3  # replayed batches beside a fresh one, as far as `passes` allows; 0: no replay at all
    passes: int = 16  # bounds `replay`: a root is trained at most this often on average, replays included
    loss: Loss = forward_kl
    discard: float = 0.1  # weight of rejected nodes; nodes along the answer weigh 1 (lambda in the Aurora paper)
    step_decay: float = 0.8  # weight of depth d is step_decay**d (EAGLE-3, and the Aurora paper's code)
    warmup_steps: int = 10
    max_gradient_norm: float = 1.0
    max_average_window: int = 200  # longest window, in steps, of the moving average that is served; 1: no average
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW's; a short memory, because traffic drifts and early steps count
    batch_roots: int = 256  # of a step, padding included: 512 slots of the JSON requests that chose the batch size
    batch_slots: int = 16_384  # bounds a step's memory and time where prompts are long

    @property
    def batch_bound(self) -> BatchBound:
        """A count and no time, so that a resumed trainer makes the same batches."""
        return BatchBound(self.batch_roots, self.batch_slots)

    def warm_start(self) -> Recipe:
        """The same recipe for a draft that was trained already: its learning rate begins lower and rises slowly."""
        return replace(self, warmup_steps=max(self.warmup_steps, WARM_START_STEPS))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON's types, for the other ranks."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"loss": next(name for name, loss in LOSSES.items() if loss is self.loss)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls(**data | {"loss": LOSSES[data["loss"]], "betas": tuple(data["betas"])})
