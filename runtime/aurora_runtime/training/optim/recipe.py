"""How a session learns: every choice in one place, compared by tests/bench/learning."""

from __future__ import annotations

from dataclasses import dataclass

from aurora_runtime.training.data.batch import Follow
from aurora_runtime.training.data.replay import Choice
from aurora_runtime.training.objective.losses import Loss, forward_kl


@dataclass(frozen=True)
class Recipe:
    """Defaults are measured by tests/bench/learning (docs/results/learning.md)."""

    learning_rate: float = 1e-3
    unroll_steps: int = 3
    replay: int = 3  # batches per fresh one
    choice: Choice = Choice.UNIFORM  # of what is replayed
    follow: Follow = Follow.COMMITTED
    loss: Loss = forward_kl
    discard: float = 0.1  # weight of rejected nodes beside the followed ones of their depth (Aurora's lambda); 0: none
    step_decay: float = 0.8  # weight of depth d is step_decay**d (EAGLE-3, and Aurora's published loop)
    warmup_steps: int = 10
    clip: float = 1.0
    average_horizon: int = 200  # at most so many steps' mean of the weights is served; 1: the weights themselves
    betas: tuple[float, float] = (0.9, 0.95)  # a short memory: the stream drifts, and early steps must count
    batch_slots: int = 512  # bounds a step's time; not in seconds, so that who resumes takes the same steps
    prompt_weight: float = 0.0
    passes: int = 16  # a position is trained at most this often on average, replays included
