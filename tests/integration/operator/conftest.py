"""One speculator and its real S3 store, for the tests of what the operator reads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aurora_operator.children.owner import Owner
from tests.assets.s3 import S3, seaweedfs
from tests.integration.operator.store_rig import Speculator, speculator_with_a_draft


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """A SeaweedFS for the tests of one module."""
    with seaweedfs() as server:
        yield server


@pytest.fixture
def owner(request: pytest.FixtureRequest) -> Owner:
    """An owner whose root no other test uses."""
    return Owner("team", "chat", f"{abs(hash(request.node.name)):016x}", 1, "77")


@pytest.fixture
def speculator(s3: S3, owner: Owner) -> Speculator:
    """A speculator whose initial draft is active."""
    return speculator_with_a_draft(s3, owner)
