"""How many milliseconds a round takes, by arm and batch size, measured while rounds go by.

A round's time is the *shape* (a formula with fixed slopes) times a correction for its cell. A cell is an arm and a
range of batch sizes. So sizes within a cell are comparable, and a cell that was never played has an estimate.

Invariants:
- At one batch size, estimates never fall with the number of steps, and an arm with the draft never costs less than the
  same steps without.
- One outlier in a cell of three or more times does not change the estimate by more than its neighbours do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from aurora_runtime.serving.speculation.arms import Arm

TIMES_KEPT: Final = 15
TOKEN_SLOPE: Final = 0.04
"""Share of an off round of one request that one more verified token costs, before any measurement."""
STEP_SLOPE: Final = 0.08
"""Share of an off round of one request that one draft step costs, before any measurement."""
DEFAULT_MILLISECONDS: Final = 20.0
"""An off round of one request before any measurement. Only ratios matter until then."""


@dataclass
class _Cell:
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=TIMES_KEPT))
    """Measured times over the shape's times, newest last."""
    samples: int = 0
    correction: float = 1.0

    def add(self, ratio: float) -> None:
        self.ratios.append(ratio)
        self.samples += 1
        ordered = sorted(self.ratios)
        self.correction = ordered[(len(ordered) - 1) // 2]


class CostModel:
    """Milliseconds of a round."""

    def __init__(self, arms: tuple[Arm, ...]) -> None:
        self._arms = arms
        self._cells: dict[tuple[Arm, int], _Cell] = {}

    def milliseconds(self, batch_size: int) -> tuple[float, ...]:
        """The time of each arm, in the order of the arms."""
        estimates = dict[Arm, float]()
        dearest = {False: 0.0, True: 0.0}
        for arm in self._arms:
            cell = self._cells.get((arm, size_range(batch_size)))
            value = shape(arm, batch_size) * (cell.correction if cell else self._nearest(arm, batch_size))
            floor = max(dearest[False], dearest[True]) if arm.drafts else dearest[False]
            dearest[arm.drafts] = estimates[arm] = max(value, floor)
        return tuple(estimates[arm] for arm in self._arms)

    def samples(self, arm: Arm, batch_size: int) -> int:
        """How often the arm was timed at about this batch size."""
        cell = self._cells.get((arm, size_range(batch_size)))
        return cell.samples if cell else 0

    def learn(self, arm: Arm, batch_size: int, milliseconds: float) -> None:
        """Learn the time of one round."""
        cell = self._cells.setdefault((arm, size_range(batch_size)), _Cell())
        cell.add(milliseconds / shape(arm, batch_size))

    def _nearest(self, arm: Arm, batch_size: int) -> float:
        """The correction of the most similar cell that was timed."""
        here = size_range(batch_size)
        best, correction = float("inf"), 1.0
        for (other, size), cell in self._cells.items():
            distance = abs(size - here) * 2 + abs(other.steps - arm.steps) + 3 * (other.drafts != arm.drafts)
            if distance < best:
                best, correction = distance, cell.correction
        return correction


def size_range(batch_size: int) -> int:
    """The number of the range of batch sizes: 1, 2, 3, 4, 5-6, 7-8, 9-12, 13-16, 17-24, …"""
    if batch_size <= 4:
        return batch_size
    bits = (batch_size - 1).bit_length() - 1
    return 2 * bits + 1 + (batch_size > 3 << (bits - 1))


def shape(arm: Arm, batch_size: int) -> float:
    """The time of a round before any measurement, in milliseconds."""
    extra = TOKEN_SLOPE * (batch_size * arm.width - 1)
    draft = STEP_SLOPE * arm.steps if arm.drafts else 0.0
    return DEFAULT_MILLISECONDS * (1 + extra + draft)
