"""One cluster and one installation for all isolation tests. No pod serves a model here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.isolation.idle_speculators import IdleSpeculators
from tests.rig.installation import RESOURCE, Installation

pytest_plugins = ["tests.cluster.fixture"]


@pytest.fixture(scope="session")
def aurora(cluster: Cluster) -> Installation:
    installation = Installation(cluster)
    installation.install()
    return installation


@pytest.fixture
def speculators(aurora: Installation) -> Iterator[IdleSpeculators]:
    """Calls on idle speculators. All speculators of the namespace are deleted afterwards."""
    yield IdleSpeculators(aurora)
    aurora.cluster.kubectl("delete", RESOURCE, "--all", "-n", aurora.namespace, "--timeout=300s", timeout_seconds=330)
