"""Pods serve before there is a draft, and while none can be had. The active version follows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_operator.children.inference_deployment import SIZES_ANNOTATION
from aurora_operator.observe.observed import Observed, StoreView, WorkloadView
from aurora_operator.plan.operator_upgrade import decide_upgrade
from aurora_protocol.agent_api import SwapPhase, SwapStatus
from aurora_protocol.training_records import TrainerPhase
from tests.unit.operator.upgrades import Speculator, config, running
from tests.unit.operator.worlds import NOW, agent, condition, made, observed, pod, status, store, trainer_record

BARE: dict[str, Any] = {"pods": (pod("chat-a", None), pod("chat-b", None))}
"""Two pods that serve without a draft."""
PULLS = "the trainer's pod is not ready (ImagePullBackOff)"
REFUSED = "the head somebody/head cannot be used: its weights are a pickle. Convert the weights to safetensors"
MISFIT = SwapStatus(phase=SwapPhase.FAILED, version=0, error="other sizes", transient=True, needs_restart=True)


def before_the_first_draft(**more: Any) -> Observed:
    return observed(**BARE, **({"store": StoreView(lineage=None)} | more))


@pytest.mark.parametrize(
    ("why", "world"),
    [
        (PULLS, before_the_first_draft(trainer=WorkloadView(current=True, replicas=1, ready=0, message=PULLS))),
        ("no route", before_the_first_draft(store=StoreView(reason="Unreachable", error="no route"))),
    ],
    ids=["no image of the trainer", "no store"],
)
def test_clients_are_served_and_the_status_says_why_without_a_draft(why: str, world: Observed) -> None:
    serving, ready = condition(world, ConditionType.SERVING_READY), condition(world, ConditionType.READY)
    assert (serving.status.value, serving.reason) == ("True", "WithoutDraft")
    assert ready.status.value == "True"
    assert why in ready.message
    assert condition(world, ConditionType.STALLED).status.value == "False"
    assert [shown.state for shown in status(world).pods] == ["WithoutDraft", "WithoutDraft"]
    assert made(world).swaps == ()


def test_a_head_that_cannot_be_used_leaves_serving_ready_and_is_named() -> None:
    record = trainer_record(phase=TrainerPhase.STARTING, message=REFUSED)
    world = before_the_first_draft(store=StoreView(trainer=record))
    serving, trainer = (condition(world, kind) for kind in (ConditionType.SERVING_READY, ConditionType.TRAINER_READY))
    assert (serving.status.value, trainer.status.value, trainer.reason) == ("True", "False", "Starting")
    assert REFUSED in serving.message
    assert REFUSED in trainer.message


def test_pods_without_a_draft_are_asked_for_the_active_version_and_shown_until_they_have_it() -> None:
    world = observed(pods=(pod("chat-a", 0), pod("chat-b", None)))
    assert [(swap.pod, swap.request.version) for swap in made(world).swaps] == [("chat-b", 0)]
    serving = condition(world, ConditionType.SERVING_READY)
    assert (serving.status.value, serving.reason) == ("False", "SwapsPending")
    assert condition(world, ConditionType.READY).status.value == "True"


def test_a_pod_that_has_to_start_again_is_no_fault_that_a_person_must_mend() -> None:
    bare = pod("chat-b", None, agent=agent("chat-b", None, swap=MISFIT), created=NOW)
    world = observed(pods=(pod("chat-a", 0), bare))
    seen = replace(world, status=status(observed()))
    assert condition(seen, ConditionType.STALLED).status.value == "False"
    broken = replace(bare, agent=agent("chat-b", None, swap=MISFIT.model_copy(update={"needs_restart": False})))
    seen = replace(seen, pods=(pod("chat-a", 0), broken))
    assert condition(seen, ConditionType.STALLED).reason == "SwapFailed"


# other sizes ---------------------------------------------------------------------------------------------------------


def with_pods(speculator: Speculator, *pods: Any) -> Observed:
    return replace(speculator.observe(), pods=pods, store=store(0))


def look(speculator: Speculator, *pods: Any, version: int = 1) -> None:
    speculator.apply(decide_upgrade(with_pods(speculator, *pods), config(version), NOW))


def test_pods_with_room_for_other_sizes_start_again_once_as_in_any_roll() -> None:
    (speculator,) = running("a")
    first, second = (
        pod(name, None, agent=agent(name, None, swap=MISFIT), created=NOW + timedelta(seconds=seconds))
        for name, seconds in (("chat-a", 0), ("chat-b", 9))
    )
    waits = replace(second, agent=agent("chat-b", None))
    look(speculator, first, waits)
    assert speculator.restarts == 1
    for pods in ((first, second), (second,), (replace(first, terminating=True), pod("chat-c", 0)), ()):
        look(speculator, *pods)
    assert speculator.restarts == 1, "each pod starts again once"
    assert speculator.live is not None
    annotations = speculator.live["spec"]["template"]["metadata"]["annotations"]
    assert annotations[SIZES_ANNOTATION] == (NOW + timedelta(seconds=9)).isoformat()
    later = pod("chat-d", None, agent=agent("chat-d", None, swap=MISFIT), created=NOW + timedelta(hours=1))
    look(speculator, pod("chat-c", 0, created=NOW + timedelta(seconds=30)), later)
    assert speculator.restarts == 2


def test_the_restart_for_other_sizes_outlives_an_upgrade_and_orders_none() -> None:
    (speculator,) = running("a")
    bare = pod("chat-a", None, agent=agent("chat-a", None, swap=MISFIT), created=NOW)
    look(speculator, bare)
    speculator.become_whole()
    look(speculator)
    assert speculator.restarts == 1
    look(speculator, version=2)
    assert (speculator.restarts, speculator.agent_image) == (2, "agent:2")
    look(speculator, version=2)
    assert speculator.restarts == 2


def test_no_other_pod_is_restarted() -> None:
    (speculator,) = running("a")
    failed = MISFIT.model_copy(update={"needs_restart": False})
    look(speculator, pod("chat-a", 0, created=NOW), pod("chat-b", None, agent=agent("chat-b", None, swap=failed)))
    assert speculator.restarts == 0
