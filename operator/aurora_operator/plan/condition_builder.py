"""Conditions (KEP-1623): one function per type, each says in one sentence what a reader should know. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType, merge
from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase, SpeculatorStatus
from aurora_operator.observe.observed import Observed
from aurora_operator.plan.lending import away
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.training_records import TrainerPhase

Answer = tuple[bool | None, str, str]
"""Status (None: unknown), reason, message."""
_STATUS = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}


def _store(observed: Observed) -> Answer:
    store = observed.store
    if not store.ok:
        return False, store.reason, store.error
    return True, "Ready", "the store can be written and keeps create-once"


def _serving(observed: Observed, status: SpeculatorStatus, right: int) -> Answer:
    wanted, workload = observed.spec.serving.replicas, observed.deployment
    if wanted == 0:
        return True, "ScaledToZero", "no pods are wanted"
    if workload is None or not workload.current:
        text = workload.message if workload else ""
        return False, "PodsUpdating", text or "pods of the current template are being started"
    if observed.store.ok and observed.store.channel is None:
        return False, "WaitingForDraft", "the trainer has not registered the initial draft yet"
    lent = len(away(observed))
    if workload.ready + lent < wanted or status.ready_replicas + lent < wanted:
        waiting = sorted({pod.waiting for pod in observed.pods if pod.waiting})
        text = f"{min(workload.ready, status.ready_replicas)} of {wanted} pods are ready"
        return False, "PodsNotReady", text + (f" ({', '.join(waiting)})" if waiting else "")
    if right + lent < wanted:
        return False, "SwapsPending", f"{right} of {wanted} pods serve the version they should"
    if lent:
        return True, "Measuring", f"{right} of {wanted} pods serve the version they should, {lent} is being measured"
    return True, "Serving", f"{wanted} pods serve the version they should"


def _trainer(observed: Observed, status: SpeculatorStatus) -> Answer:
    workload = observed.trainer
    if workload is None or workload.ready < 1:
        return False, "PodNotReady", (workload.message if workload else "") or "the trainer's pod is not ready"
    if observed.spec.training.suspended:
        return True, "Suspended", "training is suspended; serving goes on with the active draft"
    record = observed.store.trainer
    if record is not None and record.phase is TrainerPhase.STARTING and record.message:
        return False, "Starting", record.message
    return True, status.training.phase or "Starting", (record.message if record else "") or "the trainer runs"


def _candidate(status: SpeculatorStatus) -> Answer | None:
    candidate = status.candidate
    if candidate is None:
        return None
    what = f"version {candidate.version}: {candidate.message}"
    if candidate.waiting is not None:
        what += f"; version {candidate.waiting} passed and waits for its roll"
    if candidate.phase is CandidatePhase.VALIDATING:
        return None, "Validating", what
    return candidate.phase is CandidatePhase.VALIDATED, candidate.phase.value, what


def _rollout(status: SpeculatorStatus) -> Answer | None:
    rollout = status.rollout
    if rollout.version is None:
        return None
    going = rollout.phase not in (RolloutPhase.IDLE, RolloutPhase.PAUSED)
    rolled_back = rollout.version in status.rejected
    reason = (
        rollout.phase.value if rollout.phase is not RolloutPhase.IDLE else ("RolledBack" if rolled_back else "Done")
    )
    return going, reason, f"{rollout.message} ({rollout.updated}/{rollout.total})"


def _degraded(observed: Observed, status: SpeculatorStatus) -> Answer:
    if observed.apply_errors:
        return True, "ApplyRefused", "; ".join(observed.apply_errors)
    pin = observed.spec.rollout.pin
    if pin is not None and observed.store.ok and observed.store.channel and not observed.store.may_be_pinned(pin):
        return (
            True,
            "PinRefused",
            f"rollout.pin: version {pin} never passed the gate; nothing is rolled out until unset",
        )
    if status.rollout.phase is RolloutPhase.IDLE:
        sums = {pod.checksum for pod in status.pods if status.active and pod.version == status.active.version}
        if len(sums - {None}) > 1:
            return True, "WeightsDiffer", "pods that serve the active version hold different weights"
    for pod in observed.pods:
        swap = pod.agent.swap if pod.agent else None
        back = status.active is not None and swap is not None and swap.version == status.active.version
        if (
            swap is not None
            and swap.phase is SwapPhase.FAILED
            and back
            and pod.agent
            and pod.agent.version != swap.version
        ):
            return True, "SwapFailed", f"pod {pod.name} cannot return to version {swap.version}: {swap.error}"
    return False, "AsExpected", ""


def conditions(observed: Observed, status: SpeculatorStatus, right: int, now: datetime) -> Iterator[Condition]:
    """All conditions; transition times are kept where the status did not change."""
    answers: dict[ConditionType, Answer | None] = {
        ConditionType.STORAGE_READY: _store(observed),
        ConditionType.SERVING_READY: _serving(observed, status, right),
        ConditionType.TRAINER_READY: _trainer(observed, status),
        ConditionType.CANDIDATE_VALIDATED: _candidate(status),
        ConditionType.ROLLOUT_PROGRESSING: _rollout(status),
        ConditionType.DEGRADED: _degraded(observed, status),
    }
    answers = {ConditionType.READY: _ready(answers, status), **answers}
    made = [
        Condition(
            type=kind,
            status=_STATUS[answer[0]],
            reason=answer[1],
            message=answer[2],
            observed_generation=observed.owner.generation,
            last_transition_time=now,
        )
        for kind, answer in answers.items()
        if answer is not None
    ]
    yield from merge(observed.status.conditions, made)


def _ready(answers: dict[ConditionType, Answer | None], status: SpeculatorStatus) -> Answer:
    """False for the first thing that is wrong. A trainer that does not run is not one: serving goes on without it."""
    degraded = answers[ConditionType.DEGRADED]
    if degraded is not None and degraded[0]:
        return False, degraded[1], degraded[2]
    for kind in (ConditionType.STORAGE_READY, ConditionType.SERVING_READY):
        answer = answers[kind]
        if answer is not None and not answer[0]:
            return False, answer[1] if kind is ConditionType.SERVING_READY else f"Storage{answer[1]}", answer[2]
    rolling = status.rollout.phase is not RolloutPhase.IDLE
    serving = answers[ConditionType.SERVING_READY]
    assert serving is not None, "always answered"
    return True, status.rollout.phase.value if rolling else serving[1], serving[2]
