"""One API server with the chart installed, for all tests of this folder. No operator runs unless a test starts one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rig.api_server import ApiServer, api_server
from tests.rig.chart.rendered_chart import CHART, IMAGES, NAMESPACE, RELEASE

TEAM = "team"
"""Namespace of the speculators."""


@pytest.fixture(scope="package", name="server")
def _server() -> Iterator[ApiServer]:
    """The server checks the rights behind owner references, and keeps the ClusterRoles of Kubernetes complete."""
    controllers, plugins = ["clusterrole-aggregation-controller"], ["OwnerReferencesPermissionEnforcement"]
    with api_server(controllers, plugins) as server:
        server.helm("install", RELEASE, CHART, "-n", NAMESPACE, "--create-namespace", "-f", IMAGES)
        server.kubectl("create", "namespace", TEAM)
        server.kubectl("wait", "--for=condition=Established", "crd/auroraspeculators.aurora.dev", "--timeout=30s")
        yield server
