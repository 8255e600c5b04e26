"""The times of arms: a cell holds one arm's in one range of batch sizes, and a range all cells of its batch sizes.

Nothing makes a round faster than it is, but much makes a round slower: a busy neighbour, and the first round of a size,
for which the engine prepares its products. So a new cell believes a time far below its estimate. Nobody chooses an arm
that seems dear, so nothing would correct a time that is wrongly long. A cell that was not timed for long and seems far
too dear is *due for a look*: exploration may run its arm once, as if the arm took the time that is expected of it. When
the arm turns out to be dear, its next look waits for twice as many rounds.

Invariant: of an outlier in a well-known cell, at most :data:`CLIP` standard deviations count.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Final

from aurora_runtime.engine.arms import Arm
from aurora_runtime.serving.speculation.estimates import cost_line
from aurora_runtime.serving.speculation.estimates.catch_up_cost import CLIP, NOISE_VARIANCE, CatchUpCost

LEVEL_VARIANCE_PER_ROUND: Final = 0.004**2
"""How fast an arm's cost wanders against the others, in rounds without the arm. In rounds with it, the pace wanders."""
UNTIMED_VARIANCE: Final = 0.25**2
"""Variance of the logarithm of a cell's level before the first time: how wrong the formula may be."""
FEW_TIMES: Final = 3
"""Times up to which a much shorter time overrides a cell, because the earlier ones were outliers."""
DEFAULT_MILLISECONDS: Final = 20.0
"""An off round of one request before any measurement. Only ratios matter until then."""


@dataclass(frozen=True)
class LookSettings:
    """Which times are doubted, and when exploration looks again.

    Attributes:
        after_rounds: rounds of its range without its arm after which a doubted cell is due for its first look.
        doubted_deviation: a time is doubted when the logarithm of its ratio to the expected time exceeds this value.
    """

    after_rounds: int = 50
    doubted_deviation: float = 0.25


class Cell:
    """The time of one arm in one range of batch sizes, at pace 1, as a multiple of the formula's time."""

    __slots__ = (
        *("_is_first_of_kind", "_settings", "_variance"),
        *("batch_size", "caught_up", "last", "level", "looks", "round", "samples"),
    )

    def __init__(self, settings: LookSettings, *, is_first_of_kind: bool = False) -> None:
        """``is_first_of_kind``: before, no arm of lookup, or none of the draft, was timed in this range."""
        self._settings = settings
        self._is_first_of_kind = is_first_of_kind
        self.level = 1.0
        self.samples = 0
        self.caught_up = 0
        """Times without a catch-up of the draft."""
        self.batch_size = 0
        """The size of the last batch."""
        self._variance = UNTIMED_VARIANCE
        self.round = 0
        self.last = 0
        """The round of the range in which the arm ran last."""
        self.looks = 0
        """Looks that found the arm dear."""

    def variance(self, now: int) -> float:
        """Variance of the level's logarithm in round ``now``. It grows while the arm is not timed."""
        return min(UNTIMED_VARIANCE, self._variance + self._wandered(now))

    def add(
        self,
        batch_size: int,
        ratio: float,
        now: int,
        pace_variance: float,
        doubt: float = 0.0,
        *,
        caught_up: bool = True,
    ) -> tuple[float, float]:
        """Learn a time over the formula's time. Returns its logarithmic deviation and the deviation's variance.

        ``doubt``: how wrong the time may be, relative to itself, because a catch-up was taken off.
        ``caught_up``: whether the round had no catch-up. One that seems to have taken no time has no doubt either.
        """
        variance, noise = self.variance(now), NOISE_VARIANCE + doubt * doubt
        self.caught_up += caught_up
        deviation = log(ratio / self.level)
        if self.samples == 0 and deviation > self._settings.doubted_deviation:
            noise = deviation * deviation
        elif self.samples <= FEW_TIMES and deviation < -CLIP * sqrt(variance + pace_variance + noise):
            # Without any time of its kind, the formula is the prior of a small CPU, and a GPU is several times as fast.
            variance = max(UNTIMED_VARIANCE, deviation * deviation * (self._is_first_of_kind and not self.samples))
        total = variance + pace_variance + noise
        bound = CLIP * sqrt(total)
        deviation = max(-bound, min(deviation, bound))
        self.level *= exp(deviation * variance / total)
        self._variance = variance * (1 - variance / total)
        self.round = now
        self.samples += 1
        self.batch_size = batch_size
        return deviation, total

    def follow(self, ratio: float, now: int, pace_variance: float, doubt: float) -> None:
        """Learn from a round with a catch-up, but only as much as the level may have wandered since the arm ran last.

        An arm that is only explored always has a catch-up. Nothing else would correct its level. Apart from wandering,
        a deviation says more about the catch-up, which is learned apart. The arguments are those of :meth:`add`.
        """
        wandered = self._wandered(now)
        total = wandered + pace_variance + NOISE_VARIANCE + doubt * doubt
        bound, gain = CLIP * sqrt(total), wandered / total
        self.level *= exp(gain * max(-bound, min(log(ratio / self.level), bound)))
        self._variance = min(UNTIMED_VARIANCE, self._variance + wandered * (1 - gain))
        self.round = now

    def _wandered(self, now: int) -> float:
        """The variance of the level's logarithm that the rounds without the arm have added."""
        return LEVEL_VARIANCE_PER_ROUND * max(0, now - self.round - 1)


class CellRange:
    """A range of batch sizes: its formula, its cells in the order of the arms, and what follows from them."""

    def __init__(self, arms: tuple[Arm, ...], settings: LookSettings) -> None:
        self._arms = arms
        self._settings = settings
        self.cells: list[Cell | None] = [None] * len(arms)
        self.line = cost_line.prior_line(DEFAULT_MILLISECONDS)
        self.outdated = True
        self.rounds = 0
        """Rounds in this range."""
        self.catch_up = CatchUpCost()
        self.formula: dict[int, list[float]] = {}
        self.tables: dict[int, tuple[float, ...]] = {}
        self._priors: dict[int, list[float]] = {}

    def refer_to(self, line: cost_line.Coefficients) -> None:
        """Take a new formula. Cells keep their milliseconds."""
        before, self.line, self.outdated = self.line, line, False
        self.formula.clear()
        self.tables.clear()
        for arm, cell in zip(self._arms, self.cells, strict=True):
            if cell is not None:
                size = cell.batch_size
                cell.level *= cost_line.milliseconds(before, arm, size) / cost_line.milliseconds(line, arm, size)

    def is_known_caught_up(self, index: int) -> bool:
        """Whether an arm was timed a few times without a catch-up, so that a longer round is due to its catch-up."""
        cell = self.cells[index]
        return cell is not None and cell.caught_up >= FEW_TIMES

    def look_milliseconds(self, index: int, batch_size: int, off_milliseconds: float) -> float | None:
        """The time that is expected of an arm whose cell is due for a look. None: the cell is not.

        The formula expects the one, the prior beside the time of off the other. The shorter one counts, because the
        formula was fitted to the doubted times too.
        """
        cell = self.cells[index]
        if not index or cell is None or self.rounds - cell.last < self._settings.after_rounds << cell.looks:
            return None
        formula = self.formula_milliseconds(batch_size)[index]
        prior = self._prior_milliseconds(batch_size)
        usual = off_milliseconds * prior[index] / prior[0]
        expected = min(formula, usual)
        return expected if log(formula * cell.level / expected) > self._settings.doubted_deviation else None

    def looked(self, index: int, milliseconds: float, expected: float) -> None:
        """A look at an arm took ``milliseconds``. If the arm is not dear, forget what made it seem so."""
        cell = self.cells[index]
        assert cell is not None, "only a cell that was timed is due for a look"
        cell.looks += 1
        if log(milliseconds / expected) <= self._settings.doubted_deviation:
            self.cells[index] = None
            if self._arms[index].drafts:
                self.catch_up = CatchUpCost()  # learned against the time that was wrong

    def cell_milliseconds(self, arm: Arm, cell: Cell) -> float:
        """A cell's time at its batch size."""
        return cell.level * cost_line.milliseconds(self.line, arm, cell.batch_size)

    def formula_milliseconds(self, batch_size: int) -> list[float]:
        """The formula's time of each arm. Only after :meth:`refer_to`."""
        if (found := self.formula.get(batch_size)) is None:
            line = self.line
            found = self.formula[batch_size] = [cost_line.milliseconds(line, arm, batch_size) for arm in self._arms]
        return found

    def _prior_milliseconds(self, batch_size: int) -> list[float]:
        """Each arm's time before any measurement, where an off round of one request takes a millisecond."""
        if (found := self._priors.get(batch_size)) is None:
            line = cost_line.prior_line(1.0)
            found = self._priors[batch_size] = [cost_line.milliseconds(line, arm, batch_size) for arm in self._arms]
        return found
