"""A pod's clock differs from the operator's, and neither a failure nor a delay depends on the difference."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.status import RolloutPhase, SpeculatorStatus
from aurora_operator.plan.rollout.roll import Roll, read_roll
from aurora_operator.plan.rollout.steps import Advance
from aurora_operator.plan.rollout.swaps import RETRY_AFTER
from aurora_operator.plan.rollout.transition import step
from aurora_protocol.agent_api import SwapPhase, SwapStatus
from aurora_protocol.draft_records import ChannelReason
from tests.unit.operator.rolls import FAILED, NOW, A, B, pod, rolling, world

BEHIND, AHEAD = timedelta(minutes=-10), timedelta(minutes=10)
REJECTED = Advance(0, ChannelReason.REFUSED, reject=1)


def failed(epoch: int | None, skew: timedelta, **more: Any) -> SwapStatus:
    return FAILED.model_copy(update={"epoch": epoch, "finished": NOW + skew, **more})


def stored(roll: Roll) -> Roll:
    """``roll`` after it was written to the status and read back."""
    rollout, state = roll.status_parts()
    return read_roll(SpeculatorStatus(rollout=rollout, operator_state=state))


@pytest.mark.parametrize("skew", [BEHIND, AHEAD])
def test_a_permanent_failure_in_this_roll_rejects_the_version_whatever_the_pods_clock_says(skew: timedelta) -> None:
    roll = stored(rolling(first_epoch=4))
    assert step(world(pod(A, swap=failed(4, skew)), pod(B)), roll).advance == REJECTED


@pytest.mark.parametrize("skew", [BEHIND, AHEAD])
@pytest.mark.parametrize("epoch", [3, 5])
def test_a_failure_of_another_epoch_than_those_of_this_roll_rejects_nothing(skew: timedelta, epoch: int) -> None:
    """An epoch above the roll's own is that of an order that was forgotten with a lost status."""
    roll = stored(rolling(first_epoch=4))
    made = step(world(pod(A, swap=failed(epoch, skew)), pod(B)), roll)
    assert (made.advance, made.rollout.phase) == (None, RolloutPhase.ROLLING)


def test_epochs_that_a_lost_status_forgot_do_not_belong_to_this_roll() -> None:
    roll = rolling(first_epoch=4)
    fenced = step(world(pod(A, swap=failed(41, AHEAD)), pod(B), fencing_epoch=41), roll)
    assert (fenced.advance, fenced.rollout.epoch, fenced.rollout.first_epoch) == (None, 42, 42)
    assert step(world(pod(A, swap=failed(42, BEHIND)), pod(B)), fenced.rollout).advance == REJECTED


@pytest.mark.parametrize(("agent", "roll"), [(None, 4), (4, None), (None, None)])
def test_an_agent_or_a_roll_of_an_earlier_version_is_compared_by_the_clock(agent: int | None, roll: int | None) -> None:
    begun = stored(rolling(first_epoch=roll))
    assert step(world(pod(A, swap=failed(agent, BEHIND)), pod(B)), begun).advance is None
    assert step(world(pod(A, swap=failed(agent, AHEAD)), pod(B)), begun).advance == REJECTED


def test_a_roll_knows_the_epoch_that_it_started_with() -> None:
    roll = step(world(pod(A), pod(B), next_version=1), Roll(epoch=7)).rollout
    assert (roll.epoch, stored(roll).first_epoch) == (8, 8)


@pytest.mark.parametrize("skew", [BEHIND, AHEAD])
@pytest.mark.parametrize("phase", [RolloutPhase.ROLLING, RolloutPhase.IDLE, RolloutPhase.ROLLING_BACK])
def test_a_failed_swap_is_not_repeated_in_each_reconcile(skew: timedelta, phase: RolloutPhase) -> None:
    """Each try pauses the engine's generation. The delay is stored, so a restarted operator keeps to it."""
    rolls = phase is RolloutPhase.ROLLING
    version, roll = (1, rolling()) if rolls else (0, rolling(phase))
    swap = SwapStatus(phase=SwapPhase.FAILED, version=version, transient=True, finished=NOW + skew)
    held = 0 if rolls else 2
    asked = []
    for seconds in range(0, 240, 2):
        now = NOW + timedelta(seconds=seconds)
        made = step(world(pod(A, held, swap=swap), pod(B, version), now=now), roll)
        if made.swaps == {A: version}:
            asked.append(seconds)
        roll = stored(made.rollout)
    assert asked == [0, 10, 30, 70, 130, 190], "twice as long each time, and at most a minute"


@pytest.mark.parametrize("end", ["served", "another version", "gone"])
def test_a_pod_that_no_longer_fails_is_asked_soon_after_its_next_failure(end: str) -> None:
    failed = SwapStatus(phase=SwapPhase.FAILED, version=0, transient=True, finished=NOW - timedelta(hours=1))
    roll = rolling(RolloutPhase.IDLE).model_copy(update={"retries": {A: 5}})
    pods = {
        "served": [pod(A, 0), pod(B, 0)],
        "another version": [pod(A, 2, swap=failed.model_copy(update={"version": 2})), pod(B, 0)],
        "gone": [pod(B, 0)],
    }[end]
    assert step(world(*pods), roll).rollout.retries == {}
    still = step(world(pod(A, 2, swap=failed), pod(B, 0)), roll)
    assert (still.swaps, still.rollout.retries) == ({A: 0}, {A: 6})


def test_the_times_of_retries_are_forgotten() -> None:
    roll = Roll(retried={A: NOW, "gone": NOW, B: NOW + timedelta(days=1)})
    assert step(world(pod(A), pod(B)), roll).rollout.retried == {A: NOW, B: NOW}, "the clock was set back"
    late = step(world(pod(A), pod(B), now=NOW + RETRY_AFTER), roll).rollout
    assert late.retried == {B: NOW + RETRY_AFTER}
    assert stored(Roll()).status_parts()[1] == {}, "a roll at rest stores nothing"
