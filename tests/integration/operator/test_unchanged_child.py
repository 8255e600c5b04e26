"""Every child is recognised as unchanged in the form in which a real API server and its controllers show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from kubernetes import config

from aurora_operator.act.child_writer import is_unchanged, with_digest
from aurora_operator.children.inference_deployment import AGENT_RESOURCES
from aurora_operator.kubernetes_api import Object, resource_of
from tests.cluster.command import wait_until
from tests.rig.api_server import ApiServer, api_server
from tests.rig.sync_api import SyncApi
from tests.unit.operator.worlds import OWNER, made, observed, spec

TEMPLATE = {
    "spec": {
        "containers": [
            {"name": "sglang", "resources": {"limits": {"cpu": "4000m", "memory": "64Gi", "nvidia.com/gpu": 1}}}
        ]
    }
}
SPEC = spec(serving={"replicas": 2, "template": TEMPLATE})


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[ApiServer]:
    with api_server(("deployment-controller", "disruption-controller")) as running:
        running.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OWNER.namespace}})
        yield running


@pytest.fixture(scope="module", name="api")
def _api(server: ApiServer) -> SyncApi:
    return SyncApi(config.new_client_from_config(str(server.kubeconfig)))


def read(api: SyncApi, child: Object) -> Object:
    metadata = child["metadata"]
    return api.get(resource_of(child), metadata["namespace"], metadata["name"])


def test_no_child_needs_a_write_after_a_restart(api: SyncApi) -> None:
    assert AGENT_RESOURCES, "quantities are among the values that are compared"
    children = [with_digest(child) for child in made(replace(observed(spec=SPEC), owner=OWNER)).children]
    for child in children:
        api.apply(child)
    deployments = [child for child in children if child["kind"] == "Deployment"]
    wait_until(
        "the controller's annotation on every Deployment",
        lambda: all(
            "deployment.kubernetes.io/revision" in read(api, d)["metadata"]["annotations"] for d in deployments
        ),
        60,
    )
    changed = [
        f"{each['kind']} {each['metadata']['name']}" for each in children if not is_unchanged(each, read(api, each))
    ]
    assert len(children) > 6
    assert changed == []
    deployment = deployments[-1]
    scaled = {**deployment, "spec": {**deployment["spec"], "replicas": 7}}
    api.apply(scaled)
    assert not is_unchanged(deployment, read(api, deployment))
