"""The pytest fixture `cluster`: one cluster for a whole test session.

To use the fixture, set `pytest_plugins = ["tests.cluster.fixture"]` in the top conftest, or import the name `cluster`
into a conftest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.command import drop_proxies
from tests.cluster.local.prerequisites import MissingPrerequisitesError

__all__ = ["cluster"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster.

    The fixture reuses a cluster that is already up and leaves that cluster running. It stops a cluster that it
    started, unless CLUSTER_KEEP is set. Tests are skipped, with the reason, on a developer's machine that cannot run a
    cluster. In CI the same problem is an error, because nobody would notice the skipped tests there.
    """
    try:
        running = Cluster.up()
    except MissingPrerequisitesError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    drop_proxies()  # what the tests talk to is on this machine
    try:
        yield running
    finally:
        if running.created and not os.environ.get("CLUSTER_KEEP"):
            running.down()
