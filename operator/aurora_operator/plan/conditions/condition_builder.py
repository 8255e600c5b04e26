"""Builds the conditions (KEP-1623) with one function per type. A message is a sentence for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from aurora_api.v1alpha1.conditions import (
    MAX_MESSAGE_CHARACTERS,
    Condition,
    ConditionStatus,
    ConditionType,
    with_kept_transition_times,
)
from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase, SpeculatorStatus
from aurora_operator.observe.observed import (
    RECORDS_LOST,
    TAKEN_OVER,
    Observed,
    PodView,
    StoreView,
    WorkloadView,
)
from aurora_operator.plan.conditions.availability import available
from aurora_operator.plan.conditions.content import QUEUED, SCALED_TO_ZERO, ConditionContent
from aurora_operator.plan.conditions.start import START_FAULTS
from aurora_operator.plan.lending import withdrawn_pods
from aurora_operator.plan.rest import trainer_replicas, trainer_stop_reason
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from aurora_store import Keys

ContentByType = Mapping[ConditionType, ConditionContent]
_USED_BY_PODS = ("ServiceAccount ", "Secret ")
"""Kinds of children that pods use. While another owner has one, workloads are held (``act.child_writer``)."""
_STATUS = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}
LEAST_STEPS_PER_MINUTE = 10.0
STARVED = "Starved"
STARVED_SHARE = 0.25
"""A trainer starves below :data:`LEAST_STEPS_PER_MINUTE`, or below this share of its highest pace."""
_TRAINER_STOPS = {
    TAKEN_OVER: "the root belongs to another speculator",
    RECORDS_LOST: "the store has lost the records of the active version",
}
NEEDS_MANUAL_ACTION = (ConditionType.INVALID_SPEC, ConditionType.NAME_TAKEN, ConditionType.DEGRADED)


def conditions(observed: Observed, status: SpeculatorStatus, up_to_date: int, now: datetime) -> Iterator[Condition]:
    """All conditions of a speculator whose spec can be used.

    Args:
        up_to_date: number of ready pods that serve the version they should.
    """
    serving = _serving(observed, status, up_to_date)
    contents = {
        ConditionType.AVAILABLE: available(observed, status.start, serving.message, now),
        ConditionType.STORAGE_READY: _storage(observed),
        ConditionType.SERVING_READY: serving,
        ConditionType.TRAINER_READY: _trainer(observed, status, now),
        ConditionType.CANDIDATE_VALIDATED: _candidate(observed, status),
        ConditionType.ROLLOUT_PROGRESSING: _rollout(status),
        ConditionType.DEGRADED: _degraded(observed, status),
        ConditionType.NAME_TAKEN: _name_taken(observed),
        ConditionType.INVALID_SPEC: _invalid_spec(observed),
    }
    present = {type_: content for type_, content in contents.items() if content is not None}
    ordered = {ConditionType.READY: _ready(present, status), **present}
    yield from _merged(status=observed.status, contents=ordered, generation=observed.owner.generation, now=now)


def invalid_spec_status(old: SpeculatorStatus, generation: int, message: str, now: datetime) -> SpeculatorStatus:
    """``old`` with the conditions of a spec that cannot be used. Nothing else is known, so nothing else changes.

    Args:
        generation: of the spec that cannot be used.
        message: which fields are wrong, and why.
    """
    text = f"the spec cannot be used, and nothing is changed until it is corrected: {message}"
    contents = {
        ConditionType.READY: ConditionContent(False, "InvalidSpec", text),
        ConditionType.INVALID_SPEC: ConditionContent(True, "InvalidSpec", text),
    }
    return _with_some_conditions(old, generation, contents, now)


def deleting_status(old: SpeculatorStatus, generation: int, message: str, now: datetime) -> SpeculatorStatus:
    """``old`` while the speculator is being deleted, and its stored objects before it. Nothing else is observed then.

    Args:
        message: how far the deletion is, or why it does not get on.
    """
    content = ConditionContent(False, "Deleting", message)
    contents = {ConditionType.READY: content, ConditionType.AVAILABLE: content}
    return _with_some_conditions(old, generation, contents, now)


def _with_some_conditions(
    old: SpeculatorStatus, generation: int, contents: ContentByType, now: datetime
) -> SpeculatorStatus:
    """``old`` with these conditions and all its others."""
    changed = {c.type: c for c in _merged(status=old, contents=contents, generation=generation, now=now)}
    kept = [changed.pop(condition.type, condition) for condition in old.conditions]
    return old.model_copy(update={"observed_generation": generation, "conditions": [*kept, *changed.values()]})


def _merged(
    *, status: SpeculatorStatus, contents: ContentByType, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """``contents`` as conditions. Transition times are kept where the status did not change.

    A message is cut to what a condition holds. A message may quote a record or an API error. Its length must not make
    the plan fail.
    """
    made = [
        Condition(
            type=type_,
            status=_STATUS[content.status],
            reason=content.reason,
            message=content.message[:MAX_MESSAGE_CHARACTERS],
            observed_generation=generation,
            last_transition_time=now,
        )
        for type_, content in contents.items()
    ]
    return with_kept_transition_times(status.conditions, made)


def _ready(contents: ContentByType, status: SpeculatorStatus) -> ConditionContent:
    """False only when something requires manual action, when the store cannot be used, or when no pod serves.

    A trainer that does not run leaves Ready True, because serving goes on without it. Pods that are missing or not
    ready also leave Ready True while others serve, and reason and message then name the problem.
    """
    for type_ in NEEDS_MANUAL_ACTION:
        content = contents.get(type_)
        if content is not None and content.status:
            return ConditionContent(False, content.reason, content.message)
    storage, serving = contents[ConditionType.STORAGE_READY], contents[ConditionType.SERVING_READY]
    if not storage.status:
        return ConditionContent(False, f"Storage{storage.reason}", storage.message)
    reached = contents[ConditionType.AVAILABLE]
    if reached.reason in START_FAULTS:
        return reached
    if not serving.status:
        return ConditionContent(bool(reached.status), serving.reason, serving.message)
    rolling_out = status.rollout.phase is not RolloutPhase.IDLE
    return ConditionContent(True, status.rollout.phase.value if rolling_out else serving.reason, serving.message)


def _storage(observed: Observed) -> ConditionContent:
    store = observed.store
    if not store.ok:
        return ConditionContent(False, store.reason, store.error)
    message = "the store can be read and written, and honours create-once writes"
    if (observed.spec.store.endpoint or "").startswith("http://"):
        message += ". store.endpoint is http, so traces and drafts cross the network unencrypted"
    return ConditionContent(True, "Ready", message)


def _serving(observed: Observed, status: SpeculatorStatus, up_to_date: int) -> ConditionContent:
    wanted, workload = observed.spec.serving.replicas, observed.deployment
    if wanted == 0:
        return ConditionContent(True, SCALED_TO_ZERO, "no pods are wanted")
    ready = min(workload.ready if workload else 0, status.ready_replicas)
    text = f"{ready} of {wanted} pods are ready"
    if workload is None or not workload.current:
        reason = (workload.message if workload else "") or "pods of the current template are being started"
        return ConditionContent(False, "PodsUpdating", f"{text}; {reason}{_waiting_for_node(observed)}")
    if observed.store.ok and observed.store.channel is None:
        waits = _waiting_in_queue(observed.trainer)
        message = "the trainer has not registered the initial draft yet"
        return ConditionContent(False, "WaitingForDraft", f"{message}: {waits}" if waits else message)
    lent = len(withdrawn_pods(observed))
    if ready + lent < wanted:
        return _missing_pods(observed, status, text, wanted - ready - lent)
    text = f"{up_to_date} of {wanted} pods serve the version they should"
    if up_to_date + lent < wanted:
        return ConditionContent(False, "SwapsPending", text)
    if lent:
        return ConditionContent(True, "Measuring", f"{text}; {lent} is lent to a measurement")
    return ConditionContent(True, "Serving", text)


def _missing_pods(observed: Observed, status: SpeculatorStatus, text: str, missing: int) -> ConditionContent:
    """Why ``missing`` of the wanted pods are not ready.

    Args:
        text: how many pods are ready.
    """
    starting = sorted({pod.trouble for pod in observed.pods if pod.trouble and not pod.waits_for_node})
    text += f" ({', '.join(starting)})" if starting else ""
    text += _waiting_for_node(observed)
    if status.replicas < observed.spec.serving.replicas:
        refusal = observed.deployment.message if observed.deployment else ""
        return ConditionContent(False, "Scaling", f"{text}; {refusal}" if refusal else text)
    all_wait = sum(pod.waits_for_node for pod in observed.pods) >= missing
    return ConditionContent(False, "PodsPending" if all_wait else "PodsNotReady", text)


def _waiting_for_node(observed: Observed) -> str:
    """How many pods wait for a node, with the scheduler's reason: empty, or ``"; 2 wait for a node: …"``."""
    waiting = [pod for pod in observed.pods if pod.waits_for_node]
    if not waiting:
        return ""
    why = next((pod.scheduler_message for pod in waiting if pod.scheduler_message), "the scheduler looks for one")
    return f"; {len(waiting)} {'waits' if len(waiting) == 1 else 'wait'} for a node: {why}"


def _trainer(observed: Observed, status: SpeculatorStatus, now: datetime) -> ConditionContent:
    if reason := trainer_stop_reason(observed):
        return ConditionContent(False, reason, f"{_TRAINER_STOPS[reason]}, so the trainer is stopped")
    if trainer_replicas(observed) == 0:
        message = "training is suspended and nothing else needs the trainer, so its pod is stopped"
        return ConditionContent(True, "Suspended", message)
    workload = observed.trainer
    if workload is None or workload.ready < 1:
        if waits := _waiting_in_queue(workload):
            return ConditionContent(False, QUEUED, waits)
        message = (workload.message if workload else "") or "the trainer's pod is not ready"
        return ConditionContent(False, "PodNotReady", message)
    record = observed.store.trainer
    if observed.spec.training.suspended:
        is_current = record is not None and record.phase in (TrainerPhase.STARTING, TrainerPhase.SUSPENDED)
        note = f"; {record.message}" if record is not None and is_current and record.message else ""
        message = f"training is suspended; serving goes on with the active draft{note}"
        return ConditionContent(True, "Suspended", message)
    if observed.store.trainer_error:
        return ConditionContent(False, "StatusUnreadable", observed.store.trainer_error)
    if record is not None and record.phase is TrainerPhase.STARTING and record.message:
        return ConditionContent(False, "Starting", record.message)
    if record is not None and record.phase is TrainerPhase.SUSPENDED:
        return ConditionContent(True, "Starting", "the trainer starts again after the suspension")
    if record is not None and observed.store.trainer_is_silent(now):
        message = (
            f"the trainer has reported nothing since {record.updated:%Y-%m-%d %H:%M:%S %Z} by the trainer's clock;"
            " read its pod's log"
        )
        return ConditionContent(False, "Silent", message)
    if record is not None and (starvation := _starvation(record)):
        return ConditionContent(True, STARVED, starvation)
    message = (record.message if record else "") or "the trainer runs"
    return ConditionContent(True, status.training.phase or "Starting", message)


def _waiting_in_queue(trainer: WorkloadView | None) -> str:
    """What the trainer's pod waits for while a queue holds it back; empty otherwise."""
    if trainer is None or not trainer.queued_behind:
        return ""
    return (
        f"the trainer's pod waits behind the scheduling gate {', '.join(trainer.queued_behind)} until its queue has"
        " room; `kubectl get workloads.kueue.x-k8s.io` says what the queue lacks"
    )


def _starvation(record: TrainerStatus) -> str:
    """Why the trainer gets too little of its device; empty when it does not, or when no new traces wait."""
    pace, highest = record.steps_per_minute, record.highest_steps_per_minute
    if pace is None or highest is None or record.pending_shards == 0:
        return ""
    if pace >= max(LEAST_STEPS_PER_MINUTE, STARVED_SHARE * highest):
        return ""
    return (
        f"the trainer starves: it makes {pace:.1f} optimizer steps a minute, at most {highest:.1f} so far, and"
        f" {record.pending_shards} shards of new traces wait. Give the container trainer more CPU or a GPU of its own"
        " in training.template, or lower training.passes"
    )


def _candidate(observed: Observed, status: SpeculatorStatus) -> ConditionContent | None:
    candidate = status.candidate
    if candidate is None:
        return None
    message = f"version {candidate.version}: {candidate.message}"
    if candidate.phase is CandidatePhase.VALIDATING:
        suspended = any(job.suspended and job.name == candidate.job for job in observed.jobs)
        return ConditionContent(None, "MeasurementSuspended" if suspended else "Validating", message)
    return ConditionContent(candidate.phase is CandidatePhase.VALIDATED, candidate.phase.value, message)


def _rollout(status: SpeculatorStatus) -> ConditionContent | None:
    rollout = status.rollout
    if rollout.version is None:
        return None
    idle = rollout.phase is RolloutPhase.IDLE
    ended = "RolledBack" if rollout.version in status.rejected else "Done"
    reason = ended if idle else "Paused" if rollout.paused else rollout.phase.value
    pods = f"version {rollout.version} on {rollout.updated} of {rollout.total} pods"
    message = "; ".join(filter(None, (rollout.message, rollout.waiting)))
    return ConditionContent(not idle and not rollout.paused, reason, f"{pods}: {message}" if message else pods)


def _degraded(observed: Observed, status: SpeculatorStatus) -> ConditionContent:
    if observed.apply_errors:
        return ConditionContent(True, "ApplyRefused", "; ".join(observed.apply_errors))
    pin, store = observed.spec.rollout.pin, observed.store
    if pin is not None and store.ok and store.channel and not store.may_be_pinned(pin):
        message = f"rollout.pin: version {pin} never passed its measurement. Nothing is rolled out until pin is unset"
        return ConditionContent(True, "PinRefused", f"{message} or names a version that passed")
    if missing := _missing_registration(store, status):
        return ConditionContent(True, "RegistrationMissing", missing)
    if status.rollout.phase is RolloutPhase.IDLE:
        checksums = {pod.checksum for pod in status.pods if status.active and pod.version == status.active.version}
        if len(checksums - {None}) > 1:
            return ConditionContent(True, "WeightsDiffer", "pods that serve the active version hold different weights")
    for view in observed.pods:
        if reason := _cannot_return(view, status):
            return ConditionContent(True, "SwapFailed", reason)
    return ConditionContent(False, "AsExpected", "")


def _missing_registration(store: StoreView, status: SpeculatorStatus) -> str:
    """Which version that pods may have to take lost its registration; empty when none did."""
    channel = store.channel
    if channel is None:
        return ""
    named = {"active": channel.active}
    watched = status.rollout.phase is RolloutPhase.JUDGING and status.rollout.version == channel.active
    if channel.previous is not None and watched:
        named["previous"] = channel.previous  # the watch may return to it
    keys = [
        f"{Keys.registration(version)} of the {role} version"
        for role, version in named.items()
        if version not in store.registrations
    ]
    if not keys:
        return ""
    effect = "A pod that does not have the draft on its disk cannot take it"
    return f"the store lacks {' and '.join(keys)}. {effect}. Put the record back"


def _cannot_return(view: PodView, status: SpeculatorStatus) -> str:
    """Why a pod cannot take the active version; empty when nothing prevents it."""
    if view.agent is None or status.active is None:
        return ""
    swap, active = view.agent.swap, status.active.version
    if swap.phase is not SwapPhase.FAILED or swap.version != active or view.agent.version == active:
        return ""
    return f"pod {view.name} cannot return to version {active}: {swap.error}"


def _invalid_spec(observed: Observed) -> ConditionContent:
    if not observed.spec_fault:
        return ConditionContent(False, "AsExpected", "")
    effect = "Until it is corrected, pods stay as they are and rolls pause. A version that fails is still rolled back."
    return ConditionContent(True, "InvalidSpec", f"the spec cannot be used: {observed.spec_fault}. {effect}")


def _name_taken(observed: Observed) -> ConditionContent:
    if not observed.name_taken:
        return ConditionContent(False, "AsExpected", "")
    objects, several = ", ".join(observed.name_taken), len(observed.name_taken) > 1
    problem = f"{objects} {'belong' if several else 'belongs'} to somebody else"
    other, them = ("these objects", "them") if several else (objects, "it")
    remedy = f"Create the speculator under another name, or delete {other} if nobody needs {them}"
    used = [title for title in observed.name_taken if title.startswith(_USED_BY_PODS)]
    effect = f" Until then no Deployment and no Job is written: pods would use {' and '.join(used)}." if used else ""
    return ConditionContent(True, "NameTaken", f"{problem}. {remedy}.{effect}")
