"""Failures that reject a version, and failures that say more about the machine, the network or the store."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.machine import Advance
from aurora_operator.plan.rollout.roll import Roll
from aurora_protocol.agent_api import SwapPhase, SwapStatus
from aurora_protocol.draft_records import ChannelReason
from tests.unit.operator.rolls import (
    FAILED,
    JUDGED,
    NOW,
    UNJUDGED,
    A,
    B,
    C,
    canary,
    pod,
    rolling,
    step,
    traffic,
    watching,
    world,
)
from tests.unit.operator.service import Service

# engines that crash --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [RolloutPhase.JUDGING, RolloutPhase.ROLLING])
@pytest.mark.parametrize("judged", [True, False])
def test_a_version_whose_engines_crash_is_rejected(phase: RolloutPhase, judged: bool) -> None:
    """Otherwise a version that is not judged would crash engines, stop without blame and start again, forever."""
    policy: dict[str, Any] = {"analysis": JUDGED if judged else UNJUDGED}
    state = canary().model_copy(update={"phase": phase} | ({} if judged else {"analysis": None}))
    served = world(pod(A, 1, **traffic(0)), pod(B), policy=policy)
    state = step(served, state).rollout
    down = step(world(pod(A, None, ready=False, lone_restarts=1), pod(B), policy=policy), state)
    assert (down.advance, down.rollout.engine_crashes) == (None, 1), "counted before the next engine is up"
    again = step(world(pod(A, None, ready=False, lone_restarts=2), pod(B), policy=policy), down.rollout)
    assert again.advance == Advance(0, ChannelReason.REFUSED, reject=1)
    assert "2 engines crashed while serving version 1" in again.rollout.message
    assert (again.rollout.lone_restarts, again.rollout.engine_crashes) == ({}, 0), "the next roll counts from zero"


def test_an_engine_that_crashes_before_it_was_seen_with_the_version_counts() -> None:
    state = step(world(pod(A), pod(B), next_version=1), Roll()).rollout
    asked = step(world(pod(A), pod(B)), state)
    assert asked.swaps == {A: 1}
    again = step(world(pod(A, lone_restarts=1), pod(B)), asked.rollout)
    assert (again.swaps, again.rollout.engine_crashes) == ({A: 1}, 1)
    assert step(world(pod(A, lone_restarts=2), pod(B)), again.rollout).advance == Advance(
        0, ChannelReason.REFUSED, reject=1
    )


def test_an_engine_that_is_back_with_the_active_version_blames_the_new_one_no_longer() -> None:
    back = step(world(pod(A, 0), pod(B, 1)), rolling(lone_restarts={A: 0, B: 0}))
    assert back.swaps == {A: 1}, "it is asked again"
    idle = step(world(pod(A, 0), pod(B, 1), policy={"paused": True}), rolling(lone_restarts={A: 0, B: 0})).rollout
    crashed = step(world(pod(A, 0, ready=False, lone_restarts=1), pod(B, 1), policy={"paused": True}), idle)
    assert crashed.rollout.engine_crashes == 0


@pytest.mark.parametrize("with_agent", [False, True])
def test_a_crash_after_which_the_roll_stands_still_rejects_the_version(*, with_agent: bool) -> None:
    """The engine takes longer to load than the progress deadline. An engine that ends with its agent blames nobody."""
    service = Service(2)
    service.reconcile_times(3)
    service["a"].reload(with_agent=with_agent)
    *held, last = service.reconcile_times(7)
    assert held == ["Proceed -> Judging"] * 6
    assert last == (
        "Stop -> Idle; RolloutStopped" if with_agent else "Reject -> Idle; active 0, reject 1; RolloutFailed"
    )


def test_one_crash_is_tolerated_when_the_engine_is_back_in_time() -> None:
    service = Service(2)
    service.reconcile_times(3)
    service["a"].reload()
    service.reconcile_times(5)
    service["a"].ready = True
    service.reconcile()
    assert (service.roll.engine_crashes, service.roll.phase) == (1, RolloutPhase.JUDGING)
    service.reconcile_until_idle()
    assert (service.active, service.rejected) == (1, set())


@pytest.mark.parametrize("policy", [{"canary": 2}, {"canary": 2, "max_swapping": 4, "analysis": UNJUDGED}])
def test_a_version_that_takes_several_engines_down_does_not_hold_its_own_roll(policy: dict[str, Any]) -> None:
    service = Service(4, **policy)
    while service["b"].version == 0:
        service.reconcile()
    for name in "ab":
        service[name].reload()
    assert service.reconcile() == "Reject -> Idle; active 0, reject 1; RolloutFailed"


def test_a_crash_during_the_watch_counts_before_the_engine_is_back() -> None:
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": {"analysis": JUDGED}}
    state = watching().model_copy(update={"lone_restarts": {A: 0, B: 0}, "engine_crashes": 1})
    away = [pod(A, 1), pod(B, None, ready=False, lone_restarts=1)]
    ended = step(world(*away, now=NOW + timedelta(seconds=59), **now), state)
    assert ended.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)


def test_crashes_that_nobody_observed_or_with_the_agent_do_not_count() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    state = canary(lone_restarts={A: 1}).model_copy(update={"engine_crashes": 1})
    unseen = step(world(pod(A, 1, lone_restarts=2), pod(B), policy=policy, observation_gap=True), state)
    assert (unseen.rollout.phase, unseen.rollout.engine_crashes) == (RolloutPhase.JUDGING, 1)
    assert unseen.rollout.lone_restarts == {A: 2}
    unknown = step(world(pod(A, 1, lone_restarts=None), pod(B), policy=policy), state)
    assert (unknown.rollout.engine_crashes, unknown.rollout.lone_restarts) == (1, {A: 1})
    agent = step(world(pod(A, 1, lone_restarts=0), pod(B), policy=policy), state)
    assert (agent.rollout.engine_crashes, agent.rollout.lone_restarts) == (1, {A: 0}), "its agent was restarted"
    alone = step(world(pod(A, 1, lone_restarts=1), pod(B), policy=policy), agent.rollout)
    assert alone.advance == Advance(0, ChannelReason.REFUSED, reject=1)


# other failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [RolloutPhase.JUDGING, RolloutPhase.ROLLING])
@pytest.mark.parametrize("paused", [False, True])
def test_a_failed_swap_rejects_the_version(phase: RolloutPhase, *, paused: bool) -> None:
    made = step(world(pod(A, 1), pod(B, swap=FAILED), policy={"paused": paused}), rolling(phase, paused=paused))
    assert made.rollout.phase is RolloutPhase.IDLE
    assert made.advance == Advance(0, ChannelReason.REFUSED, reject=1)
    assert "shapes differ" in made.rollout.message
    assert made.rollout.epoch == 5, "an agent that is asked for the version late has to refuse"
    back = step(world(pod(A, 1), pod(B, swap=FAILED)), made.rollout)
    assert back.swaps == {A: 0}


@pytest.mark.parametrize("phase", [RolloutPhase.JUDGING, RolloutPhase.ROLLING])
def test_a_swap_that_failed_transiently_is_retried(phase: RolloutPhase) -> None:
    failed = FAILED.model_copy(update={"transient": True, "error": "get checkpoints: EndpointConnectionError"})
    held = step(world(pod(A, swap=failed), pod(B)), rolling(phase))
    assert (held.rollout.phase, held.advance, held.swaps) == (phase, None, {B: 1}), "another pod may get through"
    end = step(world(pod(A, swap=failed), pod(B, 1), now=NOW + timedelta(seconds=601)), rolling())
    assert (end.rollout.phase, end.advance) == (RolloutPhase.IDLE, None), "it may be offered again"


def test_different_weights_under_one_version_reject_it() -> None:
    made = step(world(pod(A, 1), pod(B, 1, checksum="other")), rolling())
    assert made.rollout.phase is RolloutPhase.IDLE
    assert made.advance == Advance(0, ChannelReason.REFUSED, reject=1)


@pytest.mark.parametrize("phase", [RolloutPhase.JUDGING, RolloutPhase.ROLLING])
@pytest.mark.parametrize("crashes", [0, 1], ids=["none crashed", "one crashed and is back"])
def test_an_agent_that_does_not_answer_while_its_pod_is_up_stops_a_roll_without_blame(
    phase: RolloutPhase, crashes: int
) -> None:
    silent = pod(A, None, checksum=None, ready=False, kubernetes_ready=True)
    state = rolling(phase, lone_restarts={A: 0}).model_copy(update={"engine_crashes": crashes})
    held = step(world(silent, pod(B), now=NOW + timedelta(seconds=599)), state)
    assert held.rollout.phase is phase
    late = step(world(silent, pod(B), now=NOW + timedelta(seconds=601)), held.rollout)
    assert (late.rollout.phase, late.advance, late.event) == (RolloutPhase.IDLE, None, "RolloutStopped")


def test_two_silent_agents_do_not_hold_a_roll_for_ever() -> None:
    """More pods are not ready than may be, which holds the roll, and nobody knows when the agents answer again."""
    silent = tuple(pod(name, None, checksum=None, ready=False, kubernetes_ready=True) for name in (A, B))
    state = rolling(lone_restarts={A: 0})
    for seconds in (1, 599):
        state = step(world(*silent, now=NOW + timedelta(seconds=seconds)), state).rollout
        assert state.phase is RolloutPhase.ROLLING
    late = step(world(*silent, now=NOW + timedelta(seconds=601)), state)
    assert (late.rollout.phase, late.advance, late.event) == (RolloutPhase.IDLE, None, "RolloutStopped")


@pytest.mark.parametrize("crashes", [0, 1], ids=["none crashed", "one crashed and is back"])
def test_a_draft_that_cannot_be_fetched_from_the_store_rejects_nothing(crashes: int) -> None:
    fetching = pod(A, swap=SwapStatus(phase=SwapPhase.STAGING, version=1))
    state = rolling(lone_restarts={A: 0}).model_copy(update={"engine_crashes": crashes})
    for seconds, phase in ((600, RolloutPhase.ROLLING), (601, RolloutPhase.IDLE)):
        late = step(world(fetching, pod(B), now=NOW + timedelta(seconds=seconds)), state)
        assert (late.rollout.phase, late.advance) == (phase, None)


@pytest.mark.parametrize("phase", [SwapPhase.STAGING, SwapPhase.SWAPPING])
def test_a_rollback_ends_the_download_of_the_rejected_version(phase: SwapPhase) -> None:
    """Its agent would load the version at the end of the download. From the pause on the operator waits instead."""
    back = rolling(RolloutPhase.IDLE, epoch=5)
    staging = pod(A, 0, swap=SwapStatus(phase=phase, version=1))
    staging_active = pod(C, 1, swap=SwapStatus(phase=SwapPhase.STAGING, version=0))
    made = step(world(staging, pod(B, 1), staging_active, rejected=frozenset({1})), back)
    assert made.swaps == ({A: 0, B: 0} if phase is SwapPhase.STAGING else {B: 0})
