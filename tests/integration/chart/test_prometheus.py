"""A real Prometheus finds, scrapes and alerts on real processes as the chart asks for it, and the dashboard has data.

The operator and the agent are real. Engine, plugins and trainer are stand-ins (tests/rig/prometheus).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.command import wait_until
from tests.rig.chart.rendered_chart import OPERATOR, Object, render, select
from tests.rig.operator_replicas import NAME, NAMESPACE, SYSTEM_NAMESPACE
from tests.rig.prometheus.dashboard_queries import dashboard_queries
from tests.rig.prometheus.monitored_speculator import (
    INFERENCE_POD,
    OPERATOR_POD,
    MonitoredSpeculator,
    monitored_speculator,
)
from tests.rig.prometheus.scrape_configs import scrape_configs
from tests.rig.prometheus.server import Prometheus, prometheus
from tests.unit.chart.promql import named

SECONDS = 2
"""Between two scrapes, and between two evaluations of the alerts."""
RATE_INTERVAL = f"{4 * SECONDS}s"
"""Grafana's value of ``$__rate_interval`` at this scrape interval."""
VALUES = (
    f"--set=metrics.interval={SECONDS}s",
    "--set=metrics.podMonitor.enabled=true,metrics.speculatorPodMonitor.enabled=true",
    "--set=metrics.prometheusRule.enabled=true",
)
UP_SECONDS, DATA_SECONDS = 60.0, 90.0
NEED_A_PROMOTION = {
    "aurora_speculator_active_speedup",
    "aurora_speculator_active_version",
    "aurora_speculator_decisions_total",
}
"""Metrics whose queries show something once a draft was measured on a real engine and promoted."""
NEED_AN_ESTIMATE = {"aurora_speculator_saved_devices"}
"""The same once the operator got an engine's estimate from its agent. This agent has another port than agents have."""


@pytest.fixture(scope="module", name="chart")
def _chart() -> list[Object]:
    return render(*VALUES)


@pytest.fixture(scope="module", name="monitored")
def _monitored(tmp_path_factory: pytest.TempPathFactory, chart: list[Object]) -> Iterator[MonitoredSpeculator]:
    with monitored_speculator(tmp_path_factory.mktemp("monitored"), chart) as made:
        yield made


@pytest.fixture(scope="module", name="scraper")
def _scraper(
    tmp_path_factory: pytest.TempPathFactory, chart: list[Object], monitored: MonitoredSpeculator
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    monitors = [obj for obj in chart if obj["kind"] == "PodMonitor"]
    rules = folder / "rules.yaml"
    rules.write_text(yaml.safe_dump(select(chart, "PrometheusRule")["spec"]))
    kubeconfig = monitored.server.kubeconfig
    configuration = {
        "global": {"scrape_interval": f"{SECONDS}s", "evaluation_interval": f"{SECONDS}s"},
        "rule_files": [str(rules)],
        "scrape_configs": [config for monitor in monitors for config in scrape_configs(monitor, kubeconfig)],
    }
    with prometheus(folder, configuration) as running:
        yield running


def _health(scraper: Prometheus) -> dict[tuple[str, str, str], str]:
    """Job, pod and port of each target, and whether its last scrape succeeded."""
    return {(t.labels["job"], t.labels["pod"], t.labels["endpoint"]): t.health for t in scraper.targets()}


def test_each_port_of_each_pod_is_one_target_and_is_up(scraper: Prometheus) -> None:
    operators, speculators = (f"{SYSTEM_NAMESPACE}/{name}" for name in (OPERATOR, f"{OPERATOR}-speculators"))
    expected = {
        (operators, OPERATOR_POD, "metrics"): "up",
        (speculators, INFERENCE_POD, "agent"): "up",
        (speculators, INFERENCE_POD, "http"): "up",
    }
    wait_until("the targets", lambda: _health(scraper) == expected, UP_SECONDS, lambda: f": {scraper.targets()}")


@pytest.mark.parametrize(
    "series", ["aurora_speculator_condition", "aurora_agent_engine_ready", "sglang:num_running_reqs"]
)
def test_operator_agent_and_engine_name_the_same_speculator(scraper: Prometheus, series: str) -> None:
    wait_until(series, lambda: bool(scraper.now(series)), UP_SECONDS)
    for found in scraper.now(series):
        labels = found.labels
        assert (labels["namespace"], labels["name"]) == (NAMESPACE, NAME)
        assert not [label for label in labels if label.startswith("exported_")], "two parts fight for a label"


def test_every_alert_can_be_evaluated_and_only_the_missing_trainer_is_reported(
    scraper: Prometheus, chart: list[Object]
) -> None:
    wait_until("the alerts", lambda: all(r.health != "unknown" for r in scraper.rules()), UP_SECONDS)
    groups = select(chart, "PrometheusRule")["spec"]["groups"]
    expected = {rule["alert"] for group in groups for rule in group["rules"]}
    assert {rule.name for rule in scraper.rules()} == expected
    assert [rule for rule in scraper.rules() if rule.health != "ok" or rule.last_error] == []

    def reported() -> set[str]:
        return {found.labels["alertname"] for found in scraper.now("ALERTS")}

    wait_until("the alerts", lambda: reported() == {"AuroraTrainerDown"}, UP_SECONDS, lambda: f": {reported()}")


@pytest.fixture(scope="module", name="since")
def _since(scraper: Prometheus, monitored: MonitoredSpeculator) -> float:
    """The time, in Unix seconds, from which there is traffic in Prometheus. A swap follows."""
    begin = time.time()
    wait_until("the agent's metrics", lambda: len(_swaps(scraper, begin)) > 1, UP_SECONDS)
    monitored.swap(1, epoch=2)
    return begin


def _swaps(scraper: Prometheus, since: float) -> tuple[float, ...]:
    found = scraper.between('aurora_agent_swaps_total{result="success"}', since, time.time(), SECONDS)
    return found[0].values if found else ()


def test_the_first_swap_of_a_pod_is_counted(scraper: Prometheus, since: float) -> None:
    """``increase`` does not see the value with which a series begins."""
    wait_until("the swap", lambda: max(_swaps(scraper, since)) == 1, UP_SECONDS)
    (increase,) = scraper.now('increase(aurora_agent_swaps_total{result="success"}[1h])')
    assert increase.values[0] > 0.5


def test_every_query_of_the_dashboard_has_data_when_its_processes_run(scraper: Prometheus, since: float) -> None:
    def empty() -> set[str]:
        """The metrics of queries that show nothing."""
        now, found = time.time(), set[str]()
        for query in dashboard_queries():
            if not scraper.between(query.filled_in(NAMESPACE, NAME, RATE_INTERVAL), since, now, SECONDS):
                found |= named(query.expression)[0]
        return found

    wait_until(
        "data of every panel",
        lambda: empty() == NEED_A_PROMOTION | NEED_AN_ESTIMATE,
        DATA_SECONDS,
        lambda: f": {empty()}",
    )
