"""Alerts and dashboard of the chart name only what real processes export, and alerts fire when they should."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.events import DECISIONS
from tests.cluster.command import run
from tests.generated import exported_metrics
from tests.generated.generated_file import ROOT
from tests.rig.prometheus.dashboard_queries import dashboard_queries
from tests.rig.prometheus.server import promtool
from tests.unit.chart.promql import named

FOLDER = ROOT / "charts/aurora-operator/monitoring"
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]  # fmt: skip
ALERT_TESTS = ROOT / "tests/unit/chart/alerts_test.yaml"
TARGET_LABELS = frozenset({"namespace", "name", "pod", "job", "le"})
"""Labels that Prometheus adds to every series of our PodMonitors, and that of a histogram's buckets."""
ENGINE_LABELS = frozenset({"priority"})
"""The labels of SGLang's metrics that expressions may name."""
OURS = (*exported_metrics.operator(), *exported_metrics.agent())
LABELS = {series: frozenset(metric.labels) for metric in OURS for series in metric.series}
VALUES = {
    "type": {kind.value for kind in ConditionType},
    "phase": {phase.value for phase in RolloutPhase},
    "decision": set(DECISIONS),
    "source": {"draft", "lookup"},
    "position": {"1"},
    "outcome": {"done", "conflict", "error"},
    "stage": {"waiting", "restarting", "failed"},
    "version": {"unknown"},
    "priority": {""},
}
"""The values of labels that expressions may ask for."""


EXPRESSIONS = [*dashboard_queries(), *((alert["alert"], alert["expr"]) for alert in ALERTS)]
IDS = [name for name, _ in EXPRESSIONS]


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=IDS)
def test_an_expression_names_only_series_and_labels_that_exist(name: str, expression: str) -> None:
    series, labels = named(expression)
    assert series, "an expression without a metric shows nothing"
    known = {*LABELS, *exported_metrics.operator_process(), *exported_metrics.engine()}
    assert series <= known, f"{name} names series that nobody exports"
    own = frozenset[str]().union(*(LABELS.get(one, ENGINE_LABELS) for one in series))
    assert labels <= own | TARGET_LABELS, f"{name} names labels that the series do not have"


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=IDS)
def test_an_expression_asks_only_for_values_that_labels_take(name: str, expression: str) -> None:
    for label, operator, text in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', expression):
        if label in ("namespace", "name"):
            assert (operator, text) == ("=", f"${label}")
        else:
            assert set(text.split("|")) <= VALUES[label], f"{name}: {label}"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_what_to_look_at_on_a_page_that_exists(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("info", "warning", "critical")
    notes = alert["annotations"]
    pages = re.findall(r"docs/[\w/-]+\.md", notes["runbook"])
    assert pages
    assert all((ROOT / page).is_file() for page in pages)
    _, grouped = named(alert["expr"])
    for text in notes.values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= grouped, "a label that the alert does not have is empty"


def _promtool(*arguments: str | Path) -> None:
    """Raises CommandError with what promtool said."""
    run(promtool(), *arguments)


def test_promtool_accepts_the_alerts_and_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    _promtool("check", "rules", FOLDER / "alerts.yaml")
    rules = [
        {"record": f"panel:{number}", "expr": query.expression.replace("$__rate_interval", "5m")}
        for number, query in enumerate(dashboard_queries())
    ]
    panels = tmp_path / "panels.yaml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    _promtool("check", "rules", panels)


def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    rules = [{key: value for key, value in alert.items() if key != "annotations"} for alert in ALERTS]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "alerts", "rules": rules}]}))
    shutil.copy(ALERT_TESTS, tmp_path)
    _promtool("test", "rules", tmp_path / ALERT_TESTS.name)


def test_a_panel_counts_only_pods_that_estimate_and_each_request_once(tmp_path: Path) -> None:
    """Pod b estimates nothing. Pod a schedules by priority: beside its total, SGLang reports each priority."""
    pod = 'namespace="team",name="chat",pod='
    series = {
        f'aurora_agent_answer_tokens_total{{{pod}"a"}}': "0+60x60",
        f'aurora_agent_answer_tokens_total{{{pod}"b"}}': "0+600x60",
        f'aurora_agent_estimated_speedup{{{pod}"a"}}': "2x60",
        f'sglang:num_running_reqs{{{pod}"a",priority=""}}': "3x60",
        f'sglang:num_running_reqs{{{pod}"a",priority="1"}}': "2x60",
        f'sglang:num_running_reqs{{{pod}"a",priority="2"}}': "1x60",
        f'sglang:num_running_reqs{{{pod}"b"}}': "4x60",
    }
    expected = {"Speed against no speculation": 2, "Requests in the engines": 7}
    asked = [(query, query.filled_in("team", "chat", rate_interval="5m")) for query in dashboard_queries()]
    queries = [
        {"expr": text, "eval_time": "50m", "exp_samples": [{"value": expected[query.title]}]}
        for query, text in asked
        if query.title in expected and named(text)[0] <= {one.partition("{")[0] for one in series}
    ]
    assert len(queries) == len(expected)
    inputs = [{"series": one, "values": values} for one, values in series.items()]
    file = tmp_path / "values_test.yaml"
    test = {"interval": "1m", "input_series": inputs, "promql_expr_test": queries}
    file.write_text(yaml.safe_dump({"tests": [test]}))
    _promtool("test", "rules", file)


def test_every_alert_is_made_to_fire_once() -> None:
    tests = yaml.safe_load(ALERT_TESTS.read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == {alert["alert"] for alert in ALERTS}
