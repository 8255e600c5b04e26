"""How many milliseconds a round takes, by arm and batch size, measured while rounds go by.

A *cell* is an arm and a range of batch sizes. Its time is the fitted formula (:mod:`cost_line`) times the cell's level,
so that batch sizes within a cell are comparable. A cell that was never timed has the formula's time.

Machines become slower and faster for all arms at once (neighbours, clocks, longer contexts). The *pace* follows what
all cells have in common. Cells keep times at pace 1. Without the pace, the arm that happened to be timed in a slow
minute would seem dear until it is timed again.

Each time is split between pace and level by their variances, as a Kalman filter does: a new or long unused cell takes
most of a deviation, otherwise the pace takes it. :mod:`cost_cells` says which times are believed.

Invariant: at one batch size, estimates never fall with the number of steps, and an arm with the draft never costs less
than the same steps without.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from math import exp, sqrt
from typing import Final

from aurora_runtime.engine.arms import Arm
from aurora_runtime.serving.speculation.estimates import cost_line
from aurora_runtime.serving.speculation.estimates.cost_cells import (
    DEFAULT_MILLISECONDS,
    UNTIMED_VARIANCE,
    Cell,
    CellRange,
    LookSettings,
)
from aurora_runtime.serving.speculation.estimates.size_ranges import size_range

PACE_VARIANCE_PER_ROUND: Final = 0.02**2
"""How fast the machine's speed wanders."""
UNTIMED_EXTRA: Final = 0.2
"""Share of an arm's estimated time beyond off's that the arm may take in fact, before any arm of its kind was timed.
The estimate then says what a small CPU does. On a GPU a few proposed tokens cost nearly nothing. Both the gain and the
loss of a trial count on this share, the loss only for the arm with the fewest steps. Otherwise a pod that starts under
load would never afford the first trial."""
NEARNESS: Final = 1.5
"""Ranges of batch sizes within which a cell's weight in the formula falls to 1/e."""
MAX_WEIGHT: Final = 9
"""Times that a cell counts for in the formula at most. The formula is not exact, however often a cell is timed."""
CATCH_UP_SHARES: Final = (0.05, 0.08)
"""A catch-up's time before any measurement: a share of an off round, and per token a share of a verified token's time.
A draft has one layer where the target has dozens."""
CATCH_UP_DOUBT: Final = 0.5
"""How wrong this may be. A cell that was timed with a catch-up only is as doubtful as what was taken off."""
FAR_LESS: Final = 0.5
"""Below this share of what was expected of both, the arm and the catch-up share what a round took beyond off. Otherwise
the first rounds of an arm only confirm the catch-up, because their noise is larger than most catch-ups."""
DOUBTED_WEIGHT: Final = 0.01
"""A cell that is due for a look says next to nothing about arms with more steps, which cannot be faster."""
_REFIT_SAMPLES: Final = frozenset({1, 2, 4, 8, 15, 60, 240})


class CostModel:
    """Milliseconds of a round."""

    def __init__(self, arms: tuple[Arm, ...], looks: LookSettings | None = None) -> None:
        """``arms`` in ascending order, off first. ``looks``: other settings than those of pods."""
        self._arms = arms
        self._look_settings = looks or LookSettings()
        self._index = {arm: i for i, arm in enumerate(arms)}
        self._plain = [i for i, arm in enumerate(arms) if not arm.drafts]
        self._drafting = [i for i, arm in enumerate(arms) if arm.drafts]
        self._ranges: dict[int, CellRange] = {}
        self._round = 0
        self._pace = 1.0
        self._pace_variance = 0.0

    @property
    def pace(self) -> float:
        """How slow the machine is now, against the time of the first measurements."""
        return self._pace

    def milliseconds(self, batch_size: int) -> tuple[float, ...]:
        """The time of each arm at pace 1, in the order of the arms. Only ratios matter for a choice."""
        here = self._range(size_range(batch_size))
        if (table := here.tables.get(batch_size)) is None:
            table = here.tables[batch_size] = self._table(here, batch_size)
        return table

    def catch_up_milliseconds(self, pending: int, batch_size: int) -> float:
        """The time at pace 1 in which the draft processes a batch's ``pending`` tokens before it can propose."""
        rough = self._rough_catch_up(pending, batch_size)
        return rough * self._range(size_range(batch_size)).catch_up.multiple

    def least_catch_up_milliseconds(self, pending: int, batch_size: int) -> float:
        """A time of the catch-up that is not unlikely, although the estimate is longer."""
        rough = self._rough_catch_up(pending, batch_size)
        return rough * self._range(size_range(batch_size)).catch_up.least_multiple

    def deviations(self, batch_size: int) -> list[float]:
        """The standard deviation of the logarithm of each arm's estimate, pace apart."""
        unknown, now = sqrt(UNTIMED_VARIANCE), self._round
        cells = self._range(size_range(batch_size)).cells
        return [sqrt(cell.variance(now)) if cell else unknown for cell in cells]

    def least_milliseconds(self, batch_size: int, looks: Mapping[int, float]) -> list[float]:
        """The time of each arm at pace 1 that is not unlikely: a standard deviation below the estimate, or less.

        ``looks`` are the arms that are due for a look, from :meth:`looks`.
        """
        estimates, doubts = self.milliseconds(batch_size), self.deviations(batch_size)
        least = [ms / (1 + doubt) for ms, doubt in zip(estimates, doubts, strict=True)]
        for i, expected in looks.items():
            least[i] = min(least[i], expected / (1 + sqrt(UNTIMED_VARIANCE)))
        for kind in self._untimed_kinds(batch_size):
            for i in kind:
                least[i] = min(least[i], _hopeful(estimates, i))
        return least

    def trial_milliseconds(self, batch_size: int, pending: int, looks: Mapping[int, float]) -> list[float]:
        """The time at pace 1 that exploration expects of a trial of each arm, the draft's catch-up included.

        ``looks`` are the arms that are due for a look, from :meth:`looks`.
        """
        estimates = self.milliseconds(batch_size)
        milliseconds = [looks.get(i, estimate) for i, estimate in enumerate(estimates)]
        for kind in self._untimed_kinds(batch_size):
            milliseconds[kind[0]] = _hopeful(estimates, kind[0])  # the fewest steps lose least
        catch_up = self.least_catch_up_milliseconds(pending, batch_size)
        return [ms + arm.drafts * catch_up for ms, arm in zip(milliseconds, self._arms, strict=True)]

    def _untimed_kinds(self, batch_size: int) -> list[list[int]]:
        """The arms of lookup, and those of the draft, unless any of the same kind was timed at about this batch size.

        By their numbers, and from few steps to many.
        """
        cells = self._range(size_range(batch_size)).cells
        kinds = (self._plain[1:], self._drafting)
        return [kind for kind in kinds if kind and all(cells[i] is None for i in kind)]

    def looks(self, batch_size: int) -> dict[int, float]:
        """The arms that are due for a look, by their number, with the time that is expected of them."""
        here, off = self._range(size_range(batch_size)), self.milliseconds(batch_size)[0]
        due = {i: here.look_milliseconds(i, batch_size, off) for i in range(len(self._arms))}
        return {i: expected for i, expected in due.items() if expected is not None}

    def off_age(self, batch_size: int) -> tuple[int, int]:
        """How often off was timed at about this batch size, and how many of its rounds ago it was timed last."""
        here = self._range(size_range(batch_size))
        cell = here.cells[0]
        return (cell.samples, here.rounds - cell.last) if cell else (0, here.rounds)

    def learn(self, arm: Arm, batch_size: int, milliseconds: float, pending: int = 0) -> None:
        """Learn the time of one round. ``pending`` is the draft's backlog over the whole batch."""
        here, index = self._range(size_range(batch_size)), self._index[arm]
        self._round += 1
        self._pace_variance += PACE_VARIANCE_PER_ROUND
        estimates = self.milliseconds(batch_size)
        off, expected, at_pace = estimates[0], estimates[index], milliseconds / self._pace
        rough = self._rough_catch_up(pending, batch_size) if arm.drafts else 0.0
        catch_up = rough * here.catch_up.multiple
        is_known = here.is_known_caught_up(index)
        if rough and not is_known:
            share = max(0.0, at_pace - off) / (catch_up + expected - off)
            catch_up *= share if share < FAR_LESS else 1.0
        own = max(0.3 * at_pace, at_pace - catch_up)
        if rough and not is_known:
            here.catch_up.learn(rough, catch_up, own, self._pace_variance + CATCH_UP_DOUBT**2)
        ratio = own / here.formula_milliseconds(batch_size)[index]
        if (looks_for := here.look_milliseconds(index, batch_size, off)) is not None:
            here.looked(index, own, looks_for)
        here.rounds += 1
        if (cell := here.cells[index]) is None:
            is_first = any(index in kind for kind in self._untimed_kinds(batch_size))
            cell = here.cells[index] = Cell(self._look_settings, is_first_of_kind=is_first)
        cell.last = here.rounds
        doubt = CATCH_UP_DOUBT * catch_up / own
        if rough and here.is_known_caught_up(index):
            here.catch_up.learn(rough, at_pace - expected, expected, self._pace_variance)
            cell.follow(ratio, self._round, self._pace_variance, doubt)
            here.tables.clear()
            return
        deviation, variance = cell.add(batch_size, ratio, self._round, self._pace_variance, doubt, caught_up=not rough)
        gain = self._pace_variance / variance
        self._pace *= exp(gain * deviation)
        self._pace_variance *= 1 - gain
        here.tables.clear()
        if cell.samples in _REFIT_SAMPLES:
            for each in self._ranges.values():
                each.outdated = True

    def cells(self) -> Iterator[tuple[Arm, int, float, int]]:
        """Arm, batch size, milliseconds at the present pace, and number of times of every cell that was timed."""
        for _, each in sorted(self._ranges.items()):
            for arm, cell in zip(self._arms, each.cells, strict=True):
                if cell is not None:
                    yield arm, cell.batch_size, each.cell_milliseconds(arm, cell) * self._pace, cell.samples

    def _rough_catch_up(self, pending: int, batch_size: int) -> float:
        """The time of a catch-up before any measurement."""
        if pending <= 0:
            return 0.0
        line, (fixed, per_token) = self._range(size_range(batch_size)).line, CATCH_UP_SHARES
        return fixed * (line[0] + line[1] * batch_size) + per_token * line[2] * pending

    def _range(self, number: int) -> CellRange:
        """A range with its formula."""
        if (found := self._ranges.get(number)) is None:
            found = self._ranges[number] = CellRange(self._arms, self._look_settings)
        if found.outdated:
            found.refer_to(self._fit(number))
        return found

    def _fit(self, number: int) -> cost_line.Coefficients:
        """The formula around a range. Cells of near ranges count more."""
        default = cost_line.prior_line(1.0)
        timed, closest, unit = [], float("inf"), DEFAULT_MILLISECONDS
        for there, each in self._ranges.items():
            distance = abs(there - number)
            weight = exp(-distance / NEARNESS)
            for arm, cell in zip(self._arms, each.cells, strict=True):
                if cell is None or not cell.samples:
                    continue
                size, milliseconds = cell.batch_size, each.cell_milliseconds(arm, cell)
                timed.append((arm, size, milliseconds, weight * min(cell.samples, MAX_WEIGHT)))
                if distance + arm.steps < closest:
                    closest = distance + arm.steps
                    unit = milliseconds / cost_line.milliseconds(default, arm, size)
        return cost_line.fit(timed, unit)

    def _table(self, here: CellRange, batch_size: int) -> tuple[float, ...]:
        """Formula times correction, changed as little as possible so that costs rise with steps."""
        values = here.formula_milliseconds(batch_size)
        values = [v * cell.level if cell else v for v, cell in zip(values, here.cells, strict=True)]
        for chain in (self._plain, self._drafting):
            if any(values[a] > values[b] for a, b in itertools.pairwise(chain)):
                weights = [self._weight(here, i, batch_size, values[0]) for i in chain]
                for i, value in zip(chain, ascending([values[i] for i in chain], weights), strict=True):
                    values[i] = value
        floor = 0.0
        for i, arm in enumerate(self._arms):
            if not arm.drafts:
                floor = values[i]
            elif values[i] < floor:
                values[i] = floor
        return tuple(values)

    def _weight(self, here: CellRange, index: int, batch_size: int, off: float) -> float:
        """What an arm's time counts for, where times do not rise with steps."""
        if here.look_milliseconds(index, batch_size, off) is not None:
            return DOUBTED_WEIGHT
        cell = here.cells[index]
        return 1 / (cell.variance(self._round) if cell else UNTIMED_VARIANCE)


def _hopeful(estimates: Sequence[float], index: int) -> float:
    """The time that an arm may take although only the prior says anything about it."""
    return estimates[0] + UNTIMED_EXTRA * (estimates[index] - estimates[0])


def ascending(values: list[float], weights: list[float]) -> list[float]:
    """The nearest ascending sequence in weighted least squares: neighbours in the wrong order share their mean."""
    blocks = list[tuple[float, float, int]]()
    for value, weight in zip(values, weights, strict=True):
        mean, total, count = value, weight, 1
        while blocks and blocks[-1][0] > mean:
            its_mean, its_total, its_count = blocks.pop()
            mean = (its_mean * its_total + mean * total) / (its_total + total)
            total += its_total
            count += its_count
        blocks.append((mean, total, count))
    return [mean for mean, _, count in blocks for _ in range(count)]
