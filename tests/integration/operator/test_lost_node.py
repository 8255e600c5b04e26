"""Kubernetes' own controllers move the trainer from a lost node to another one, while the former pod hangs.

The API server and the controllers are real. Nodes are objects without a kubelet, so a pod on a node stays in the API
server once it is deleted, as it does on a node that is lost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aurora_operator.children import trainer_deployment
from aurora_operator.children.metadata import TRAINER, selector_text
from tests.rig.api_server import ApiServer, api_server
from tests.unit.operator.worlds import CONFIG, OWNER, spec

LOST_NODE_SECONDS = 10
"""Shorter than the real time, which only changes how long the test waits."""
CONTROLLERS = (
    "daemonset-controller",  # brings the index of pods by node that the eviction uses
    "deployment-controller",
    "replicaset-controller",
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


def pods(api: ApiServer) -> dict[str, dict[str, Any]]:
    items = api.get("pods", "-n", OWNER.namespace, "-l", selector_text(OWNER, TRAINER))["items"]
    return {pod["metadata"]["name"]: pod for pod in items}


def wait_for_pods(api: ApiServer, count: int, timeout_seconds: float) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + timeout_seconds
    while len(found := pods(api)) != count:
        assert time.monotonic() < deadline, f"{sorted(found)}: not {count} pods within {timeout_seconds} s"
        time.sleep(0.5)
    return found


def run_on(api: ApiServer, pod: str, node: str) -> None:
    """Do what scheduler and kubelet do: bind the pod, and report that it runs."""
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
    path = f"/api/v1/namespaces/{OWNER.namespace}/pods/{pod}/binding"
    api.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(binding))
    running = '{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}'
    api.kubectl("patch", "pod", pod, "-n", OWNER.namespace, "--subresource=status", "--type=merge", "-p", running)


def test_a_trainer_starts_on_another_node_although_its_former_pod_hangs(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_deployment, "LOST_NODE_SECONDS", LOST_NODE_SECONDS)
    made = trainer_deployment.trainer_deployment(OWNER, spec(), CONFIG, 1)
    made["metadata"].pop("ownerReferences")  # there is no speculator here
    for node in ("lost", "other"):
        api.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    api.apply(made)
    (former,) = wait_for_pods(api, 1, 60)
    run_on(api, former, "lost")

    began = time.monotonic()
    api.kubectl("taint", "node", "lost", "node.kubernetes.io/unreachable:NoExecute")
    both = wait_for_pods(api, 2, LOST_NODE_SECONDS + 60)
    assert time.monotonic() - began >= LOST_NODE_SECONDS - 2, "a short loss of contact moves nothing"
    assert "deletionTimestamp" in both[former]["metadata"], "nobody can say whether the former still runs"
    (successor,) = both.keys() - {former}
    run_on(api, successor, "other")
    assert "deletionTimestamp" not in pods(api)[successor]["metadata"]
    time.sleep(3)
    assert pods(api).keys() == {former, successor}, "one trainer replaces one"
