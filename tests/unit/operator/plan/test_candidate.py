"""A candidate: which version is measured and rolled out, what its measurement waits for, and what the status says.

A candidate that waits takes neither Job nor replica. A version that passed waits for its roll, and nothing newer is
measured before the roll ended.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
)
from aurora_operator.observe.observed import TRAINER_SILENCE, FleetView, JobView, Observed
from aurora_operator.plan import Plan
from aurora_operator.plan.actions import MeasurementStage
from aurora_protocol.evidence_records import MeasurementEnd, VerdictKind
from aurora_protocol.training_records import TrainerStatus
from tests.unit.operator.worlds import (
    NOW,
    evidence,
    made,
    observed,
    pod,
    registration,
    spec,
    status,
    store,
    trainer_record,
    validating,
)

ON_JOB = spec(serving={"replicas": 2})
ON_REPLICA = spec(serving={"replicas": 2}, validation={"measureOn": "Replica"})


def after(world: Observed, plan: Plan) -> Observed:
    """``world`` once the status of ``plan`` is stored."""
    return replace(world, status=plan.status or world.status)


def candidate_of(world: Observed) -> CandidateStatus:
    assert world.status.candidate is not None
    return world.status.candidate


# which version --------------------------------------------------------------------------------------------------------


PAUSED = spec(serving={"replicas": 2}, rollout={"paused": True})


def passed_and_waits() -> Observed:
    """Version 1 passed while rolls were paused. Then version 2 was registered."""
    before = observed(spec=PAUSED, store=store(0, 1, evidence=(evidence(1),)))
    return replace(before, status=status(before), store=store(0, 1, 2, evidence=(evidence(1),)))


def test_a_version_that_passed_waits_for_its_roll_and_nothing_newer_is_measured_meanwhile() -> None:
    delayed = passed_and_waits()
    waiting = made(delayed)
    assert (waiting.job, (waiting.status or delayed.status).candidate) == (None, delayed.status.candidate)
    resumed = made(replace(delayed, spec=observed().spec))
    assert resumed.status is not None
    assert (resumed.status.rollout.phase, resumed.status.rollout.version) == (RolloutPhase.JUDGING, 1)
    assert resumed.job is None, "the version being rolled out may become the one to compare with"


def test_a_version_whose_roll_ended_without_blame_makes_room_for_a_newer_one() -> None:
    delayed = passed_and_waits()
    tried = delayed.status.model_copy(update={"rollout": RolloutStatus(version=1, epoch=3)})
    assert validating(replace(delayed, status=tried)) == 2
    alone = replace(delayed, status=tried, store=store(0, 1, evidence=(evidence(1),)), spec=observed().spec)
    again = status(alone)
    assert (again.rollout.phase, again.rollout.version) == (RolloutPhase.JUDGING, 1), "nothing newer is there to try"


def test_a_candidate_with_outdated_evidence_is_replaced_by_the_newest_version() -> None:
    """Version 1 passed, or is measured, against a version that is no longer active."""
    stale = store(0, 1, 2, evidence=(evidence(1, active=7),))
    for phase in (CandidatePhase.VALIDATED, CandidatePhase.VALIDATING):
        known = CandidateStatus(version=1, phase=phase, job="chat-validate-v1-1")
        world = observed(status=SpeculatorStatus(candidate=known), store=stale)
        assert validating(world) == 2
        pinned = replace(world, spec=spec(serving={"replicas": 2}, rollout={"pin": 0}))
        assert validating(pinned) in (None, 1), "nothing new is measured against a version that is to stay"
    alone = replace(stale, registrations={v: registration(v) for v in (0, 1)})
    assert validating(observed(status=SpeculatorStatus(candidate=known), store=alone)) == 1


def test_a_candidate_that_is_being_measured_is_not_replaced() -> None:
    world = observed(store=store(0, 1))
    running = replace(world, status=status(world), jobs=(JobView("chat-validate-v1-1", 1, 1),), store=store(0, 1, 2))
    assert validating(running) == 1


def test_an_undecided_candidate_is_not_measured_again_and_makes_room_for_a_newer_version() -> None:
    begun = observed(store=store(0, 1))
    undecided = evidence(1, VerdictKind.INCONCLUSIVE, end=MeasurementEnd.BUDGET_USED)
    ended = replace(begun, status=status(begun), store=store(0, 1, 2, evidence=(undecided,)))
    first = replace(ended, status=status(ended))
    assert candidate_of(first).phase is CandidatePhase.INCONCLUSIVE
    assert first.status.rejected == [1]
    assert [(entry.event, entry.version) for entry in first.status.history] == [("Inconclusive", 1)]
    assert validating(first) == 2


# held-out requests ----------------------------------------------------------------------------------------------------


NEEDED = 16
"""Four times the highest of ``concurrencies``, by default."""


def record(held_out: int | None, age: timedelta = timedelta(0)) -> TrainerStatus:
    return trainer_record(held_out_requests=held_out, updated=NOW - age)


def with_held_out(count: int | None, *versions: int, spec: SpeculatorSpec = ON_JOB) -> Observed:
    """Version 0 is active, and the newest of ``versions`` is new."""
    return observed(spec=spec, store=replace(store(0, *(versions or (1,))), trainer=record(count)))


def events(plan: Plan) -> list[str]:
    return [note.reason for note in plan.notes]


@pytest.mark.parametrize("where", [ON_JOB, ON_REPLICA], ids=["Job", "Replica"])
def test_a_candidate_waits_and_is_measured_as_soon_as_enough_requests_are_held_out(where: SpeculatorSpec) -> None:
    world = with_held_out(0, spec=where)
    for count in (0, 0, 3, NEEDED - 1):
        world = replace(world, store=with_held_out(count).store)
        waits = made(world)
        assert (waits.job, waits.moving) == (None, False)
        assert not {"ValidationStarted", "ValidationFailed"} & set(events(waits))
        world = after(world, waits)
        shown = candidate_of(world)
        assert shown.phase is CandidatePhase.VALIDATING
        assert candidate_of(world).since is None, "no alert counts the wait as a measurement"
        assert f"waiting for held-out requests: {count} of {NEEDED}. " in shown.message
    begins = made(replace(world, store=with_held_out(NEEDED).store))
    assert begins.job is not None
    assert "ValidationStarted" in events(begins)
    begun = candidate_of(after(world, begins))
    assert (begun.attempt, begun.since) == (1, NOW)
    assert "measuring" in begun.message


def test_a_wait_that_nothing_changes_writes_nothing() -> None:
    world = with_held_out(0)
    waits = after(world, made(world))
    for waited in (timedelta(seconds=20), timedelta(days=2)):
        later = replace(waits, store=replace(waits.store, trainer=record(0, -waited)))
        assert made(later, NOW + waited).status is None


@pytest.mark.parametrize(
    "unknown", [None, record(None), record(0, TRAINER_SILENCE * 2)], ids=["no record", "not counted", "silent trainer"]
)
def test_a_measurement_begins_where_no_trainer_reports_a_count(unknown: TrainerStatus | None) -> None:
    begins = made(observed(store=replace(store(0, 1), trainer=unknown)))
    assert begins.job is not None
    assert "ValidationStarted" in events(begins)


def test_the_report_of_a_silent_trainer_holds_back_no_measurement() -> None:
    world = observed(store=replace(store(0, 1), trainer=record(0)))
    assert made(world, NOW + TRAINER_SILENCE).job is None, "the trainer reports"
    assert made(world, NOW + TRAINER_SILENCE + timedelta(seconds=1)).job is not None, "the trainer is silent"


@pytest.mark.parametrize("age", [timedelta(0), TRAINER_SILENCE * 2, timedelta(days=9)], ids=str)
def test_a_candidate_waits_while_training_is_suspended_until_enough_is_held_out(age: timedelta) -> None:
    """The count cannot grow, so each measurement would take a machine in vain."""
    suspended = spec(serving={"replicas": 2}, training={"suspended": True})
    for unknown in (None, record(None, age), record(0, age)):
        waits = made(observed(spec=suspended, store=replace(store(0, 1), trainer=unknown)))
        assert waits.job is None
        assert "ValidationStarted" not in events(waits)
        assert waits.status is not None
        assert waits.status.candidate is not None
        assert "suspended" in waits.status.candidate.message
    begins = made(observed(spec=suspended, store=replace(store(0, 1), trainer=record(NEEDED, age))))
    assert begins.job is not None


PINNED: dict[str, Any] = {"spec": spec(serving={"replicas": 2}, rollout={"pin": 0})}
NOT_READY = {"pods": (pod("chat-a", 0, ready=False), pod("chat-b", 0, ready=False))}
FAULTY = {"spec_fault": "spec.training: wrong"}


@pytest.mark.parametrize("hindrance", [PINNED, NOT_READY, FAULTY], ids=["pin", "no ready pod", "spec fault"])
def test_a_candidate_that_waits_begins_only_once_measurements_may_begin(hindrance: dict[str, Any]) -> None:
    world = with_held_out(0)
    world = replace(after(world, made(world)), store=with_held_out(NEEDED).store)
    hindered = replace(world, **hindrance)
    for _ in range(2):
        waits = made(hindered)
        assert waits.job is None
        assert "ValidationStarted" not in events(waits)
        hindered = after(hindered, waits)
        assert candidate_of(hindered).since is None
        assert candidate_of(hindered).message.startswith("waiting: nothing is measured while")
    begins = made(replace(world, status=hindered.status))
    assert begins.job is not None
    assert "ValidationStarted" in events(begins)


def test_a_newer_version_takes_the_place_of_one_that_waits() -> None:
    world = with_held_out(0)
    waits = after(world, made(world))
    assert validating(replace(waits, store=with_held_out(0, 1, 2).store)) == 2


def test_a_measurement_under_way_goes_on_when_the_trainer_starts_to_count_anew() -> None:
    """A Job that was created just before the status was written stays as well."""
    job = JobView("chat-validate-v1-1", 1, 1)
    begun = after(with_held_out(NEEDED), made(with_held_out(NEEDED)))
    waits = after(with_held_out(0), made(with_held_out(0)))
    for world in (begun, waits):
        short = replace(world, store=with_held_out(0).store, jobs=(job,))
        goes_on = made(short)
        assert goes_on.delete_jobs == ()
        assert "measuring" in candidate_of(after(short, goes_on)).message


# another measurement of the namespace ---------------------------------------------------------------------------------


OTHER_MEASURES = FleetView(measured_first="other")
MEASURING, WAITING = MeasurementStage.MEASURING, MeasurementStage.WAITING


def with_candidate(where: SpeculatorSpec, fleet: FleetView = OTHER_MEASURES) -> Observed:
    """Version 0 is active, and version 1 is new."""
    return observed(spec=where, store=store(0, 1), fleet=fleet)


@pytest.mark.parametrize("where", [ON_JOB, ON_REPLICA], ids=["Job", "Replica"])
def test_a_candidate_waits_while_another_speculator_of_the_namespace_measures(where: SpeculatorSpec) -> None:
    world = with_candidate(where)
    waits = made(world)
    assert (waits.job, waits.measurement) == (None, WAITING)
    assert waits.status is not None
    assert waits.status.candidate is not None
    assert waits.status.candidate.since is None
    assert "other" in waits.status.candidate.message
    begins = made(replace(after(world, waits), fleet=FleetView()))
    assert begins.job is not None
    assert begins.measurement is MEASURING


def test_a_measurement_goes_on_although_another_began_meanwhile() -> None:
    """After a restart of the operator two loops may begin in any order."""
    world = with_candidate(ON_JOB, FleetView())
    begun = replace(after(world, made(world)), fleet=OTHER_MEASURES)
    assert begun.status.candidate is not None
    job = JobView(name=str(begun.status.candidate.job), version=1, attempt=1)
    goes_on = made(replace(begun, jobs=(job,)))
    assert (goes_on.delete_jobs, goes_on.measurement) == ((), MEASURING)
    suspended = made(replace(begun, jobs=(replace(job, suspended=True),)))
    assert suspended.measurement is None, "a queue holds it back, and nobody waits for it"


def test_a_candidate_that_waits_for_something_else_holds_no_place() -> None:
    world = observed(spec=spec(serving={"replicas": 2}, rollout={"pin": 0}), store=store(0, 1), fleet=OTHER_MEASURES)
    assert made(world).measurement is None


# a Job that a queue or a person suspends ------------------------------------------------------------------------------


JOB = JobView("chat-validate-v1-1", 1, 1, suspended=True)


def suspended(job: JobView = JOB, now: datetime = NOW) -> Observed:
    """Version 1 is the candidate, and its Job is suspended. The status says so."""
    begun = observed(store=store(0, 1))
    seen = replace(begun, status=status(begun, now), jobs=(job,))
    return replace(seen, status=made(seen, now).status or seen.status)


def test_the_status_says_that_the_measurement_is_suspended_until_it_goes_on() -> None:
    world = suspended(JOB)
    assert "its Job is suspended" in candidate_of(world).message
    resumed = replace(world, jobs=(replace(JOB, suspended=False),))
    assert candidate_of(after(resumed, made(resumed))).message == "measuring on the real engine"


@pytest.mark.parametrize("waited", [timedelta(seconds=2), timedelta(hours=2), timedelta(days=30)])
def test_a_suspended_job_waits_for_as_long_as_it_takes(waited: timedelta) -> None:
    """A Job's time is 77 minutes here. Kubernetes counts it while the Job is active. Nobody else does."""
    world = suspended()
    later = made(world, NOW + waited)
    assert (later.job, later.delete_jobs, later.moving) == (None, (), False)
    assert later.status is None, "nothing changes, so nothing is written"
    assert candidate_of(after(world, later)).phase is CandidatePhase.VALIDATING
    assert candidate_of(after(world, later)).attempt == 1


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
    assert (candidate_of(after(seen, made(seen))).phase, candidate_of(after(seen, made(seen))).pod) == (
        CandidatePhase.VALIDATING,
        None,
    )
