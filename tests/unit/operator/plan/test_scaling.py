"""Scaling, and pods without a node: what goes on without them, what the status says, how often the operator looks."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase
from aurora_operator.children.inference_deployment import TEMPLATE_ANNOTATION
from aurora_operator.observe.observed import DeployedTemplate, JobView, Observed, PodView, WorkloadView
from aurora_operator.plan import plan
from aurora_operator.plan.operator_upgrade import UpgradeStage, decide_upgrade
from aurora_protocol.agent_api import MeasurementPhase
from tests.unit.operator.plan.test_lending import JOB, withdrawn
from tests.unit.operator.worlds import (
    CONFIG,
    NO_ROOM,
    NOW,
    condition,
    evidence,
    job_settings,
    made,
    observed,
    pod,
    spec,
    status,
    store,
    waiting_pod,
)

UNJUDGED: dict[str, Any] = {"analysis": {"minRequests": 0}}


def scaled_up(replicas: int = 4, **more: Any) -> Observed:
    """Two pods serve, and the cluster has no room for the others."""
    parts = {"serving": {"replicas": replicas}} | more.pop("parts", {})
    pods = (pod("chat-a", 0), pod("chat-b", 0), *(waiting_pod(f"chat-{name}") for name in "cdefgh"[: replicas - 2]))
    workload = WorkloadView(current=True, replicas=replicas, ready=2)
    return observed(**({"spec": spec(**parts), "pods": pods, "deployment": workload} | more))


def test_the_status_says_how_many_pods_wait_for_a_node_and_why() -> None:
    seen = scaled_up()
    serving = condition(seen, ConditionType.SERVING_READY)
    assert (serving.status.value, serving.reason) == ("False", "PodsPending")
    assert serving.message == f"2 of 4 pods are ready; 2 wait for a node: {NO_ROOM}"
    ready = condition(seen, ConditionType.READY)
    assert (ready.status.value, ready.reason, ready.message) == ("True", "PodsPending", serving.message)
    assert [shown.state for shown in status(seen).pods] == ["Ready", "Ready", "Unschedulable", "Unschedulable"]
    unseen = replace(seen, pods=(*seen.pods[:3], PodView("chat-d")))
    assert NO_ROOM in condition(unseen, ConditionType.SERVING_READY).message, "the scheduler has not seen the fourth"
    one = scaled_up(3)
    assert "; 1 waits for a node: " in condition(one, ConditionType.SERVING_READY).message


def test_the_status_says_why_pods_cannot_be_created() -> None:
    refused = WorkloadView(current=True, replicas=2, ready=2, message="exceeded quota: gpus")
    seen = observed(spec=spec(serving={"replicas": 4}), deployment=refused)
    assert condition(seen, ConditionType.SERVING_READY).message == "2 of 4 pods are ready; exceeded quota: gpus"
    assert condition(seen, ConditionType.READY).status.value == "True"


def test_the_status_is_written_once_while_pods_wait_for_a_node() -> None:
    waits = scaled_up()
    assert plan(replace(waits, status=status(waits)), CONFIG, NOW, timedelta.max).status is None


def test_a_roll_goes_on_and_is_promoted_although_pods_wait_for_a_node() -> None:
    """A pod without a node serves nobody, so a swap of the others takes nothing away."""
    world = scaled_up(parts={"rollout": UNJUDGED}, store=store(0, 1, evidence=(evidence(1),)))
    begun = status(world)
    assert (begun.rollout.phase, begun.rollout.total) == (RolloutPhase.JUDGING, 2)
    world = replace(world, status=begun)
    assert [swap.pod for swap in made(world).swaps] == ["chat-a"]
    world = replace(world, pods=(pod("chat-a", 1), *world.pods[1:]))
    world = replace(world, status=status(world))
    assert world.status.rollout.phase is RolloutPhase.ROLLING
    world = replace(world, pods=(pod("chat-a", 1), pod("chat-b", 1), *world.pods[2:]))
    promoted = made(world).advance
    assert promoted is not None
    assert promoted.active == 1


def measured(seen: Observed) -> Observed:
    """``seen`` with a candidate that is to be measured on a replica."""
    given = spec(serving={"replicas": seen.spec.serving.replicas}, validation={"measureOn": "Replica"})
    return replace(seen, spec=given, store=store(0, 1))


def message_of(seen: Observed) -> str:
    shown = status(seen).candidate
    assert shown is not None
    return shown.message


def chosen(seen: Observed) -> str | None:
    """Name of the pod that a new Job measures on."""
    job = made(seen).job
    replica = job_settings(job).replica if job is not None else None
    return replica.pod if replica is not None else None


def recalled(seen: Observed) -> bool:
    return made(seen).delete_jobs == (JOB,)


def test_a_replica_is_lent_although_other_pods_wait_for_a_node() -> None:
    assert chosen(measured(scaled_up())) == "chat-b", "never a pod without a node"
    refused = WorkloadView(current=True, replicas=2, ready=2, message="exceeded quota")
    pods = (pod("chat-a", 0), pod("chat-b", 0))
    assert chosen(measured(scaled_up(3, pods=pods, deployment=refused))) == "chat-b"


def test_no_replica_is_lent_when_none_but_waiting_pods_would_be_left() -> None:
    alone = measured(scaled_up(3, pods=(pod("chat-a", 0), waiting_pod("chat-b"), waiting_pod("chat-c"))))
    assert made(alone).job is None
    assert "1 of 3 replicas has a place, and one has to go on serving" in message_of(alone)


def lent(replicas: int, *pods: PodView) -> Observed:
    """chat-b is measured, beside ``pods``."""
    begun = measured(scaled_up(2))
    away = withdrawn("chat-b", MeasurementPhase.MEASURING)
    seen = measured(scaled_up(replicas, pods=(*pods, away)))
    return replace(seen, status=status(begun), jobs=(JobView(JOB, 1, 1),))


def test_a_scale_up_without_room_ends_no_measurement_and_a_starting_pod_does() -> None:
    assert not recalled(lent(3, pod("chat-a", 0), waiting_pod("chat-c")))
    starting = pod("chat-c", 0, ready=False, agent=None)
    assert recalled(lent(3, pod("chat-a", 0), starting)), "service comes first"


@pytest.mark.parametrize("replicas", [0, 1])
def test_a_lent_pod_that_a_scale_down_leaves_alone_returns(replicas: int) -> None:
    assert recalled(lent(replicas))
    ending = pod("chat-a", 0, terminating=True)
    assert recalled(lent(replicas, ending))
    assert not recalled(lent(2, pod("chat-a", 0), pod("chat-c", 0, terminating=True))), "another one serves"


ANOTHER_STARTS = lent(3, pod("chat-a", 0), pod("chat-c", 0, ready=False, agent=None))


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        pytest.param(
            ANOTHER_STARTS,
            "1 of the 2 other pods are ready",
            id="scale-up",
        ),
        pytest.param(
            lent(2, pod("chat-a", 0), pod("chat-c", 0)),
            "3 pods run and 2 are wanted. Kubernetes deletes a pod that is not ready first",
            id="scale-down",
        ),
    ],
)
def test_scaling_ends_a_measurement_on_a_replica(seen: Observed, why: str) -> None:
    result = made(seen)
    assert (result.delete_jobs, result.job) == ((JOB,), None)
    (told,) = result.notes
    assert told.reason == "ValidationFailed"
    assert why in told.message
    candidate = status(seen).candidate
    assert candidate is not None
    assert (candidate.phase, candidate.attempt, candidate.pod) == (CandidatePhase.FAILED, 1, None)
    assert candidate.not_before == NOW + timedelta(seconds=30)
    names = ("chat-a", "chat-b", "chat-c")[: seen.spec.serving.replicas]
    scaled = replace(seen, status=status(seen), jobs=(), pods=tuple(pod(name, 0) for name in names))
    again = made(scaled, NOW + timedelta(seconds=30)).job
    assert again is not None
    assert again["metadata"]["name"] == "chat-validate-v1-2"


def test_the_replicas_for_autoscalers_leave_out_the_extra_pods_of_an_update() -> None:
    """An autoscaler that finds its metric at the target writes the status's replicas into the spec."""
    updating = WorkloadView(current=False, replicas=3, ready=3)
    surge = observed(pods=(pod("chat-a", 0), pod("chat-b", 0), pod("chat-c", 0)), deployment=updating)
    assert (status(surge).replicas, status(surge).ready_replicas) == (2, 3)
    assert status(scaled_up()).replicas == 4, "pods that wait for a node are wanted"
    away = lent(2, pod("chat-a", 0))
    assert (status(away).replicas, status(away).ready_replicas) == (2, 1), "a lent pod comes back"
    ending = observed(pods=(pod("chat-a", 0), pod("chat-b", 0, terminating=True)))
    assert status(ending).replicas == 1
    selector = "app.kubernetes.io/name=aurora,app.kubernetes.io/instance=chat,app.kubernetes.io/component=inference"
    assert {status(seen).selector for seen in (surge, away, ending)} == {selector}


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        pytest.param({}, UpgradeStage.CURRENT, id="no room for the third and fourth"),
        pytest.param(
            {"deployment": WorkloadView(current=True, replicas=4, ready=1)}, UpgradeStage.RESTARTING, id="one starts"
        ),
        pytest.param(
            {"deployment": WorkloadView(current=False, replicas=4, ready=2)}, UpgradeStage.RESTARTING, id="some are old"
        ),
        pytest.param({"pods": (waiting_pod("chat-a"), waiting_pod("chat-b"), waiting_pod("chat-c"),
                               waiting_pod("chat-d"))}, UpgradeStage.RESTARTING, id="no room for any"),
    ],
)  # fmt: skip
def test_pods_without_room_do_not_hold_up_the_upgrade_of_a_fleet(changes: dict[str, Any], stage: UpgradeStage) -> None:
    seen = scaled_up(**changes)
    latest = decide_upgrade(replace(seen, deployed=None), CONFIG, NOW)
    digest = latest.annotations[TEMPLATE_ANNOTATION]
    restarting = DeployedTemplate(latest.template, whole=False, template_digest=digest, restarting_since=NOW)
    seen = replace(seen, deployed=restarting)
    assert decide_upgrade(seen, CONFIG, NOW).stage is stage
