"""The pytest fixture `cluster`: one cluster for a whole test session.

Use it by `pytest_plugins = ["tests.cluster.fixture"]` in the top conftest, or by importing the name into a conftest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.foreign import ClusterChoiceError
from tests.cluster.prerequisites import MissingPrerequisitesError

__all__ = ["cluster"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster. One that was already up is reused and stays up; so does any when CLUSTER_KEEP is set.

    On a developer's machine that cannot run one, its tests are skipped with the reason. In CI that is a failure: there
    a skip would be a hole that nobody sees.
    """
    try:
        running = Cluster.up()
    except (MissingPrerequisitesError, ClusterChoiceError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    try:
        yield running
    finally:
        if running.access.created and not os.environ.get("CLUSTER_KEEP"):
            running.down()
