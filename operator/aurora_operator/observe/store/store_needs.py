"""Derives what is needed from the store from the resource and its Jobs. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import CandidatePhase, SpeculatorStatus
from aurora_operator.children.owner import Owner
from aurora_operator.observe.observed import JobView, UserRequests
from aurora_operator.observe.store.store_reader import StoreNeeds
from aurora_protocol.gate import GatePolicy


def store_needs(
    owner: Owner, spec: SpeculatorSpec, status: SpeculatorStatus, jobs: Iterable[JobView], requests: UserRequests
) -> StoreNeeds:
    """The records that the next decision depends on.

    A Job's end changes the moment: its evidence is there before the Job ends.
    """
    asked = {version for version in (spec.rollout.pin, requests.abort) if version is not None}
    candidate, measured = status.candidate, None
    if candidate is not None and candidate.phase is CandidatePhase.VALIDATING:
        attempt = (candidate.version, candidate.attempt)
        measured = any(job.finished for job in jobs if (job.version, job.attempt) == attempt)
    rollout = status.rollout
    return StoreNeeds(
        versions=status.versions() | asked,
        policy=GatePolicy.of(spec.validation),
        pin=spec.rollout.pin,
        moment=(owner.uid, owner.generation, requests, measured, rollout.phase, rollout.version, rollout.updated),
    )
