"""A measurement whose Job is suspended by a queue or a person: the condition says so, and it neither fails nor ends."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus
from aurora_operator.observe.observed import JobView, Observed
from aurora_operator.plan import Plan
from aurora_protocol.evidence_records import VerdictKind
from tests.unit.operator.worlds import (
    NOW,
    evidence,
    made,
    observed,
    pod,
    spec,
    status,
    store,
    validating,
)

JOB = JobView("chat-validate-v1-1", 1, 1, suspended=True)


def suspended(job: JobView = JOB, now: datetime = NOW) -> Observed:
    """Version 1 is the candidate, and its Job is suspended. The status says so."""
    begun = observed(store=store(0, 1))
    seen = replace(begun, status=status(begun, now), jobs=(job,))
    return replace(seen, status=made(seen, now).status or seen.status)


def candidate(plan: Plan, world: Observed) -> CandidateStatus:
    found = (plan.status or world.status).candidate
    assert found is not None
    return found


def test_the_status_says_that_the_measurement_is_suspended_until_it_goes_on() -> None:
    world = suspended(JOB)
    waits = world.status.candidate
    assert waits is not None
    assert "its Job is suspended" in waits.message
    resumed = replace(world, jobs=(replace(JOB, suspended=False),))
    assert candidate(made(resumed), resumed).message == "measuring on the real engine"


@pytest.mark.parametrize("waited", [timedelta(seconds=2), timedelta(hours=2), timedelta(days=30)])
def test_a_suspended_job_waits_for_as_long_as_it_takes(waited: timedelta) -> None:
    """A Job's time is 77 minutes here. Kubernetes counts it while the Job is active. Nobody else does."""
    world = suspended()
    later = made(world, NOW + waited)
    assert (later.job, later.delete_jobs, later.moving) == (None, (), False)
    assert later.status is None, "nothing changes, so nothing is written"
    assert candidate(later, world).phase is CandidatePhase.VALIDATING
    assert candidate(later, world).attempt == 1


def test_a_suspended_job_keeps_its_place_in_the_queue_when_newer_versions_come() -> None:
    world = replace(suspended(), store=store(0, 1, 2, 3))
    assert validating(world) == 1
    assert made(world).delete_jobs == ()
    measured = replace(world, jobs=(), store=store(0, 1, 2, 3, evidence=(evidence(1, VerdictKind.REJECT),)))
    after = replace(measured, status=status(measured))
    assert validating(after) == 3


def test_a_suspended_job_holds_no_replica() -> None:
    """Its pod goes on serving, so nothing has to be recalled while another one is away."""
    begun = observed(
        spec=spec(serving={"replicas": 2}, validation={"measureOn": "Replica"}),
        store=store(0, 1),
        pods=(pod("chat-a", 0), pod("chat-b", 0)),
    )
    assert made(begun).job is not None
    away = (pod("chat-a", 0, ready=False), pod("chat-b", 0))
    seen = replace(begun, status=status(begun), jobs=(JOB,), pods=away)
    assert made(seen).delete_jobs == ()
    assert (candidate(made(seen), seen).phase, candidate(made(seen), seen).pod) == (CandidatePhase.VALIDATING, None)
