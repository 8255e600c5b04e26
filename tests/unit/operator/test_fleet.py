"""What the fleet tells a loop about the others, and what its metric shows."""

from __future__ import annotations

from aurora_operator import metrics
from aurora_operator.fleet import MAX_UNKNOWN_SECONDS, START_SECONDS, Fleet
from aurora_operator.observe.observed import FleetView
from aurora_operator.plan.actions import MeasurementStage
from aurora_operator.plan.operator_upgrade import UpgradeDecision, UpgradeStage

A, B, C, ELSEWHERE = ("team", "a"), ("team", "b"), ("team", "c"), ("elsewhere", "d")
MEASURING, WAITING = MeasurementStage.MEASURING, MeasurementStage.WAITING


def decision(stage: UpgradeStage) -> UpgradeDecision:
    return UpgradeDecision({}, {}, stage)


def counts() -> dict[str, float]:
    (family,) = metrics.UPGRADES.collect()
    return {sample.labels["stage"]: sample.value for sample in family.samples}


def test_a_loop_sees_the_others_and_not_itself() -> None:
    fleet = Fleet(lambda: START_SECONDS)
    fleet.report(A, decision(UpgradeStage.RESTARTING))
    fleet.report(B, decision(UpgradeStage.WAITING))
    assert fleet.view(A) == FleetView(restarting=0)
    assert fleet.view(B) == FleetView(restarting=1)
    assert counts() == {"waiting": 1, "restarting": 1, "failed": 0}
    fleet.report(A, decision(UpgradeStage.FAILED))
    assert (fleet.view(B).failed, fleet.view(A).failed) == (1, 0)
    assert counts()["failed"] == 1
    fleet.report(A, decision(UpgradeStage.CURRENT))
    assert fleet.view(B) == FleetView()


def test_a_speculator_that_is_gone_or_cannot_be_used_waits_no_more() -> None:
    fleet = Fleet(lambda: START_SECONDS)
    for key in (A, B):
        fleet.report(key, decision(UpgradeStage.RESTARTING))
    fleet.forget(A)
    fleet.report(B, None)
    assert fleet.view(C) == FleetView()
    for stage in (UpgradeStage.RESTARTING, UpgradeStage.FAILED):
        fleet.report(B, decision(stage))
        assert fleet.view(C) != FleetView()
        fleet.report(B, None)
        assert fleet.view(C) == FleetView(), "nobody can tell when its turn would end"


def test_the_fleet_is_known_once_every_loop_reported_or_was_given_up() -> None:
    now = 0.0
    fleet = Fleet(lambda: now)
    fleet.expect(A)
    fleet.expect(B)
    fleet.report(A, decision(UpgradeStage.WAITING))
    fleet.report(B, decision(UpgradeStage.CURRENT))
    assert not fleet.view(A).known, "more loops may start"
    now = START_SECONDS
    assert fleet.view(A).known
    fleet.expect(C)
    assert (fleet.view(A).known, fleet.view(C).known) == (False, True)
    now = MAX_UNKNOWN_SECONDS
    assert fleet.view(A).known


def test_the_one_that_has_waited_longest_for_its_measurement_is_next() -> None:
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
