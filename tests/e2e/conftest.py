"""The one installation of Aurora that all end-to-end tests share."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster
from tests.rig.installation import Installation

pytest_plugins = ["tests.cluster.fixture"]


@pytest.fixture(scope="session")
def aurora(cluster: Cluster) -> Installation:
    installation = Installation(cluster)
    installation.install()
    return installation
