"""A linear formula for the time of a round, fitted to the cells that were timed. It estimates the cells that were not.

A round of batch size ``B`` with ``k`` steps takes

    base + request * B + token * B * k  (+ step * (k + 1) + request_step * B * (k + 1), where the draft runs)

milliseconds. The ``+ 1`` is the draft's pass over the accepted tokens. The fit is a Bayesian least squares: the prior
says what a small CPU does, and counts for little where cells were timed. On a GPU, rounds are almost flat until the
products cost more than the reads, so one formula cannot serve all batch sizes. The caller weighs near cells more.

Invariant: all coefficients are positive. So the formula never falls with steps, batch size, or the use of the draft.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aurora_runtime.serving.speculation.arms import Arm

Coefficients = tuple[float, float, float, float, float]
PRIOR_SHARES: Final[Coefficients] = (0.96, 0.015, 0.04, 0.06, 0.01)
"""The coefficients before any measurement, as shares of the time of an off round of one request."""
LEAST_SHARE_OF_PRIOR: Final = 0.001
"""No coefficient falls below this share of its prior. A round always takes some time."""
_RELATIVE_DEVIATION: Final = 0.1
"""Standard deviation of a cell of weight 1 around the formula, relative to its time."""
_SWEEPS: Final = 40

Timed = tuple[Arm, int, float, float]
"""A cell: its arm, batch size, milliseconds, and weight."""


def features(arm: Arm, batch_size: float) -> Coefficients:
    """The factors of the coefficients."""
    tokens = batch_size * arm.steps
    if not arm.drafts:
        return 1.0, batch_size, tokens, 0.0, 0.0
    return 1.0, batch_size, tokens, arm.steps + 1.0, batch_size * (arm.steps + 1.0)


def milliseconds(line: Coefficients, arm: Arm, batch_size: float) -> float:
    """The formula's time."""
    return sum(c * x for c, x in zip(line, features(arm, batch_size), strict=True))


def prior_line(off_milliseconds: float) -> Coefficients:
    """The formula before any fit, for a machine whose off round of one request takes ``off_milliseconds``."""
    a, b, c, d, e = (share * off_milliseconds for share in PRIOR_SHARES)
    return a, b, c, d, e


def fit(cells: Iterable[Timed], off_milliseconds: float) -> Coefficients:
    """The formula that fits the cells best, near the prior where the cells say little."""
    prior = prior_line(off_milliseconds)
    normal = [[0.0] * 5 for _ in range(5)]
    moment = [0.0] * 5
    for j, value in enumerate(prior):
        normal[j][j] = 1 / (value * value)
        moment[j] = 1 / value
    for arm, batch_size, measured, weight in cells:
        scale = weight / (_RELATIVE_DEVIATION * measured) ** 2
        x = features(arm, batch_size)
        for j in range(5):
            if x[j]:
                row, scaled = normal[j], scale * x[j]
                moment[j] += scaled * measured
                for i in range(5):
                    row[i] += scaled * x[i]
    return _positive_solution(normal, moment, list(prior))


def _positive_solution(normal: list[list[float]], moment: list[float], start: list[float]) -> Coefficients:
    """Minimise the quadratic form over coefficients that are not nearly 0, one coefficient at a time."""
    x, least = start, [LEAST_SHARE_OF_PRIOR * value for value in start]
    for _ in range(_SWEEPS):
        for j in range(5):
            row = normal[j]
            rest = moment[j] - sum(row[i] * x[i] for i in range(5)) + row[j] * x[j]
            x[j] = max(least[j], rest / row[j])
    a, b, c, d, e = x
    return a, b, c, d, e
