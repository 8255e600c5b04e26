"""Derives what is needed from the store from the resource and its Jobs. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase, SpeculatorStatus
from aurora_operator.children.owner import Owner
from aurora_operator.observe.observed import JobView, UserRequests
from aurora_operator.observe.store.store_schedule import StoreNeeds, Urgency
from aurora_protocol.gate import GatePolicy


def store_needs(
    owner: Owner, spec: SpeculatorSpec, status: SpeculatorStatus, jobs: Iterable[JobView], requests: UserRequests
) -> StoreNeeds:
    """The records that the next decision depends on."""
    asked = {version for version in (spec.rollout.pin, requests.promote, requests.abort) if version is not None}
    candidate, measurement, measured = status.candidate, None, False
    if candidate is not None and candidate.phase is CandidatePhase.VALIDATING:
        attempt = (candidate.version, candidate.attempt)
        job = next((job for job in jobs if (job.version, job.attempt) == attempt), None)
        # A Job whose pod does not run writes no evidence, and may wait for days.
        if job is not None and (job.finished or not (job.suspended or job.waiting)):
            measurement, measured = attempt, job.finished
    rollout = status.rollout
    rests = rollout.phase in (RolloutPhase.IDLE, RolloutPhase.PAUSED)
    return StoreNeeds(
        versions=status.versions() | asked,
        measurement=measurement,
        measured=measured,
        urgency=Urgency.REST if rests else Urgency.ROLLING,
        step=(rollout.phase, rollout.version, rollout.updated, rollout.epoch),
        policy=GatePolicy.of(spec.validation),
        pin=spec.rollout.pin,
        intent=(owner.uid, owner.generation, requests),
    )
