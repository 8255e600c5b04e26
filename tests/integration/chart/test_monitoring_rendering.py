"""What the chart gives to Prometheus and Grafana: off by default, and fit for the pods that the operator makes."""

from __future__ import annotations

import json
from typing import Any

import yaml

from aurora_operator.children.inference_deployment import inference_template
from tests.rig.chart.rendered_chart import CHART, OPERATOR, SAMPLES, Object, render, select
from tests.unit.operator.worlds import CONFIG, OWNER, spec

EVERYTHING, TENANT = SAMPLES / "everything-values.yaml", SAMPLES / "tenant-values.yaml"
SPECULATORS = f"{OPERATOR}-speculators"
ENABLED = "--set=metrics.speculatorPodMonitor.enabled=true"


def test_nothing_needs_the_prometheus_operator_by_default() -> None:
    kinds = {obj["kind"] for obj in render()}
    assert not kinds & {"PodMonitor", "PrometheusRule", "ConfigMap"}


def test_the_operators_monitor_keeps_the_speculators_namespace() -> None:
    objects = render(values=EVERYTHING)
    monitor = select(objects, "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["honorLabels"] is True, "otherwise `namespace` is the operator's own"
    template = select(objects, "Deployment")["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}


def _endpoints(monitor: Object) -> dict[str, Any]:
    return {endpoint["port"]: endpoint for endpoint in monitor["spec"]["podMetricsEndpoints"]}


def test_the_speculators_monitor_selects_the_pods_that_the_operator_makes_and_names_the_speculator() -> None:
    monitor = select(render(ENABLED), "PodMonitor", SPECULATORS)
    template = inference_template(OWNER, spec(), CONFIG)
    labels = template["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"] for container in template["spec"]["containers"] for port in container["ports"]}
    assert set(_endpoints(monitor)) == ports == {"http", "agent"}
    for endpoint in _endpoints(monitor).values():
        relabel = endpoint["relabelings"][0]
        assert relabel["targetLabel"] == "name"
        (source,) = relabel["sourceLabels"]
        meta = {f"__meta_kubernetes_pod_label_{label.replace('.', '_').replace('/', '_')}": label for label in labels}
        assert labels[meta[source]] == OWNER.name


def test_the_load_of_a_measurement_is_not_scraped_as_that_of_clients() -> None:
    endpoints = _endpoints(select(render(ENABLED), "PodMonitor", SPECULATORS))
    keeps = {port: [r for r in one["relabelings"] if r.get("action") == "keep"] for port, one in endpoints.items()}
    assert keeps["agent"] == [], "the agent of a lent replica goes on reporting uploads"
    (keep,) = keeps["http"]
    assert (keep["sourceLabels"], keep["regex"]) == (["__meta_kubernetes_pod_ready"], "true")


def test_the_speculators_monitor_covers_the_namespaces_that_the_release_handles() -> None:
    assert select(render(ENABLED), "PodMonitor", SPECULATORS)["spec"]["namespaceSelector"] == {"any": True}
    tenant = select(render(ENABLED, values=TENANT), "PodMonitor", SPECULATORS)
    assert tenant["spec"]["namespaceSelector"] == {"matchNames": ["tenant-a"]}


def test_rules_and_dashboard_are_those_of_the_chart_and_have_their_labels() -> None:
    objects = render(values=EVERYTHING)
    rule, dashboard = select(objects, "PrometheusRule"), select(objects, "ConfigMap", f"{OPERATOR}-dashboard")
    assert rule["spec"] == yaml.safe_load((CHART / "monitoring/alerts.yaml").read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    (name,) = dashboard["data"]
    assert name.endswith(".json"), "the sidecar takes only such names"
    assert json.loads(dashboard["data"][name]) == json.loads((CHART / "monitoring/dashboard.json").read_text())
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
