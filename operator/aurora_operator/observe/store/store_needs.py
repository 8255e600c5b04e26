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
        measurement = (candidate.version, candidate.attempt)
        measured = any(job.finished and (job.version, job.attempt) == measurement for job in jobs)
    rests = status.rollout.phase in (RolloutPhase.IDLE, RolloutPhase.PAUSED)
    return StoreNeeds(
        versions=status.versions() | asked,
        measurement=measurement,
        measured=measured,
        urgency=Urgency.REST if rests else Urgency.ROLLING,
        policy=GatePolicy.of(spec.validation),
        pin=spec.rollout.pin,
        intent=(owner.uid, owner.generation, requests),
    )
