"""What the controller may spend on learning, and what it learns next.

A round that explores may lose time against the round that seemed best. A token bucket of milliseconds pays that loss.
The bucket earns a fixed share of the time that rounds without speculation would have taken, and holds one such round at
most. A round that explores and wins pays its gain in.

The draft's catch-up may be paid from the credit of later rounds, because many requests that are late together take
longer to catch up than a full bucket pays for. Without the loan such a draft would never be tried, however good it is.
A bucket lends as much as it holds at most, and a full one several times as much. A bucket in debt pays for nothing.

Invariant: over any stretch of rounds of one batch size, exploration is expected to lose at most the share of the time
that rounds without speculation would have taken, and two full buckets, or the loss of the dearest round instead where
that is more. A round may lose more than expected, above all the first one of its kind. Rounds of off are not charged,
because they lose nothing against off. :func:`is_off_due` and the controller bound how often they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from aurora_runtime.engine.arms import Arm

PROVEN_TRIALS: Final = 4.0
"""Observations of the draft's position that allow an arm one rung deeper to be explored."""
OFF_INTERVAL_ROUNDS: Final = 50
"""After so many rounds of a range of batch sizes, times the speedup, off is timed there again."""
OFF_INTERVAL_GROWTH: Final = 6
"""Rounds by which the interval grows with every time, until it has its full length."""
LEAST_LOSS: Final = 0.02
"""The smallest relative loss with which a gain is weighed. Smaller ones are within the noise of the estimates."""


@dataclass(frozen=True)
class ExplorationSettings:
    """Bounds of exploration.

    Attributes:
        share: share of the time that exploration may lose.
        burst_rounds: off rounds' worth of time that the bucket holds at most.
        loan_buckets: full buckets that a full bucket lends for a catch-up. Otherwise the bucket lends one.
        consider: share of rounds in which exploring is considered at all.
        optimism: standard errors above the estimate with which an arm's value is considered.
        min_gain: an arm is explored if it could be better than the best arm by this share.
    """

    share: float = 0.005
    burst_rounds: float = 1.0
    loan_buckets: float = 4.0
    consider: float = 0.25
    optimism: float = 1.5
    min_gain: float = 0.03


class ExplorationBudget:
    """Milliseconds that exploration may still lose."""

    def __init__(self, settings: ExplorationSettings) -> None:
        self._settings = settings
        self._credit: float | None = None
        self._limit = 0.0

    @property
    def credit_milliseconds(self) -> float:
        """What the bucket holds. Negative: a loan that later rounds pay back."""
        return self._credit or 0.0

    def loan_milliseconds(self, catch_up_milliseconds: float) -> float:
        """How much of a catch-up the credit of later rounds may pay."""
        buckets = self._settings.loan_buckets if self.credit_milliseconds >= self._limit else 1.0
        return min(catch_up_milliseconds, buckets * self._limit)

    def earn(self, worth_milliseconds: float, off_milliseconds: float) -> None:
        """A round made tokens for which rounds without speculation take ``worth_milliseconds``.

        One such round takes ``off_milliseconds``. The first round fills the bucket.
        """
        before, self._limit = self._limit, self._settings.burst_rounds * off_milliseconds
        credit = self._limit if self._credit is None else self._credit
        if credit < 0 < before:  # a loan of a larger batch would keep a smaller one from exploring for long
            credit = max(credit * self._limit / before, -self._settings.loan_buckets * self._limit)
        self._credit = min(self._limit, credit + self._settings.share * worth_milliseconds)

    def spend(self, milliseconds: float) -> None:
        """Pay the loss of a round that explored, or take in its gain where ``milliseconds`` is negative."""
        self._credit = self.credit_milliseconds - milliseconds


@dataclass(frozen=True)
class Prospect:
    """What exploring an arm may bring.

    Attributes:
        tokens: expected tokens of the round.
        optimistic_speed: tokens per millisecond that the arm may well have, once the draft has caught up. 0: the arm is
            not to be explored.
        milliseconds: expected time, the whole catch-up of the draft included.
        loan_milliseconds: how much of the loss the credit of later rounds may pay.
    """

    arm: int
    tokens: float
    optimistic_speed: float
    milliseconds: float
    loan_milliseconds: float = 0.0


def most_promising(
    prospects: Sequence[Prospect], speed: float, credit_milliseconds: float, min_gain: float
) -> Prospect | None:
    """The prospect with the largest possible gain per expected loss, among those that credit and loan cover.

    Args:
        speed: tokens per millisecond of the best arm.
        min_gain: the share by which a prospect must be able to beat ``speed``.
    """
    best, best_score = None, 0.0
    for prospect in prospects:
        gain = prospect.optimistic_speed / speed - 1
        loss = prospect.milliseconds - prospect.tokens / speed
        if gain <= min_gain or loss > credit_milliseconds + prospect.loan_milliseconds:
            continue
        score = gain / max(loss / prospect.milliseconds, LEAST_LOSS)
        if score > best_score:
            best, best_score = prospect, score
    return best


def is_off_due(samples: int, age_rounds: int, speedup: float) -> bool:
    """Whether to time a round without speculation again, although another arm is faster.

    Off is what every other arm is compared with, for the promise and for the report. While speculation is ``speedup``
    times as fast, nothing else would time off. A new cell is timed more often until it has a few times. ``age_rounds``
    counts rounds of about this batch size only, or off would run more often the more batch sizes a load has.
    """
    return age_rounds >= speedup * min(OFF_INTERVAL_ROUNDS, OFF_INTERVAL_GROWTH * samples)


def with_draft_step_by_step(
    arms: Sequence[Arm], prospects: Sequence[Prospect], trials: Sequence[float]
) -> list[Prospect]:
    """The prospects in the order of the arms, of which the draft's are explored from few steps to many.

    The first draft arm with a position that is not known yet stands for all deeper ones: it gets the best of their
    optimistic speeds, and they are not explored. So one cheap step finds an untrained draft out, although only many
    steps could have been worth it. A good draft climbs a rung every few rounds. ``trials[d]`` is the weight of what is
    known about position ``d + 1``.
    """
    result = list(prospects)
    drafting = [i for i, arm in enumerate(arms) if arm.drafts]
    frontier = next((n for n, i in enumerate(drafting) if trials[arms[i].steps - 1] < PROVEN_TRIALS), len(drafting))
    beyond = drafting[frontier:]
    if beyond:
        best = max(result[i].optimistic_speed for i in beyond)
        for i in beyond:
            result[i] = replace(result[i], optimistic_speed=best if i == beyond[0] else 0.0)
    return result
