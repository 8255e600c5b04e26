"""Builds the conditions (KEP-1623) with one function per type. A message is a sentence for people. Pure.

The start of the pods lasts from the creation of the speculator, or a scale-up from zero, until a pod serves clients.
``status.starting`` is True for as long, so that no alert and no Warning reports a start that goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from aurora_api.v1alpha1.annotations import ADOPT_ANNOTATION
from aurora_api.v1alpha1.conditions import (
    MAX_MESSAGE_CHARACTERS,
    Condition,
    ConditionStatus,
    ConditionType,
    with_kept_transition_times,
)
from aurora_api.v1alpha1.status import RolloutPhase, SpeculatorStatus
from aurora_operator.children.inference_deployment import START_LIMIT
from aurora_operator.observe.observed import (
    SIGNING_KEYS_MISSING,
    TRAINER_SILENCE,
    Observed,
    PodView,
)
from aurora_operator.plan.lending import withdrawn_pods
from aurora_operator.plan.operator_upgrade import UpgradeDecision, UpgradeStage, upgrade_failure
from aurora_operator.plan.wanted_children import trainer_replicas, trainer_stop_reason
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.training_records import TrainerPhase

SERVING = "Serving"
"""Reason of ServingReady and Ready while every wanted pod serves the version that it should."""
_USED_BY_PODS = ("ServiceAccount ", "Secret ")
"""Kinds of children that pods use. While another owner has one, workloads are held (``act.child_writer``)."""
_PASSING_STORE_FAULTS = ("Unreachable", SIGNING_KEYS_MISSING)
"""Faults of the store that may pass by themselves. All others need a person."""


@dataclass(frozen=True)
class ConditionContent:
    """Status, reason and message of one condition."""

    status: bool
    reason: str
    message: str


ContentByType = Mapping[ConditionType, ConditionContent]
_EXPECTED = ConditionContent(False, "AsExpected", "")


def conditions(observed: Observed, status: SpeculatorStatus, up_to_date: int, now: datetime) -> Iterator[Condition]:
    """All conditions of a speculator whose spec can be used.

    Args:
        up_to_date: number of ready pods that serve the version they should.
    """
    serving, storage = _serving(observed, status, up_to_date), _storage(observed)
    stalled = _stalled(observed, status, serving, now) or _EXPECTED
    contents = {
        ConditionType.READY: _ready(observed, status, stalled, storage, serving),
        ConditionType.RECONCILING: _reconciling(stalled, serving),
        ConditionType.STALLED: stalled,
        ConditionType.STORAGE_READY: storage,
        ConditionType.SERVING_READY: serving,
        ConditionType.TRAINER_READY: _trainer(observed, status, now),
    }
    yield from _merged(status=observed.status, contents=contents, generation=observed.owner.generation, now=now)


def invalid_spec_status(old: SpeculatorStatus, generation: int, message: str, now: datetime) -> SpeculatorStatus:
    """``old`` with the conditions of a spec that cannot be used. Nothing else is known, so nothing else changes.

    Args:
        generation: of the spec that cannot be used.
        message: which fields are wrong, and why.
    """
    text = f"the spec cannot be used, and nothing is changed until it is corrected: {message}"
    contents = {
        ConditionType.READY: ConditionContent(False, "InvalidSpec", text),
        ConditionType.RECONCILING: _EXPECTED,
        ConditionType.STALLED: ConditionContent(True, "InvalidSpec", text),
    }
    started = old if old.observed_generation else old.model_copy(update={"starting": True})
    return _with_some_conditions(started, generation, contents, now)


def deleting_status(old: SpeculatorStatus, generation: int, message: str, now: datetime) -> SpeculatorStatus:
    """``old`` while the speculator is being deleted, and its stored objects before it. Nothing else is observed then.

    Args:
        message: how far the deletion is, or why it does not get on.
    """
    contents = {
        ConditionType.READY: ConditionContent(False, "Deleting", message),
        ConditionType.RECONCILING: ConditionContent(True, "Deleting", message),
        ConditionType.STALLED: _EXPECTED,
    }
    return _with_some_conditions(old, generation, contents, now)


def with_waiting_upgrade(status: SpeculatorStatus, decision: UpgradeDecision | None) -> SpeculatorStatus:
    """``status`` whose conditions also say that the pods wait for their turn. It names no other speculator, which its
    reader may not be allowed to know."""
    if decision is None or decision.stage is not UpgradeStage.WAITING:
        return status
    return status.model_copy(update={"conditions": [_waiting(condition) for condition in status.conditions]})


def _waiting(condition: Condition) -> Condition:
    serves = condition.reason == SERVING
    if condition.type is not ConditionType.SERVING_READY and not (condition.type is ConditionType.READY and serves):
        return condition
    message = f"{condition.message}; the pods keep their template from before the operator's upgrade until their turn"
    reason = UpgradeStage.WAITING.value if serves else condition.reason
    return condition.model_copy(update={"reason": reason, "message": message})


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
            status=ConditionStatus.TRUE if content.status else ConditionStatus.FALSE,
            reason=content.reason,
            message=content.message[:MAX_MESSAGE_CHARACTERS],
            observed_generation=generation,
            last_transition_time=now,
        )
        for type_, content in contents.items()
    ]
    return with_kept_transition_times(status.conditions, made)


def _ready(
    observed: Observed,
    status: SpeculatorStatus,
    stalled: ConditionContent,
    storage: ConditionContent,
    serving: ConditionContent,
) -> ConditionContent:
    """False only when a person must act, or when no pod serves clients though some are wanted.

    A trainer that does not run or a store that is away leaves Ready True, because serving goes on without them. So do
    pods that are missing while others serve. Reason and message then name the problem.
    """
    if stalled.status:
        return replace(stalled, status=False)
    served = any(pod.serves for pod in observed.pods) or observed.spec.serving.replicas == 0
    if not storage.status:
        return ConditionContent(served, f"Storage{storage.reason}", storage.message)
    if serving.status and status.rollout.phase is not RolloutPhase.IDLE:
        return ConditionContent(served, status.rollout.phase.value, serving.message)
    return replace(serving, status=served)


def _reconciling(stalled: ConditionContent, serving: ConditionContent) -> ConditionContent:
    """True while pods are on their way to what the spec asks for. The roll of a draft is no such change."""
    return _EXPECTED if stalled.status or serving.status else replace(serving, status=True)


def _stalled(
    observed: Observed, status: SpeculatorStatus, serving: ConditionContent, now: datetime
) -> ConditionContent | None:
    """What a person must mend. None: everything gets on by itself."""
    store = observed.store
    if observed.spec_fault:
        return _invalid_spec(observed.spec_fault)
    if observed.name_taken:
        return _name_taken(observed.name_taken)
    if observed.apply_errors:
        return ConditionContent(True, "ApplyRefused", "; ".join(observed.apply_errors))
    if not store.ok and store.reason not in _PASSING_STORE_FAULTS:
        return ConditionContent(True, f"Storage{store.reason}", store.error)
    if failure := upgrade_failure(observed, now):
        return ConditionContent(
            True, "UpgradeFailed", f"the pods cannot take the upgraded operator's template: {failure}"
        )
    if fault := _start_fault(observed, serving.message, now):
        return fault
    return _pin_refused(observed) or _failed_return(observed, status)


def _storage(observed: Observed) -> ConditionContent:
    store = observed.store
    if not store.ok:
        return ConditionContent(False, store.reason, store.error)
    refused = {pod.name: pod.agent.upload_error for pod in observed.pods if pod.agent and pod.agent.upload_error}
    if refused:
        name, error = min(refused.items())
        return ConditionContent(False, "UploadsFail", f"{len(refused)} pods cannot upload traces; {name}: {error}")
    message = "the store can be read and written, and honours create-once writes"
    if (observed.spec.store.endpoint or "").startswith("http://"):
        message += ". store.endpoint is http, so traces and drafts cross the network unencrypted"
    return ConditionContent(True, "Ready", message)


def _serving(observed: Observed, status: SpeculatorStatus, up_to_date: int) -> ConditionContent:
    wanted, workload = observed.spec.serving.replicas, observed.deployment
    if wanted == 0:
        return ConditionContent(True, "ScaledToZero", "no pods are wanted")
    ready = min(workload.ready if workload else 0, status.ready_replicas)
    text = f"{ready} of {wanted} pods are ready"
    if workload is None or not workload.current:
        reason = (workload.message if workload else "") or "pods of the current template are being started"
        return ConditionContent(False, "PodsUpdating", f"{text}; {reason}{_waiting_for_node(observed)}")
    lent = len(withdrawn_pods(observed))
    if ready + lent < wanted:
        return _missing_pods(observed, status, text, wanted - ready - lent)
    if status.active is None:
        return _without_draft(observed, text)
    text = f"{up_to_date} of {wanted} pods serve the version they should"
    if up_to_date + lent < wanted:
        return ConditionContent(False, "SwapsPending", text)
    held = {pod.name: pod.agent.speculation_off for pod in observed.pods if pod.agent and pod.agent.speculation_off}
    if held:
        name, why = min(held.items())
        return ConditionContent(True, "SpeculationOff", f"{text}. Without speculation: {len(held)}. Pod {name}: {why}")
    if lent:
        return ConditionContent(True, "Measuring", f"{text}; {lent} is lent to a measurement")
    return ConditionContent(True, SERVING, text)


def _without_draft(observed: Observed, text: str) -> ConditionContent:
    """The pods serve, and the speculator has no draft yet.

    Args:
        text: how many pods are ready.
    """
    record = observed.store.trainer
    why = (observed.trainer.message if observed.trainer else "") or (record.message if record else "")
    message = f"{text} and serve without a draft, because the trainer has not registered the first one yet"
    return ConditionContent(True, "WithoutDraft", f"{message}: {why}" if why else message)


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
        return ConditionContent(False, reason, f"the trainer is stopped: {observed.store.error}")
    if observed.spec.training.suspended and trainer_replicas(observed) == 0:
        message = "training is suspended; serving goes on with the active draft"
        return ConditionContent(True, "Suspended", message)
    workload = observed.trainer
    if trainer_replicas(observed) == 0:
        return ConditionContent(False, "PodNotReady", f"the trainer waits for the store: {observed.store.error}")
    if workload is None or workload.ready < 1:
        message = (workload.message if workload else "") or "the trainer's pod is not ready"
        return ConditionContent(False, "PodNotReady", message)
    record = observed.store.trainer
    if record is not None and record.phase is TrainerPhase.STARTING and record.message:
        return ConditionContent(False, "Starting", record.message)
    if record is not None and observed.store.trainer_is_silent(now):
        if workload.created is not None and now - workload.created < TRAINER_SILENCE:
            return ConditionContent(True, "Starting", "the trainer's pod is new, and has not reported yet")
        message = (
            f"the trainer has reported nothing since {record.updated:%Y-%m-%d %H:%M:%S %Z} by the trainer's clock;"
            " read its pod's log"
        )
        return ConditionContent(False, "Silent", message)
    message = (record.message if record else "") or "the trainer runs"
    return ConditionContent(True, status.training.phase or "Starting", message)


def _pin_refused(observed: Observed) -> ConditionContent | None:
    pin, store = observed.spec.rollout.pin, observed.store
    if pin is None or not store.ok or not store.channel or store.may_be_pinned(pin):
        return None
    if pin in store.expired:
        limit = observed.spec.training.draft_history_limit
        fault = f"the weights of version {pin} expired (training.draftHistoryLimit is {limit})"
        remedy = "names a version in status.keptVersions"
    else:
        fault, remedy = f"version {pin} never passed its measurement", "names a version that passed"
    message = f"rollout.pin: {fault}. Nothing is rolled out until pin is unset or {remedy}"
    return ConditionContent(True, "PinRefused", message)


def _failed_return(observed: Observed, status: SpeculatorStatus) -> ConditionContent | None:
    """A pod that cannot take the active version, and is not about to be replaced."""
    active = status.active.version if status.active else None
    for name, agent in ((view.name, view.agent) for view in observed.pods if view.agent):
        failed = agent.swap.phase is SwapPhase.FAILED and not agent.swap.needs_restart
        if failed and agent.swap.version == active != agent.version:
            return ConditionContent(
                True, "SwapFailed", f"pod {name} cannot return to version {active}: {agent.swap.error}"
            )
    return None


def _invalid_spec(fault: str) -> ConditionContent:
    effect = "Until it is corrected, pods stay as they are and rolls pause. A version that fails is still rolled back."
    return ConditionContent(True, "InvalidSpec", f"the spec cannot be used: {fault}. {effect}")


def _name_taken(names: Sequence[str]) -> ConditionContent:
    used = [title for title in names if title.startswith(_USED_BY_PODS)]
    effect = f" Until then no Deployment and no Job is written: pods would use {' and '.join(used)}." if used else ""
    taken = f"objects with the names that the speculator needs belong to somebody else: {', '.join(names)}"
    remedy = (
        "Create the speculator under another name, or delete the objects if nobody needs them. Objects that a former"
        f" speculator left with its labels are taken over with the annotation {ADOPT_ANNOTATION}=true, but for Secrets"
        " and Jobs, which are made anew once they are deleted"
    )
    return ConditionContent(True, "NameTaken", f"{taken}. {remedy}.{effect}")


# the start of the pods ------------------------------------------------------------------------------------------------


def is_starting(status: SpeculatorStatus) -> bool:
    """Whether no pod has served clients yet since the creation or a scale-up from zero, as far as ``status`` knows."""
    return status.starting or status.observed_generation == 0


def starts(observed: Observed) -> bool:
    """:func:`is_starting` after this observation."""
    served = any(pod.serves for pod in observed.pods)
    return not served and (observed.spec.serving.replicas == 0 or is_starting(observed.status))


def _start_fault(observed: Observed, waits_for: str, now: datetime) -> ConditionContent | None:
    """Why no pod serves, where a person must mend it. None while a pod serves, or may still come up.

    Only the newest pod fails a start: the pods before it may have a template that was corrected since.

    Args:
        waits_for: the message of ServingReady, which says what the pods wait for.
    """
    if observed.spec.serving.replicas == 0 or any(pod.serves for pod in observed.pods):
        return None
    pods = [view for view in observed.pods if view.created and not view.terminating]
    newest = max(pods, key=lambda view: (view.created, view.name), default=None)
    refused = observed.deployment.message if observed.deployment else ""
    if newest is None and refused:
        return ConditionContent(True, "StartFailed", f"No pod can be created: {refused}")
    # Restarts count for the pod's whole life, so an engine that served may have had two and come up again.
    if newest is not None and newest.failing and (newest.waiting or is_starting(observed.status)):
        return ConditionContent(True, "StartFailed", _failure_text(observed.owner.namespace, newest))
    ready = next((c for c in observed.status.conditions if c.type is ConditionType.READY), None)
    if (
        ready is not None
        and ready.status is not ConditionStatus.TRUE
        and now - ready.last_transition_time > START_LIMIT
    ):
        minutes = START_LIMIT // timedelta(minutes=1)
        return ConditionContent(True, "StartTimeout", f"No pod has served for {minutes} minutes: {waits_for}")
    return None


def _failure_text(namespace: str, pod: PodView) -> str:
    """Why a container of ``pod`` fails, and how to read more."""
    ask, where = f"kubectl -n {namespace}", f"Pod {pod.name}: {pod.trouble}"
    if pod.crash:
        return f"{where}. No pod serves clients. Its log says why: `{ask} logs {pod.name} -c {pod.failing} --previous`"
    return f"{where}. The events of container {pod.failing} say why: `{ask} describe pod {pod.name}`"
