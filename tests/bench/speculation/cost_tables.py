"""What rounds cost in the simulation: a CPU on which every token costs, and a GPU on which tokens are free at first.

The CPU's figures fit docs/results/served-speedup.md: at concurrency 1, 20.8 ms off and 28.7 ms for 12 tokens; at
concurrency 4, 21.7 ms and 63.9 ms; and 1.4 to 1.8 ms per draft step. A catch-up of one or two tokens took 2.9 ms for
one request and 5.9 ms for four (EPYC, commit 1f70f74). Higher concurrencies continue the line. The GPU's figures are
arithmetic for an 8B model, not a measurement: weights read in 8 ms, about 300 tokens until the products cost more than
the reads, a draft of one layer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, sqrt

from aurora_runtime.engine.arms import Arm

CostTable = Callable[[Arm, int, int], float]
"""Milliseconds of a round, by arm, batch size, and tokens by which the draft is behind in the whole batch."""

_GPU_TOKENS_UNTIL_COMPUTE_BOUND = 300


def cpu_milliseconds(arm: Arm, batch_size: int, pending: int = 0) -> float:
    tokens = batch_size * arm.width
    verify = 20.5 + 0.3 * batch_size + 0.75 * (tokens - batch_size) * (1 + 0.3 * (1 - 1 / batch_size))
    verify += 0.5 * max(0, batch_size - 4)
    if not arm.drafts:
        return verify
    catch_up = 1.9 + 1.0 * min(batch_size, pending) + 0.04 * pending if pending else 0.0
    return verify + arm.steps * (1.25 + 0.15 * batch_size) + catch_up


def gpu_milliseconds(arm: Arm, batch_size: int, pending: int = 0) -> float:
    tokens = batch_size * arm.width
    compute = 8.0 * tokens / _GPU_TOKENS_UNTIL_COMPUTE_BOUND
    verify = float((8.0**4 + compute**4) ** 0.25) + 0.03 * batch_size
    if not arm.drafts:
        return verify
    catch_up = 0.5 + 0.002 * pending if pending else 0.0
    return verify + 0.5 + arm.steps * (0.7 + 0.002 * batch_size) + catch_up


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
