"""The samples for autoscalers name our resource, our pods and ports, and metrics that the installed SGLang reports.

The API server checks ``hpa.yaml`` in ``tests/integration/operator/test_admission.py``. It knows no PodMonitor and no
ScaledObject, so these are checked here: whatever in them depends on us or on SGLang.
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
from aurora_operator.children.inference_deployment import inference_template
from tests.unit.docs.markdown import ROOT, page
from tests.unit.operator.worlds import CONFIG, OWNER, spec

FOLDER = ROOT / "docs/samples/autoscaling"
SAMPLES = sorted(FOLDER.glob("*.yaml"))
AUTOSCALERS = ("hpa.yaml", "keda.yaml", "keda-schedule.yaml")
SGLANG_METRIC = re.compile(r"sglang:(\w+)")
QUERIED = re.compile(r"sglang:(\w+?)\{")


def sample(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def reported_metrics() -> set[str]:
    """The names of the gauges in the source of the installed SGLang, without importing it."""
    found = importlib.util.find_spec("sglang")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).parent / "srt/observability/metrics_collector.py"
    return set(re.findall(r'name="sglang:(\w+)"', source.read_text()))


@pytest.mark.parametrize("name", AUTOSCALERS)
def test_an_autoscaler_targets_the_scale_subresource_of_a_speculator(name: str) -> None:
    target = sample(name)["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (API_VERSION, KIND)
    (version,) = crd()["spec"]["versions"]
    scale, schema = version["subresources"]["scale"], version["schema"]["openAPIV3Schema"]
    for path in scale.values():
        node = schema
        for part in path.strip(".").split("."):
            node = node["properties"][part]
        assert node["type"] in ("integer", "string"), path


@pytest.mark.parametrize("name", AUTOSCALERS)
def test_an_autoscaler_stays_within_the_field_and_scales_down_slowly(name: str) -> None:
    given = sample(name)["spec"]
    limits = [given[key] for key in given if key.startswith(("minReplica", "maxReplica"))]
    assert len(limits) == 2
    assert [spec(serving={"replicas": limit}).serving.replicas for limit in limits] == limits
    advanced = given.get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
    behavior = given.get("behavior") or advanced["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] > spec().rollout.analysis.watch_seconds
    (policy,) = behavior["scaleUp"]["policies"]
    assert policy["value"] <= spec().rollout.max_not_ready


def test_prometheus_scrapes_a_port_and_the_labels_of_an_inference_pod() -> None:
    monitor, template = sample("pod-monitor.yaml")["spec"], inference_template(OWNER, spec(), CONFIG)
    labels = template["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert set(monitor["podTargetLabels"]) <= labels.keys()
    (endpoint,) = monitor["podMetricsEndpoints"]
    (engine,) = [c for c in template["spec"]["containers"] if c["name"] == "sglang"]
    assert endpoint["port"] in {port["name"] for port in engine["ports"]}
    for label in monitor["podTargetLabels"]:
        assert re.sub(r"\W", "_", label) in (FOLDER / "keda.yaml").read_text()


@pytest.mark.parametrize("path", [*SAMPLES, ROOT / "docs/how-to/autoscaling.md"], ids=lambda path: path.name)
def test_named_metrics_are_reported_by_the_installed_sglang(path: Path) -> None:
    named = {name for name in SGLANG_METRIC.findall(path.read_text()) if name != "num_"}
    assert named <= reported_metrics()


def test_the_autoscaler_reads_the_metrics_that_the_adapter_offers() -> None:
    (rule,) = sample("prometheus-adapter.yaml")["rules"]["custom"]
    (pattern,) = re.findall(r'__name__=~"([^"]+)"', rule["seriesQuery"])
    offered = {
        re.sub(rule["name"]["matches"], rule["name"]["as"].replace("${1}", r"\1"), f"sglang:{metric}")
        for metric in reported_metrics()
        if re.fullmatch(pattern, f"sglang:{metric}")
    }
    read = {metric["pods"]["metric"]["name"] for metric in sample("hpa.yaml")["spec"]["metrics"]}
    assert read == offered
    queried = {f"sglang_{name}" for name in QUERIED.findall((FOLDER / "keda.yaml").read_text())}
    assert queried == offered


def test_queries_read_only_the_series_of_one_pod_monitor() -> None:
    """The chart's PodMonitor may scrape the same engines. A sum over both would count each request twice."""
    (label,) = sample("pod-monitor.yaml")["spec"]["podTargetLabels"]
    matcher = re.sub(r"\W", "_", label)
    (rule,) = sample("prometheus-adapter.yaml")["rules"]["custom"]
    assert f'{matcher}!=""' in rule["seriesQuery"]
    assert f'{matcher}!=""' in rule["metricsQuery"]
    for name in ("keda.yaml", "keda-schedule.yaml"):
        queries = [trigger["metadata"].get("query") for trigger in sample(name)["spec"]["triggers"]]
        assert all(f'{matcher}="chat"' in query for query in queries if query), name
    assert "podTargetLabels" not in (ROOT / "charts/aurora-operator/templates/metrics.yaml").read_text()


def test_only_a_trigger_outside_of_the_pods_brings_the_first_pod() -> None:
    """Without pods SGLang reports nothing, so a sample that scales to zero needs another trigger."""
    for name in ("keda.yaml", "keda-schedule.yaml"):
        given = sample(name)["spec"]
        kinds = {trigger["type"] for trigger in given["triggers"]}
        assert (given["minReplicaCount"] == 0) == (kinds > {"prometheus"}), name


def test_the_page_links_every_sample() -> None:
    linked = {target.rpartition("/")[2] for _, target in page("docs/how-to/autoscaling.md").links}
    assert {path.name for path in SAMPLES} <= linked
