"""The one installation of Aurora that all end-to-end tests share, and the Prometheus that watches it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.rig.chart.rendered_chart import render
from tests.rig.installation import Installation
from tests.rig.prometheus.scrape_configs import scrape_configs
from tests.rig.prometheus.server import Prometheus, prometheus

pytest_plugins = ["tests.cluster.fixture"]

SCRAPE_SECONDS = 10
SCRAPER_NAMESPACE = "monitoring"
"""The chart's ``metrics.scraperNamespaces``. Prometheus itself runs on this machine."""


@pytest.fixture(scope="session")
def aurora(cluster: Cluster) -> Installation:
    installation = Installation(cluster, scraper_namespaces=(SCRAPER_NAMESPACE,))
    installation.install()
    return installation


@pytest.fixture(scope="session")
def scraper(aurora: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A real Prometheus that scrapes what the chart's PodMonitors select, on the real cluster."""
    monitors = ("podMonitor", "speculatorPodMonitor")
    values = [f"--set=metrics.{one}.enabled=true,metrics.interval={SCRAPE_SECONDS}s" for one in monitors]
    chart = [one for one in render(*values) if one["kind"] == "PodMonitor"]
    configuration = {
        "scrape_configs": [config for one in chart for config in scrape_configs(one, aurora.cluster.kubeconfig)]
    }
    with prometheus(tmp_path_factory.mktemp("prometheus"), configuration) as running:
        yield running
