"""An autoscaler scales a speculator on a real cluster: with and without room for its pods, in a roll, and to zero.

The cluster's own HorizontalPodAutoscaler controller reads and writes the scale subresource. It needs no metrics for
that: it scales at once to its new minimum or maximum. Pods run the stand-ins of ``operator_rig``.

Room is an extended resource of the node, of which each inference pod takes one. The tests run in their order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.kubernetes_api import DEPLOYMENT, DISRUPTION_BUDGET, POD, SPECULATOR, Object
from tests.cluster.command import wait_until
from tests.integration.operator.operator_rig import Rig, active, condition, report_training, spec, validation
from tests.unit.operator.worlds import registration

NAME = "scaled"
ROOM = "aurora.test/room"
PODS = f"app.kubernetes.io/instance={NAME}"
INFERENCE = f"{PODS},app.kubernetes.io/component=inference"


@pytest.fixture(scope="module", name="rig")
def _rig(operator: Rig) -> Iterator[Rig]:
    """A speculator with two pods that serve version 0, on a node that has room for two."""
    give_room(operator, 2)
    body = spec(operator.s3)
    engine, _ = body["serving"]["template"]["spec"]["containers"]
    engine["resources"] = {"limits": {ROOM: "1"}}
    with operator.speculator_with_a_draft(NAME, body):
        operator.wait(NAME, "two pods", lambda s: s.updated == "2/2" and condition(s, "Ready").status == "True", 90)
        yield operator


def give_room(rig: Rig, pods: int) -> None:
    """Let the node hold this many inference pods."""
    (node,) = rig.cluster.get("nodes")["items"]
    path = f"/status/capacity/{ROOM.replace('/', '~1')}"
    patch = json.dumps([{"op": "add", "path": path, "value": str(pods)}])
    rig.cluster.kubectl("patch", "node", node["metadata"]["name"], "--subresource=status", "--type=json", "-p", patch)


def scale(rig: Rig, replicas: int) -> None:
    rig.cluster.kubectl("scale", "auroraspeculator", NAME, f"--replicas={replicas}", "-n", rig.namespace)


def apply_autoscaler(rig: Rig, low: int, high: int) -> None:
    metric = {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}},
    }
    target = {"apiVersion": "aurora.dev/v1alpha1", "kind": "AuroraSpeculator", "name": NAME}
    rig.cluster.apply(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": NAME, "namespace": rig.namespace},
            "spec": {"scaleTargetRef": target, "minReplicas": low, "maxReplicas": high, "metrics": [metric]},
        }
    )


def pods_with_containers(rig: Rig) -> list[Object]:
    """The pods without those that the kubelet refused. The kubelet learns of the node's new room after the scheduler.

    Nobody deletes the rest of a refused pod, also not when the Deployment scales to zero.
    """
    return [pod for pod in rig.list(POD, PODS) if pod["status"].get("phase") != "Failed"]


def test_pods_are_replaced_in_place_where_no_room_is_for_one_more(rig: Rig) -> None:
    def pods() -> set[str]:
        return {pod["metadata"]["uid"] for pod in rig.list(POD, INFERENCE)}

    def surge() -> int | str:
        found: int | str = rig.read(DEPLOYMENT, NAME)["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
        return found

    before = pods()
    rig.patch(NAME, serving={"template": {"metadata": {"annotations": {"test": "in place"}}}})
    wait_until("two other pods", lambda: len(pods()) == 2 and not pods() & before, 120)
    rig.wait(NAME, "two pods", lambda s: s.updated == "2/2" and condition(s, "Ready").status == "True")
    wait_until("the strategy of the spec", lambda: surge() == 1, 30)


def test_kubernetes_own_autoscaler_scales_up_without_room_and_no_client_is_worse_off(rig: Rig) -> None:
    apply_autoscaler(rig, low=3, high=5)
    status = rig.wait(NAME, "a pod without room", lambda s: condition(s, "Ready").reason == "PodsPending")
    assert condition(status, "Ready").status == "True"
    message = condition(status, "ServingReady").message
    assert message.startswith("2 of 3 pods are ready; 1 waits for a node: 0/1 nodes are available: 1 Insufficient")
    assert (status.replicas, status.ready_replicas) == (3, 2)
    hpa = rig.get("hpa", NAME)["status"]
    assert hpa["desiredReplicas"] == 3
    able = next(c for c in hpa["conditions"] if c["type"] == "AbleToScale")
    assert able["status"] == "True", "the controller found the speculator's scale subresource"
    assert rig.warnings(NAME) == set()


def test_a_roll_is_promoted_although_a_replica_finds_no_room(rig: Rig) -> None:
    rig.offer(NAME, 1, against=0)
    status = rig.wait(NAME, "version 1 active", lambda s: active(s) == 1 and s.rollout.phase is RolloutPhase.IDLE)
    assert [pod.version for pod in status.pods if pod.state == "Ready"] == [1, 1]
    assert (status.rollout.total, status.rejected) == (2, [])


def test_a_replica_is_lent_although_another_finds_no_room(rig: Rig) -> None:
    """The real disruption budget allows no disruption then, because it counts the waiting pod."""
    budget = rig.get("poddisruptionbudget", NAME)["status"]
    assert (budget["disruptionsAllowed"], budget["currentHealthy"], budget["desiredHealthy"]) == (0, 2, 2)
    rig.patch(NAME, validation=validation("Replica"))
    rig.registry(NAME).register(registration(2))
    status = rig.wait(NAME, "a lent replica", lambda s: any(pod.state == "Measuring" for pod in s.pods))
    assert status.replicas == 3, "a lent pod comes back, so an autoscaler counts it"
    rig.cluster.kubectl("annotate", "aspec", NAME, "aurora.dev/abort=2", "-n", rig.namespace)
    rig.wait(NAME, "its return", lambda s: s.ready_replicas == 2 and 2 in s.rejected)
    rig.patch(NAME, validation=validation("Job"))


def test_the_disruption_budget_can_be_changed_and_switched_off_without_a_restart(rig: Rig) -> None:
    def budgets() -> list[int | str]:
        return [found["spec"]["maxUnavailable"] for found in rig.list(DISRUPTION_BUDGET, PODS)]

    pods = {pod["metadata"]["uid"] for pod in rig.list(POD, INFERENCE)}
    rig.patch(NAME, serving={"disruptionBudget": {"maxUnavailable": "50%"}})
    wait_until("the changed budget", lambda: budgets() == ["50%"], 30)
    rig.patch(NAME, serving={"disruptionBudget": {"enabled": False}})
    wait_until("no budget", lambda: budgets() == [], 30)
    rig.patch(NAME, serving={"disruptionBudget": None})
    wait_until("the default budget", lambda: budgets() == [1], 30)
    assert {pod["metadata"]["uid"] for pod in rig.list(POD, INFERENCE)} == pods


def test_a_pod_that_finds_room_late_serves_the_active_version(rig: Rig) -> None:
    give_room(rig, 5)
    status = rig.wait(NAME, "the third pod", lambda s: s.updated == "3/3")
    assert {pod.version for pod in status.pods} == {1}
    assert rig.warnings(NAME) <= {"Rejected"}


def test_kubernetes_own_autoscaler_scales_down_below_the_canary(rig: Rig) -> None:
    rig.patch(NAME, rollout={"canary": 3})
    apply_autoscaler(rig, low=1, high=1)
    status = rig.wait(NAME, "one pod", lambda s: s.updated == "1/1" and s.replicas == 1)
    assert condition(status, "Stalled").status == "False"
    rig.offer(NAME, 4, against=1)
    rig.wait(NAME, "version 4 active", lambda s: active(s) == 4 and s.rollout.phase is RolloutPhase.IDLE)
    rig.cluster.kubectl("delete", "hpa", NAME, "-n", rig.namespace)


def test_a_scale_to_zero_and_back_during_a_roll_rejects_nothing(rig: Rig) -> None:
    scale(rig, 2)
    rig.wait(NAME, "two pods", lambda s: s.updated == "2/2")
    rig.patch(NAME, rollout={"canary": 1, "analysis": {"watchSeconds": 600}})  # a canary of 40 s
    rig.offer(NAME, 6, against=4)
    rig.wait(NAME, "the canary", lambda s: s.rollout.phase is RolloutPhase.JUDGING and s.rollout.updated == 1)
    scale(rig, 0)
    status = rig.wait(NAME, "rest", lambda s: s.rollout.phase is RolloutPhase.IDLE and s.replicas == 0)
    assert 6 not in status.rejected
    assert status.history[-1].event == "RolloutStopped"
    ready = condition(status, "Ready")
    assert (ready.status, ready.reason) == ("True", "ScaledToZero")
    rig.patch(NAME, rollout={"analysis": {"watchSeconds": 3}})
    scale(rig, 1)
    status = rig.wait(NAME, "version 6 active", lambda s: active(s) == 6 and s.rollout.phase is RolloutPhase.IDLE, 90)
    assert 6 not in status.rejected


def test_a_spec_with_a_fault_still_scales_its_pods(rig: Rig) -> None:
    template = rig.read(SPECULATOR, NAME)["spec"]["serving"]["template"]
    pods = {pod["metadata"]["uid"] for pod in pods_with_containers(rig)}
    removes = {"spec": {"containers": [{"name": "sglang", "env": None}]}}
    patch = json.dumps(
        [{"op": "add", "path": "/spec/serving/template", "value": removes}]
    )  # a merge would drop the null
    rig.cluster.kubectl("patch", "auroraspeculator", NAME, "-n", rig.namespace, "--type=json", "-p", patch)
    rig.wait(NAME, "the fault", lambda s: condition(s, "Stalled").reason == "InvalidSpec")
    scale(rig, 2)
    rig.wait(NAME, "two pods", lambda s: s.ready_replicas == 2)
    rig.patch(NAME, serving={"template": template})
    rig.wait(NAME, "the mended spec", lambda s: condition(s, "Stalled").status == "False" and s.updated == "2/2")
    assert pods <= {pod["metadata"]["uid"] for pod in pods_with_containers(rig)}, "no pod was replaced"


def test_a_speculator_at_rest_has_no_pod(rig: Rig) -> None:
    """The store keeps everything, and the speculator goes on from it."""
    assert rig.list(POD, f"{PODS},app.kubernetes.io/component=trainer")
    rig.patch(NAME, training={"suspended": True})
    rig.wait(NAME, "suspension", lambda s: condition(s, "TrainerReady").reason == "Suspended")
    wait_until("no trainer", lambda: not rig.list(POD, f"{PODS},app.kubernetes.io/component=trainer"), 90)
    assert rig.status(NAME).updated == "2/2", "the inference pods serve on"
    scale(rig, 0)
    wait_until("no pod", lambda: not pods_with_containers(rig), 90)
    rig.wait(NAME, "rest", lambda s: condition(s, "Ready").reason == "ScaledToZero")
    registry = rig.registry(NAME)
    assert registry.last_version() == 6
    assert registry.lineage() is not None
    report_training(registry)
    rig.patch(NAME, training={"suspended": False})
    scale(rig, 1)
    status = rig.wait(
        NAME, "service", lambda s: s.updated == "1/1" and condition(s, "TrainerReady").status == "True", 90
    )
    assert active(status) == 6
    assert {pod.version for pod in status.pods} == {6}
