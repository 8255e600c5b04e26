"""Conditions (KEP-1623): one function per type. Each says in one sentence what a reader should know. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType, merge
from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase, SpeculatorStatus
from aurora_operator.observe.observed import Observed, PodView
from aurora_operator.plan.lending import away
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.training_records import TrainerPhase


@dataclass(frozen=True)
class Answer:
    """What one condition says. ``status`` None: unknown."""

    status: bool | None
    reason: str
    message: str


Answers = Mapping[ConditionType, Answer]
_STATUS = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}
_NEEDS_A_HUMAN = (ConditionType.INVALID_SPEC, ConditionType.NAME_TAKEN, ConditionType.DEGRADED)


def conditions(observed: Observed, status: SpeculatorStatus, up_to_date: int, now: datetime) -> Iterator[Condition]:
    """All conditions of a speculator whose spec can be used.

    Args:
        up_to_date: number of ready pods that serve the version they should.
    """
    answers = {
        ConditionType.AVAILABLE: _available(observed),
        ConditionType.STORAGE_READY: _storage(observed),
        ConditionType.SERVING_READY: _serving(observed, status, up_to_date),
        ConditionType.TRAINER_READY: _trainer(observed, status),
        ConditionType.CANDIDATE_VALIDATED: _candidate(status),
        ConditionType.ROLLOUT_PROGRESSING: _rollout(status),
        ConditionType.DEGRADED: _degraded(observed, status),
        ConditionType.NAME_TAKEN: _name_taken(observed),
        ConditionType.INVALID_SPEC: Answer(False, "AsExpected", ""),
    }
    present = {kind: answer for kind, answer in answers.items() if answer is not None}
    answers_in_order = {ConditionType.READY: _ready(present, status), **present}
    yield from _merged(status=observed.status, answers=answers_in_order, generation=observed.owner.generation, now=now)


def invalid_spec_status(old: SpeculatorStatus, generation: int, message: str, now: datetime) -> SpeculatorStatus:
    """``old`` with the conditions of a spec that cannot be used. Nothing else is known, so nothing else changes.

    Args:
        generation: of the spec that cannot be used.
        message: which fields are wrong, and why.
    """
    text = f"the spec cannot be used, and nothing is changed until it is corrected: {message}"
    answers = {
        ConditionType.READY: Answer(False, "InvalidSpec", text),
        ConditionType.INVALID_SPEC: Answer(True, "InvalidSpec", text),
    }
    changed = {c.type: c for c in _merged(status=old, answers=answers, generation=generation, now=now)}
    kept = [changed.pop(condition.type, condition) for condition in old.conditions]
    return old.model_copy(update={"observed_generation": generation, "conditions": [*kept, *changed.values()]})


def _merged(*, status: SpeculatorStatus, answers: Answers, generation: int, now: datetime) -> tuple[Condition, ...]:
    """``answers`` as conditions. Transition times are kept where the status did not change."""
    made = [
        Condition(
            type=kind,
            status=_STATUS[answer.status],
            reason=answer.reason,
            message=answer.message,
            observed_generation=generation,
            last_transition_time=now,
        )
        for kind, answer in answers.items()
    ]
    return merge(status.conditions, made)


def _ready(answers: Answers, status: SpeculatorStatus) -> Answer:
    """False only when something needs a human, or when no pod serves.

    A trainer that does not run leaves Ready True, because serving goes on without it. So do pods that are missing or
    not ready while others serve; reason and message then say so.
    """
    for kind in _NEEDS_A_HUMAN:
        if answers[kind].status:
            return Answer(False, answers[kind].reason, answers[kind].message)
    storage, serving = answers[ConditionType.STORAGE_READY], answers[ConditionType.SERVING_READY]
    if not storage.status:
        return Answer(False, f"Storage{storage.reason}", storage.message)
    if not serving.status:
        return Answer(bool(answers[ConditionType.AVAILABLE].status), serving.reason, serving.message)
    rolling_out = status.rollout.phase is not RolloutPhase.IDLE
    return Answer(True, status.rollout.phase.value if rolling_out else serving.reason, serving.message)


def _available(observed: Observed) -> Answer:
    wanted = observed.spec.serving.replicas
    serving = sum(view.ready and not view.terminating and view.measurement is None for view in observed.pods)
    message = f"{serving} of {wanted} pods serve clients"
    if serving:
        return Answer(True, "PodsServe", message)
    return Answer(False, "NoPodServes" if wanted else "ScaledToZero", message if wanted else "no pods are wanted")


def _storage(observed: Observed) -> Answer:
    store = observed.store
    if not store.ok:
        return Answer(False, store.reason, store.error)
    return Answer(True, "Ready", "the store can be read and written, and keeps create-once")


def _serving(observed: Observed, status: SpeculatorStatus, up_to_date: int) -> Answer:
    wanted, workload = observed.spec.serving.replicas, observed.deployment
    if wanted == 0:
        return Answer(True, "ScaledToZero", "no pods are wanted")
    ready = min(workload.ready if workload else 0, status.ready_replicas)
    text = f"{ready} of {wanted} pods are ready"
    if workload is None or not workload.current:
        reason = (workload.message if workload else "") or "pods of the current template are being started"
        return Answer(False, "PodsUpdating", f"{text}; {reason}")
    if observed.store.ok and observed.store.channel is None:
        return Answer(False, "WaitingForDraft", "the trainer has not registered the initial draft yet")
    lent = len(away(observed))
    if ready + lent < wanted:
        waiting = sorted({pod.waiting for pod in observed.pods if pod.waiting})
        scaling = status.replicas < wanted
        return Answer(
            False, "Scaling" if scaling else "PodsNotReady", text + (f" ({', '.join(waiting)})" if waiting else "")
        )
    text = f"{up_to_date} of {wanted} pods serve the version they should"
    if up_to_date + lent < wanted:
        return Answer(False, "SwapsPending", text)
    if lent:
        return Answer(True, "Measuring", f"{text}; {lent} is lent to a measurement")
    return Answer(True, "Serving", text)


def _trainer(observed: Observed, status: SpeculatorStatus) -> Answer:
    workload = observed.trainer
    if workload is None or workload.ready < 1:
        message = (workload.message if workload else "") or "the trainer's pod is not ready"
        return Answer(False, "PodNotReady", message)
    if observed.spec.training.suspended:
        return Answer(True, "Suspended", "training is suspended; serving goes on with the active draft")
    record = observed.store.trainer
    if record is not None and record.phase is TrainerPhase.STARTING and record.message:
        return Answer(False, "Starting", record.message)
    message = (record.message if record else "") or "the trainer runs"
    return Answer(True, status.training.phase or "Starting", message)


def _candidate(status: SpeculatorStatus) -> Answer | None:
    candidate = status.candidate
    if candidate is None:
        return None
    message = f"version {candidate.version}: {candidate.message}"
    if candidate.waiting_version is not None:
        message += f"; version {candidate.waiting_version} passed and waits for its roll"
    if candidate.phase is CandidatePhase.VALIDATING:
        return Answer(None, "Validating", message)
    return Answer(candidate.phase is CandidatePhase.VALIDATED, candidate.phase.value, message)


def _rollout(status: SpeculatorStatus) -> Answer | None:
    rollout = status.rollout
    if rollout.version is None:
        return None
    under_way = rollout.phase not in (RolloutPhase.IDLE, RolloutPhase.PAUSED)
    ended = "RolledBack" if rollout.version in status.rejected else "Done"
    reason = ended if rollout.phase is RolloutPhase.IDLE else rollout.phase.value
    pods = f"version {rollout.version} on {rollout.updated} of {rollout.total} pods"
    return Answer(under_way, reason, f"{pods}: {rollout.message}" if rollout.message else pods)


def _degraded(observed: Observed, status: SpeculatorStatus) -> Answer:
    if observed.apply_errors:
        return Answer(True, "ApplyRefused", "; ".join(observed.apply_errors))
    pin, store = observed.spec.rollout.pin, observed.store
    if pin is not None and store.ok and store.channel and not store.may_be_pinned(pin):
        message = f"rollout.pin: version {pin} never passed its measurement. Nothing is rolled out until pin is unset"
        return Answer(True, "PinRefused", f"{message} or names a version that passed")
    if status.rollout.phase is RolloutPhase.IDLE:
        checksums = {pod.checksum for pod in status.pods if status.active and pod.version == status.active.version}
        if len(checksums - {None}) > 1:
            return Answer(True, "WeightsDiffer", "pods that serve the active version hold different weights")
    for view in observed.pods:
        if reason := _cannot_return(view, status):
            return Answer(True, "SwapFailed", reason)
    return Answer(False, "AsExpected", "")


def _cannot_return(view: PodView, status: SpeculatorStatus) -> str:
    """Why a pod that should serve the active version does not take it; empty where that is not so."""
    if view.agent is None or status.active is None:
        return ""
    swap, active = view.agent.swap, status.active.version
    if swap.phase is not SwapPhase.FAILED or swap.version != active or view.agent.version == active:
        return ""
    return f"pod {view.name} cannot return to version {active}: {swap.error}"


def _name_taken(observed: Observed) -> Answer:
    if not observed.name_taken:
        return Answer(False, "AsExpected", "")
    objects = ", ".join(observed.name_taken)
    return Answer(True, "NameTaken", f"{objects}: the object belongs to another owner. Rename or delete one of them")
