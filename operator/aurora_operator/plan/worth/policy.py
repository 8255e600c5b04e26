"""Decides whether ``training.suspendWhen`` suspends training, and when training resumes. Pure.

::

    runs      --> suspended   NoGain: so many drafts in a row brought no gain
    runs      --> suspended   SavingBelowCost: the saving was below the cost for SUSPEND_AFTER
    suspended --> runs        the longest suspension is over
    suspended --> runs        another version became active
    suspended --> runs        live traffic accepts clearly less of the draft for RESUME_AFTER
    suspended --> runs        SavingBelowCost, and the saving exceeds the cost by RESUME_MARGIN
    suspended --> runs        the criterion was removed from the spec

Invariants:

- Without ``training.suspendWhen`` training is never suspended.
- An unknown figure suspends nothing: it neither starts nor ends a wait.
- Nobody knows the figures of a gap in which the operator did not observe, so both waits begin anew after it. Pauses at
  rest do not count as such a gap, so both waits continue.
- Training that was resumed runs for at least :data:`MIN_TRAINING`, so it cannot flap.
- A version that passed its measurement, or is being rolled out, is a gain: training is not suspended before it ended.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from aurora_api.v1alpha1.training import SuspendWhen, SuspensionReason, TrainingSpec, TrainingWorth

MIN_TRAINING: Final = timedelta(hours=1)
"""Training runs at least so long before it is suspended, since ``suspendWhen`` was set and since it was resumed."""
SUSPEND_AFTER: Final = timedelta(days=1)
"""The saving must be below the cost so long, because traffic differs by the time of day."""
RESUME_AFTER: Final = timedelta(hours=1)
"""Live acceptance must be low so long. A minute of unusual requests resumes nothing."""
RESUME_MARGIN: Final = 1.25
"""Saving over cost at which training resumes. Above 1, so that a saving near the cost does not flap."""
ACCEPTANCE_FALL: Final = 0.1
"""Share of the acceptance at the suspension by which live acceptance must have fallen."""

CRITERIA_UNSET: Final = "training.suspendWhen was unset"
SUSPENDED_BY_PERSON: Final = "training.suspended was set, and suspends training instead"


@dataclass(frozen=True)
class WorthFacts:
    """The observed figures. None: not known."""

    active: int | None = None
    """The active version."""
    cost: int | None = None
    """Device-seconds per day that the trainer holds while it runs."""
    saved: int | None = None
    """Device-seconds per day that inference pods save."""
    comparable: bool = False
    """Both are about the same kind of device."""
    without_gain: int = 0
    """Drafts in a row without a gain."""
    gain_is_coming: bool = False
    """A version passed its measurement and waits for its roll, or is being rolled out or watched."""
    acceptance: float | None = None
    """Share of the draft's first proposed tokens that were accepted, since the engines started."""
    recent_acceptance: float | None = None
    """The same in the last minute of traffic."""
    figures_gap: bool = False
    """The operator did not observe for longer than a speculator rests, or the clock was set."""

    @property
    def below_cost(self) -> bool | None:
        """Whether the saving is below the cost."""
        if self.cost is None or self.saved is None or not self.comparable:
            return None
        return self.saved < self.cost

    @property
    def clearly_above_cost(self) -> bool:
        if self.cost is None or self.saved is None or not self.comparable:
            return False
        return self.saved >= RESUME_MARGIN * self.cost


def is_suspended(training: TrainingSpec, worth: TrainingWorth) -> bool:
    """Whether the stored decision suspends training now. Not while a person suspends it, or took the criterion away."""
    if training.suspended or training.suspend_when is None:
        return False
    return _holds(training.suspend_when, worth.suspended_for)


def _holds(criteria: SuspendWhen, reason: SuspensionReason | None) -> bool:
    """Whether the criterion behind ``reason`` is still one of ``criteria``."""
    if reason is SuspensionReason.NO_GAIN:
        return criteria.candidates_without_gain is not None
    return reason is SuspensionReason.SAVING_BELOW_COST and criteria.saving_below_cost


def decide(
    criteria: SuspendWhen | None, worth: TrainingWorth, facts: WorthFacts, now: datetime, released: str = CRITERIA_UNSET
) -> TrainingWorth:
    """The decision that follows ``worth``, the last one.

    Args:
        released: why a suspension ends when there are no ``criteria``.
    """
    if criteria is None:
        return _runs(worth, None, released if worth.suspended_for is not None else worth.message)
    if worth.since is None:
        return _runs(worth, now, "")
    # No stored time lies in the future, so a clock that was set back delays nothing.
    worth = worth.model_copy(update={"since": min(worth.since, now)})
    if facts.figures_gap:
        worth = worth.model_copy(update={"below_cost_since": None, "acceptance_fell_since": None})
    if worth.suspended_for is not None:
        return _while_suspended(criteria, worth, facts, now)
    return _while_running(criteria, worth, facts, now)


def _while_running(criteria: SuspendWhen, worth: TrainingWorth, facts: WorthFacts, now: datetime) -> TrainingWorth:
    below_since = _since(worth.below_cost_since, facts.below_cost, now)
    worth = worth.model_copy(update={"below_cost_since": below_since})
    if now - _known(worth.since) < MIN_TRAINING or facts.gain_is_coming:
        return worth
    most = criteria.candidates_without_gain
    if most is not None and facts.without_gain >= most:
        return _suspended(worth, SuspensionReason.NO_GAIN, _no_gain_text(facts), facts, now)
    long_below = below_since is not None and now - max(below_since, _known(worth.since)) >= SUSPEND_AFTER
    if criteria.saving_below_cost and facts.below_cost and long_below:
        return _suspended(worth, SuspensionReason.SAVING_BELOW_COST, _cost_text(facts), facts, now)
    return worth


def _while_suspended(criteria: SuspendWhen, worth: TrainingWorth, facts: WorthFacts, now: datetime) -> TrainingWorth:
    reference, fell = _parsed(worth.acceptance), None
    if reference is not None and facts.recent_acceptance is not None:
        fell = facts.recent_acceptance < (1 - ACCEPTANCE_FALL) * reference
    fell_since = _since(worth.acceptance_fell_since, fell, now)
    if why := _reason_to_resume(criteria, worth, facts, now, fell_since if fell else None):
        return _runs(worth, now, why)
    known = _acceptance_text(facts.acceptance if reference is None else reference)
    return worth.model_copy(update={"acceptance": known, "acceptance_fell_since": fell_since})


def _reason_to_resume(
    criteria: SuspendWhen, worth: TrainingWorth, facts: WorthFacts, now: datetime, fell_since: datetime | None
) -> str:
    """Why training resumes; empty while it does not."""
    if not _holds(criteria, worth.suspended_for):
        return "the criterion that suspended training was removed from training.suspendWhen"
    if now - _known(worth.since) >= timedelta(seconds=criteria.resume_after_seconds):
        return f"training was suspended for {criteria.resume_after_seconds} s"
    if None not in (facts.active, worth.suspended_version) and facts.active != worth.suspended_version:
        return f"version {facts.active} became active"
    if worth.suspended_for is SuspensionReason.SAVING_BELOW_COST and facts.clearly_above_cost:
        return f"training is worth its cost again: {_cost_text(facts)}"
    if fell_since is not None and now - fell_since >= RESUME_AFTER:
        return (
            f"live traffic accepts {facts.recent_acceptance:.2f} of the draft's first tokens, and accepted"
            f" {worth.acceptance} when training was suspended"
        )
    return ""


def _since(before: datetime | None, holds: bool | None, now: datetime) -> datetime | None:
    """Since when something holds. Unchanged while it is not known whether it holds."""
    if holds is None:
        return before
    return min(before or now, now) if holds else None


def _suspended(
    worth: TrainingWorth, reason: SuspensionReason, why: str, facts: WorthFacts, now: datetime
) -> TrainingWorth:
    update = {
        "suspended_for": reason,
        "since": now,
        "message": why,
        "below_cost_since": None,
        "suspended_version": facts.active,
        "acceptance": _acceptance_text(facts.acceptance),
        "acceptance_fell_since": None,
    }
    return worth.model_copy(update=update)


def _runs(worth: TrainingWorth, since: datetime | None, why: str) -> TrainingWorth:
    """Training runs. What was counted for a suspension counts from zero after one."""
    update = {
        "suspended_for": None,
        "since": since,
        "message": why,
        "below_cost_since": None,
        "suspended_version": None,
        "acceptance": None,
        "acceptance_fell_since": None,
    }
    counts = {"without_gain": 0, "measured_without_gain": 0} if worth.suspended_for is not None else {}
    return worth.model_copy(update=update | counts)


def _known(time: datetime | None) -> datetime:
    assert time is not None, "set at the first look with training.suspendWhen"
    return time


def _parsed(acceptance: str | None) -> float | None:
    """The share that :func:`_acceptance_text` wrote. None for another text, which anybody may write into a status."""
    match = re.fullmatch(r"[01]\.\d{3}", acceptance or "", re.ASCII)
    return float(match[0]) if match else None


def _acceptance_text(acceptance: float | None) -> str | None:
    return None if acceptance is None else f"{acceptance:.3f}"


def _no_gain_text(facts: WorthFacts) -> str:
    return f"{facts.without_gain} drafts in a row brought no gain"


def _cost_text(facts: WorthFacts) -> str:
    return f"speculation saves about {facts.saved} device-seconds a day, and training costs {facts.cost}"
