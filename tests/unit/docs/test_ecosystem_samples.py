"""The samples for Kueue, the inference gateway and resource claims fit the objects that the operator makes.

The API server checks these samples against the other projects' types in ``tests/integration/chart``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from aurora_api.base import quantity_bytes
from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.inference_deployment import deployment, inference_template
from aurora_operator.children.network import services
from aurora_operator.children.owner import Owner
from aurora_operator.children.queue_label import QUEUE_LABEL
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.children.validation_job import ValidationAttempt, job
from aurora_protocol.agent_api import ENGINE_PORT
from tests.unit.docs.markdown import ROOT, page
from tests.unit.docs.test_autoscaling_samples import SGLANG_METRIC, reported_metrics
from tests.unit.operator.worlds import CONFIG

FOLDER = ROOT / "docs/samples"
NEEDED = re.compile(r"Needs\s+(?:#\s+)?([\w/-]+\.yaml)")


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def workloads(name: str) -> dict[str, dict[str, Any]]:
    """The Deployments and the validation Job of the speculator in a sample."""
    (sample,) = objects(name)
    spec = SpeculatorSpec.model_validate(sample["spec"], extra="forbid")
    owner = Owner("default", sample["metadata"]["name"], "0123456789abcdef", 1, "77")
    return {
        "inference": deployment(owner, spec, inference_template(owner, spec, CONFIG), {}),
        "trainer": trainer_deployment(owner, spec, CONFIG, 1),
        "validator": job(owner, spec, CONFIG, ValidationAttempt(version=2, attempt=1, active=1)),
    }


def pods(name: str) -> dict[str, dict[str, Any]]:
    return {role: workload["spec"]["template"] for role, workload in workloads(name).items()}


def test_the_pool_selects_the_inference_pods_and_no_others() -> None:
    pool, route = objects("inference-pool/pool.yaml")
    wanted = pool["spec"]["selector"]["matchLabels"].items()
    selected = {
        role for role, pod in pods("inference-pool.yaml").items() if wanted <= pod["metadata"]["labels"].items()
    }
    assert selected == {"inference"}
    assert pool["spec"]["targetPorts"] == [{"number": ENGINE_PORT}]
    ((backend,),) = (rule["backendRefs"] for rule in route["spec"]["rules"])
    group, _ = pool["apiVersion"].split("/")
    assert backend == {"group": group, "kind": pool["kind"], "name": pool["metadata"]["name"]}


def test_the_route_for_clients_leads_to_the_speculators_service_and_asks_for_keys() -> None:
    route, policy = objects("gateway/route.yaml")
    owner = Owner("default", "chat", "0123456789abcdef", 1, "77")
    (service,) = services(owner)
    (rule,) = route["spec"]["rules"]
    (backend,), (match,) = rule["backendRefs"], rule["matches"]
    assert backend == {"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}
    assert match["path"] == {"type": "PathPrefix", "value": "/v1"}, "the engine's other paths are not for clients"
    group, _ = route["apiVersion"].split("/")
    assert policy["spec"]["targetRefs"] == [{"group": group, "kind": route["kind"], "name": route["metadata"]["name"]}]
    (secret,) = policy["spec"]["apiKeyAuth"]["credentialRefs"]
    assert f"secret generic {secret['name']} " in page("docs/how-to/clients.md").path.read_text()


def test_the_health_checks_for_git_tools_name_conditions_and_fields_that_exist() -> None:
    """No test runs Argo CD or Flux. A condition with another name would make a check wait for ever."""
    lua, flux = page("docs/how-to/gitops.md").path.read_text().split("## Health in Flux")
    for text in (lua, flux):
        named = set(re.findall(r"""["'](Ready|Degraded|[A-Z][a-z]+[A-Z]\w+)["']""", text)) - {"AuroraSpeculator"}
        assert named == {"Ready", "Degraded", "NameTaken", "InvalidSpec"}
        assert named <= {kind.value for kind in ConditionType}
        assert "observedGeneration" in text
    fields = {field.alias or name for name, field in SpeculatorStatus.model_fields.items()}
    assert set(re.findall(r"\bstatus\.(?!status)(\w+)", flux)) <= fields


def test_the_endpoint_picker_is_told_metrics_that_the_installed_sglang_reports() -> None:
    text = page("docs/how-to/inference-gateway.md").path.read_text()
    named = set(SGLANG_METRIC.findall(text))
    assert len(named) == 3
    assert named <= reported_metrics()


def test_training_and_measuring_are_queued_and_serving_is_not() -> None:
    (queue,) = [obj for obj in objects("kueue/queues.yaml") if obj["kind"] == "LocalQueue"]
    queued = {role: made["metadata"]["labels"].get(QUEUE_LABEL) for role, made in workloads("kueue.yaml").items()}
    assert queued == {"inference": None, "trainer": queue["metadata"]["name"], "validator": queue["metadata"]["name"]}
    (priority,) = [obj for obj in objects("kueue/queues.yaml") if obj["kind"] == "WorkloadPriorityClass"]
    labels = workloads("kueue.yaml")["trainer"]["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/priority-class"] == priority["metadata"]["name"]


def _requests(pod: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """What the containers ask for. A limit without a request is a request."""
    for container in pod["spec"]["containers"]:
        resources = container.get("resources", {})
        for name, amount in (resources.get("limits", {}) | resources.get("requests", {})).items():
            yield name, quantity_bytes(str(amount))


def test_the_queue_has_room_for_a_trainer_and_a_measurement() -> None:
    """Kueue admits no pod that asks for a resource which its queue does not cover."""
    (cluster_queue,) = [obj for obj in objects("kueue/queues.yaml") if obj["kind"] == "ClusterQueue"]
    (group,) = cluster_queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    quota = {one["name"]: quantity_bytes(one["nominalQuota"]) for one in flavor["resources"]}
    assert list(quota) == group["coveredResources"]
    made = pods("kueue.yaml")
    asked = [request for role in ("trainer", "validator") for request in _requests(made[role])]
    for resource in {name for name, _ in asked}:
        assert sum(amount for name, amount in asked if name == resource) <= quota[resource], resource


def test_every_pod_claims_a_device_by_the_template_beside_it() -> None:
    (template,) = objects("resource-claims/gpu.yaml")
    for role, pod in pods("resource-claims.yaml").items():
        (claim,) = pod["spec"]["resourceClaims"]
        assert claim["resourceClaimTemplateName"] == template["metadata"]["name"], role
        claimed = [one["name"] for c in pod["spec"]["containers"] for one in c.get("resources", {}).get("claims", ())]
        assert claimed == [claim["name"]], role


def test_a_measurement_is_placed_like_serving_but_for_what_its_template_changes() -> None:
    made = {role: pod["spec"] for role, pod in pods("placement.yaml").items()}
    same = ("nodeSelector", "runtimeClassName", "tolerations")
    assert all(made["validator"][field] == made["inference"][field] for field in same)
    assert "topologySpreadConstraints" not in made["validator"]
    assert made["validator"]["priorityClassName"] == made["trainer"]["priorityClassName"] == "batch"
    (spread,) = made["inference"]["topologySpreadConstraints"]
    labels = pods("placement.yaml")["inference"]["metadata"]["labels"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("sample", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.name)
def test_a_sample_names_the_files_that_it_needs(sample: Any) -> None:
    for name in NEEDED.findall(sample.read_text()):
        assert any((folder / name).exists() for folder in (FOLDER, sample.parent)), name


def test_the_documentation_links_every_sample() -> None:
    pages = ("docs/README.md", "docs/how-to/autoscaling.md", "docs/reference/targets.md", "docs/how-to/gpu.md")
    linked = {target.rpartition("samples/")[2] for name in pages for _, target in page(name).links}
    found = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert found <= linked
