"""While a spec cannot be used nothing new begins, and a version that fails is still rolled back."""

from __future__ import annotations

from dataclasses import replace

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.observe.observed import Observed
from aurora_protocol.agent_api import SwapPhase, SwapStatus
from tests.unit.operator.worlds import agent, condition, evidence, made, observed, pod, status, store

FAULT = "spec: serving.replicas: a fault"
PASSED = store(0, 1, evidence=(evidence(1),))


def rolling() -> Observed:
    """Version 1 is being rolled out, and one pod serves it."""
    world = observed(store=PASSED)
    begun = replace(world, status=status(world))
    assert begun.status.rollout.phase is RolloutPhase.JUDGING
    return replace(begun, pods=(pod("chat-a", 1), pod("chat-b", 0)))


def test_nothing_but_the_keys_is_created_measured_or_rolled_out() -> None:
    """The keys shape no child. A speculator that lost them reads no record without new ones, and rolls nothing back."""
    for world in (observed(store=PASSED), observed(store=store(0, 1)), observed(keys_exist=False)):
        plan = made(replace(world, spec_fault=FAULT))
        assert (plan.children, plan.job, plan.swaps, plan.advance) == ((), None, (), None)
        assert plan.upgrade is None


def test_pods_follow_their_autoscaler_although_the_spec_has_a_fault() -> None:
    world = observed()
    assert made(world).scale is None, "the Deployment tells it"
    assert made(replace(world, spec_fault=FAULT)).scale == world.spec.serving.replicas


def test_a_version_that_pods_cannot_load_is_rolled_back() -> None:
    world = rolling()
    epoch = world.status.rollout.epoch
    failed = SwapStatus(phase=SwapPhase.FAILED, version=1, epoch=epoch, error="shapes differ")
    cannot_load = replace(world.pods[1], agent=agent("chat-b", 0, swap=failed))
    plan = made(replace(world, pods=(world.pods[0], cannot_load), spec_fault=FAULT))
    assert plan.advance is not None
    assert plan.advance.rejected == (1,)
    assert plan.status is not None
    assert plan.status.rollout.phase is RolloutPhase.IDLE
    returning = made(replace(world, status=plan.status, store=replace(PASSED, channel=plan.advance), spec_fault=FAULT))
    assert [(swap.pod, swap.request.version) for swap in returning.swaps] == [("chat-a", 0)]


def test_a_roll_pauses_and_goes_on_once_the_spec_is_corrected() -> None:
    world = rolling()
    paused = made(replace(world, spec_fault=FAULT))
    assert paused.status is not None
    assert (paused.status.rollout.paused, paused.status.rollout.waiting) == (True, "the spec cannot be used")
    assert paused.swaps == ()
    assert not status(replace(world, status=paused.status)).rollout.paused


def test_the_fault_is_in_the_conditions_and_in_one_event() -> None:
    world = observed(spec_fault=FAULT, status=status(observed()))
    invalid = condition(world, ConditionType.STALLED)
    assert (invalid.status, invalid.reason) == (ConditionStatus.TRUE, "InvalidSpec")
    assert FAULT in invalid.message
    assert condition(world, ConditionType.READY).reason == "InvalidSpec"
    plan = made(world)
    assert [note.reason for note in plan.notes if FAULT in note.message] == ["InvalidSpec"]
    assert plan.status is not None
    assert made(replace(world, status=plan.status)).notes == ()
