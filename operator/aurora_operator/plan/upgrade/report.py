"""Tells in the status, and in Events, that an upgrade of the operator waits for the pods. Pure.

Invariant: the condition names no other speculator, because the reader may not be allowed to know of it.
"""

from __future__ import annotations

from datetime import datetime

from aurora_api.v1alpha1.conditions import (
    MAX_MESSAGE_CHARACTERS,
    Condition,
    ConditionStatus,
    ConditionType,
    with_kept_transition_times,
)
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.observe.observed import FleetView, Observed
from aurora_operator.plan.actions import CONDITION_PERIOD, EventNote
from aurora_operator.plan.upgrade.decision import UpgradeDecision, UpgradeStage

_EVENTS = {
    "UpgradeRestart": "Restarting",
    "UpgradeFailed": "UpgradeFailed",
}
"""Event -> reason of the condition that posts it."""
_GAVE_UP = (
    "the restart of the pods failed; this speculator gave its turn back, because serving.update.operatorUpgrade is"
    " WithSpec"
)


def with_upgrade_condition(
    status: SpeculatorStatus, decision: UpgradeDecision | None, observed: Observed, now: datetime
) -> SpeculatorStatus:
    """``status`` with the condition UpgradePending, once there was an upgrade to tell of.

    Without a ``decision`` the condition stays as it is.
    """
    former = _pending(observed.status)
    if decision is None:
        kept = [] if former is None else [former]
        return status.model_copy(update={"conditions": [*status.conditions, *kept]})
    if decision.stage is UpgradeStage.CURRENT and former is None:
        return status
    reason, message = _reason_and_message(decision, observed.fleet, former, status.rollout.version)
    pending = decision.stage is not UpgradeStage.CURRENT
    condition = Condition(
        type=ConditionType.UPGRADE_PENDING,
        status=ConditionStatus.TRUE if pending else ConditionStatus.FALSE,
        reason=reason,
        message=message[:MAX_MESSAGE_CHARACTERS],
        observed_generation=observed.owner.generation,
        last_transition_time=now,
    )
    conditions = [*status.conditions, *with_kept_transition_times(observed.status.conditions, [condition])]
    return status.model_copy(update={"conditions": conditions})


def _reason_and_message(
    decision: UpgradeDecision, fleet: FleetView, former: Condition | None, rolled_version: int | None
) -> tuple[str, str]:
    stage = decision.stage
    if stage is UpgradeStage.CURRENT:
        # With a message, whatever its words, the condition remembers a turn that was given back, until all pods are
        # ready.
        remembered = former is not None and former.reason == stage.value and former.message != "" and not decision.whole
        return stage.value, _GAVE_UP if decision.gives_up or remembered else ""
    if decision.failure:
        return "UpgradeFailed", f"the pods cannot take the upgraded operator's template: {decision.failure}"
    if stage is UpgradeStage.RESTARTING:
        return stage.value, "the pods restart with the upgraded operator's template"
    kept = "the pods keep their template from before the operator's upgrade"
    if stage is UpgradeStage.WITH_SPEC:
        return stage.value, f"{kept} until the serving settings change (serving.update.operatorUpgrade is WithSpec)"
    if fleet.failed:
        return "OrderStopped", f"{kept}, because the upgrade of another speculator failed"
    if decision.roll_is_judged:
        return stage.value, f"{kept} until the roll of version {rolled_version} and its watch have ended"
    return stage.value, f"{kept} until it is this speculator's turn"


def upgrade_notes(old: SpeculatorStatus, new: SpeculatorStatus) -> tuple[EventNote, ...]:
    """The Event for a restart that begins, and a warning for one that failed."""
    before, after = _pending(old), _pending(new)
    if after is None or after.status is not ConditionStatus.TRUE or (before and before.reason == after.reason):
        return ()
    return tuple(
        EventNote(event, after.message, warning=event == "UpgradeFailed", period_per_reason=CONDITION_PERIOD)
        for event, reason in _EVENTS.items()
        if reason == after.reason
    )


def _pending(status: SpeculatorStatus) -> Condition | None:
    return next((c for c in status.conditions if c.type is ConditionType.UPGRADE_PENDING), None)
