"""Puts the worth of training into the status, and tells in Events that training was suspended or resumed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_operator.observe.observed import Observed
from aurora_operator.plan.actions import EventNote
from aurora_operator.plan.events import VersionEvent
from aurora_operator.plan.worth.figures import with_steady_saving, worth_facts, worth_figures
from aurora_operator.plan.worth.policy import SUSPENDED_BY_PERSON, decide


def with_worth(
    status: SpeculatorStatus, observed: Observed, events: Iterable[VersionEvent], now: datetime
) -> SpeculatorStatus:
    """``status`` with the figures and the decision of now. The trainer follows once the decision is stored.

    A person's suspension comes first: the operator decides anew when it ends.
    """
    training = observed.spec.training
    worth = worth_figures(observed, events)
    facts = worth_facts(observed, worth, status)
    if training.suspended:
        decided = decide(None, worth, facts, now, SUSPENDED_BY_PERSON)
    else:
        decided = decide(training.suspend_when, worth, facts, now)
    shown = with_steady_saving(decided, observed.status.training.worth)
    return status.model_copy(update={"training": status.training.model_copy(update={"worth": shown})})


def worth_notes(training: TrainingSpec, old: SpeculatorStatus, new: SpeculatorStatus) -> Iterator[EventNote]:
    """The Event for a suspension, and for its end. Training does not resume while a person suspends it."""
    before, after = old.training.worth, new.training.worth
    if before.suspended_for is after.suspended_for:
        return
    if after.suspended_for is not None:
        yield EventNote("TrainingSuspended", f"Suspended training: {after.message}")
    elif not training.suspended:
        yield EventNote("TrainingResumed", f"Resumed training: {after.message}")
