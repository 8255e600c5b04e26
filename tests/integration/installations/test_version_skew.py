"""Objects that another version wrote, on a real API server: specs, statuses and Deployments survive a rewrite."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.config import new_client_from_config

from aurora_api import API_VERSION, KIND
from aurora_api.crd import crd
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.inference_deployment import TEMPLATE_ANNOTATION, deployment, inference_template
from aurora_operator.children.metadata import Owner
from aurora_operator.kubernetes_api import DEPLOYMENT, SPECULATOR, Object
from aurora_operator.observe.kubernetes_views import deployed_template
from aurora_operator.observe.observed import FleetView
from aurora_operator.observe.stored_resource import parse
from aurora_operator.plan import plan
from aurora_operator.plan.operator_upgrade import UpgradeStage, decide_upgrade
from tests.rig.api_server import ApiServer, api_server
from tests.rig.sync_api import SyncApi
from tests.unit.operator.upgrades import config
from tests.unit.operator.worlds import CONFIG, MINIMAL, NOW, observed

NAMESPACE = "team"
CRD_NAME = "crd/auroraspeculators.aurora.dev"


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[ApiServer]:
    with api_server() as server:
        server.kubectl("create", "namespace", NAMESPACE)
        yield server


@pytest.fixture(name="api")
def _api(server: ApiServer) -> Iterator[SyncApi]:
    connection = new_client_from_config(str(server.kubeconfig))
    yield SyncApi(connection)
    connection.close()


def install(server: ApiServer, definition: dict[str, Any]) -> None:
    server.apply(definition)
    server.kubectl("wait", "--for=condition=Established", CRD_NAME, "--timeout=30s")


def create(api: SyncApi, name: str, **parts: Any) -> Object:
    metadata = {"name": name, "namespace": NAMESPACE}
    return api.create({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": MINIMAL | parts})


def write_status(api: SyncApi, owner: Owner, status: SpeculatorStatus) -> None:
    """Write ``status`` as the operator does."""
    metadata = {"name": owner.name, "namespace": owner.namespace, "resourceVersion": owner.resource_version}
    body = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    api.apply({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": body}, subresource="status")


def schema_of(definition: dict[str, Any], part: str) -> dict[str, Any]:
    (version,) = definition["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"][part]["properties"]
    return found


def test_the_fault_of_a_spec_that_an_older_definition_admitted_reaches_the_status(
    server: ApiServer, api: SyncApi
) -> None:
    older = crd()
    schema_of(older, "spec")["training"]["properties"]["publishTokens"] = {"type": "integer"}
    install(server, older)
    create(api, "older", training={"publishTokens": -5})
    install(server, crd())
    owner, spec, status, fault = parse(api.get(SPECULATOR, NAMESPACE, "older"))
    world = observed(owner=owner, spec=spec, status=status, spec_fault=fault)
    made = plan(world, CONFIG, datetime.now(UTC))
    assert made.status is not None
    write_status(api, owner, made.status)
    conditions = {c["type"]: c for c in api.get(SPECULATOR, NAMESPACE, "older")["status"]["conditions"]}
    assert conditions["Stalled"]["status"] == "True"
    assert "training.publishTokens" in conditions["Stalled"]["message"]


def apply_decided(
    api: SyncApi, owner: Owner, version: int, fleet: FleetView, *, whole: bool = True
) -> tuple[UpgradeStage, Object]:
    """Look at the Deployment as the operator of ``version`` does, and apply what it decides.

    Args:
        whole: all pods are ready. No controller runs that would say so.
    """
    found = deployed_template(api.get(DEPLOYMENT, NAMESPACE, owner.name))
    assert found is not None
    world = observed(owner=owner, deployed=replace(found, whole=whole), fleet=fleet)
    made = decide_upgrade(world, config(version), NOW)
    api.apply(deployment(owner, world.spec, made.template, made.annotations))
    return made.stage, api.get(DEPLOYMENT, NAMESPACE, owner.name)


def images(live: Object) -> set[str]:
    return {container["image"] for container in live["spec"]["template"]["spec"]["containers"]}


@pytest.mark.parametrize("keeps_template", [True, False])
def test_a_deployment_keeps_its_pods_until_its_turn(server: ApiServer, api: SyncApi, keeps_template: bool) -> None:
    """Without its digest too, the stored template is taken."""
    install(server, crd())
    name = "kept" if keeps_template else "found"
    owner = parse(create(api, name))[0]
    world = observed(owner=owner)
    made = decide_upgrade(world, config(1), NOW)
    annotations = made.annotations if keeps_template else {}
    api.apply(deployment(owner, world.spec, inference_template(owner, world.spec, config(1)), annotations))
    before = copy.deepcopy(api.get(DEPLOYMENT, NAMESPACE, name))

    for _ in range(2):
        stage, held = apply_decided(api, owner, 2, FleetView(restarting=1))
        assert stage is UpgradeStage.WAITING
        assert held["spec"] == before["spec"], "no pod restarts"
        assert TEMPLATE_ANNOTATION in held["metadata"]["annotations"]

    stage, restarted = apply_decided(api, owner, 2, FleetView())
    assert stage is UpgradeStage.RESTARTING
    assert "agent:2" in images(restarted)
    stage, rolled_back = apply_decided(api, owner, 1, FleetView(restarting=1), whole=False)
    assert stage is UpgradeStage.RESTARTING, "it has its turn already"
    assert rolled_back["spec"] == before["spec"], "nothing of the held template is left"
