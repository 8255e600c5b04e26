"""Puts the parts of a plan together: children, the channel's first record, validation, rollout, status.

Invariant: while the store cannot be read nothing is decided about versions: pods keep what they serve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import CandidatePhase, HistoryEntry, RolloutPhase, SpeculatorStatus
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator.children.metadata import job_name
from aurora_operator.children.validation_job import ValidationAttempt, job
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import Observed, PodView
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan import candidate, lending
from aurora_operator.plan.actions import Note, Plan, Swap
from aurora_operator.plan.rollout import transition
from aurora_operator.plan.rollout.facts import Advance, Pod, Step, World
from aurora_operator.plan.status_builder import status_of, worth_writing
from aurora_operator.plan.wanted_children import children, obsolete_jobs
from aurora_protocol.agent_api import LiveCounters, SwapRequest, SwapStatus
from aurora_protocol.draft_records import INITIAL_VERSION, Channel, ChannelReason
from aurora_protocol.pod_settings import Replica
from aurora_store import Keys

_RECORDED = {
    "Promoted": "Promoted",
    "RolloutFailed": "RolledBack",
    "RolloutStopped": "RolloutStopped",
    "Paused": "Paused",
    "Resumed": "Resumed",
    "Vouched": "Vouched",
    "Rejected": "Rejected",
    "Inconclusive": "Inconclusive",
    "Pinned": "Pinned",
}
"""Events that become history entries: decisions. A measurement that could not be made decides nothing."""
_WARNINGS = frozenset({"RolloutFailed", "Rejected", "Inconclusive", "ValidationFailed"})


MAX_REJECTED = 64
"""Versions that the channel remembers as refused: only the newest can still be offered."""


def rollout_pod(view: PodView) -> Pod:
    agent = view.agent
    ready = view.ready and agent is not None and agent.engine_ready
    return Pod(
        name=view.name,
        ready=ready,
        starting=view.scheduled and not ready,
        up=view.ready or (agent is not None and agent.engine_ready),
        version=agent.version if agent else None,
        checksum=agent.checksum if agent else None,
        swap=agent.swap if agent else SwapStatus(),
        boot=agent.boot if agent else "",
        started_together=view.started_together,
        counters=agent.live if agent else LiveCounters(),
    )


def _first_channel(observed: Observed, now: datetime) -> Channel | None:
    """The record that makes the lineage's initial draft active, once the trainer has registered it."""
    store = observed.store
    if store.lineage is None or INITIAL_VERSION not in store.registrations:
        return None
    return Channel(
        epoch=1, lineage=store.lineage.number, active=INITIAL_VERSION, reason=ChannelReason.INITIAL, created=now
    )


def _swaps(observed: Observed, step: Step) -> Iterator[Swap]:
    addresses = {view.name: view.ip for view in observed.pods}
    for pod, version in step.swaps.items():
        registration = observed.store.registrations.get(version)
        if registration is not None and addresses[pod]:
            request = SwapRequest(version=version, digest=registration.digest, epoch=max(step.rollout.epoch, 1))
            yield Swap(pod, addresses[pod], request)


def _notes(old: SpeculatorStatus, new: SpeculatorStatus, events: list[tuple[str, int, str]]) -> Iterator[Note]:
    for event, version, message in events:
        yield Note(event, f"version {version}: {message}" if message else f"version {version}", event in _WARNINGS)
    before = {condition.type: condition for condition in old.conditions}
    for condition in new.conditions:
        known = before.get(condition.type)
        if known is not None and (known.status, known.reason) == (condition.status, condition.reason):
            continue
        if condition.type is ConditionType.DEGRADED and condition.status is ConditionStatus.TRUE:
            yield Note(condition.reason, condition.message, warning=True)
        if condition.type is ConditionType.READY and (known is None or known.status is not condition.status):
            ready = condition.status is ConditionStatus.TRUE
            yield Note(
                "Ready" if ready else condition.reason, condition.message, warning=not ready and known is not None
            )


def plan(observed: Observed, config: OperatorConfig, now: datetime, since_written: timedelta = timedelta.max) -> Plan:
    """What to do now. ``since_written``: age of the stored status, which running figures wait for."""
    made = _decide(observed, config, now) if observed.store.ok and observed.store.channel else _hold(observed, now)
    assert made.status is not None, "both branches say what the status should be"
    return replace(
        made,
        create_keys=not observed.keys_exist,
        children=children(observed, config),
        status=made.status if worth_writing(observed.status, made.status, since_written) else None,
    )


def _hold(observed: Observed, now: datetime) -> Plan:
    """Without a channel to read: make its first record if the initial draft is there, and else wait."""
    old = observed.status
    advance = _first_channel(observed, now) if observed.store.ok else None
    status = status_of(observed, _pods(observed), old.rollout, old.candidate, old.rejected, (), now)
    return Plan(advance=advance, status=status, notes=tuple(_notes(old, status, [])), moving=True)


def _decide(observed: Observed, config: OperatorConfig, now: datetime) -> Plan:
    """Validation first, because what it offers is what the rollout may take up."""
    old, pods = observed.status, _pods(observed)
    decision, rejected = _validation(observed, pods, now)
    assert observed.store.channel is not None, "the caller holds without a channel"
    epoch = max(old.rollout.epoch, observed.store.channel.epoch)
    step = transition.step(_world(observed, pods, decision, rejected, now), old.rollout)
    # What passed goes first: a replica that leaves now holds up its roll, and a Job measures against a former version.
    free = RolloutPhase.IDLE is old.rollout.phase is step.rollout.phase
    loaned = lending.lend(observed, decision.candidate, epoch, free=free)
    candidate = loaned.candidate
    if step.advance is not None:
        if (refused := step.advance.reject) is not None:
            rejected |= {refused}
        if candidate is not None and candidate.version == refused:
            why = {"phase": CandidatePhase.REJECTED, "message": step.rollout.message}
            candidate = candidate.model_copy(update=why)
        if candidate is not None and candidate.version == step.advance.active:
            candidate = None
    events = list(_events(decision, step))
    history = [
        HistoryEntry(time=now, event=_RECORDED[event], version=version, message=message)
        for event, version, message in events
        if event in _RECORDED and not _repeats(old, _RECORDED[event], version)
    ]
    asked = step.advance or _refusal(observed, decision)
    advance = _advance(observed, asked, step.rollout.message if step.advance else "aborted by a person", now)
    # The channel is written before the status, so the status may already speak of it.
    after = observed if advance is None else replace(observed, store=replace(observed.store, channel=advance))
    status = status_of(after, pods, step.rollout, candidate, rejected, history, now)
    swaps = tuple(_swaps(observed, step))
    unsettled = any(pod.swapping or not pod.ready for pod in pods) or len(pods) != observed.spec.serving.replicas
    rolling = step.rollout.phase not in (RolloutPhase.IDLE, RolloutPhase.PAUSED)
    return Plan(
        advance=advance,
        status=status,
        job=_job(observed, config, decision, loaned, epoch) if free else None,
        delete_jobs=obsolete_jobs(observed.jobs, decision.job, candidate.job if candidate else None),
        swaps=swaps,
        loans=loaned.loans,
        notes=tuple(_notes(old, status, events)),
        moving=rolling or unsettled or bool(swaps) or decision.job is not None or advance is not None,
    )


def _pods(observed: Observed) -> tuple[Pod, ...]:
    return tuple(rollout_pod(view) for view in observed.pods if not view.terminating)


def _validation(observed: Observed, pods: tuple[Pod, ...], now: datetime) -> tuple[candidate.Decision, frozenset[int]]:
    """The candidate's next state, and all versions that are never offered again."""
    old, store = observed.status, observed.store
    assert store.channel is not None, "the caller holds without a channel"
    rejected = frozenset(v for v in (*old.rejected, *store.channel.rejected) if v > store.channel.active)
    inputs = candidate.Inputs(
        now=now,
        name=observed.owner.name,
        store=store,
        candidate=old.candidate,
        rejected=rejected,
        rollout=old.rollout,
        jobs=observed.jobs,
        refused_job=observed.refused_job,
        primary=observed.spec.validation.concurrencies_primary_first[0],
        ready=any(pod.ready for pod in pods) and observed.spec.rollout.pin is None,
        abort=observed.user_requests.abort,
    )
    decision = candidate.decide(inputs)
    return decision, rejected | (frozenset() if decision.reject is None else {decision.reject})


def _world(
    observed: Observed,
    pods: tuple[Pod, ...],
    decision: candidate.Decision,
    rejected: frozenset[int],
    now: datetime,
) -> World:
    """Without the pods that are withdrawn: they are neither missing nor to be asked for anything."""
    store, pin, away = observed.store, observed.spec.rollout.pin, lending.away(observed)
    assert store.channel is not None, "the caller holds without a channel"
    rolled, newest = observed.status.rollout.version, store.newest
    candidate = decision.candidate
    failed = candidate is not None and candidate.phase is CandidatePhase.FAILED and candidate.version == newest
    newer = rolled is not None and newest is not None and newest > rolled and newest not in rejected and not failed
    return World(
        now=now,
        active=store.channel.active,
        previous=store.channel.previous,
        refused=frozenset(store.channel.rejected),
        reason=store.channel.message,
        epoch=store.channel.epoch,
        pods=tuple(pod for pod in pods if pod.name not in away),
        shape=_shape(observed),
        steps=observed.spec.draft.steps,
        policy=observed.spec.rollout,
        offer=decision.offer if decision.offer not in rejected and not away else None,
        newer=newest if newer else None,
        earned=frozenset(v for v in store.registrations if v not in rejected and store.promotion_evidence(v)),
        pin=pin if pin is not None and store.may_be_pinned(pin) else None,
        hold=pin is not None,
        promote=observed.user_requests.promote,
        abort=observed.user_requests.abort,
        resumed=observed.observation_gap,
        fenced=observed.fenced,
    )


def _shape(observed: Observed) -> str:
    """Digest of all that decides how a draft is used and how fast: figures before and after a change do not compare."""
    spec = observed.spec
    parts = (
        spec.target.model_dump_json(),
        spec.draft.model_dump_json(),
        spec.serving.model_copy(update={"replicas": 0}).model_dump_json(exclude={"update"}),
    )
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def _events(decision: candidate.Decision, step: Step) -> Iterator[tuple[str, int, str]]:
    """(event, version, message) of what was decided."""
    if decision.event and decision.candidate is not None:
        version = decision.candidate.version if decision.reject is None else decision.reject
        yield decision.event, version, decision.message or decision.candidate.message
    if step.event and step.rollout.version is not None:
        yield step.event, step.rollout.version, step.rollout.message


def _repeats(old: SpeculatorStatus, event: str, version: int) -> bool:
    """A version whose swaps do not get through is offered again and again, and would leave nothing else to be read."""
    return bool(old.history) and (old.history[-1].event, old.history[-1].version) == (event, version)


def _refusal(observed: Observed, decision: candidate.Decision) -> Advance | None:
    """A person's refusal of a candidate is remembered in the channel, as there is no evidence that says it."""
    channel = observed.store.channel
    if channel is None or decision.reject is None or decision.reject != observed.user_requests.abort:
        return None
    return Advance(channel.active, ChannelReason.REFUSED, reject=decision.reject)


def _advance(observed: Observed, step: Advance | None, message: str, now: datetime) -> Channel | None:
    """The channel's next record."""
    former = observed.store.channel
    if step is None or former is None:
        return None
    moved = step.active != former.active
    rejected = former.rejected if step.reject is None else (*former.rejected, step.reject)
    proof = observed.store.promotion_evidence(step.active) if step.reason is ChannelReason.PROMOTED else None
    assert proof is not None or step.reason is not ChannelReason.PROMOTED, "only what earned it is promoted"
    evidence = Keys.evidence(proof.version, proof.attempt) if proof else None if moved else former.evidence
    back = step.reason is ChannelReason.ROLLED_BACK
    return Channel(
        epoch=former.epoch + 1,
        lineage=former.lineage,
        active=step.active,
        previous=former.previous if not moved else None if back else former.active,
        reason=step.reason,
        evidence=evidence,
        rejected=tuple(sorted(set(rejected)))[-MAX_REJECTED:],
        message=message[:1000],
        created=now,
    )


def _job(
    observed: Observed, config: OperatorConfig, decision: candidate.Decision, lending: lending.Lending, epoch: int
) -> Object | None:
    """The Job that should be created: the wanted one, when it is not there and has a place to measure."""
    wanted, former = decision.job, observed.store.channel
    if wanted is None or former is None or any((job.version, job.attempt) == wanted for job in observed.jobs):
        return None
    version, attempt = wanted
    where = None
    if observed.spec.validation.measure_on is MeasureOn.REPLICA:
        if lending.pod is None:
            return None
        name = job_name(observed.owner.name, version, attempt)
        where = Replica(pod=lending.pod.name, ip=lending.pod.ip, measurement=name, epoch=max(epoch, 1))
    made = ValidationAttempt(version, attempt, former.active, where)
    return job(observed.owner, observed.spec, config, made)
