"""The candidates of one namespace are measured one after the other, in the order in which they could have begun."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.fleet import Fleet
from aurora_operator.observe.observed import FleetView, JobView, Observed
from aurora_operator.plan import Plan
from aurora_operator.plan.actions import MeasurementStage
from tests.unit.operator.worlds import made, observed, spec, store

ON_JOB = spec(serving={"replicas": 2})
ON_REPLICA = spec(serving={"replicas": 2}, validation={"measureOn": "Replica"})
OTHER_MEASURES = FleetView(measured_first="other")
A, B, C, ELSEWHERE = ("team", "a"), ("team", "b"), ("team", "c"), ("elsewhere", "d")
MEASURING, WAITING = MeasurementStage.MEASURING, MeasurementStage.WAITING


def with_candidate(where: SpeculatorSpec, fleet: FleetView = OTHER_MEASURES) -> Observed:
    """Version 0 is active, and version 1 is new."""
    return observed(spec=where, store=store(0, 1), fleet=fleet)


def after(world: Observed, plan: Plan, fleet: FleetView) -> Observed:
    return replace(world, status=plan.status or world.status, fleet=fleet)


@pytest.mark.parametrize("where", [ON_JOB, ON_REPLICA], ids=["Job", "Replica"])
def test_a_candidate_waits_while_another_speculator_of_the_namespace_measures(where: SpeculatorSpec) -> None:
    world = with_candidate(where)
    waits = made(world)
    assert (waits.job, waits.measurement) == (None, WAITING)
    assert waits.status is not None
    assert waits.status.candidate is not None
    assert waits.status.candidate.since is None
    assert "other" in waits.status.candidate.message
    begins = made(after(world, waits, FleetView()))
    assert begins.job is not None
    assert begins.measurement is MEASURING


def test_a_measurement_goes_on_although_another_began_meanwhile() -> None:
    """After a restart of the operator two loops may begin in any order."""
    world = with_candidate(ON_JOB, FleetView())
    begun = after(world, made(world), OTHER_MEASURES)
    assert begun.status.candidate is not None
    job = JobView(name=str(begun.status.candidate.job), version=1, attempt=1)
    goes_on = made(replace(begun, jobs=(job,)))
    assert (goes_on.delete_jobs, goes_on.measurement) == ((), MEASURING)
    suspended = made(replace(begun, jobs=(replace(job, suspended=True),)))
    assert suspended.measurement is None, "a queue holds it back, and nobody waits for it"


def test_a_candidate_that_waits_for_something_else_holds_no_place() -> None:
    world = observed(spec=spec(serving={"replicas": 2}, rollout={"pin": 0}), store=store(0, 1), fleet=OTHER_MEASURES)
    assert made(world).measurement is None


def test_the_one_that_has_waited_longest_is_next() -> None:
    fleet = Fleet()
    fleet.report_measurement(A, MEASURING)
    assert [fleet.view(key).measured_first for key in (A, B, ELSEWHERE)] == ["", "a", ""]
    fleet.report_measurement(C, WAITING)
    fleet.report_measurement(B, WAITING)
    fleet.report_measurement(C, WAITING)
    fleet.report_measurement(A, None)
    assert [fleet.view(key).measured_first for key in (A, B, C)] == ["c", "c", ""]
    fleet.report_measurement(C, MEASURING)
    fleet.report_measurement(A, WAITING)
    fleet.report_measurement(C, None)
    assert [fleet.view(key).measured_first for key in (A, B)] == ["b", ""]
    fleet.forget(B)
    assert fleet.view(A).measured_first == ""
    fleet.report_measurement(A, WAITING)
    fleet.report(A, None)
    assert fleet.view(C).measured_first == "", "its spec cannot be used"
