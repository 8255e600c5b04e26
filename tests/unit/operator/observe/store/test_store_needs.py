"""The records that are needed, and the moments at which the store is read at once."""

from __future__ import annotations

from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    PreviousVersion,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    VersionStatus,
)
from aurora_operator.observe.observed import JobView
from aurora_operator.observe.store.store_reader import StoreNeeds, store_needs
from tests.unit.operator.worlds import OWNER, spec


def needs(status: SpeculatorStatus, *jobs: JobView, abort: int | None = None, pin: int | None = None) -> StoreNeeds:
    rollout = {} if pin is None else {"rollout": {"pin": pin}}
    return store_needs(OWNER, spec(**rollout), status, jobs, abort)


def test_versions_are_those_of_the_status_and_those_that_a_person_asks_for() -> None:
    status = SpeculatorStatus(active=VersionStatus(version=4), previous=PreviousVersion(version=2))
    assert needs(status, abort=8, pin=1).versions == {1, 2, 4, 8}


def test_the_store_is_read_once_the_job_of_the_present_attempt_ended() -> None:
    measuring = SpeculatorStatus(candidate=CandidateStatus(version=3, phase=CandidatePhase.VALIDATING, attempt=2))
    running, ended = JobView("j", 3, 2), JobView("j", 3, 2, failed=True)
    former = JobView("j", 3, 1, succeeded=True)
    assert needs(measuring, running, former) == needs(measuring, running)
    assert needs(measuring, ended, former) != needs(measuring, running, former)


def test_the_store_is_read_at_each_step_of_a_roll_and_for_each_request_of_a_person() -> None:
    rolling = RolloutStatus(phase=RolloutPhase.ROLLING, version=1, updated=1, epoch=3)
    steps = [needs(SpeculatorStatus(rollout=rolling.model_copy(update={"updated": done}))) for done in (1, 1, 2)]
    assert steps[0] == steps[1] != steps[2]
    assert needs(SpeculatorStatus()) != needs(SpeculatorStatus(), abort=1)
