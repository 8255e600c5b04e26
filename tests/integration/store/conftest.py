"""The store of the tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aurora_store import ObjectStore
from tests.assets.s3 import S3, seaweedfs


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """A SeaweedFS with an empty bucket, for the tests of one module."""
    with seaweedfs() as server:
        ObjectStore(server.config()).ensure_bucket()
        yield server
