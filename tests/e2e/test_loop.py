"""The whole loop on a real cluster while its parts are killed one at a time, and a real Prometheus watches.

The tests check promises 1 to 4 (docs/explanation/promises.md) from outside.

All tests share one run, because a draft needs minutes on two cores until it passes the gate.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from aurora_protocol.evidence_records import VerdictKind
from tests.cluster.command import environment_without_proxies
from tests.cluster.connection_probe import ConnectionProbe, Outcome, start_probes
from tests.demo.progress import learned_draft_serves_everywhere, progress_line
from tests.e2e.conftest import SCRAPE_SECONDS, SCRAPER_NAMESPACE
from tests.e2e.ports_of_pods import PortsOfPods
from tests.rig.fault_injection import OPERATOR_SELECTOR, evict_pod, kill_container, kill_operator
from tests.rig.installation import RESOURCE, SYSTEM_NAMESPACE, Installation
from tests.rig.local_image import local_image
from tests.rig.prometheus.dashboard_queries import dashboard_queries
from tests.rig.prometheus.server import Prometheus
from tests.rig.small_speculator import MODEL_PATH
from tests.rig.store_inspection import check_objects, registry
from tests.traffic.driver import Load, RequestOptions, TrafficDriver
from tests.traffic.report import Summary

pytestmark = pytest.mark.timeout(3000)
NAME = "loop"
SPEC: Final[dict[str, Any]] = {"validation": {"concurrencies": [1]}, "draft": {"lookup": "Request"}}
"""Two concurrencies take twice as long, and tests/integration/engine/test_validation.py measures at two. The answers of
this run repeat each other. With lookup in all of them the draft would hardly ever propose."""
BUDGET_SECONDS = 2400.0
RATE_INTERVAL = f"{4 * SCRAPE_SECONDS}s"
"""Grafana's value of ``$__rate_interval`` at this scrape interval."""
MAY_BE_EMPTY = {"Losses by reason", "Cost of training and saving"}
"""Panels without data in a run that goes well. A saving is known once the engine of each pod has run for ten
minutes."""
STRANGER_NAMESPACE = "stranger"


@dataclass
class Run:
    """The outcome of the run."""

    resource: dict[str, object] = field(default_factory=dict)
    """The custom resource at the end."""
    traffic: Summary | None = None
    initial_checksums: set[str] = field(default_factory=set)
    """The checksums that the pods reported for the initial draft."""
    killed: list[str] = field(default_factory=list)
    """The parts that were killed, in order."""
    began: float = 0.0
    ended: float = 0.0
    """Unix times in seconds."""


def _status(resource: dict[str, object]) -> dict[str, object]:
    status = resource["status"]
    assert isinstance(status, dict)
    return status


@pytest.fixture(scope="module")
def run(aurora: Installation, scraper: Prometheus) -> Iterator[Run]:
    outcome = Run(began=time.time())
    aurora.apply(NAME, SPEC)
    ready = aurora.wait_until(
        NAME, "both pods serve version 0", lambda cr: cr.get("status", {}).get("updated") == "2/2", 600
    )
    outcome.initial_checksums = {pod["checksum"] for pod in ready["status"]["pods"]}
    driver = TrafficDriver(Load(url=aurora.url(NAME), concurrency=4, options=RequestOptions(max_tokens=64)))
    driver.start()
    deadline = time.monotonic() + BUDGET_SECONDS
    try:
        while time.monotonic() < deadline:
            time.sleep(10)
            resource = aurora.get(NAME)
            print(progress_line(resource, driver.summary()), flush=True)
            _kill_next(aurora, outcome, resource)
            if learned_draft_serves_everywhere(resource) and len(outcome.killed) == 4:
                break
        time.sleep(2.5 * SCRAPE_SECONDS)  # Prometheus sees the promotion
    finally:
        outcome.traffic = driver.stop()
    outcome.resource = aurora.get(NAME)
    outcome.ended = time.time()
    yield outcome
    aurora.cluster.kubectl("delete", RESOURCE, NAME, "-n", aurora.namespace, "--timeout=120s")


def _kill_next(aurora: Installation, outcome: Run, resource: dict[str, object]) -> None:
    """Kill the next part, at a moment when that part has work to do."""
    status = _status(resource)
    training, pods = status.get("training"), status.get("pods")
    assert isinstance(training, dict)
    assert isinstance(pods, list)
    if "trainer" not in outcome.killed and training.get("step", 0) > 10:
        kill_container(aurora, _trainer_pod(aurora), "trainer")
        outcome.killed.append("trainer")
    elif "agent" not in outcome.killed and "trainer" in outcome.killed:
        kill_container(aurora, pods[0]["name"], "agent")
        outcome.killed.append("agent")
    elif "operator" not in outcome.killed and status.get("candidate"):
        kill_operator(aurora)
        outcome.killed.append("operator")
    elif "pod" not in outcome.killed and "operator" in outcome.killed and status.get("readyReplicas") == 2:
        evict_pod(aurora, pods[-1]["name"])
        outcome.killed.append("pod")


def _trainer_pod(aurora: Installation) -> str:
    labels = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component=trainer"
    (pod,) = aurora.cluster.get("pods", "-n", aurora.namespace, "-l", labels)["items"]
    return str(pod["metadata"]["name"])


@pytest.fixture
def probes(aurora: Installation) -> Iterator[tuple[ConnectionProbe, ConnectionProbe]]:
    """A pod in a namespace of which nobody has heard, and one in a namespace that may scrape."""
    namespaces, cluster = (STRANGER_NAMESPACE, SCRAPER_NAMESPACE), aurora.cluster
    cluster.apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in namespaces))
    stranger, scraper = (ConnectionProbe(cluster, name, "probe") for name in namespaces)
    image, _ = local_image()
    start_probes(image, stranger, scraper)
    yield stranger, scraper
    cluster.kubectl("delete", "namespace", *namespaces, "--wait=false")


def test_every_part_was_killed(run: Run) -> None:
    assert sorted(run.killed) == ["agent", "operator", "pod", "trainer"]


def test_a_draft_that_passed_the_gate_serves_on_every_pod(run: Run, aurora: Installation) -> None:
    assert learned_draft_serves_everywhere(run.resource), run.resource.get("status")
    status = _status(run.resource)
    active, pods = status["active"], status["pods"]
    assert isinstance(active, dict)
    assert isinstance(pods, list)
    evidence = registry(aurora, NAME).evidence(active["version"])
    assert evidence is not None
    assert evidence.verdict.kind is VerdictKind.PASS
    assert active["speedup"]
    checksums = {pod["checksum"] for pod in pods}
    assert len(checksums) == 1
    assert not checksums & run.initial_checksums


def test_no_request_failed(run: Run) -> None:
    assert run.traffic is not None
    assert run.traffic.requests > 100
    assert run.traffic.failed == 0, run.traffic.failures
    assert (run.traffic.distinct_4grams or 0) > 0.8


def test_every_object_of_the_store_is_valid(run: Run, aurora: Installation) -> None:
    print(check_objects(aurora, NAME))


def test_every_panel_of_the_dashboard_has_data_of_the_run(run: Run, aurora: Installation, scraper: Prometheus) -> None:
    empty = {
        query.title
        for query in dashboard_queries()
        if not scraper.between(
            query.filled_in(aurora.namespace, NAME, RATE_INTERVAL), run.began, run.ended, SCRAPE_SECONDS
        )
    }
    assert empty - MAY_BE_EMPTY == set(), scraper.targets()


def test_policies_keep_strangers_out_and_let_clients_and_scrapers_in(
    run: Run, aurora: Installation, probes: tuple[ConnectionProbe, ConnectionProbe]
) -> None:
    stranger, scraper = probes
    ports = PortsOfPods.of(aurora, NAME)
    stranger.wait_until(ports.outcomes(engines=Outcome.DROPPED, agents=Outcome.DROPPED))
    aurora.cluster.kubectl("label", "namespace", STRANGER_NAMESPACE, "aurora.dev/client=true")
    stranger.wait_until(ports.outcomes(engines=Outcome.CONNECTED, agents=Outcome.DROPPED))
    scraper.wait_until(ports.outcomes(engines=Outcome.CONNECTED, agents=Outcome.CONNECTED))


def test_kubectl_get_shows_the_outcome(run: Run, aurora: Installation) -> None:
    table = aurora.cluster.kubectl("get", "aspec", NAME, "-n", aurora.namespace)
    header, row = table.splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "ACTIVE", "SPEEDUP", "ACCEPT-LEN", "UPDATED", "ROLLOUT", "AGE"]
    assert "True" in row.split()[1]
    assert "2/2" in row


def test_the_plugin_publishes_the_active_draft_and_refuses_a_head_that_does_not_fit(
    run: Run, aurora: Installation, tmp_path: Path
) -> None:
    def plugin(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "aurora_cli", "draft", *arguments, "--namespace", aurora.namespace]
        path = f"{aurora.cluster.programs}:{os.environ['PATH']}"
        environment = environment_without_proxies({**aurora.cluster.environment, "PATH": path})
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    exported = plugin("export", NAME, "--to", str(tmp_path / "head"))
    assert exported.returncode == 0, exported.stderr
    assert {"README.md", "config.json", "model.safetensors"} <= {file.name for file in (tmp_path / "head").iterdir()}
    refused = plugin("check", NAME, MODEL_PATH)  # the target itself is no head
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1, refused.stderr


def test_the_operator_logged_no_unexpected_error(run: Run, aurora: Installation) -> None:
    log = aurora.cluster.kubectl("logs", "-n", SYSTEM_NAMESPACE, "-l", OPERATOR_SELECTOR, "--prefix", "--tail=-1")
    unexpected = ('"severity": "error"', '"severity": "fatal"', "Traceback")
    assert [line for line in log.splitlines() if any(mark in line for mark in unexpected)] == []
