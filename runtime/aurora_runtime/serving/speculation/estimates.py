"""What a round is worth and what it costs: survival rates of proposed tokens, and a table of measured times. Pure.

Verification accepts a proposal up to its first wrong token. So a proposal of ``a`` accepted tokens out of ``k`` gives
``a`` successes at the positions 1 to ``a`` and, unless all were accepted, one failure at position ``a + 1``. All
numbers of steps share these rates, so that a short round teaches about long ones. The draft has one rate per position,
and lookup has its own rates per length of the match. On top of them each request has odds of its own per source,
because one request copies its prompt while another one beside it does not.

A round's time is kept by arm and range of batch sizes, as the median of its last times. Machines become slower and
faster for all arms at once (neighbours, clocks, longer contexts). The *pace* follows what all arms have in common, and
the table keeps times at pace 1. Otherwise the arm that happened to be timed in a slow minute would seem slow until it
is timed again.

Invariant: expected accepted tokens never fall with the number of steps, and rise by at most one per step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import exp, log, sqrt
from typing import Final

from aurora_runtime.engine.arms import OFF, Arm

Curve = tuple[float, ...]
"""Expected accepted tokens by number of steps, from 0 steps on."""

PRIOR_VARIANCE: Final = 2.5
"""Variance of a rate's log odds before any observation."""
DRIFT_VARIANCE: Final = 0.008**2
"""How much the variance of a rate's log odds grows with each round."""
ODDS_STEP: Final = 0.2
"""How far one proposed token moves a request's log odds, in the direction in which it surprised."""
MOST_ODDS: Final = 4.0
"""A request's log odds stay within this distance of 0."""
ODDS_GRID: Final = 0.25
"""Log odds are rounded to multiples of this value, so that requests share curves."""
START_GAIN: Final = 0.35
"""How much of the odds that a request ended with the next request begins with."""
START_MEMORY: Final = 0.995
"""The share of these odds that stays with each round. Otherwise requests that propose no more would keep them low."""


def sigmoid(log_odds: float) -> float:
    return 1.0 / (1.0 + exp(-log_odds))


class SurvivalRates:
    """How likely the next token of a source is right when all before it were, by position, and each request's odds."""

    def __init__(self, positions: int, prior: float) -> None:
        """``prior`` is the rate of the first position before any observation."""
        self._prior = log(prior / (1.0 - prior))
        self._own = [self._prior] * positions
        self._variance = [PRIOR_VARIANCE] * positions
        self._round = 0
        self.has_accepted = False
        """Whether any token was ever accepted."""
        self.proposals = 0
        """Proposals seen so far."""
        self._curves: dict[tuple[float, float], Curve] = {}

    def learn(self, odds: RequestOdds, proposals: Iterable[tuple[str, int, int]], now: int) -> None:
        """Learn from a round's proposals: the request, the accepted and the proposed tokens of each."""
        self._drift(now)
        means = self._means()
        for rid, accepted, proposed in proposals:
            shift, surprise = odds.of(rid), 0.0
            self.proposals += 1
            self.has_accepted |= accepted > 0
            for position in range(min(accepted + (accepted < proposed), len(self._own))):
                right = position < accepted
                expected = sigmoid(means[position] + shift)
                surprise += right - expected
                information = 1.0 / self._variance[position] + expected * (1.0 - expected)
                means[position] += (right - expected) / information
                self._own[position], self._variance[position] = means[position], 1.0 / information
            odds.move(rid, ODDS_STEP * surprise)
        self._curves.clear()

    def curve(self, shift: float, z: float = 0.0) -> Curve:
        """Expected accepted tokens of a request with these log odds, ``z`` standard deviations above the estimate."""
        if (found := self._curves.get((shift, z))) is None:
            total, reached, points = 0.0, 1.0, [0.0]
            for mean, variance in zip(self._means(), self._variance, strict=True):
                reached *= sigmoid(mean + shift + z * sqrt(variance))
                total += reached
                points.append(total)
            found = self._curves[shift, z] = tuple(points)
        return found

    def _means(self) -> list[float]:
        """The log odds by position. A position that was hardly seen is about as good as the one before it."""
        means, mean = [], self._own[0]
        for own, variance in zip(self._own, self._variance, strict=True):
            mean += (1.0 - variance / PRIOR_VARIANCE) * (own - mean)
            means.append(mean)
        return means

    def _drift(self, now: int) -> None:
        grown = DRIFT_VARIANCE * (now - self._round)
        self._variance = [min(PRIOR_VARIANCE, variance + grown) for variance in self._variance]
        self._round = now


class RequestOdds:
    """How much better than the others each running request's proposals of one source are, as log odds.

    A new request begins with the odds that the last requests ended with. The rates cannot say this: a request that
    proposes badly soon proposes no more, so the rates see little of it.
    """

    def __init__(self) -> None:
        self._odds: dict[str, float] = {}
        self._start = 0.0

    def of(self, rid: str) -> float:
        return round(self._odds.get(rid, self._start) / ODDS_GRID) * ODDS_GRID

    def move(self, rid: str, by: float) -> None:
        self._odds[rid] = max(-MOST_ODDS, min(MOST_ODDS, self._odds.get(rid, self._start) + by))

    def end(self, rid: str) -> None:
        """Forget a request, but not how it did."""
        if (odds := self._odds.pop(rid, None)) is not None:
            self._start += START_GAIN * (odds - self._start)

    def age(self, rounds: int) -> None:
        self._start *= START_MEMORY**rounds


# costs ---------------------------------------------------------------------------------------------------------------

WINDOW: Final = 21
"""Times of a cell that count. A median is immune to a busy moment."""
FEW: Final = 3
"""Times with which a cell may still be wrong."""
PACE_GAIN: Final = 0.15
"""How much of a deviation that is seen now the pace takes."""
PACE_MEMORY: Final = 0.99
"""How much of the pace's logarithm stays with each time. Pace and times would drift apart otherwise."""
MOST_DEVIATION: Final = 1.5
"""A deviation from a cell by more than this factor says nothing about the pace."""
UPKEEP_GAIN: Final = 0.1
"""How much of a deviation the draft's upkeep takes."""
UNTIMED_EXTRA: Final = 0.2
"""Share of an arm's expected time beyond off's that it may take in fact, before any arm like it was timed. The
expectation is a small CPU's. On a GPU a few proposed tokens cost nearly nothing."""


def size_range(batch_size: int) -> int:
    """The number of the range of batch sizes: 1, 2, 3, 4, 5-6, 7-8, 9-12, 13-16, 17-24, …"""
    if batch_size <= 4:
        return batch_size
    bits = (batch_size - 1).bit_length() - 1
    return 2 * bits + 1 + (batch_size > 3 << (bits - 1))


def prior_milliseconds(arm: Arm, batch_size: int) -> float:
    """The time on a small CPU whose round of off takes a millisecond for one request."""
    passes = arm.steps if arm.drafts else 0
    return 0.96 + 0.015 * batch_size + 0.04 * batch_size * arm.steps + passes * _prior_pass(batch_size)


def _prior_pass(batch_size: int) -> float:
    return 0.06 + 0.007 * batch_size


@dataclass
class Cell:
    """The times of an arm in a range of batch sizes, at pace 1 and without the draft's upkeep.

    Attributes:
        batch_size: the size of the last batch.
        last: the round of the last time.
    """

    batch_size: int
    times: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    last: int = 0

    @property
    def milliseconds(self) -> float:
        return sorted(self.times)[(len(self.times) - 1) // 2]


class CostTable:
    """Milliseconds of a round, by arm and batch size.

    ``upkeep`` says whether the draft processes the tokens of a round that it does not propose in. One factor says how
    long this takes, against a small CPU.
    """

    def __init__(self) -> None:
        self._cells: dict[tuple[Arm, int], Cell] = {}
        self._estimates: dict[tuple[Arm, int], float] = {}
        self._upkeep = 1.0
        self.pace = 1.0
        """How slow the machine is now, against the time of the first measurements."""

    def learn(self, arm: Arm, batch_size: int, milliseconds: float, now: int, *, upkeep: bool = False) -> None:
        """Learn the time of one round."""
        upkeep = upkeep and not arm.drafts
        extra = self.upkeep_milliseconds(batch_size)
        cell = self._cells.get((arm, size_range(batch_size))) or Cell(batch_size)
        if len(cell.times) >= FEW:
            own, known = milliseconds / self.pace, cell.milliseconds
            deviation = own / (known + upkeep * extra)
            if 1 / MOST_DEVIATION < deviation < MOST_DEVIATION:
                self.pace = self.pace**PACE_MEMORY * deviation**PACE_GAIN
                if upkeep:
                    seen = max(-1.0, min((own - known) / extra, 3.0))
                    self._upkeep = max(0.05, self._upkeep * (1 + UPKEEP_GAIN * (seen - 1)))
        own = milliseconds / self.pace
        cell.times.append(max(own / 2, own - upkeep * extra))
        cell.batch_size, cell.last = batch_size, now
        self._cells[arm, size_range(batch_size)] = cell
        self._estimates.clear()

    def milliseconds(self, arm: Arm, batch_size: int, *, upkeep: bool = False) -> float:
        """The expected time at pace 1. Only ratios matter for a choice."""
        if (found := self._estimates.get((arm, batch_size))) is None:
            cell = self._cells.get((arm, size_range(batch_size)))
            found = cell.milliseconds if cell else self._guess(arm, batch_size)
            self._estimates[arm, batch_size] = found
        return found + self.upkeep_milliseconds(batch_size) if upkeep and not arm.drafts else found

    def upkeep_milliseconds(self, batch_size: int) -> float:
        """The time in which the draft processes the tokens of a round."""
        share = _prior_pass(batch_size) / prior_milliseconds(OFF, batch_size)
        return self._upkeep * share * self.milliseconds(OFF, batch_size)

    def least_milliseconds(self, arm: Arm, batch_size: int) -> float:
        """A time that is not unlikely. An arm that seems too slow is not chosen, so nothing else corrects its time."""
        cell, own = self._cells.get((arm, size_range(batch_size))), self.milliseconds(arm, batch_size)
        if cell is not None and len(cell.times) >= FEW:
            return own / 1.05
        off = self.milliseconds(OFF, batch_size)
        if cell is None and self._nearest(arm, batch_size) is None:
            own = off + UNTIMED_EXTRA * (own - off)
        return min(own, self._guess(arm, batch_size)) / 1.15

    def times(self, arm: Arm, batch_size: int) -> tuple[int, int]:
        """How often the arm was timed at about this batch size, and in which round it was timed last."""
        cell = self._cells.get((arm, size_range(batch_size)))
        return (len(cell.times), cell.last) if cell else (0, 0)

    def _guess(self, arm: Arm, batch_size: int) -> float:
        """The time of an arm that was never timed here.

        The time of off is that at the nearest batch size, as the prior changes it. The time beyond off is the prior's,
        times what this factor was for the nearest arm of the same kind.
        """
        near, prior_off = self._nearest(arm, batch_size), prior_milliseconds(OFF, batch_size)
        if arm == OFF:
            if near is None:
                return prior_off
            return near[1].milliseconds * prior_off / prior_milliseconds(near[0], near[1].batch_size)
        factor = 1.0
        if near is not None:
            timed, cell = near
            expected = prior_milliseconds(timed, cell.batch_size) / prior_milliseconds(OFF, cell.batch_size) - 1.0
            measured = cell.milliseconds / self.milliseconds(OFF, cell.batch_size) - 1.0
            factor = max(0.02, measured / expected)
        beyond_off = factor * (prior_milliseconds(arm, batch_size) / prior_off - 1.0)
        return self.milliseconds(OFF, batch_size) * (1.0 + beyond_off)

    def _nearest(self, arm: Arm, batch_size: int) -> tuple[Arm, Cell] | None:
        """The arm and cell that say most about an arm: of the same kind, at about the same batch size."""
        number, found, least = size_range(batch_size), None, float("inf")
        for (timed, there), cell in self._cells.items():
            if timed.drafts is not arm.drafts or (timed.steps == 0) is not (arm.steps == 0):
                continue
            if timed.steps == arm.steps and there == number:
                continue
            distance = 4 * abs(there - number) + abs(timed.steps - arm.steps)
            if distance < least:
                least, found = distance, (timed, cell)
        return found
