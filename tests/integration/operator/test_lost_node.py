"""A node is lost: the trainer moves to another one, and a measurement is made again, while the former pods hang.

The API server and the controllers are real. Nodes are objects without a kubelet, so a pod on a node stays in the API
server once it is deleted, as it does on a node that is lost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aurora_operator.children.metadata import TRAINER, VALIDATOR, selector_text
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.children.validation_job import ValidationAttempt, job
from aurora_operator.observe.kubernetes_views import job_view
from aurora_protocol.pod_settings import Replica
from tests.rig.api_server import ApiServer, api_server
from tests.unit.operator.worlds import CONFIG, OWNER, spec

LOST_NODE_SECONDS = 10
"""Shorter than Kubernetes' default of 300 s, which only changes how long the test waits."""
DEADLINE_SECONDS = 10
"""Deadline of a measurement's Job, shorter than the real one."""
CONTROLLERS = (
    "daemonset-controller",  # brings the index of pods by node that the eviction uses
    "deployment-controller",
    "replicaset-controller",
    "job-controller",
    "taint-eviction-controller",
    "serviceaccount-controller",
    "namespace-controller",
)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with api_server(CONTROLLERS) as server:
        server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OWNER.namespace}})
        account = {"name": OWNER.name, "namespace": OWNER.namespace}
        server.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        yield server


def pods(api: ApiServer, component: str = TRAINER) -> dict[str, dict[str, Any]]:
    items = api.get("pods", "-n", OWNER.namespace, "-l", selector_text(OWNER, component))["items"]
    return {pod["metadata"]["name"]: pod for pod in items}


def wait_for_pods(
    api: ApiServer, count: int, timeout_seconds: float, component: str = TRAINER
) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + timeout_seconds
    while len(found := pods(api, component)) != count:
        assert time.monotonic() < deadline, f"{sorted(found)}: not {count} pods within {timeout_seconds} s"
        time.sleep(0.5)
    return found


def add_nodes(api: ApiServer, *names: str) -> None:
    for name in names:
        api.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})


def apply_trainer(api: ApiServer, *, suspended: bool = False) -> None:
    """Apply the trainer's Deployment. ``suspended`` changes its template."""
    lost = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    template = {"spec": {"tolerations": [lost | {"tolerationSeconds": LOST_NODE_SECONDS}]}}
    given = spec(training={"suspended": suspended, "template": template})
    made = trainer_deployment(OWNER, given, CONFIG, 1)
    made["metadata"].pop("ownerReferences")  # there is no speculator here
    api.apply(made)


def remove(api: ApiServer, pod: str) -> None:
    """Do what a kubelet does: wait until the pod is being deleted, end its containers, and remove it."""
    deadline = time.monotonic() + 30
    while "deletionTimestamp" not in pods(api)[pod]["metadata"]:
        assert time.monotonic() < deadline, f"nobody deletes {pod}"
        time.sleep(0.2)
    api.kubectl("delete", "pod", pod, "-n", OWNER.namespace, "--force", "--grace-period=0")


def lose(api: ApiServer, node: str) -> None:
    """Do what the node controller does once it has not heard from the node for a while."""
    api.kubectl("taint", "node", node, "node.kubernetes.io/unreachable:NoExecute")


def run_on(api: ApiServer, pod: str, node: str) -> None:
    """Do what scheduler and kubelet do: bind the pod, and report that it runs."""
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
    path = f"/api/v1/namespaces/{OWNER.namespace}/pods/{pod}/binding"
    api.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(binding))
    running = '{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}'
    api.kubectl("patch", "pod", pod, "-n", OWNER.namespace, "--subresource=status", "--type=merge", "-p", running)


def test_a_trainer_starts_on_another_node_although_its_former_pod_hangs(api: ApiServer) -> None:
    add_nodes(api, "lost", "other")
    apply_trainer(api)
    (former,) = wait_for_pods(api, 1, 60)
    run_on(api, former, "lost")

    began = time.monotonic()
    lose(api, "lost")
    both = wait_for_pods(api, 2, LOST_NODE_SECONDS + 60)
    assert time.monotonic() - began >= LOST_NODE_SECONDS - 2, "a short loss of contact moves nothing"
    assert "deletionTimestamp" in both[former]["metadata"], "nobody can say whether the former still runs"
    (successor,) = both.keys() - {former}
    run_on(api, successor, "other")
    assert "deletionTimestamp" not in pods(api)[successor]["metadata"]
    time.sleep(3)
    assert pods(api).keys() == {former, successor}, "one trainer replaces one"

    apply_trainer(api, suspended=True)
    remove(api, successor)
    (changed,) = wait_for_pods(api, 2, 30).keys() - {former}
    assert changed != successor, "a change of the template does not wait for the pod that hangs"


@pytest.mark.parametrize("replica", [None, Replica(pod="chat-b", ip="10.0.0.6", measurement="m", epoch=1)])
def test_a_measurement_is_made_again_although_its_pod_hangs_on_a_lost_node(
    api: ApiServer, replica: Replica | None
) -> None:
    """Kubernetes knows that the Job has failed, and does not say so before its pod ends."""
    soon = [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "operator": "Exists",
             "tolerationSeconds": 1}]  # fmt: skip
    given = spec(validation={"template": {"spec": {"tolerations": soon, "terminationGracePeriodSeconds": 1}}})
    add_nodes(api, "lost", "other")

    def begin(attempt: int) -> dict[str, Any]:
        made = job(OWNER, given, CONFIG, ValidationAttempt(1, attempt, 0, replica))
        made["metadata"].pop("ownerReferences")
        made["spec"]["activeDeadlineSeconds"] = DEADLINE_SECONDS
        api.apply(made)
        return made

    first = begin(1)["metadata"]["name"]
    (former,) = wait_for_pods(api, 1, 60, VALIDATOR)
    run_on(api, former, "lost")
    lose(api, "lost")
    time.sleep(DEADLINE_SECONDS + 5)
    hung = pods(api, VALIDATOR)
    seen = api.get("job", first, "-n", OWNER.namespace)
    assert hung.keys() == {former}, "Kubernetes does not replace it"
    assert [c["type"] for c in seen["status"]["conditions"]] == ["FailureTarget"], "the Job never fails"
    assert job_view(seen, hung.values()).failed

    api.kubectl("delete", "job", first, "-n", OWNER.namespace, "--cascade=background")
    begin(2)
    both = wait_for_pods(api, 2, 30, VALIDATOR)
    (successor,) = both.keys() - {former}
    run_on(api, successor, "other")
