"""The rollout's single decisions that an operator of a service would ask about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aurora_api.agent import SwapPhase, SwapStatus
from aurora_api.speculator import Rollout
from aurora_api.status import RolloutPhase, RolloutStatus
from aurora_operator.plan.rollout import Pod, World, step

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C = "pod-a", "pod-b", "pod-c"


def pod(name: str, version: int | None = 0, **more: Any) -> Pod:
    return Pod(name, **{"ready": True, "version": version, "checksum": f"sum-{version}", **more})


def world(*pods: Pod, now: datetime = NOW, policy: dict[str, Any] | None = None, **more: Any) -> World:
    rules = Rollout(**{"canary_seconds": 10, **(policy or {})})
    return World(**{"now": now, "active": 0, "epoch": 3, "pods": pods, "policy": rules, "earned": {1}, **more})


def rolling(phase: RolloutPhase = RolloutPhase.ROLLING, **more: Any) -> RolloutStatus:
    return RolloutStatus(
        **{"phase": phase, "version": 1, "epoch": 4, "started": NOW, "progressed": NOW, "total": 2, **more}
    )


def test_a_roll_starts_with_the_canary_and_a_higher_epoch() -> None:
    made = step(world(pod(A), pod(B), offer=1), RolloutStatus())
    assert (made.rollout.phase, made.rollout.version, made.rollout.epoch) == (RolloutPhase.CANARY, 1, 4)
    assert not made.swaps, "the decision is written down before any pod is asked"
    assert step(world(pod(A), pod(B)), made.rollout).swaps == {A: 1}


@pytest.mark.parametrize(
    "other",
    [
        pod(B, ready=False, starting=True),
        pod(B, version=7),
        pod(B, checksum=None),
        pod(B, swap=SwapStatus(phase=SwapPhase.SWAPPING, version=0)),
    ],
    ids=["starting: may come up with an older version", "stray", "no checksum", "still swapping"],
)
def test_no_roll_starts_from_pods_that_are_not_settled(other: Pod) -> None:
    assert step(world(pod(A), other, offer=1), RolloutStatus()).rollout.phase is RolloutPhase.IDLE


def test_a_pod_that_cannot_be_scheduled_does_not_hold_up_a_roll() -> None:
    waiting = pod(B, None, ready=False, starting=False)
    assert step(world(pod(A), waiting, offer=1), RolloutStatus()).rollout.phase is RolloutPhase.CANARY


def test_the_canary_is_watched_for_its_time_and_a_gap_starts_the_watch_again() -> None:
    watched = step(world(pod(A, 1), pod(B)), rolling(RolloutPhase.CANARY)).rollout
    assert watched.canary_since == NOW
    later = NOW + timedelta(seconds=9)
    gap = step(world(pod(A, 1, ready=False), pod(B), now=later), watched).rollout
    assert (gap.phase, gap.canary_since) == (RolloutPhase.CANARY, None)
    again = step(world(pod(A, 1), pod(B), now=later), gap).rollout
    end = NOW + timedelta(seconds=10)
    assert step(world(pod(A, 1), pod(B), now=end), again).rollout.phase is RolloutPhase.CANARY
    assert step(world(pod(A, 1), pod(B), now=end), watched).rollout.phase is RolloutPhase.ROLLING


def test_a_watch_longer_than_the_progress_deadline_is_no_lack_of_progress() -> None:
    policy = {"canary_seconds": 3600, "progress_deadline_seconds": 60}
    watched = rolling(RolloutPhase.CANARY, canary_since=NOW)
    late = NOW + timedelta(seconds=1800)
    assert step(world(pod(A, 1), pod(B), now=late, policy=policy), watched).rollout.phase is RolloutPhase.CANARY


def test_at_most_max_swapping_pods_swap_at_once() -> None:
    busy = pod(B, swap=SwapStatus(phase=SwapPhase.SWAPPING, version=1))
    assert step(world(pod(A, 1), busy, pod(C)), rolling()).swaps == {}
    assert step(world(pod(A, 1), busy, pod(C), policy={"max_swapping": 2}), rolling()).swaps == {C: 1}


def test_promotion_needs_every_ready_pod_confirmed() -> None:
    assert step(world(pod(A, 1), pod(B)), rolling()).promote is None
    assert step(world(pod(A, 1), pod(B, 1, checksum=None)), rolling()).promote is None
    silent = pod(B, None, ready=False, starting=True, up=True)
    assert step(world(pod(A, 1), silent), rolling()).promote is None, "it may still answer requests, with version 0"
    crashed = pod(B, None, ready=False, starting=True)
    assert step(world(pod(A, 1), crashed), rolling()).promote == 1
    done = step(world(pod(A, 1), pod(B, 1)), rolling())
    assert (done.promote, done.rollout.phase, done.rollout.updated) == (1, RolloutPhase.IDLE, 2)


FAILED = SwapStatus(phase=SwapPhase.FAILED, version=1, finished=NOW, error="shapes differ")


@pytest.mark.parametrize("phase", [RolloutPhase.CANARY, RolloutPhase.ROLLING, RolloutPhase.PAUSED])
def test_a_failed_swap_takes_the_version_back_for_good(phase: RolloutPhase) -> None:
    made = step(world(pod(A, 1), pod(B, swap=FAILED), policy={"paused": phase is RolloutPhase.PAUSED}), rolling(phase))
    assert (made.rollout.phase, made.reject) == (RolloutPhase.ROLLING_BACK, 1)
    assert "shapes differ" in made.rollout.message
    back = step(world(pod(A, 1), pod(B, swap=FAILED)), made.rollout)
    assert back.swaps == {A: 0}
    assert step(world(pod(A, 0), pod(B, swap=FAILED)), back.rollout).rollout.phase is RolloutPhase.IDLE


def test_the_failure_of_an_earlier_roll_is_not_held_against_this_one() -> None:
    old = FAILED.model_copy(update={"finished": NOW - timedelta(seconds=1)})
    assert step(world(pod(A, swap=old), pod(B)), rolling(RolloutPhase.CANARY)).rollout.phase is RolloutPhase.CANARY


def test_different_weights_under_one_version_are_a_failure() -> None:
    made = step(world(pod(A, 1), pod(B, 1, checksum="other")), rolling())
    assert (made.rollout.phase, made.reject) == (RolloutPhase.ROLLING_BACK, 1)


def test_no_progress_rolls_back_but_time_without_an_operator_does_not_count() -> None:
    late = NOW + timedelta(seconds=601)
    assert step(world(pod(A, 1), pod(B), now=late), rolling()).rollout.phase is RolloutPhase.ROLLING_BACK
    assert step(world(pod(A, 1), pod(B), now=late, resumed=True), rolling()).rollout.phase is RolloutPhase.ROLLING


def test_pause_stops_before_the_next_pod_and_resumes() -> None:
    paused = step(world(pod(A, 1), pod(B), policy={"paused": True}), rolling())
    assert (paused.rollout.phase, paused.swaps) == (RolloutPhase.PAUSED, {})
    late = NOW + timedelta(hours=5)
    still = step(world(pod(A, 1), pod(B), now=late, policy={"paused": True}), paused.rollout)
    assert (still.rollout.phase, still.swaps) == (RolloutPhase.PAUSED, {})
    assert step(world(pod(A, 1), pod(B), now=late), still.rollout).rollout.phase is RolloutPhase.CANARY


def test_a_roll_without_pods_ends_without_blaming_the_version() -> None:
    made = step(world(), rolling())
    assert (made.rollout.phase, made.reject) == (RolloutPhase.ROLLING_BACK, None)


def test_promoted_in_the_channel_but_not_in_the_status_is_done() -> None:
    made = step(world(pod(A, 1), pod(B, 1), active=1, epoch=5, earned=set()), rolling())
    assert (made.rollout.phase, made.event, made.swaps) == (RolloutPhase.IDLE, "Promoted", {})


def test_idle_repairs_strays_one_by_one_and_lets_a_failure_rest() -> None:
    assert step(world(pod(A, 2), pod(B, 2)), RolloutStatus()).swaps == {A: 0}
    failed = SwapStatus(phase=SwapPhase.FAILED, version=0, finished=NOW)
    assert step(world(pod(A, 2, swap=failed)), RolloutStatus()).swaps == {}
    later = NOW + timedelta(seconds=6)
    assert step(world(pod(A, 2, swap=failed), now=later), RolloutStatus()).swaps == {A: 0}


def test_a_refused_epoch_is_raised() -> None:
    assert step(world(pod(A), fenced=True), RolloutStatus(epoch=3)).rollout.epoch == 4
