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


@pytest.mark.parametrize("phase", [RolloutPhase.JUDGING, RolloutPhase.ROLLING])
@pytest.mark.parametrize("judged", [True, False])
def test_a_version_whose_engines_crash_is_rejected(phase: RolloutPhase, judged: bool) -> None:
    """Otherwise a version that is not judged would crash engines, stop without blame and start again, forever."""
    policy: dict[str, Any] = {"analysis": JUDGED if judged else UNJUDGED}
    state = canary().model_copy(update={"phase": phase} | ({} if judged else {"analysis": None}))
    for number in range(2):
        served = world(pod(A, 1, **traffic(0, boot=f"{number}")), pod(B), policy=policy)
        state = step(served, state).rollout
        down = step(world(pod(A, None, ready=False), pod(B), policy=policy), state)
        assert down.advance is None
        state = down.rollout
    again = step(world(pod(A, 0, **traffic(0, boot="2")), pod(B), policy=policy), state)
    assert again.advance == Advance(0, ChannelReason.REFUSED, reject=1)
    assert "2 engines crashed while serving version 1" in again.rollout.message


def test_an_engine_that_crashes_before_it_was_seen_with_the_version_counts() -> None:
    state = step(world(pod(A, boot="b0"), pod(B), next_version=1), Roll()).rollout
    for number in range(2):
        asked = step(world(pod(A, boot=f"b{number}"), pod(B)), state)
        assert (asked.swaps, asked.rollout.engine_crashes) == ({A: 1}, number)
        state = step(world(pod(A, None, ready=False), pod(B)), asked.rollout).rollout
    made = step(world(pod(A, boot="b2"), pod(B)), state)
    assert made.advance == Advance(0, ChannelReason.REFUSED, reject=1)
    assert (made.rollout.engine_boots, made.rollout.engine_crashes) == ({}, 0), "the next roll counts from zero"


def test_a_version_whose_pod_never_comes_back_is_rejected_even_without_live_analysis() -> None:
    for phase in (RolloutPhase.JUDGING, RolloutPhase.ROLLING):
        asked = step(world(pod(A, boot="b"), pod(B)), rolling(phase)).rollout
        down = [pod(A, None, ready=False), pod(B)]
        away = step(world(*down), asked).rollout
        made = step(world(*down, now=NOW + timedelta(seconds=601)), away)
        assert made.advance == Advance(0, ChannelReason.REFUSED, reject=1)
        reason = f"pod {A} did not come back with version 1 for 600 s"
        assert made.rollout.message == reason


def test_a_watch_does_not_end_while_a_pod_with_the_version_is_missing() -> None:
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": {"analysis": JUDGED}}
    state = watching().model_copy(update={"engine_boots": {A: "b", B: "b"}})
    away = [pod(A, 1, boot="b"), pod(B, None, ready=False)]
    held = step(world(*away, now=NOW + timedelta(seconds=61), **now), state)
    assert (held.rollout.phase, held.advance) == (RolloutPhase.JUDGING, None)
    back = [pod(A, 1, boot="b"), pod(B, 1, boot="new")]
    after = step(world(*back, now=NOW + timedelta(seconds=90), **now), held.rollout).rollout
    assert (after.phase, after.engine_crashes) == (RolloutPhase.IDLE, 0), "one crash is tolerated"
    again = held.rollout.model_copy(update={"engine_crashes": 1})
    ended = step(world(*back, now=NOW + timedelta(seconds=90), **now), again)
    assert ended.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1), "the last crash counts too"
    late = step(world(*away, now=NOW + timedelta(seconds=662), **now), held.rollout)
    assert late.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)
    assert "did not come back" in late.rollout.message


def test_crashes_that_nobody_observed_or_with_the_agent_do_not_count() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    state = canary(engine_boots={A: "b"}).model_copy(update={"engine_crashes": 1})
    unseen = step(world(pod(A, 1, boot="new"), pod(B, boot="b"), policy=policy, observation_gap=True), state)
    assert (unseen.rollout.phase, unseen.rollout.engine_crashes) == (RolloutPhase.JUDGING, 1)
    node = step(world(pod(A, 1, boot="new", started_together=True), pod(B, boot="b"), policy=policy), state)
    assert (node.rollout.phase, node.rollout.engine_crashes) == (RolloutPhase.JUDGING, 1), "its agent ended too"
    alone = step(world(pod(A, 1, boot="new"), pod(B, boot="b"), policy=policy), state)
    assert alone.advance == Advance(0, ChannelReason.REFUSED, reject=1)


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
def test_an_agent_that_does_not_answer_while_its_pod_is_up_stops_a_roll_without_blame(phase: RolloutPhase) -> None:
    silent = pod(A, None, checksum=None, ready=False, kubernetes_ready=True)
    state = rolling(phase, engine_boots={A: "b"})
    held = step(world(silent, pod(B), now=NOW + timedelta(seconds=599)), state)
    assert held.rollout.phase is phase
    late = step(world(silent, pod(B), now=NOW + timedelta(seconds=601)), held.rollout)
    assert (late.rollout.phase, late.advance, late.event) == (RolloutPhase.IDLE, None, "RolloutStopped")


def test_two_silent_agents_do_not_hold_a_roll_for_ever() -> None:
    """More pods are not ready than may be, which holds the roll, and nobody knows when the agents answer again."""
    silent = tuple(pod(name, None, checksum=None, ready=False, kubernetes_ready=True) for name in (A, B))
    state = rolling(engine_boots={A: "b"})
    for seconds in (1, 599):
        state = step(world(*silent, now=NOW + timedelta(seconds=seconds)), state).rollout
        assert state.phase is RolloutPhase.ROLLING
    late = step(world(*silent, now=NOW + timedelta(seconds=601)), state)
    assert (late.rollout.phase, late.advance, late.event) == (RolloutPhase.IDLE, None, "RolloutStopped")


def test_a_draft_that_cannot_be_fetched_from_the_store_rejects_nothing() -> None:
    fetching = pod(A, swap=SwapStatus(phase=SwapPhase.STAGING, version=1))
    for seconds, phase in ((600, RolloutPhase.ROLLING), (601, RolloutPhase.IDLE)):
        late = step(world(fetching, pod(B), now=NOW + timedelta(seconds=seconds)), rolling(engine_boots={A: "b"}))
        assert (late.rollout.phase, late.advance) == (phase, None)


@pytest.mark.parametrize("phase", [SwapPhase.STAGING, SwapPhase.SWAPPING])
def test_a_rollback_ends_the_download_of_the_rejected_version(phase: SwapPhase) -> None:
    """Its agent would load the version at the end of the download. From the pause on the operator waits instead."""
    back = rolling(RolloutPhase.IDLE, epoch=5)
    staging = pod(A, 0, swap=SwapStatus(phase=phase, version=1))
    staging_active = pod(C, 1, swap=SwapStatus(phase=SwapPhase.STAGING, version=0))
    made = step(world(staging, pod(B, 1), staging_active, rejected=frozenset({1})), back)
    assert made.swaps == ({A: 0, B: 0} if phase is SwapPhase.STAGING else {B: 0})
