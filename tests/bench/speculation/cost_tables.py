"""What rounds cost in the simulation: a CPU on which every token costs, and a GPU on which tokens are free at first.

The CPU's figures fit docs/results/served-speedup.md: at concurrency 1, 20.8 ms off and 28.7 ms for 12 tokens; at
concurrency 4, 21.7 ms and 63.9 ms; and 1.4 to 1.8 ms per draft step. Higher concurrencies continue the line. A round
in which the draft only processes the tokens costs one step of the draft. The GPU's figures are arithmetic for an 8B
model, not a measurement: weights read in 8 ms, about 300 tokens until the products cost more than the reads, a draft of
one layer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, sqrt

from aurora_runtime.engine.arms import Arm

CostTable = Callable[[Arm, int, bool], float]
"""Milliseconds of a round, by arm, batch size, and whether the draft processes the tokens of a round without it."""

_GPU_TOKENS_UNTIL_COMPUTE_BOUND = 300


def cpu_milliseconds(arm: Arm, batch_size: int, keeps_draft: bool = False) -> float:
    tokens = batch_size * arm.width
    verify = 20.5 + 0.3 * batch_size + 0.75 * (tokens - batch_size) * (1 + 0.3 * (1 - 1 / batch_size))
    verify += 0.5 * max(0, batch_size - 4)
    passes = arm.steps if arm.drafts else int(keeps_draft)
    return verify + passes * (1.25 + 0.15 * batch_size)


def gpu_milliseconds(arm: Arm, batch_size: int, keeps_draft: bool = False) -> float:
    tokens = batch_size * arm.width
    compute = 8.0 * tokens / _GPU_TOKENS_UNTIL_COMPUTE_BOUND
    verify = float((8.0**4 + compute**4) ** 0.25) + 0.03 * batch_size
    passes = arm.steps if arm.drafts else int(keeps_draft)
    return verify + 0.5 * (passes > 0) + passes * (0.7 + 0.002 * batch_size)


@dataclass
class Noise:
    """What a clock shows instead of the true time.

    Attributes:
        spread: standard deviation of the logarithm of a single time.
        outliers: share of times that are 2 to 4 times as long.
        drift: standard deviation of the logarithm of the machine's speed, which wanders within about 50 rounds.
    """

    random: random.Random
    spread: float = 0.06
    outliers: float = 0.02
    drift: float = 0.1
    _pace: float = 0.0

    def measured(self, milliseconds: float) -> float:
        self._pace += -self._pace / 50 + self.random.gauss(0, self.drift * sqrt(2 / 50))
        factor = exp(self._pace + self.random.gauss(0, self.spread))
        if self.random.random() < self.outliers:
            factor *= self.random.uniform(2, 4)
        return milliseconds * factor
