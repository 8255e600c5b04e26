"""Puts the parts of a plan together: children, the channel's first record, validation, rollout, status.

Invariant: while the store cannot be read nothing is decided about versions: pods keep what they serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from aurora_api.agent import SwapRequest, SwapStatus
from aurora_api.conditions import ConditionStatus, ConditionType
from aurora_api.records import INITIAL_VERSION, Channel, ChannelReason
from aurora_api.status import CandidatePhase, HistoryEntry, RolloutPhase, SpeculatorStatus
from aurora_operator.children.validator import job
from aurora_operator.config import Config
from aurora_operator.observed import Observed, PodView
from aurora_operator.plan import rollout as roll
from aurora_operator.plan import validation
from aurora_operator.plan.children import children, obsolete_jobs
from aurora_operator.plan.plan import Note, Plan, Swap
from aurora_operator.plan.status import status_of, worth_writing
from aurora_runtime.store import Keys

_RECORDED = {
    "Promoted": "Promoted",
    "RolloutFailed": "RolledBack",
    "Rejected": "Rejected",
    "Inconclusive": "Inconclusive",
    "ValidationFailed": "Failed",
}
"""Events that become history entries."""
_WARNINGS = frozenset({"RolloutFailed", "Rejected", "Inconclusive", "ValidationFailed"})


def rollout_pod(view: PodView) -> roll.Pod:
    agent = view.agent
    ready = view.ready and agent is not None and agent.engine_ready
    return roll.Pod(
        name=view.name,
        ready=ready,
        starting=view.scheduled and not ready,
        up=view.ready or (agent is not None and agent.engine_ready),
        version=agent.version if agent else None,
        checksum=agent.checksum if agent else None,
        swap=agent.swap if agent else SwapStatus(),
    )


def _first_channel(observed: Observed, now: datetime) -> Channel | None:
    """The record that makes the lineage's initial draft active, once the trainer has registered it."""
    store = observed.store
    if store.lineage is None or INITIAL_VERSION not in store.registrations:
        return None
    return Channel(
        epoch=1, lineage=store.lineage.number, active=INITIAL_VERSION, reason=ChannelReason.INITIAL, created=now
    )


def _swaps(observed: Observed, step: roll.Step) -> Iterator[Swap]:
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


def plan(observed: Observed, config: Config, now: datetime, since_written: timedelta = timedelta.max) -> Plan:
    """What to do now. ``since_written``: age of the stored status, which running figures wait for."""
    old, store = observed.status, observed.store
    pods = tuple(rollout_pod(view) for view in observed.pods if not view.terminating)
    wanted = children(observed, config)
    keys = not observed.keys_exist
    if not store.ok or store.channel is None:
        first = _first_channel(observed, now) if store.ok else None
        status = status_of(observed, pods, old.rollout, old.candidate, old.rejected, (), now)
        return Plan(
            create_keys=keys,
            children=wanted,
            advance=first,
            status=status if worth_writing(old, status, since_written) else None,
            notes=tuple(_notes(old, status, [])),
            moving=True,
        )
    channel = store.channel
    rejected = frozenset(version for version in old.rejected if version > channel.active)
    inputs = validation.Inputs(
        now=now,
        name=observed.owner.name,
        store=store,
        candidate=old.candidate,
        rejected=rejected,
        rollout=old.rollout,
        jobs=observed.jobs,
        primary=observed.spec.validation.concurrencies[0],
        ready=any(pod.ready for pod in pods),
    )
    decision = validation.decide(inputs)
    rejected |= {decision.reject} if decision.reject is not None else set()
    world = roll.World(
        now=now,
        active=channel.active,
        epoch=channel.epoch,
        pods=pods,
        policy=observed.spec.rollout,
        offer=decision.offer if decision.offer not in rejected else None,
        earned=frozenset(v for v in store.registrations if v not in rejected and store.earned(v)),
        resumed=observed.resumed,
        fenced=observed.fenced,
    )
    step = roll.step(world, old.rollout)
    candidate = decision.candidate
    if step.reject is not None:
        rejected |= {step.reject}
        if candidate is not None and candidate.version == step.reject:
            text = {"phase": CandidatePhase.REJECTED, "message": step.rollout.message}
            candidate = candidate.model_copy(update=text)
    if candidate is not None and candidate.version == step.promote:
        candidate = None
    events = []
    if decision.event and decision.candidate is not None:
        events.append((decision.event, decision.candidate.version, decision.candidate.message))
    if step.event and step.rollout.version is not None:
        events.append((step.event, step.rollout.version, step.rollout.message))
    history = [
        HistoryEntry(time=now, event=_RECORDED[event], version=version, message=message)
        for event, version, message in events
        if event in _RECORDED
    ]
    advance = None
    if step.promote is not None:
        evidence = store.earned(step.promote)
        assert evidence is not None, "rollout promotes earned versions only"
        advance = Channel(
            epoch=channel.epoch + 1,
            lineage=channel.lineage,
            active=step.promote,
            previous=channel.active,
            reason=ChannelReason.PROMOTED,
            evidence=Keys.evidence(evidence.version, evidence.attempt),
            created=now,
        )
    after = observed if advance is None else _advanced(observed, advance)
    status = status_of(after, pods, step.rollout, candidate, rejected, history, now)
    wanted_job = decision.job
    exists = any((j.version, j.attempt) == wanted_job for j in observed.jobs)
    new_job = None
    if wanted_job is not None and not exists:
        version, attempt = wanted_job
        new_job = job(observed.owner, observed.spec, config, version=version, attempt=attempt, active=channel.active)
    swaps = tuple(_swaps(observed, step))
    busy = step.rollout.phase not in (RolloutPhase.IDLE, RolloutPhase.PAUSED) or bool(swaps)
    unsettled = any(pod.swapping or not pod.ready for pod in pods) or len(pods) != observed.spec.serving.replicas
    return Plan(
        create_keys=keys,
        children=wanted,
        advance=advance,
        status=status if worth_writing(old, status, since_written) else None,
        job=new_job,
        delete_jobs=obsolete_jobs(observed.jobs, wanted_job, candidate.job if candidate else None),
        swaps=swaps,
        notes=tuple(_notes(old, status, events)),
        moving=busy or unsettled or wanted_job is not None or advance is not None,
    )


def _advanced(observed: Observed, channel: Channel) -> Observed:
    """``observed`` as it is once the channel says ``channel``: the status is written after it."""
    return replace(observed, store=replace(observed.store, channel=channel))
