"""One cluster, one speculator and one stream of traffic for all faults. The table of results is printed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes.config import new_client_from_config

from tests.assets.cache import cache_root
from tests.assets.model import ensure_model
from tests.assets.trained_draft import write_specialist
from tests.cluster.cluster import Cluster
from tests.faults.fault_rig import NAME, SPEC, FaultRig
from tests.faults.results_table import markdown_table
from tests.rig.installation import RESOURCE, Installation
from tests.rig.sync_api import SyncApi
from tests.traffic.driver import Load, RequestOptions, TrafficDriver
from tests.traffic.prompts import Domain

pytest_plugins = ["tests.cluster.fixture"]
REPORT: list[str] = []
"""Lines to print when pytest ends."""


@pytest.fixture(scope="session")
def rig(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultRig]:
    """A speculator that serves under traffic, until the session ends."""
    model = ensure_model()
    drafts = cache_root() / "drafts"
    specialists = {domain: write_specialist(model, domain, drafts) for domain in (Domain.EXTRACTION, Domain.SQL)}
    aurora = Installation(cluster)
    aurora.install()
    aurora.apply(NAME, SPEC)
    aurora.wait_until(NAME, "both pods serve version 0", lambda cr: cr.get("status", {}).get("updated") == "2/2", 600)
    load = Load(url=aurora.url(NAME), concurrency=4, options=RequestOptions(max_tokens=16, retry_seconds=300.0))
    connection = new_client_from_config(str(cluster.kubeconfig))
    api, scratch = SyncApi(connection), tmp_path_factory.mktemp("drafts")
    rig = FaultRig(aurora, api, NAME, TrafficDriver(load), specialists, scratch)
    rig.driver.start()
    try:
        yield rig
    finally:
        connection.close()
        summary = rig.driver.stop()
        retries = sum(summary.retries.values())
        REPORT.append(f"{summary.requests} requests, {summary.failed} failed, {retries} attempts retried")
        REPORT.append(markdown_table(rig.results))
        aurora.cluster.kubectl("delete", RESOURCE, NAME, "-n", aurora.namespace, "--timeout=120s")


@pytest.fixture
def reject_newest_version_afterwards(rig: FaultRig) -> Iterator[None]:
    """Reject the newest version after each test, so that a failed test does not leave its draft as the next active."""
    yield
    newest = rig.registry.last_version()
    if newest and newest not in rig.status()["rejected"]:
        rig.annotate("abort", newest)


@pytest.fixture
def draft_folder(rig: FaultRig, tmp_path: Path) -> Path:
    """Where a test writes the draft that it offers. The folder does not exist yet."""
    return tmp_path / "draft"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for text in REPORT:
        terminalreporter.write_line(text)
