"""A candidate waits before its measurement: for held-out requests, a ready pod, or the end of a pin.

The candidate says so, and takes neither Job nor replica.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus
from aurora_operator.observe.observed import TRAINER_SILENCE, JobView, Observed
from aurora_operator.plan import Plan
from aurora_protocol.training_records import TrainerStatus
from tests.unit.operator.worlds import (
    NOW,
    made,
    observed,
    pod,
    spec,
    store,
    trainer_record,
    validating,
)

NEEDED = 16
"""Four times the highest of ``concurrencies``, by default."""
ON_JOB = spec(serving={"replicas": 2})
ON_REPLICA = spec(serving={"replicas": 2}, validation={"measureOn": "Replica"})


def record(held_out: int | None, age: timedelta = timedelta(0)) -> TrainerStatus:
    return trainer_record(held_out_requests=held_out, updated=NOW - age)


def with_held_out(count: int | None, *versions: int, spec: SpeculatorSpec = ON_JOB) -> Observed:
    """Version 0 is active, and the newest of ``versions`` is new."""
    return observed(spec=spec, store=replace(store(0, *(versions or (1,))), trainer=record(count)))


def after(world: Observed, plan: Plan) -> Observed:
    """``world`` once the status of ``plan`` is stored."""
    return replace(world, status=plan.status or world.status)


def candidate_of(world: Observed) -> CandidateStatus:
    assert world.status.candidate is not None
    return world.status.candidate


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
