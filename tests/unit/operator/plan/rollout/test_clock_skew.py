"""A pod's clock differs from the operator's, and neither a failure nor a delay depends on the difference."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.status import RolloutPhase, SpeculatorStatus
from aurora_operator.plan.rollout.roll import Roll, read_roll
from aurora_operator.plan.rollout.transition import Advance
from aurora_protocol.agent_api import SwapStatus
from aurora_protocol.draft_records import ChannelReason
from tests.unit.operator.rolls import FAILED, NOW, A, B, pod, rolling, step, world

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
    roll = stored(rolling())
    assert step(world(pod(A, swap=failed(4, skew)), pod(B)), roll).advance == REJECTED


@pytest.mark.parametrize("skew", [BEHIND, AHEAD])
@pytest.mark.parametrize("epoch", [3, 5])
def test_a_failure_of_another_epoch_than_those_of_this_roll_rejects_nothing(skew: timedelta, epoch: int) -> None:
    """An epoch above the roll's own is that of an order that was forgotten with a lost status."""
    roll = stored(rolling())
    made = step(world(pod(A, swap=failed(epoch, skew)), pod(B)), roll)
    assert (made.advance, made.rollout.phase) == (None, RolloutPhase.ROLLING)


def test_epochs_that_a_lost_status_forgot_do_not_belong_to_this_roll() -> None:
    roll = rolling()
    fenced = step(world(pod(A, swap=failed(41, AHEAD)), pod(B), fencing_epoch=41), roll)
    assert (fenced.advance, fenced.rollout.epoch, fenced.rollout.first_epoch) == (None, 42, 42)
    assert step(world(pod(A, swap=failed(42, BEHIND)), pod(B)), fenced.rollout).advance == REJECTED


def test_a_roll_knows_the_epoch_that_it_started_with() -> None:
    roll = step(world(pod(A), pod(B), next_version=1), Roll(epoch=7)).rollout
    assert (roll.epoch, stored(roll).first_epoch) == (8, 8)
