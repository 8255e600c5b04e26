"""The status that follows from what was observed and decided. Pure.

Invariants: ``observedGeneration`` and the conditions are about the same spec. Figures that change all the time (live
acceptance, traces, training) are refreshed at most every :data:`REFRESH`, so an idle speculator writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import (
    MAX_HISTORY,
    MAX_KEPT_SHOWN,
    MAX_PODS_SHOWN,
    MAX_REJECTED,
    CandidateStatus,
    HistoryEntry,
    PodStatus,
    PreviousVersion,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    TrainingStatus,
    VersionStatus,
)
from aurora_operator.children.common_pod import store_settings
from aurora_operator.children.metadata import INFERENCE, selector_text
from aurora_operator.observe.observed import Observed, PodView, StoreView
from aurora_operator.plan.conditions import conditions, starts
from aurora_operator.plan.figures import (
    estimated_speedup,
    held_devices,
    live_acceptance,
    ratio_text,
    saved_devices,
)
from aurora_operator.plan.rollout.world import Pod
from aurora_operator.plan.wanted_children import trainer_replicas
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.draft_records import Channel
from aurora_protocol.evidence_records import Arm, Evidence
from aurora_protocol.training_records import TrainerPhase

REFRESH = timedelta(minutes=1)
"""Time between two writes of a status in which only figures changed."""
_REASONS_AT_WORK = frozenset(TrainerPhase)
"""Reasons of TrainerReady between which a trainer changes by itself, with the traffic. They count as figures."""


@dataclass(frozen=True)
class StatusChanges:
    """The parts of the status that the plan decides. The other parts are observed."""

    rollout: RolloutStatus
    operator_state: dict[str, Any]
    candidate: CandidateStatus | None
    rejected: frozenset[int]
    history: tuple[HistoryEntry, ...] = ()
    """New entries, oldest first."""


def _version_status(store: StoreView, version: int, since: datetime | None, concurrency: int) -> VersionStatus:
    status = VersionStatus(version=version, since=since)
    if own := store.evidence_of(version):
        return status.model_copy(update=_figures(own[-1], Arm.CANDIDATE, concurrency))
    # The initial draft has no evidence of its own. Its candidates were measured against it, as the "active" arm.
    as_active = [e for e in store.evidence if e.active_version == version]
    if as_active:
        return status.model_copy(update=_figures(max(as_active, key=lambda e: e.finished), Arm.ACTIVE, concurrency))
    return status


def _figures(evidence: Evidence, arm: Arm, concurrency: int) -> dict[str, str | None]:
    return {
        "speedup": ratio_text(evidence, arm, Arm.OFF, concurrency),
        "gain": ratio_text(evidence, arm, Arm.ACTIVE, concurrency) if arm is Arm.CANDIDATE else None,
    }


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
    if pod is None or not pod.ready:
        return view.waiting or "Starting"
    return "WithoutDraft" if view.agent.serves_without_draft else "Ready"


def _training(observed: Observed) -> TrainingStatus:
    record = observed.store.trainer
    figures = {"devices": held_devices(observed), "saved_devices": saved_devices(observed)}
    if record is None:
        return observed.status.training.model_copy(update=figures)
    held_out = record.held_out_acceptance_length
    stopped = trainer_replicas(observed) == 0
    return TrainingStatus(
        phase="Suspended" if stopped else record.phase,
        step=record.step,
        trained_tokens=record.trained_tokens,
        held_out_accept_length=None if held_out is None else f"{held_out:.2f}",
        **figures,
    )


def _active_and_previous(observed: Observed) -> tuple[VersionStatus | None, PreviousVersion | None]:
    """The active version and the previous one. They stay as they are while no channel can be read."""
    old, store = observed.status, observed.store
    channel = store.channel
    if channel is None:
        return old.active, old.previous
    known = old.active is not None and old.active.version == channel.active
    since = old.active.since if known and old.active else channel.created
    active = _version_status(store, channel.active, since, observed.spec.validation.primary_concurrency)
    return active, None if channel.previous is None else PreviousVersion(version=channel.previous)


def _expected_versions(channel: Channel | None, rollout: RolloutStatus) -> frozenset[int]:
    """The versions that a pod may serve now: the active one, and during a roll its version too."""
    if channel is None:
        return frozenset()
    if rollout.phase is RolloutPhase.IDLE or rollout.version is None:
        return frozenset({channel.active})
    return frozenset({channel.active, rollout.version})


def _pod_statuses(observed: Observed, pods: Iterable[Pod]) -> list[PodStatus]:
    by_name = {pod.name: pod for pod in pods}
    return [
        PodStatus(
            name=view.name,
            version=view.agent.version if view.agent else None,
            checksum=view.agent.checksum if view.agent else None,
            state=_pod_state(view, by_name.get(view.name)),
        )
        for view in observed.pods[:MAX_PODS_SHOWN]
    ]


def status_of(observed: Observed, pods: tuple[Pod, ...], changes: StatusChanges, now: datetime) -> SpeculatorStatus:
    """The new status."""
    old = observed.status
    active, previous = _active_and_previous(observed)
    expected = _expected_versions(observed.store.channel, changes.rollout)
    up_to_date = sum(pod.ready and pod.version in expected for pod in pods)
    accept_length = live_acceptance(observed)
    new = SpeculatorStatus(
        observed_generation=observed.owner.generation,
        store_root=store_settings(observed.owner, observed.spec).root,
        active=active,
        previous=previous,
        candidate=changes.candidate,
        rollout=changes.rollout,
        training=_training(observed),
        accept_length=accept_length or old.accept_length,
        estimated_speedup=estimated_speedup(observed),
        updated=f"{up_to_date}/{observed.spec.serving.replicas}",
        replicas=min(len(pods), observed.spec.serving.replicas),
        ready_replicas=sum(pod.ready for pod in pods),
        selector=selector_text(observed.owner, INFERENCE),
        rejected=sorted(changes.rejected)[-MAX_REJECTED:],
        kept_versions=list(observed.store.kept[-MAX_KEPT_SHOWN:]) if observed.store.ok else old.kept_versions,
        pods=_pod_statuses(observed, pods),
        starting=starts(observed),
        history=[*old.history, *changes.history][-MAX_HISTORY:],
        operator=old.operator,
        operator_state=changes.operator_state,
    )
    return new.model_copy(update={"conditions": list(conditions(observed, new, up_to_date, now))})


def _without_running_figures(status: SpeculatorStatus) -> SpeculatorStatus:
    update = {
        "conditions": [_without_progress(condition) for condition in status.conditions],
        "accept_length": None,
        "estimated_speedup": None,
        "training": TrainingStatus(),
    }
    return status.model_copy(update=update)


def _without_progress(condition: Condition) -> Condition:
    """``condition`` without what a trainer at work changes all the time: its phase, and the steps in its message."""
    if condition.type is not ConditionType.TRAINER_READY:
        return condition
    works = condition.status is ConditionStatus.TRUE and condition.reason in _REASONS_AT_WORK
    return condition.model_copy(update={"message": "", "reason": "" if works else condition.reason})


def differs_in_decisions(old: SpeculatorStatus, new: SpeculatorStatus) -> bool:
    """Whether ``new`` differs in more than figures that change all the time."""
    return _without_running_figures(old) != _without_running_figures(new)


def worth_writing(old: SpeculatorStatus, new: SpeculatorStatus, since_written: timedelta) -> bool:
    """Whether to write ``new``: decisions at once, figures that change all the time after :data:`REFRESH`."""
    return differs_in_decisions(old, new) or (since_written >= REFRESH and old != new)
