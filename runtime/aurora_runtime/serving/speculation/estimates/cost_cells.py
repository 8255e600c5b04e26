"""The times of arms: a cell holds one arm's in one range of batch sizes, and a range all cells of its batch sizes.

Nothing makes a round faster than it is, but much makes a round slower: a busy neighbour, and the first round of a size,
for which the engine prepares its products. So a new cell believes a time far below its estimate. A cell whose arm seems
far too dear is forgotten after a while, because nobody would pay for another look at the arm. Each cell waits twice as
long the next time, so an arm that is dear costs few looks.

Invariant: of an outlier in a well-known cell, at most :data:`CLIP` standard deviations count.
"""

from __future__ import annotations

from collections import Counter
from math import exp, log, sqrt
from typing import Final

from aurora_runtime.engine.arms import OFF, Arm
from aurora_runtime.serving.speculation.estimates import cost_line
from aurora_runtime.serving.speculation.estimates.catch_up_cost import CLIP, NOISE_VARIANCE, CatchUpCost

LEVEL_VARIANCE_PER_ROUND: Final = 0.004**2
"""How fast an arm's cost wanders against the others, in rounds without the arm. In rounds with it, the pace wanders."""
UNTIMED_VARIANCE: Final = 0.25**2
"""Variance of the logarithm of a cell's level before the first time: how wrong the formula may be."""
FEW_TIMES: Final = 3
"""Times up to which a much shorter time overrides a cell, because the earlier ones were outliers."""
DOUBTED_DEVIATION: Final = 0.25
"""Logarithmic deviation from which a time is doubted: a first time above the formula, or an arm above what the formula,
or the prior's ratio to off, says of it."""
DOUBT_ROUNDS: Final = 50
"""Rounds without its arm after which a doubted cell is forgotten for the first time. Of 50 and 100 rounds, and 0.15 and
0.25 of deviation, these two lost least on generated traffic with six seeds that the regret tests do not use."""
DEFAULT_MILLISECONDS: Final = 20.0
"""An off round of one request before any measurement. Only ratios matter until then."""


class Cell:
    """The time of one arm in one range of batch sizes, at pace 1, as a multiple of the formula's time."""

    __slots__ = ("_variance", "batch_size", "caught_up", "level", "round", "samples")

    def __init__(self) -> None:
        self.level = 1.0
        self.samples = 0
        self.caught_up = 0
        """Times without a catch-up of the draft."""
        self.batch_size = 0
        """The size of the last batch."""
        self._variance = UNTIMED_VARIANCE
        self.round = 0

    def variance(self, now: int) -> float:
        """Variance of the level's logarithm in round ``now``. It grows while the arm is not timed."""
        return min(UNTIMED_VARIANCE, self._variance + LEVEL_VARIANCE_PER_ROUND * max(0, now - self.round - 1))

    def add(
        self, batch_size: int, ratio: float, now: int, pace_variance: float, doubt: float = 0.0
    ) -> tuple[float, float]:
        """Learn a time over the formula's time. Returns its logarithmic deviation and the deviation's variance.

        ``doubt``: how wrong the time may be, relative to itself, because a catch-up was taken off. 0: there was none.
        """
        variance, noise = self.variance(now), NOISE_VARIANCE + doubt * doubt
        self.caught_up += doubt == 0.0
        deviation = log(ratio / self.level)
        if self.samples == 0 and deviation > DOUBTED_DEVIATION:
            noise = deviation * deviation
        elif self.samples <= FEW_TIMES and deviation < -CLIP * sqrt(variance + pace_variance + noise):
            variance = UNTIMED_VARIANCE
        total = variance + pace_variance + noise
        bound = CLIP * sqrt(total)
        deviation = max(-bound, min(deviation, bound))
        self.level *= exp(deviation * variance / total)
        self._variance = variance * (1 - variance / total)
        self.round = now
        self.samples += 1
        self.batch_size = batch_size
        return deviation, total


class CellRange:
    """A range of batch sizes: its formula, its cells in the order of the arms, and what follows from them."""

    def __init__(self, arms: tuple[Arm, ...]) -> None:
        self._arms = arms
        self.cells: list[Cell | None] = [None] * len(arms)
        self.line = cost_line.prior_line(DEFAULT_MILLISECONDS)
        self.outdated = True
        self._looks: Counter[int] = Counter()
        """How often each arm's cell was forgotten."""
        self.catch_up = CatchUpCost()
        self.formula: dict[int, list[float]] = {}
        self.tables: dict[int, tuple[float, ...]] = {}

    def refer_to(self, line: cost_line.Coefficients) -> None:
        """Take a new formula. Cells keep their milliseconds."""
        before, self.line, self.outdated = self.line, line, False
        self.formula.clear()
        self.tables.clear()
        for arm, cell in zip(self._arms, self.cells, strict=True):
            if cell is not None:
                size = cell.batch_size
                cell.level *= cost_line.milliseconds(before, arm, size) / cost_line.milliseconds(line, arm, size)

    def forget_dear_cells(self, now: int) -> None:
        """Forget the cells of arms that have not run for long, and that seem far too dear.

        Either the other cells say so, by the formula, or the time against off's is far above the prior's.
        """
        off = self.cells[0]
        if off is None:
            return
        for i, (arm, cell) in enumerate(zip(self._arms, self.cells, strict=True)):
            if cell is None or now - cell.round < DOUBT_ROUNDS << self._looks[i]:
                continue
            usual = _prior_ratio(arm, cell.batch_size) / _prior_ratio(OFF, off.batch_size)
            seems = self.cell_milliseconds(arm, cell) / self.cell_milliseconds(OFF, off)
            if log(max(seems / usual, cell.level)) > DOUBTED_DEVIATION:
                self._looks[i] += 1
                self.cells[i] = None

    def cell_milliseconds(self, arm: Arm, cell: Cell) -> float:
        """A cell's time at its batch size."""
        return cell.level * cost_line.milliseconds(self.line, arm, cell.batch_size)

    def formula_milliseconds(self, batch_size: int) -> list[float]:
        """The formula's time of each arm. Only after :meth:`refer_to`."""
        if (found := self.formula.get(batch_size)) is None:
            line = self.line
            found = self.formula[batch_size] = [cost_line.milliseconds(line, arm, batch_size) for arm in self._arms]
        return found


def _prior_ratio(arm: Arm, batch_size: int) -> float:
    """The time of a round before any measurement, in off rounds of one request."""
    return cost_line.milliseconds(cost_line.prior_line(1.0), arm, batch_size)
