"""One cluster, one speculator, one stream of traffic for all faults; the table is printed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes.config import new_client_from_config

from aurora_operator.kubernetes_api import HttpKubernetesApi
from tests.assets.cache import cache_root
from tests.assets.model import ensure_model
from tests.assets.trained_draft import write_specialist
from tests.cluster.cluster import Cluster
from tests.faults.fault_rig import NAME, SPEC, Stage
from tests.faults.results_table import table
from tests.rig.installation import RESOURCE, Installation
from tests.traffic.driver import Driver, Load
from tests.traffic.prompts import Domain

pytest_plugins = ["tests.cluster.fixture"]
TOLD: list[str] = []


@pytest.fixture(scope="session")
def stage(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    model = ensure_model()
    kept = cache_root() / "drafts"
    specialists = {domain: write_specialist(model, domain, kept) for domain in (Domain.EXTRACTION, Domain.SQL)}
    aurora = Installation(cluster)
    aurora.install()
    aurora.apply(NAME, SPEC)
    aurora.wait(NAME, "both pods serve", lambda cr: cr.get("status", {}).get("readyReplicas") == 2, 600)
    load = Load(url=aurora.url(NAME), concurrency=4, max_tokens=16, again_seconds=300.0, progress_seconds=1e9)
    connection = new_client_from_config(str(cluster.kubeconfig), context=cluster.access.context)
    stage = Stage(aurora, HttpKubernetesApi(connection), Driver(load), specialists, tmp_path_factory.mktemp("drafts"))
    stage.driver.start()
    try:
        yield stage
    finally:
        connection.close()
        summary = stage.driver.stop()
        TOLD.append(f"{summary.requests} requests, {summary.failed} failed, {sum(summary.broken.values())} asked again")
        TOLD.append(table(stage.entries))
        aurora.cluster.kubectl("delete", RESOURCE, NAME, "-n", aurora.namespace, "--timeout=120s")


@pytest.fixture(autouse=True)
def refused_afterwards(stage: Stage) -> Iterator[None]:
    """What a test that failed leaves half way does not become the next one's active draft."""
    yield
    newest = stage.registry.last_version()
    if newest and newest not in stage.status()["rejected"]:
        stage.annotate("abort", newest)


@pytest.fixture
def folder(stage: Stage, tmp_path: Path) -> Path:
    """Where a test makes the draft that it offers."""
    return tmp_path / "draft"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for text in TOLD:
        terminalreporter.write_line(text)
