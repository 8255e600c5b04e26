"""A pod that is away with the version: how long it is waited for, and when its absence blames nobody."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.machine import Advance
from aurora_operator.plan.rollout.world import Pod
from aurora_protocol.agent_api import SwapPhase, SwapStatus
from aurora_protocol.draft_records import ChannelReason
from tests.unit.operator.rolls import JUDGED, NOW, UNJUDGED, A, B, pod, rolling, step, world
from tests.unit.operator.service import Service, sequence

LOADS = 30
"""Reconciles, of 10 s each, that an engine may take to load. The progress deadline is 60 s."""
REJECTED = Advance(0, ChannelReason.REFUSED, reject=1)
RETURNED = """
    Reject -> Idle; active 0, reject 1; RolloutFailed
"""


def service_in(phase: str, pods: int = 2, **policy: Any) -> Service:
    """A service whose roll of version 1 has just reached ``phase``. Pod a has the version."""
    service = Service(pods, **policy)
    service.start_limit = timedelta(seconds=10 * LOADS)
    service.reconcile_times({"canary": 3, "rolling": 7, "watching": 8}[phase])
    assert service["a"].version == 1
    return service


def at(seconds: float, *pods: Pod, **more: Any) -> Any:
    return world(*pods, now=NOW + timedelta(seconds=seconds), **more)


def away(name: str, **more: Any) -> Pod:
    return pod(name, None, **{"ready": False, "checksum": None, **more})


# one slow restart ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "then"),
    [("canary", RolloutPhase.JUDGING), ("rolling", RolloutPhase.JUDGING), ("watching", RolloutPhase.JUDGING)],
)
def test_one_restart_of_an_engine_that_loads_slowly_is_tolerated(phase: str, then: RolloutPhase) -> None:
    """``failureLimit`` is 1, and the engine takes longer to load than the progress deadline."""
    service = service_in(phase, analysis=JUDGED | {"watch_seconds": 400})
    service["a"].reload()
    for line in service.reconcile_times(LOADS - 2):
        assert line.startswith(("Proceed", "Watch", "Pass -> Judging"))
    service["a"].ready = True
    service.reconcile()
    assert (service.roll.engine_crashes, service.roll.phase) == (1, then)
    service.reconcile_until_idle()
    assert (service.active, service.rejected) == (1, set())
    assert {one.version for one in service.pods} == {1}


@pytest.mark.parametrize("phase", ["canary", "watching"])
def test_a_pod_that_does_not_come_back_in_the_time_of_a_start_rejects_the_version(phase: str) -> None:
    service = service_in(phase)
    service["a"].reload()
    held = "Proceed" if phase == "canary" else "Watch"
    assert service.reconcile_times(LOADS + 2) == sequence(f"{LOADS + 1} x {held} -> Judging{RETURNED}")
    assert service.roll.message == "pod a did not come back with version 1 for 300 s"


@pytest.mark.parametrize("phase", ["canary", "watching"])
def test_an_engine_that_ends_again_and_again_gets_the_progress_deadline_only(phase: str) -> None:
    service = service_in(phase)
    service["a"].crash_again_and_again()
    held = "Proceed" if phase == "canary" else "Watch"
    assert service.reconcile_times(8) == sequence(f"7 x {held} -> Judging{RETURNED}")
    assert service.roll.message == "pod a did not come back with version 1 for 60 s"


# something else keeps the pod away -----------------------------------------------------------------------------------


def test_a_pod_that_kubernetes_deletes_with_its_lost_node_blames_nobody() -> None:
    service = service_in("canary")
    service["a"].reload()
    assert service.reconcile_times(LOADS) == sequence(f"{LOADS} x Proceed -> Judging")
    service.scale(1, first="a")
    assert service.reconcile() == "Proceed -> Judging; b=1"
    service.reconcile_until_idle()
    assert (service.active, service.rejected) == (1, set())


def test_an_engine_that_hangs_since_its_pod_started_is_late() -> None:
    service = service_in("canary")
    service["a"].ready, service["a"].started_together = False, True
    assert service.reconcile_times(LOADS + 2) == sequence(f"{LOADS + 1} x Proceed -> Judging{RETURNED}")


# the pod's clock, not the roll's -------------------------------------------------------------------------------------


def staging(name: str) -> Pod:
    return pod(name, boot="b", swap=SwapStatus(phase=SwapPhase.STAGING, version=1))


def test_an_engine_that_its_agent_alone_calls_ready_is_not_back() -> None:
    """It ends before its readiness probe passes, each time. No crash is counted, because the pod is never ready."""
    roll = rolling(engine_boots={A: "a"}, progressed=NOW, updated=1)
    roll = step(at(0, away(A), staging(B)), roll).rollout
    for seconds in range(10, 601, 10):
        made = step(at(seconds, away(A, boot=str(seconds)), staging(B)), roll)
        assert (made.advance, made.rollout.missing_since, made.rollout.progressed) == (None, {A: NOW}, NOW)
        roll = made.rollout
    assert step(at(601, away(A, boot="b"), staging(B)), roll).advance == REJECTED


def test_a_pod_that_kubernetes_calls_ready_is_back_although_its_agent_is_silent() -> None:
    roll = step(at(0, away(A), staging(B)), rolling(engine_boots={A: "a"}, updated=1)).rollout
    made = step(at(599, away(A, kubernetes_ready=True), staging(B)), roll)
    assert (made.rollout.missing_since, made.rollout.progressed) == ({}, NOW + timedelta(seconds=599))
    assert step(at(700, away(A, kubernetes_ready=True), staging(B)), made.rollout).advance is None


# more pods are away than may be away --------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [{"canary": 2}, {"canary": 2, "max_swapping": 4, "analysis": UNJUDGED}])
def test_a_version_that_keeps_several_engines_down_does_not_hold_its_own_roll(policy: dict[str, Any]) -> None:
    service = Service(4, **policy)
    service.start_limit = timedelta(seconds=10 * LOADS)
    while service["b"].version == 0:
        service.reconcile()
    for name in "ab":
        service[name].reload()
    assert service.reconcile_times(LOADS + 2) == sequence(f"{LOADS + 1} x Wait -> Judging{RETURNED}")
    assert service.rejected == {1}


# the clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interruption", ["gap", "pause", "clock"])
def test_a_clock_begins_again_after_an_interruption(interruption: str) -> None:
    roll = step(at(0, away(A), pod(B)), rolling(engine_boots={A: "a"})).rollout
    seen = at(601, away(A), pod(B))
    if interruption == "gap":
        seen = replace(seen, observation_gap=True)
    elif interruption == "pause":
        seen = at(601, away(A), pod(B), policy={"paused": True})
        roll = step(at(1, away(A), pod(B), policy={"paused": True}), roll).rollout
    else:
        seen = at(-3600, away(A), pod(B), observation_gap=True)
    made = step(seen, roll)
    assert made.advance is None
    assert all(since == seen.now for since in made.rollout.missing_since.values())
