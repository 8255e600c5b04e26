"""How a session trains: all hyperparameters in one place, compared by tests/bench/learning."""

from __future__ import annotations

from dataclasses import dataclass

from aurora_runtime.training.data.batch import UnrollPath
from aurora_runtime.training.data.replay_sampling import ReplaySampling
from aurora_runtime.training.objective.position_losses import Loss, forward_kl


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters. Measurements with tests/bench/learning chose the defaults (docs/results/learning.md)."""

    learning_rate: float = 1e-3
    unroll_steps: int = 3
    replay: int = 3  # replayed batches beside a fresh one, as far as `passes` allows; 0: no replay at all
    passes: int = 16  # bounds `replay`: a position is trained at most this often on average, replays included
    replay_sampling: ReplaySampling = ReplaySampling.UNIFORM
    unroll_path: UnrollPath = UnrollPath.COMMITTED
    loss: Loss = forward_kl
    discard: float = 0.1  # weight of a depth's rejected nodes relative to its path nodes (Aurora's lambda); 0: none
    step_decay: float = 0.8  # weight of depth d is step_decay**d (EAGLE-3, and Aurora's published loop)
    warmup_steps: int = 10
    max_gradient_norm: float = 1.0
    max_average_window: int = 200  # served weights average at most so many steps; 1: the trained weights are served
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW's; a short memory, because traffic drifts and early steps count
    batch_slots: int = 512  # bounds a step's time; not seconds, so that a resumed trainer takes the same steps
    prompt_weight: float = 0.0  # weight of a prompt position's loss
