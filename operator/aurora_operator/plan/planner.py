"""Combines the parts of a plan.

In this order: what may be used of the store, the candidate, the rollout, the measurement, the channel's next record,
the status, the order of an upgrade of the operator, and the children.

Invariant: while the store cannot be read, nothing is decided about versions, and pods keep the version they serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from aurora_api.v1alpha1.capture import FIRST_DRAFT_FACTOR
from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus, RolloutPhase
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator.children.inference_deployment import choice_digest, served_image
from aurora_operator.children.metadata import job_name
from aurora_operator.children.validation_job import ValidationAttempt, job
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import Observed, PodView
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan import lending
from aurora_operator.plan.actions import MeasurementStage, Plan, Swap, TraceLimit
from aurora_operator.plan.candidate import ValidationDecision, ValidationInputs, decide, measuring_on
from aurora_operator.plan.channel import digest_of, first_channel, next_channel, usable_store, with_digests
from aurora_operator.plan.conditions import with_waiting_upgrade
from aurora_operator.plan.events import history_entries, notes, version_events
from aurora_operator.plan.operator_upgrade import decide_upgrade
from aurora_operator.plan.rollout import machine
from aurora_operator.plan.rollout.machine import Step
from aurora_operator.plan.rollout.roll import read_roll
from aurora_operator.plan.rollout.world import Pod, RolloutPolicy, World
from aurora_operator.plan.status_builder import StatusChanges, status_of, worth_writing
from aurora_operator.plan.wanted_children import children, obsolete_jobs
from aurora_protocol.agent_api import LiveCounters, SwapRequest, SwapStatus, TraceBudget
from aurora_protocol.pod_settings import Replica


def plan(observed: Observed, config: OperatorConfig, now: datetime, since_written: timedelta = timedelta.max) -> Plan:
    """The plan for this reconcile.

    Args:
        since_written: age of the stored status. Figures that change all the time are written only after a while.
    """
    if not (observed.keys_exist or observed.name_taken or observed.apply_errors):
        # Without the keys nothing of the store can be read. Nobody needs to know, because they are there at once.
        return Plan(create_keys=True, moving=True)
    stored, usable = observed.store, usable_store(observed, now)
    if usable.takeover is not None:
        return Plan(advance=with_digests(usable.takeover, stored), notes=usable.notes, moving=True)
    observed = replace(observed, store=usable.view)
    may_decide = observed.store.ok and observed.store.channel is not None
    made = _plan_with_channel(observed, config, now) if may_decide else _plan_without_channel(observed, now)
    assert made.status is not None, "all branches compute a status"
    # A spec that cannot be used shapes no children. A version that fails is rolled back, and pods scale, all the same.
    upgrade = None if observed.spec_fault else decide_upgrade(replace(observed, status=made.status), config, now)
    status = with_waiting_upgrade(made.status, upgrade)
    limits = tuple(_trace_limits(observed))
    return replace(
        made,
        create_keys=not observed.keys_exist,
        children=() if upgrade is None else children(observed, config, upgrade),
        scale=observed.spec.serving.replicas if upgrade is None else None,
        advance=None if made.advance is None else with_digests(made.advance, stored),
        status=status if worth_writing(observed.status, status, since_written) else None,
        trace_limits=limits,
        moving=made.moving or made.advance is not None or bool(limits),
        upgrade=upgrade,
    )


def _plan_without_channel(observed: Observed, now: datetime) -> Plan:
    """The plan while no channel can be read: write the channel's first record once the initial draft is registered."""
    old = observed.status
    kept = StatusChanges(old.rollout, old.operator_state, old.candidate, frozenset(old.rejected))
    status = status_of(observed, _rollout_pods(observed), kept, now)
    advance = first_channel(observed, now) if observed.store.ok else None
    return Plan(advance=advance, status=status, notes=tuple(notes(old, status, ())), moving=observed.store.ok)


def _plan_with_channel(observed: Observed, config: OperatorConfig, now: datetime) -> Plan:
    """The plan while the channel can be read.

    The candidate comes first, because the rollout may start with a version that passes now.
    """
    old, pods = observed.status, _rollout_pods(observed)
    rejected = _known_rejected(observed)
    inputs = ValidationInputs(observed, rejected, now)
    validated = decide(inputs)
    rejected = rejected.union(() if validated.reject is None else (validated.reject,))
    step = machine.step(_world_of(observed, pods, validated, rejected, now), read_roll(old))
    if step.advance is not None and step.advance.reject is not None:
        rejected |= {step.advance.reject}
    measurement = _measurement(observed, config, validated, step)
    advance = next_channel(observed, step, validated, now)
    # The channel is written before the status, so the status already speaks of the new record.
    after = observed if advance is None else replace(observed, store=replace(observed.store, channel=advance))
    assert after.store.channel is not None, "called only while there is a channel"
    events = version_events(validated, step)
    rollout, operator_state = step.rollout.status_parts()
    changes = StatusChanges(
        rollout=rollout,
        operator_state=operator_state,
        candidate=measurement.candidate,
        rejected=rejected,
        history=history_entries(old, events, now),
    )
    status = status_of(after, pods, changes, now)
    swaps = tuple(_swap_requests(observed, step))
    return Plan(
        advance=advance,
        status=status,
        job=measurement.job,
        measurement=_measurement_stage(observed, inputs, measurement),
        delete_jobs=measurement.obsolete_jobs,
        swaps=swaps,
        notes=tuple(notes(old, status, events)),
        decisions=tuple(event.reason for event in events),
        decides_versions=True,
        moving=_is_moving(observed, pods, step) or bool(swaps),
    )


@dataclass(frozen=True)
class _Measurement:
    """What happens to the candidate's measurement."""

    candidate: CandidateStatus | None
    job: Object | None
    obsolete_jobs: tuple[str, ...]


def _measurement(observed: Observed, config: OperatorConfig, validated: ValidationDecision, step: Step) -> _Measurement:
    """The candidate's Job and its replica.

    A validated candidate is rolled out before the next one is measured. Measuring during a roll would take a replica
    away from it, and would compare against a version that is about to be replaced. So a Job that measures on a replica
    is deleted when a roll begins, and created again after it.
    """
    rests = RolloutPhase.IDLE is observed.status.rollout.phase is step.rollout.phase
    candidate, wanted, new_job = validated.candidate, validated.job, None
    exists = any((job.version, job.attempt) == wanted for job in observed.jobs)
    if wanted is not None and candidate is not None:
        if candidate.pod is not None and not rests:
            candidate, wanted = candidate.model_copy(update={"pod": None}), None
        elif rests and not exists and not observed.spec_fault:
            candidate, new_job = _begun(observed, config, candidate)
    candidate = _candidate_after(candidate, step)
    obsolete = obsolete_jobs(observed.jobs, wanted, candidate.job if candidate else None)
    return _Measurement(candidate, new_job, obsolete)


def _begun(
    observed: Observed, config: OperatorConfig, candidate: CandidateStatus
) -> tuple[CandidateStatus, Object | None]:
    """The candidate with the replica that its Job measures on, and the Job. No Job while no replica can be lent."""
    assert observed.store.channel is not None, "called only while there is a channel"
    replica, image = None, ""
    if observed.spec.validation.measure_on is MeasureOn.REPLICA:
        if reason := lending.refusal_reason(observed):
            return candidate.model_copy(update={"pod": None, "message": f"waiting for a replica: {reason}"}), None
        pod = lending.chosen_pod(observed)
        name = job_name(observed.owner.name, candidate.version, candidate.attempt)
        replica = Replica(pod=pod.name, ip=pod.ip, measurement=name, epoch=_fencing_epoch(observed, pod))
        image = served_image(observed.deployed.template) if observed.deployed else ""
        candidate = candidate.model_copy(update={"pod": pod.name, "message": measuring_on(pod.name)})
    chosen = ValidationAttempt(candidate.version, candidate.attempt, observed.store.channel.active, replica, image)
    return candidate, job(observed.owner, observed.spec, config, chosen)


def _measurement_stage(
    observed: Observed, inputs: ValidationInputs, measurement: _Measurement
) -> MeasurementStage | None:
    """What the candidate means for the other speculators of its namespace.

    A Job that a queue or a person suspended takes no machine, so nobody waits for it.
    """
    candidate, jobs = measurement.candidate, (job for job in observed.jobs if not (job.finished or job.suspended))
    if candidate is None or candidate.phase is not CandidatePhase.VALIDATING:
        return None
    if measurement.job is not None or any(jobs):
        return MeasurementStage.MEASURING
    waits = candidate.waits_to_begin and inputs.lacks_turn_only and inputs.rollout.phase is RolloutPhase.IDLE
    return MeasurementStage.WAITING if waits else None


def _known_rejected(observed: Observed) -> frozenset[int]:
    """The rejected versions of status and channel that are newer than the active version. Both lists are bounded."""
    channel = observed.store.channel
    assert channel is not None, "called only while there is a channel"
    return frozenset(v for v in (*observed.status.rejected, *channel.rejected) if v > channel.active)


def _candidate_after(candidate: CandidateStatus | None, step: Step) -> CandidateStatus | None:
    """The candidate after the step: None when it became active, Rejected when the step rejects its version."""
    if candidate is None or step.advance is None:
        return candidate
    if candidate.version == step.advance.active:
        return None
    if candidate.version == step.advance.reject:
        return candidate.model_copy(update={"phase": CandidatePhase.REJECTED, "message": step.rollout.message})
    return candidate


def _fencing_epoch(observed: Observed, pod: PodView) -> int:
    """The epoch that fences a Job's requests to the agent of ``pod``, which refuses them after a newer order.

    The pod's own epoch counts, because a lost status has forgotten it. Agents refuse epochs below 1.
    """
    channel_epoch = observed.store.channel.epoch if observed.store.channel else 0
    pod_epoch = pod.agent.swap.epoch if pod.agent else None
    return max(observed.status.rollout.epoch, channel_epoch, pod_epoch or 0, 1)


def _swap_requests(observed: Observed, step: Step) -> Iterator[Swap]:
    addresses = {view.name: view.ip for view in observed.pods}
    for pod, version in step.swaps.items():
        digest = digest_of(observed.store, version)
        if digest is not None and addresses[pod]:
            request = SwapRequest(version=version, digest=digest, epoch=max(step.rollout.epoch, 1))
            yield Swap(pod, addresses[pod], request)


def _trace_limits(observed: Observed) -> Iterator[TraceLimit]:
    """Orders for the pods that have not yet their part of the budget: an equal part for each wanted pod.

    A pod of a version before budgets is not asked. Nothing is traced while training is suspended.
    """
    active = observed.status.active
    has_passed = active is not None and active.version > 0
    wanted = 0 if observed.spec.training.suspended else observed.spec.capture.tokens_per_minute
    budget = wanted * (1 if has_passed else FIRST_DRAFT_FACTOR)
    part = TraceBudget(tokens_per_minute=-(-budget // max(observed.spec.serving.replicas, 1)))
    for view in observed.pods:
        if view.ip and view.agent is not None and view.agent.trace_budget not in (None, part):
            yield TraceLimit(view.name, view.ip, part)


def _is_moving(observed: Observed, pods: tuple[Pod, ...], step: Step) -> bool:
    """Whether a roll or a restart goes on, or not as many pods as wanted serve the active version."""
    roll, channel = step.rollout, observed.store.channel
    serving = sum(pod.ready and channel is not None and pod.version == channel.active for pod in pods)
    restarts = observed.deployed is not None and not observed.deployed.whole
    return (
        restarts
        or serving != observed.spec.serving.replicas
        or (roll.phase is not RolloutPhase.IDLE and not roll.paused)
    )


# the input of the rollout ---------------------------------------------------------------------------------------------


def _rollout_pods(observed: Observed) -> tuple[Pod, ...]:
    """The pods that are not terminating, lent replicas included."""
    return tuple(_rollout_pod(view) for view in observed.pods if not view.terminating)


def _rollout_pod(view: PodView) -> Pod:
    agent = view.agent
    return Pod(
        name=view.name,
        ready=view.ready and agent is not None and agent.engine_ready,
        kubernetes_ready=view.ready,
        version=agent.version if agent else None,
        checksum=agent.checksum if agent else None,
        swap=agent.swap if agent else SwapStatus(),
        boot=agent.boot if agent else "",
        lone_restarts=view.lone_restarts,
        counters=agent.live if agent else LiveCounters(),
    )


def _world_of(
    observed: Observed, pods: Iterable[Pod], validation: ValidationDecision, rejected: frozenset[int], now: datetime
) -> World:
    """The world of the pods that serve or start.

    Withdrawn pods are left out: the rollout must neither miss them nor ask them for anything. Pods that wait for a node
    are left out too, because they may wait forever. They take the active version once they start.

    Args:
        rejected: versions that are never rolled out again.
    """
    store, channel, pin = observed.store, observed.store.channel, observed.spec.rollout.pin
    assert channel is not None, "called only while there is a channel"
    away, next_version = lending.withdrawn_pods(observed), validation.next_version
    absent = away | {view.name for view in observed.pods if view.waits_for_node}
    return World(
        now=now,
        active=channel.active,
        previous=channel.previous,
        rejected=frozenset(channel.rejected),
        channel_reason=channel.reason,
        channel_message=channel.message,
        epoch=channel.epoch,
        pods=tuple(pod for pod in pods if pod.name not in absent),
        serving_digest=choice_digest(observed.owner, observed.spec),
        policy=RolloutPolicy.of(observed.spec.rollout),
        paused=_pause_reason(observed),
        next_version=next_version if next_version not in rejected and not (away or observed.spec_fault) else None,
        newest_version=max(store.registrations.keys() - rejected, default=0),
        promotable=frozenset(v for v in store.registrations if v not in rejected and store.promotion_evidence(v)),
        pinned_version=pin if pin is not None and store.may_be_pinned(pin) else None,
        pin_set=pin is not None,
        abort=observed.abort,
        observation_gap=observed.observation_gap,
        refused_by_epoch=observed.refused_by_epoch,
    )


def _pause_reason(observed: Observed) -> str:
    deployed = observed.deployed
    if observed.spec_fault:
        return "the spec cannot be used"
    if deployed is not None and deployed.restarting_since is not None and not deployed.whole:
        return "the pods restart with the upgraded operator's template"
    return "spec.rollout.paused is true" if observed.spec.rollout.paused else ""
