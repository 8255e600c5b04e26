"""The status that follows from what was observed and decided. Pure.

Invariants: ``observedGeneration`` and ``Ready`` speak of the same spec; figures that change by themselves (live
acceptance, traces, training) are refreshed at most every :data:`REFRESH`, so that an idle speculator writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import (
    MAX_HISTORY,
    MAX_PODS_SHOWN,
    CandidateStatus,
    HistoryEntry,
    PodStatus,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    TrainingStatus,
    VersionStatus,
)
from aurora_operator.children.metadata import INFERENCE, selector_text
from aurora_operator.observe.observed import Observed, PodView, StoreView
from aurora_operator.plan.condition_builder import conditions
from aurora_operator.plan.formatting import accept_text, ratio_text, source_text
from aurora_operator.plan.rollout.facts import Pod
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.evidence_records import Arm, Evidence
from aurora_store import Keys

REFRESH = timedelta(seconds=5)


def _version(store: StoreView, version: int, since: datetime | None, primary: int) -> VersionStatus:
    registration = store.registrations.get(version)
    status = VersionStatus(version=version, digest=registration.digest if registration else "", since=since)
    if own := next((e for e in reversed(store.evidence_of(version))), None):
        return status.model_copy(update=_figures(own, Arm.CANDIDATE, primary))
    # The initial draft has no evidence of its own; as the "active" arm it was measured beside its candidates.
    beside = [e for e in store.evidence if e.active_version == version]
    if beside:
        return status.model_copy(update=_figures(max(beside, key=lambda e: e.finished), Arm.ACTIVE, primary))
    return status


def _figures(evidence: Evidence, arm: Arm, primary: int) -> dict[str, str | None]:
    return {
        "speedup": ratio_text(evidence, arm, Arm.OFF, primary),
        "gain": ratio_text(evidence, arm, Arm.ACTIVE, primary) if arm is Arm.CANDIDATE else None,
        "speedup_source": source_text(evidence, primary),
        "evidence": Keys.evidence(evidence.version, evidence.attempt),
    }


def _live(observed: Observed, pods: Iterable[PodView]) -> tuple[str | None, dict[str, str | None]]:
    """Acceptance length since the window's start: over all pods, and of each."""
    tokens = rounds = 0
    each: dict[str, str | None] = {}
    for pod in pods:
        start = observed.live_window.get(pod.name)
        if pod.agent is None or start is None or start.boot != pod.agent.boot:
            continue
        more = pod.agent.live.answer_tokens - start.live.answer_tokens
        took = pod.agent.live.verify_rounds - start.live.verify_rounds
        each[pod.name] = accept_text(more, took)
        tokens, rounds = tokens + more, rounds + took
    return accept_text(tokens, rounds), each


def _pod_state(view: PodView, pod: Pod | None) -> str:
    if view.terminating:
        return "Terminating"
    if view.agent is None:
        return view.waiting or ("AgentUnreachable" if view.ready else "Starting" if view.scheduled else "Pending")
    if view.measurement is not None:
        return view.measurement.phase.value
    if pod is not None and pod.swapping:
        return view.agent.swap.phase.value
    if view.agent.swap.phase is SwapPhase.FAILED:
        return "SwapFailed"
    return "Ready" if pod is not None and pod.ready else (view.waiting or "Starting")


def _training(observed: Observed) -> TrainingStatus:
    record = observed.store.trainer
    if record is None:
        return observed.status.training
    held_out, coverage = record.held_out_acceptance_length, record.vocabulary_coverage
    return TrainingStatus(
        phase=record.phase,
        step=record.step,
        trained_tokens=record.trained_tokens,
        held_out_accept_length=None if held_out is None else f"{held_out:.2f}",
        vocabulary_coverage=None if coverage is None else f"{coverage:.3f}",
        last_updated=record.updated,
    )


def status_of(
    observed: Observed,
    pods: tuple[Pod, ...],
    rollout: RolloutStatus,
    candidate: CandidateStatus | None,
    rejected: Iterable[int],
    history: Iterable[HistoryEntry],
    now: datetime,
) -> SpeculatorStatus:
    """The new status. ``history`` holds the new entries, oldest first."""
    old, store, spec = observed.status, observed.store, observed.spec
    primary = spec.validation.concurrencies_primary_first[0]
    active, previous, lineage = old.active, old.previous, old.lineage
    allowed = frozenset[int]()
    if store.channel is not None:
        channel = store.channel
        known = old.active is not None and old.active.version == channel.active
        since = old.active.since if known and old.active else channel.created
        active = _version(store, channel.active, since, primary)
        before = channel.previous
        previous = None if before is None else _version(store, before, None, primary)
        lineage = channel.lineage
        allowed = frozenset({channel.active, *(() if rollout.version is None else (rollout.version,))})
        if rollout.phase is RolloutPhase.IDLE:
            allowed = frozenset({channel.active})
    elif store.lineage is not None:
        lineage = store.lineage.number
    by_name = {pod.name: pod for pod in pods}
    right = sum(pod.ready and pod.version in allowed for pod in pods)
    live, each = _live(observed, observed.pods)
    shown = tuple(
        PodStatus(
            name=view.name,
            version=view.agent.version if view.agent else None,
            checksum=view.agent.checksum if view.agent else None,
            state=_pod_state(view, by_name.get(view.name)),
            accept_length=each.get(view.name),
        )
        for view in observed.pods[:MAX_PODS_SHOWN]
    )
    new = SpeculatorStatus(
        observed_generation=observed.owner.generation,
        lineage=lineage,
        active=active,
        previous=previous,
        candidate=candidate,
        rollout=rollout,
        training=_training(observed),
        accept_length=live or old.accept_length,
        updated=f"{right}/{spec.serving.replicas}",
        replicas=len(pods),
        ready_replicas=sum(pod.ready for pod in pods),
        selector=selector_text(observed.owner, INFERENCE),
        traces=sum(view.agent.capture.answer_tokens for view in observed.pods if view.agent),
        rejected=sorted(set(rejected)),
        pods=list(shown),
        history=[*old.history, *history][-MAX_HISTORY:],
    )
    return new.model_copy(update={"conditions": list(conditions(observed, new, right, now))})


def _steady(status: SpeculatorStatus) -> SpeculatorStatus:
    pods = [pod.model_copy(update={"accept_length": None}) for pod in status.pods]
    calm = [
        condition.model_copy(update={"message": ""}) if condition.type is ConditionType.TRAINER_READY else condition
        for condition in status.conditions
    ]
    update = {"conditions": calm, "accept_length": None, "traces": 0, "training": TrainingStatus(), "pods": pods}
    return status.model_copy(update=update)


def worth_writing(old: SpeculatorStatus, new: SpeculatorStatus, since: timedelta) -> bool:
    """Whether ``new`` says something new: at once for what matters, after :data:`REFRESH` for running figures."""
    return _steady(old) != _steady(new) or (since >= REFRESH and old != new)
