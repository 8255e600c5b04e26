"""What is needed from the store follows from the resource and its Jobs."""

from __future__ import annotations

from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    VersionStatus,
)
from aurora_operator.observe.observed import JobView, UserRequests
from aurora_operator.observe.store.store_needs import store_needs
from aurora_operator.observe.store.store_schedule import StoreNeeds, Urgency
from tests.unit.operator.worlds import OWNER, spec


def needs(
    status: SpeculatorStatus, *jobs: JobView, requests: UserRequests | None = None, pin: int | None = None
) -> StoreNeeds:
    rollout = {} if pin is None else {"rollout": {"pin": pin}}
    return store_needs(OWNER, spec(**rollout), status, jobs, requests or UserRequests())


def measuring(attempt: int) -> SpeculatorStatus:
    return SpeculatorStatus(candidate=CandidateStatus(version=3, phase=CandidatePhase.VALIDATING, attempt=attempt))


def test_versions_are_those_of_the_status_and_those_that_a_person_asks_for() -> None:
    status = SpeculatorStatus(active=VersionStatus(version=4), previous=VersionStatus(version=2))
    assert needs(status, requests=UserRequests(promote=7, abort=8), pin=1).versions == {1, 2, 4, 7, 8}


def test_evidence_is_expected_once_the_job_of_the_present_attempt_ended() -> None:
    running, ended = JobView("j", 3, 2), JobView("j", 3, 2, failed=True)
    former = JobView("j", 3, 1, succeeded=True)
    assert (needs(measuring(2), running, former).measurement, needs(measuring(2), running, former).measured) == (
        (3, 2),
        False,
    )
    assert needs(measuring(2), ended, former).measured
    assert needs(SpeculatorStatus(), ended).measurement is None


def test_a_job_whose_pod_does_not_run_writes_no_evidence() -> None:
    for job in (JobView("j", 3, 2, suspended=True), JobView("j", 3, 2, waiting="Unschedulable")):
        assert needs(measuring(2), job).measurement is None
    assert needs(measuring(2)).measurement is None, "the candidate waits, and has no Job"
    assert needs(measuring(2), JobView("j", 3, 2)).measurement == (3, 2)


def test_each_step_of_a_roll_is_another_one() -> None:
    rolling = RolloutStatus(phase=RolloutPhase.ROLLING, version=1, updated=1, epoch=3)
    steps = [needs(SpeculatorStatus(rollout=rolling.model_copy(update={"updated": done}))).step for done in (1, 1, 2)]
    assert steps[0] == steps[1] != steps[2]


def test_a_roll_is_urgent_and_a_paused_one_is_not() -> None:
    for phase in RolloutPhase:
        urgency = needs(SpeculatorStatus(rollout=RolloutStatus(phase=phase))).urgency
        rests = phase in (RolloutPhase.IDLE, RolloutPhase.PAUSED)
        assert urgency is (Urgency.REST if rests else Urgency.ROLLING)


def test_a_request_of_a_person_changes_the_intent() -> None:
    before = needs(SpeculatorStatus()).intent
    assert needs(measuring(1)).intent == before
    assert needs(SpeculatorStatus(), requests=UserRequests(abort=1)).intent != before
