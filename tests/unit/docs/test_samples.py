"""Samples for autoscalers, gateways, queues and claims fit the operator's objects and the metrics of SGLang.

The API server checks these samples against the types of their projects in ``tests/integration``.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from aurora_api import API_VERSION, KIND
from aurora_api.crd import crd
from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.children.inference_deployment import deployment, inference_template
from aurora_operator.children.metadata import Owner
from aurora_operator.children.supporting_objects import services
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.children.validation_job import ValidationAttempt, job
from aurora_protocol.agent_api import ENGINE_PORT
from tests.unit.docs.markdown import ROOT, page
from tests.unit.operator.worlds import CONFIG

FOLDER = ROOT / "docs/samples"
OWNER = Owner("default", "chat", "0123456789abcdef", 1, "77")
AUTOSCALERS = ("hpa.yaml", "keda.yaml", "keda-schedule.yaml")
NAMES_METRICS = (
    *sorted((FOLDER / "autoscaling").glob("*.yaml")),
    ROOT / "docs/how-to/autoscaling.md",
    ROOT / "docs/how-to/inference-gateway.md",
)
SGLANG_METRIC = re.compile(r"sglang:(\w+)")
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


@pytest.mark.parametrize("name", AUTOSCALERS)
def test_an_autoscaler_targets_the_scale_subresource_of_a_speculator(name: str) -> None:
    (autoscaler,) = objects(f"autoscaling/{name}")
    target = autoscaler["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (API_VERSION, KIND)
    (version,) = crd()["spec"]["versions"]
    assert version["subresources"]["scale"]


def test_prometheus_scrapes_a_port_and_the_labels_of_an_inference_pod() -> None:
    (monitor,) = (one["spec"] for one in objects("autoscaling/pod-monitor.yaml"))
    template = pods("inference-pool.yaml")["inference"]
    labels = template["metadata"]["labels"].keys()
    assert monitor["selector"]["matchLabels"].keys() <= labels
    assert set(monitor["podTargetLabels"]) <= labels
    (endpoint,) = monitor["podMetricsEndpoints"]
    (engine,) = [c for c in template["spec"]["containers"] if c["name"] == "sglang"]
    assert endpoint["port"] in {port["name"] for port in engine["ports"]}


@pytest.mark.parametrize("path", NAMES_METRICS, ids=lambda path: path.name)
def test_named_metrics_are_reported_by_the_installed_sglang(path: Path) -> None:
    found = importlib.util.find_spec("sglang")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).parent / "srt/observability/metrics_collector.py"
    reported = set(re.findall(r'name="sglang:(\w+)"', source.read_text()))
    assert {name for name in SGLANG_METRIC.findall(path.read_text()) if name != "num_"} <= reported


def test_the_pool_selects_the_inference_pods_and_no_others() -> None:
    pool, _ = objects("inference-pool/pool.yaml")
    wanted = pool["spec"]["selector"]["matchLabels"].items()
    selected = {
        role for role, pod in pods("inference-pool.yaml").items() if wanted <= pod["metadata"]["labels"].items()
    }
    assert selected == {"inference"}
    assert pool["spec"]["targetPorts"] == [{"number": ENGINE_PORT}]


def test_the_route_for_clients_leads_to_the_speculators_service() -> None:
    route, _ = objects("gateway/route.yaml")
    (service,) = services(OWNER)
    (rule,) = route["spec"]["rules"]
    (backend,), (match,) = rule["backendRefs"], rule["matches"]
    assert backend == {"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}
    assert match["path"] == {"type": "PathPrefix", "value": "/v1"}, "the engine's other paths are not for clients"


def test_the_health_check_for_argo_cd_names_conditions_that_exist() -> None:
    """A slow suite runs the check (``tests/integration/gitops``). Another name would make the check wait for ever."""
    named = set(re.findall(r"found\.(\w+)", page("docs/how-to/gitops.md").path.read_text()))
    assert named == {ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED}


def test_training_and_measuring_are_queued_and_serving_is_not() -> None:
    (queue,) = [obj for obj in objects("kueue/queues.yaml") if obj["kind"] == "LocalQueue"]
    queued = {
        role: made["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
        for role, made in workloads("kueue.yaml").items()
    }
    assert queued == {"inference": None, "trainer": queue["metadata"]["name"], "validator": queue["metadata"]["name"]}


def test_every_pod_claims_a_device_by_the_template_beside_it() -> None:
    (template,) = objects("resource-claims/gpu.yaml")
    for role, pod in pods("resource-claims.yaml").items():
        (claim,) = pod["spec"]["resourceClaims"]
        assert claim["resourceClaimTemplateName"] == template["metadata"]["name"], role
        claimed = [one["name"] for c in pod["spec"]["containers"] for one in c.get("resources", {}).get("claims", ())]
        assert claimed == [claim["name"]], role


@pytest.mark.parametrize("sample", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.name)
def test_a_sample_names_the_files_that_it_needs(sample: Path) -> None:
    for name in NEEDED.findall(sample.read_text()):
        assert any((folder / name).exists() for folder in (FOLDER, sample.parent)), name
